"""The fast engine: obstore moves the bytes, boto3 answers what obstore cannot say exactly.

Promises: a put sends the callers' own buffers as one request, without copying; nothing is retried; Ctrl-C
interrupts the wait (the request itself may still land); every request has a deadline that grows with its
size. A forked child gets an error instead of hanging for ever. It does not list or delete through obstore,
which fails on keys it would not write itself and needs bulk deletes that not every service has.
"""

import concurrent.futures
import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import obstore
from obstore import exceptions

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, total_size
from ckpt_remote.store import aws, faults, interface, options, s3, urls

__all__ = ["ObstoreStore"]

_T = TypeVar("_T")
_MEBIBYTE = 1 << 20
# A request may take this long, and longer by its size at the least rate: dozens share a link, also a slow one.
_PATIENCE = 30.0
_LEAST_RATE = 64 * 1024.0  # bytes a second
# Timeouts belong to obstore's clients, so sizes are rounded up to these and each has a client of its own.
_SIZES = tuple(mebibytes * _MEBIBYTE for mebibytes in (1, 16, 128, 1024, 5 * 1024))
# Whole objects are read without knowing their size; they are indexes and states.
_READ = _MEBIBYTE
_SERVER_CODE = re.compile(r"<Code>(\w+)</Code>")


class ObstoreStore(interface.Store):
    """A directory of an S3 bucket. The first request connects, so that opening is free and cannot fail."""

    def __init__(self, location: urls.BucketUrl, parsed: options.S3Options, engine: str) -> None:
        self.url = str(location)
        self.engine = engine
        self._location = location
        self._options = parsed
        self._lock = threading.Lock()
        self._clients: dict[int, Any] = {}

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        path = self._path(key)
        data, meta = self._send(lambda failure: self._meaning(failure, "read", key), _get, self._client(_READ), path)
        return interface.Object(data, self._version(meta, key))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        path = self._path(key)
        if not length:
            return self._nothing(key, start)
        data = self._send(
            lambda failure: self._range_meaning(failure, key, start, length),
            obstore.get_range,
            self._client(length),
            path,
            start=start,
            length=length,
        )
        if len(data) != length:
            raise faults.corrupt(self._bucket.request("read", key), start, length, start + len(data))
        return memoryview(data)

    def size(self, key: str) -> int:
        """As `Store.size`."""
        interface.check_key(key)
        return self._bucket.size(key)

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`."""
        if not isinstance(mode, interface.Version):
            return self._put(key, buffers, mode, mode)
        try:
            return self._put(key, buffers, mode, {"e_tag": mode.token})
        except errors.ConflictError:
            if self._bucket.version(key) != mode:
                raise
            return self._put(key, buffers, mode, {"e_tag": s3.unquoted(mode)})

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""
        return self._bucket.list(prefix)

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`."""
        return self._bucket.delete([interface.check_key(key) for key in keys])

    def remove(self, key: str, version: interface.Version) -> None:
        """As `Store.remove`."""
        interface.check_key(key)
        self._bucket.remove(key, version)

    def require_container(self) -> None:
        """As `Store.require_container`."""
        self._bucket.require()

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            self._clients.clear()
            if "_account" in self.__dict__:
                self._account.client.close()

    @functools.cached_property
    def _account(self) -> aws.Account:
        return aws.connect(self._options, self._location.bucket, faults.Request("open", self.url))

    @functools.cached_property
    def _bucket(self) -> s3.Bucket:
        account = self._account
        payer = {"RequestPayer": "requester"} if self._options.requester_pays else {}

        def call(operation: str, **parameters: Any) -> Any:
            _home.require(self.url)
            paid = payer if operation != "head_bucket" else {}
            return getattr(account.client, operation)(**parameters, **paid)

        return s3.Bucket(self._location.bucket, self._location.root, self.url, call, account.source)

    def _client(self, size: int) -> Any:
        _home.require(self.url)
        rounded = next((limit for limit in _SIZES if size <= limit), size)
        patience = float(self._options.config.get("read_timeout", _PATIENCE))
        with self._lock:
            if rounded not in self._clients:
                self._clients[rounded] = self._account.open(patience + rounded / _LEAST_RATE)
            return self._clients[rounded]

    def _put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode, condition: Any) -> interface.Version:
        path = self._path(key)
        storage_class = self._options.extra.get("StorageClass")
        result = self._send(
            lambda failure: self._put_meaning(failure, key, mode),
            obstore.put,
            self._client(total_size(buffers)),
            path,
            list(buffers),
            mode=condition,
            use_multipart=False,
            attributes={"Storage-Class": storage_class} if storage_class else None,
        )
        return self._version(result, key)

    def _send(
        self,
        meaning: Callable[[Exception], Exception],
        function: Callable[..., _T],
        *arguments: Any,
        **named: Any,
    ) -> _T:
        """The function's result, or what its failure means."""
        request = functools.partial(function, *arguments, **named)
        try:
            if threading.current_thread() is threading.main_thread():
                return _interruptibly(request)
            return request()
        except (exceptions.BaseError, FileNotFoundError) as error:
            failure = error
        # Outside the handler, so that the failure is no context of what is raised: its text may echo signed
        # headers.
        explanation = meaning(failure)
        raise explanation from _quiet(failure)

    def _path(self, key: str) -> str:
        return self._location.root + interface.check_key(key)

    def _version(self, meta: Any, key: str) -> interface.Version:
        if not meta["e_tag"]:
            raise errors.UnsupportedError(
                f"The store gives {self.url_of(key)} no ETag, without which no safe write is possible. "
                f"Use a store with conditional writes.",
                path=self.url_of(key),
            )
        return interface.Version(meta["e_tag"])

    def _nothing(self, key: str, start: int) -> bytes:
        size = self.size(key)
        if start > size:
            raise faults.corrupt(self._bucket.request("read", key), start, 0, size)
        return b""

    def _range_meaning(self, failure: Exception, key: str, start: int, length: int) -> Exception:
        if isinstance(failure, exceptions.GenericError):  # a range that begins after the end has no class of its own
            with contextlib.suppress(errors.CheckpointError):
                size = self.size(key)
                if size < start + length:
                    return faults.corrupt(self._bucket.request("read", key), start, length, size)
        return self._meaning(failure, "read", key)

    def _put_meaning(self, failure: Exception, key: str, mode: interface.PutMode) -> Exception:
        """A lost race, told from what obstore reports alike: no bucket, and S3's 409 for an open race."""
        exists = isinstance(failure, exceptions.AlreadyExistsError)
        if not exists and not isinstance(failure, exceptions.PreconditionError):
            return self._meaning(failure, "write", key)
        request = self._bucket.request("write", key)
        undecided = exists and isinstance(mode, interface.Version)
        try:
            self.size(key)
        except errors.NotFoundError:
            self._bucket.require()
            undecided = undecided or mode == "create"
        if undecided:
            return faults.unreachable(request, "another conditional write was under way")
        return faults.conflict(request)

    def _meaning(self, failure: Exception, verb: str, key: str) -> Exception:
        request = self._bucket.request(verb, key)
        code = next(iter(_SERVER_CODE.findall(str(failure))), type(failure).__name__)
        if isinstance(failure, FileNotFoundError):
            return (
                faults.not_found(request, "the bucket does not exist") if verb == "write" else faults.not_found(request)
            )
        if isinstance(failure, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return faults.refused(request, code)
        # obstore has one class for 400 and 503: boto3 knows when asking again is useless.
        final = self._bucket.explain(request)
        return final or faults.unreachable(request, f"the request to {self._account.endpoint} failed ({code})")


def _get(client: Any, path: str) -> tuple[bytes, Any]:
    result = obstore.get(client, path)
    return bytes(result.bytes()), result.meta


def _interruptibly(function: Callable[[], _T]) -> _T:
    """The function's result. Ctrl-C ends the wait, not the function."""
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, name="ckpt_remote-store", daemon=True).start()
    return outcome.result()


def _quiet(failure: Exception) -> Exception:
    """`failure` without the server's answer, which can echo signed headers, a session token included."""
    headline = str(failure).split("\n", 1)[0].split("<", 1)[0].strip()
    return type(failure)(headline)


class _Home:
    """The process that obstore's threads live in: a forked child has none, and would wait for ever."""

    def __init__(self) -> None:
        self._process: int | None = None

    def require(self, url: str) -> None:
        """Pass in that process.

        Raises:
            UnsupportedError: This process was forked from it.
        """
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid():
            raise errors.UnsupportedError(
                f"Cannot use {url} here: this process was forked from one that had used obstore, whose "
                f"threads do not survive a fork. Start workers with the 'spawn' method, or hand in "
                f"filesystem=s3fs.S3FileSystem(...).",
                path=url,
            )


_home = _Home()
