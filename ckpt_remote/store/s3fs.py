"""The compatible engine for S3: s3fs, for what obstore cannot do and for filesystems that users bring.

Promises: conditions reach the server (`pipe_file` drops `IfMatch` on big objects, so it is never used), a put
is one `PutObject`, a delete's refusals are seen, no cache answers. Of a filesystem that a user brought,
botocore's own retries stay as the user set them, so a conflict may be the echo of one's own write: callers
read back, as they do anyway.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
import s3fs
from fsspec import asyn

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, join
from ckpt_remote.store import faults, interface, s3, urls

__all__ = ["S3fsStore"]

_FAILURES: tuple[type[Exception], ...] = (*s3.FAILURES, aiohttp.ClientError)


class S3fsStore(interface.Store):
    """A directory of a bucket behind an `S3FileSystem`."""

    def __init__(self, filesystem: "s3fs.S3FileSystem", location: urls.BucketUrl, engine: str) -> None:
        if filesystem.asynchronous:
            raise ValueError("The filesystem is asynchronous: hand in one made with asynchronous=False.")
        self.url = str(location)
        self.engine = engine
        self._location = location
        self._given = filesystem

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        response, data = self._get(key)
        return interface.Object(data, interface.Version(response["ETag"]))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        try:
            data = self._get(key, Range=f"bytes={start}-{start + length - 1}")[1] if length else b""
        except errors.StoreError as error:
            if s3.answer_of(error)[0] != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            raise faults.corrupt(self._bucket.request("read", key), start, length, self.size(key)) from error
        end = start + len(data) if length else self.size(key)
        if end < start + length:
            raise faults.corrupt(self._bucket.request("read", key), start, length, end)
        return data

    def size(self, key: str) -> int:
        """As `Store.size`."""
        interface.check_key(key)
        return self._bucket.size(key)

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`. Several buffers are copied together first."""
        body = join(buffers)
        if mode == "overwrite":
            return self._put(key, body)
        if mode == "create":
            return self._put(key, body, IfNoneMatch="*")
        try:
            return self._put(key, body, IfMatch=mode.token)
        except errors.ConflictError:
            if self._bucket.version(key) != mode:
                raise
            return self._put(key, body, IfMatch=s3.unquoted(mode))

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

    @functools.cached_property
    def _filesystem(self) -> Any:
        """The filesystem as it is, but for its own retries: a twin that shares its connections."""
        self._given.connect()
        twin = object.__new__(type(self._given))
        twin.__dict__.update(self._given.__dict__)
        twin.retries = 1
        return twin

    @functools.cached_property
    def _bucket(self) -> s3.Bucket:
        source = "those of the filesystem"
        return s3.Bucket(self._location.bucket, self._location.root, self.url, self._call, source)

    def _call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        response: Mapping[str, Any] = self._filesystem.call_s3(operation, **parameters)
        return response

    def _put(self, key: str, body: Buffer, **condition: str) -> interface.Version:
        path = self._path(key)
        try:
            response = self._bucket.send("write", key, "put_object", Key=path, Body=body, **condition)
        except errors.NotFoundError as error:
            self._bucket.require()
            # S3 answers 404 where the object to be replaced is gone.
            raise faults.conflict(self._bucket.request("write", key)) from error
        return interface.Version(response["ETag"])

    def _get(self, key: str, **parameters: str) -> tuple[Mapping[str, Any], bytes]:
        request = {"Bucket": self._location.bucket, "Key": self._path(key), **parameters}
        try:
            found: tuple[Mapping[str, Any], bytes] = asyn.sync(self._filesystem.loop, _fetch, self._filesystem, request)
        except _FAILURES as error:
            raise _translate(error, self._bucket.request("read", key)) from error
        return found

    def _path(self, key: str) -> str:
        return self._location.root + interface.check_key(key)


async def _fetch(filesystem: Any, request: Mapping[str, str]) -> tuple[Mapping[str, Any], bytes]:
    response = await filesystem._call_s3("get_object", **request)  # noqa: SLF001 - fsspec's spelling of "call_s3, awaitable"
    async with response["Body"] as body:
        return response, await body.read()


def _translate(error: Exception, request: faults.Request) -> errors.CheckpointError:
    if isinstance(error, aiohttp.ClientError):
        return faults.unreachable(request, f"the answer broke off ({type(error).__name__})")
    return s3.translate(error, request)
