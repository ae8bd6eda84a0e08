"""What the library asks of an object store, and nothing more.

A `Store` is one directory (a URL prefix) of a store. Promises of every engine behind it: a put is atomic
(readers see the old object or the new one, never a part), a conditional put is decided by the store itself, a
read returns body and version of the same moment, nothing is answered from a cache, a delete touches exactly
the keys it is given and reports each failure. It knows nothing of checkpoints, and it never creates or
removes a bucket.
"""

import abc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeAlias

from typing_extensions import Self

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer

__all__ = [
    "Object",
    "ObjectInfo",
    "PutMode",
    "Store",
    "Version",
    "check_key",
    "check_range",
]


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one object. Opaque: compared for equality, and handed back to `Store.put`."""

    token: str


@dataclass(frozen=True, slots=True)
class Object:
    """A whole object, as it was at one moment."""

    data: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object; `size` in bytes."""

    key: str
    size: int


PutMode: TypeAlias = Literal["create", "overwrite"] | Version
"""When a put may happen: only if nothing is there, always, or only over exactly this version."""


class Store(abc.ABC):
    """One directory of an object store. Safe to use from several threads.

    Keys are relative POSIX paths such as `ckpt-7.index`; a key that could leave the directory or that some
    store cannot spell raises `ValueError`. Every method also raises `StoreError` when the store refuses or
    cannot be reached.

    Attributes:
        url: The directory, canonical: no credentials, no trailing slash (unless it is a root, as `/` or
            `memory://`).
        engine: Which engine runs and why, for people.
    """

    url: str
    engine: str

    @property
    def single(self) -> "Store":
        """The same directory, with every request sent once: for protocols that repeat requests themselves."""
        return self

    def url_of(self, key: str) -> str:
        """The full URL of `key`.

        Raises:
            ValueError: `key` is no key.
        """
        return f"{self.url}{'' if self.url.endswith('/') else '/'}{check_key(key)}"

    @abc.abstractmethod
    def read(self, key: str) -> Object:
        """Body and version of one moment, in one request. For small objects: all of it is held in memory.

        Raises:
            NotFoundError: There is no such object.
        """

    @abc.abstractmethod
    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """Exactly `length` bytes from `start`.

        Raises:
            NotFoundError: There is no such object.
            CorruptError: The object ends before `start + length`.
            ValueError: `start` or `length` is negative.
        """

    @abc.abstractmethod
    def size(self, key: str) -> int:
        """The object's size in bytes.

        Raises:
            NotFoundError: There is no such object.
        """

    @abc.abstractmethod
    def put(self, key: str, buffers: Sequence[Buffer], mode: PutMode) -> Version:
        """Write the concatenation of `buffers` as one object, atomically.

        A conditional put is sent once. After a transient `StoreError` it may have landed, and even a
        `ConflictError` may be the echo of one's own write where something below re-sent it: read back before
        you decide. Equal bytes may bring an old version back (S3's is a digest of them), so what is compared
        and swapped carries a nonce.

        Raises:
            ConflictError: With `create`, something is there; with a `Version`, the object is not exactly that
                any more, or is gone.
            NotFoundError: There is no such bucket.
            UnsupportedError: The store has no conditional put.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key begins with the characters `prefix`, at any depth, in no particular order.

        Objects that no key can name (an empty path segment, a directory marker) are left out.

        Raises:
            NotFoundError: There is no such bucket.
        """

    @abc.abstractmethod
    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """Remove exactly these objects, and return what failed, by key. A missing object is a success."""

    @abc.abstractmethod
    def remove(self, key: str, version: Version) -> bool:
        """Remove an object if it is exactly `version`: others may have replaced it. A missing object is a success.

        Sent once, as every conditional request. A store that has no conditional delete leaves a moment between look
        and deletion, in which a request that lands late can meet another object of that name. One that ignores the
        condition is not noticed here.

        Returns:
            Whether the condition went with the deletion.

        Raises:
            ConflictError: It is another version, and still there.
            UnsupportedError: The store has no versions.
        """

    @abc.abstractmethod
    def require_container(self) -> None:
        """Pass if the bucket is there: then a missing object means a fresh directory, not a misspelt bucket.

        A store that does not tell (permission to list is withheld) passes: the read itself will be refused.

        Raises:
            NotFoundError: There is no such bucket.
        """

    def close(self) -> None:  # noqa: B027 - an engine without connections has nothing to give back
        """Give connections back. The store is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url!r}: {self.engine}>"


def check_key(key: str) -> str:
    """`key` itself, if it names an object inside the directory on every store.

    Raises:
        ValueError: It is empty, absolute, has an empty, `.` or `..` segment, or control characters.
    """
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise ValueError(f"{key!r} is no object key: it needs segments other than '', '.' and '..' between single '/'.")
    if _CONTROL.search(key):
        raise ValueError(f"{key!r} is no object key: it holds control characters.")
    return key


def check_range(start: int, length: int) -> None:
    """Pass for a range of bytes.

    Raises:
        ValueError: `start` or `length` is negative.
    """
    if start < 0 or length < 0:
        raise ValueError(
            f"A range starts at 0 or later and has no negative length, not start={start}, length={length}."
        )
