"""Any other fsspec filesystem: reads, listings, deletes and unconditional writes.

Promises: nothing is answered from a listing cache; a delete names its keys one by one. What it cannot promise
it refuses: fsspec has no conditional write, so `create` and replacement raise `UnsupportedError`. Whether an
overwrite is atomic is up to the filesystem.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, join
from ckpt_remote.store import faults, interface

__all__ = ["FsspecStore"]

_T = TypeVar("_T")
_NOTHING_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FsspecStore(interface.Store):
    """The directory `root` of `filesystem`."""

    def __init__(self, filesystem: Any, root: str, url: str, engine: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.url = url
        self.engine = engine

    def read(self, key: str) -> interface.Object:
        """As `Store.read`. The version is a digest of the bytes: fsspec knows no better one."""
        path = self._path(key)
        data = bytes(self._ask("read", key, lambda: self._filesystem.cat_file(path)))
        return interface.Object(data, _digest(data))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        path = self._path(key)
        data = bytes(self._ask("read", key, lambda: self._filesystem.cat_file(path, start=start, end=start + length)))
        if len(data) != length:
            raise faults.corrupt(faults.Request("read", self.url_of(key)), start, length, self.size(key))
        return data

    def size(self, key: str) -> int:
        """As `Store.size`."""
        path = self._path(key)
        self._filesystem.invalidate_cache()
        return int(self._ask("look up", key, lambda: self._filesystem.info(path))["size"])

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`, to overwrite only."""
        path = self._path(key)
        if mode != "overwrite":
            raise self._unsafe("write", key)
        data = join(buffers)

        def write() -> None:
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(path, data)

        self._ask("write", key, write)
        return _digest(data)

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""
        start = f"{self._root}/"
        self._filesystem.invalidate_cache()
        try:
            found = self._ask("list", "", lambda: self._filesystem.find(self._root, detail=True))
        except errors.NotFoundError:
            return
        for path, info in found.items():
            if path.startswith(start + prefix):
                yield interface.ObjectInfo(path[len(start) :], info["size"])

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`, one by one."""
        outcomes = {key: self._delete(key, path) for key, path in [(key, self._path(key)) for key in keys]}
        return {key: failure for key, failure in outcomes.items() if failure is not None}

    def remove(self, key: str, version: interface.Version) -> bool:  # noqa: ARG002 - the interface's
        """Refused: fsspec's filesystems have no versions."""
        raise self._unsafe("delete", key)

    def require_container(self) -> None:
        """Nothing: what a container is differs between filesystems."""

    def _delete(self, key: str, path: str) -> errors.CheckpointError | None:
        try:
            self._ask("delete", key, lambda: self._filesystem.rm_file(path))
        except errors.NotFoundError:
            return None
        except errors.CheckpointError as error:
            return error
        return None

    def _unsafe(self, verb: str, key: str) -> errors.UnsupportedError:
        return errors.UnsupportedError(
            f"Cannot {verb} {self.url_of(key)} safely: {type(self._filesystem).__name__} has no conditional requests, "
            f"so two writers could destroy each other's checkpoints. Save to an object store through its own URL, or "
            f"to a local path.",
            path=self.url_of(key),
        )

    def _path(self, key: str) -> str:
        return f"{self._root}/{interface.check_key(key)}"

    def _ask(self, verb: str, key: str, operation: Callable[[], _T]) -> _T:
        request = faults.Request(verb, self.url_of(key) if key else self.url)
        try:
            return operation()
        except _NOTHING_THERE as error:
            raise faults.not_found(request) from error
        except PermissionError as error:
            raise faults.refused(request, type(error).__name__) from error
        except NotImplementedError as error:
            raise errors.UnsupportedError(
                f"Cannot {verb} {request.url}: {type(self._filesystem).__name__} does not support it.",
                path=request.url,
            ) from error
        except (ConnectionError, TimeoutError, asyncio.TimeoutError) as error:
            raise faults.unreachable(request, type(error).__name__) from error
        except OSError as error:
            raise errors.StoreError(f"Cannot {verb} {request.url}: {error}", path=request.url) from error


def _digest(data: bytes) -> interface.Version:
    return interface.Version(hashlib.blake2b(data, digest_size=16).hexdigest())
