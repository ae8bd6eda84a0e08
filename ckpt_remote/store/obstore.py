"""The fast engines: obstore moves the bytes, whatever the cloud.

Promises: a put sends the callers' own buffers as one request, without copying; nothing is retried; Ctrl-C
interrupts the wait (the request itself may still land); every request has a deadline that grows with its
size. A forked child gets an error instead of hanging for ever. obstore has one class of error for 400 and 503: the
store is asked what is wrong, seldom (see `diagnosis`). What a cloud answers in its own way (accounts, versions,
listings, deletions) is its subclass's: `obstore_s3`, `obstore_gcs`, `obstore_azure`.
"""

import abc
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import obstore
from obstore import exceptions

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, total_size
from ckpt_remote.parallel import Beside
from ckpt_remote.store import deadline, diagnosis, faults, interface, urls

__all__ = ["READ", "Account", "Look", "ObstoreStore"]


class Account(Protocol):
    """One user's way to a store."""

    def close(self) -> None:
        """Give the connections back."""


_T = TypeVar("_T")
_A = TypeVar("_A", bound=Account)
Look: TypeAlias = Callable[[faults.Request], errors.CheckpointError | None]
_MEBIBYTE = 1 << 20
# Timeouts belong to obstore's clients, so sizes are rounded up to these and each has a client of its own.
_SIZES = (64 * 1024, *(mebibytes * _MEBIBYTE for mebibytes in (1, 16, 128, 1024, 5 * 1024)))
# Whole objects are read without knowing their size; they are indexes and states.
READ = 16 * _MEBIBYTE
_SECRETIVE = re.compile(r"[\n<?]")
_SERVER_CODE = re.compile(r"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class _Client:
    """An obstore store, and after how many seconds a failure of its requests is silence."""

    store: Any
    limit: float


class ObstoreStore(interface.Store, Generic[_A]):
    """A directory of a bucket. The first request connects, so that opening is free and cannot fail.

    Args:
        location: The directory.
        engine: As `Store.engine`.
        patience: Seconds that a put of no size may take, or that the server may be silent while it is read from;
            None for the default.
    """

    _instead: ClassVar[str] = ""
    """What to do in a forked process instead, for messages."""

    def __init__(self, location: urls.BucketUrl, engine: str, patience: float | None = None) -> None:
        self.url = str(location)
        self.engine = engine
        self._location = location
        self._patience = deadline.PATIENCE if patience is None else patience
        self._lock = threading.Lock()
        self._clients: dict[tuple[int, bool], _Client] = {}
        self._connecting = threading.Lock()
        self._inquiry = diagnosis.Inquiry(self._trouble)

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        path = self._path(key)
        data, meta = self._send(lambda failure: self._meaning(failure, "read", key), self._reader(READ), _get, path)
        return interface.Object(data, self._version(meta, key))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        path = self._path(key)
        if not length:
            return self._nothing(key, start)
        data = self._send(
            lambda failure: self._meaning(
                failure, "read", key, lambda request: self._beyond(request, key, start, length)
            ),
            self._reader(length),
            obstore.get_range,
            path,
            start=start,
            length=length,
        )
        if len(data) != length:
            raise faults.corrupt(self._request("read", key), start, length, start + len(data))
        return memoryview(data)

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            self._clients.clear()
        if "_connected" in self.__dict__:
            self._connected.close()

    @abc.abstractmethod
    def _connect(self) -> _A:
        """The account. Called once, by the first request."""

    @abc.abstractmethod
    def _open(self, seconds: float, silence: float | None) -> Any:
        """An obstore store without retries.

        Args:
            seconds: How long its requests may take from connecting to the last byte.
            silence: How long the server may send nothing, the time to send it the request included.
        """

    @abc.abstractmethod
    def _request(self, verb: str, key: str = "") -> faults.Request:
        """How messages speak of an operation on `key`, or on the directory."""

    @abc.abstractmethod
    def _version(self, meta: Mapping[str, Any], key: str) -> interface.Version:
        """The version in obstore's metadata or its answer to a put.

        Raises:
            UnsupportedError: The service tells none.
        """

    @abc.abstractmethod
    def _trouble(self) -> faults.Meaning | None:
        """What is wrong with the bucket or the account, by the answer to one question; None if that tells nothing."""

    def _refused(self, request: faults.Request, code: str, failure: Exception) -> errors.CheckpointError:  # noqa: ARG002 - for subclasses
        """What a refusal means: obstore's 401 or 403, and the service's or obstore's word for it."""
        return faults.refused(request, code)

    def _put(
        self,
        key: str,
        buffers: Sequence[Buffer],
        mode: interface.PutMode,
        condition: Any,
        attributes: Mapping[str, str] | None = None,
    ) -> interface.Version:
        """One put; `condition` is obstore's word for `mode`."""
        path = self._path(key)
        result = self._send(
            lambda failure: self._put_meaning(failure, key, mode),
            self._writer(total_size(buffers)),
            obstore.put,
            path,
            list(buffers),
            mode=condition,
            use_multipart=False,
            attributes=attributes,
        )
        return self._version(result, key)

    @property
    def _account(self) -> _A:
        self._require_home()
        with self._connecting:  # 32 threads that begin together search for credentials once
            return self._connected

    @functools.cached_property
    def _connected(self) -> _A:
        return self._connect()

    def _require_home(self) -> None:
        """Pass in the process that obstore's threads live in."""
        _home.require(self.url, self._instead)

    def _reader(self, size: int) -> _Client:
        return self._client(size, silent=True)

    def _writer(self, size: int) -> _Client:
        return self._client(size, silent=False)

    def _client(self, size: int, *, silent: bool) -> _Client:
        self._require_home()
        rounded = next((limit for limit in _SIZES if size <= limit), size)
        seconds = deadline.seconds_for(rounded, self._patience)
        silence = self._patience if silent else None
        with self._lock:
            if (rounded, silent) not in self._clients:
                self._clients[rounded, silent] = _Client(self._opened(seconds, silence), silence or seconds)
            return self._clients[rounded, silent]

    def _opened(self, seconds: float, silence: float | None) -> Any:
        try:
            return self._open(seconds, silence)
        except exceptions.BaseError as error:
            failure = error
        raise errors.StoreError(
            f"Cannot open {self.url}: obstore refuses the settings ({type(failure).__name__}). Check the endpoint and "
            f"the credentials in storage_options and in the environment.",
            path=self.url,
        ) from _quiet(failure)

    def _send(
        self,
        meaning: Callable[[Exception], Exception],
        client: _Client,
        function: Callable[..., _T],
        *arguments: Any,
        **named: Any,
    ) -> _T:
        """The function's result, or what its failure means."""
        request = functools.partial(function, client.store, *arguments, **named)
        # Ctrl-C arrives in the main thread: it ends the wait there, not the request.
        interruptible = threading.current_thread() is threading.main_thread()
        start = time.monotonic()
        try:
            answer = Beside(request, name="ckpt_remote-store").result() if interruptible else request()
        except (exceptions.BaseError, FileNotFoundError) as error:
            failure: Exception = error
        else:
            self._inquiry.forget()
            return answer
        # obstore has no class for a timeout.
        if isinstance(failure, exceptions.GenericError) and time.monotonic() - start >= client.limit:
            failure = TimeoutError(f"no answer within {client.limit:.0f} seconds")
        # Outside the handler, so that the failure is no context of what is raised: its text may echo signed
        # headers.
        explanation = meaning(failure)
        raise explanation from _quiet(failure)

    def _path(self, key: str) -> str:
        return self._location.root + interface.check_key(key)

    def _nothing(self, key: str, start: int) -> bytes:
        size = self.size(key)
        if start > size:
            raise faults.corrupt(self._request("read", key), start, 0, size)
        return b""

    def _beyond(self, request: faults.Request, key: str, start: int, length: int) -> errors.CheckpointError | None:
        """Why a range could not be read, from the object's size: one that begins after the end has no class."""
        try:
            size = self.size(key)
        except faults.ExpiredError as error:
            return error
        except errors.CheckpointError as error:
            return faults.about(error)(request) if faults.is_passing(error) else None
        return faults.corrupt(request, start, length, size) if size < start + length else None

    def _put_meaning(self, failure: Exception, key: str, mode: interface.PutMode) -> Exception:
        """A lost race, told from what obstore reports alike: no bucket, and S3's 409 for an open race."""
        exists = isinstance(failure, exceptions.AlreadyExistsError)
        if not exists and not isinstance(failure, exceptions.PreconditionError):
            return self._meaning(failure, "write", key)
        request = self._request("write", key)
        if exists and mode == "overwrite":
            return faults.unreachable(request, "another write was under way")
        undecided = exists and mode != "create"
        try:
            self.size(key)
        except errors.NotFoundError:
            self.require_container()
            undecided = undecided or mode == "create"
        if undecided:
            return faults.unreachable(request, "another conditional write was under way")
        return faults.conflict(request)

    def _meaning(self, failure: Exception, verb: str, key: str, look: Look | None = None) -> Exception:
        """The error for what obstore reported; `look` asks further where it is no trouble of the whole store."""
        request = self._request(verb, key)
        if isinstance(failure, FileNotFoundError):
            return (
                faults.not_found(request, "the bucket does not exist") if verb == "write" else faults.not_found(request)
            )
        if isinstance(failure, TimeoutError):  # nobody is asked for the cause, who would be silent for as long
            return faults.unreachable(request, str(failure))
        if isinstance(failure, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return self._refused(request, _word(failure) or type(failure).__name__, failure)
        return self._explain(failure, request, look)

    def _explain(self, failure: Exception, request: faults.Request, look: Look | None) -> errors.CheckpointError:
        """What a failure means that obstore has no class for."""
        known, questions = self._inquiry.explain(request)
        if known is None and look is not None:
            known, questions = look(request), questions + 1
            if faults.is_passing(known):
                self._inquiry.note(faults.about(known))
        if known is not None and not faults.is_passing(known):
            return known
        if word := _word(failure):
            passing = faults.unreachable(request, f"the store answered {word}", known.retry_after if known else None)
        else:
            nothing = f"the request failed, and nothing tells why ({type(failure).__name__})"
            passing = known or faults.unreachable(request, nothing)
        passing.questions = questions
        return passing


def _get(client: Any, path: str) -> tuple[bytes, Any]:
    result = obstore.get(client, path)
    return bytes(result.bytes()), result.meta


def _word(failure: Exception) -> str:
    """The service's word for a failure, for messages only."""
    return next(iter(_SERVER_CODE.findall(str(failure))), "")


def _quiet(failure: Exception) -> Exception:
    """`failure` without the URL's query and the server's answer: they can hold signatures and session tokens."""
    headline = _SECRETIVE.split(str(failure), maxsplit=1)[0].strip()
    return type(failure)(headline)


class _Home:
    """The process that obstore's threads live in: a forked child has none, and would wait for ever."""

    def __init__(self) -> None:
        self._process: int | None = None

    def require(self, url: str, instead: str) -> None:
        """Pass in that process.

        Raises:
            UnsupportedError: This process was forked from it.
        """
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid():
            raise errors.UnsupportedError(
                f"Cannot use {url} here: this process was forked from one that had used obstore, whose "
                f"threads do not survive a fork. Start workers with the 'spawn' method{instead}.",
                path=url,
            )


_home = _Home()
