"""The compatible engine for S3: s3fs, for what obstore cannot do and for filesystems that users bring.

Promises: conditions reach the server (`pipe_file` drops `IfMatch` on big objects, so it is never used), a put
is one `PutObject`, a delete's refusals are seen, no cache answers. A filesystem that a user brought is left as
it is: botocore's own retries stay as the user set them, so a conflict may be the echo of one's own write:
callers read back, as they do anyway.
"""

import base64
import functools
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import s3fs
from botocore import exceptions as boto
from fsspec import asyn

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, join
from ckpt_remote.bundle import crc32c
from ckpt_remote.store import bucket, faults, interface, s3, s3_faults, urls

__all__ = ["S3fsStore", "is_renewable"]

_T = TypeVar("_T")


class S3fsStore(bucket.BucketStore):
    """A directory of a bucket behind an `S3FileSystem`.

    Args:
        filesystem: The filesystem.
        location: The directory.
        engine: As `Store.engine`.
        consistency: What is compared after each put: "size", "checksum" (and the size), or nothing.
        renewed: Whether credentials are fetched anew, instead of sharing those that the filesystem holds.
    """

    def __init__(
        self,
        filesystem: "s3fs.S3FileSystem",
        location: urls.BucketUrl,
        engine: str,
        consistency: str | None = None,
        *,
        renewed: bool = False,
    ) -> None:
        if filesystem.asynchronous:
            raise ValueError("The filesystem is asynchronous: hand in one made with asynchronous=False.")
        self.url = str(location)
        self.engine = engine
        self._location = location
        self._given = filesystem
        self._consistency = consistency
        self._renewed = renewed
        self._lock = threading.Lock()

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        response, data = self._get(key)
        return interface.Object(data, interface.Version(response["ETag"]))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        try:
            data = self._range(key, start, length) if length else b""
        except errors.StoreError as error:
            if s3_faults.answer_of(error)[0] != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            raise faults.corrupt(self._bucket.request("read", key), start, length, self.size(key)) from error
        end = start + len(data) if length else self.size(key)
        if end < start + length:
            raise faults.corrupt(self._bucket.request("read", key), start, length, end)
        return data

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`. Several buffers are copied together first."""
        body = join(buffers)
        if mode == "overwrite":
            return self._put(key, body)
        if mode == "create":
            return self._put(key, body, IfNoneMatch="*")
        return self._bucket.replace(key, mode, lambda etag: self._put(key, body, IfMatch=etag))

    @property
    def _filesystem(self) -> Any:
        """The filesystem as it is, but for its own retries: a twin that shares its connections, or has its own."""
        with self._lock:  # 32 threads that begin together search for credentials once
            return self._twin

    @functools.cached_property
    def _twin(self) -> Any:
        if not self._renewed:
            self._given.connect()
        twin = object.__new__(type(self._given))
        twin.__dict__.update(self._given.__dict__)
        twin.retries = 1
        if self._renewed:
            twin.connect(refresh=True)
        return twin

    @functools.cached_property
    def _bucket(self) -> s3.Bucket:
        source = faults.ANONYMOUS if self._given.anon else "those of the filesystem"
        endpoint = urls.shown(self._given.endpoint_url or "")
        return s3.Bucket(self._location.bucket, self._location.root, self.url, self._call, source, endpoint)

    def _call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        return self._awaited(lambda filesystem: _request(filesystem, operation, parameters))

    def _awaited(self, request: Callable[[Any], Awaitable[_T]]) -> _T:
        filesystem = self._filesystem

        async def send() -> _T:
            try:
                return await request(filesystem)
            except aiohttp.ClientError as error:  # the answer broke off: aiobotocore lets it through as it is
                raise boto.HTTPClientError(error=error) from error

        answer: _T = asyn.sync(filesystem.loop, send)
        return answer

    def _put(self, key: str, body: Buffer, **condition: str) -> interface.Version:
        path = self._path(key)
        checksum = self._checksum(body)
        try:
            response = self._bucket.send("write", key, "put_object", Key=path, Body=body, **condition, **checksum)
        except errors.NotFoundError as error:
            self._bucket.require()
            # S3 answers 404 where the object to be replaced is gone.
            raise faults.conflict(self._bucket.request("write", key)) from error
        version = s3.version_of(response.get("ETag"), self._bucket.request("write", key))
        if self._consistency in ("size", "checksum"):
            self._bucket.verify(key, version, len(body), created="IfNoneMatch" in condition, **checksum)
        return version

    def _checksum(self, body: Buffer) -> dict[str, str]:
        """What S3 compares with the body before it accepts it, and keeps."""
        given = any(name.startswith("Checksum") for name in self._given.s3_additional_kwargs)
        if self._consistency != "checksum" or given:
            return {}
        return {"ChecksumCRC32C": base64.b64encode(crc32c(body).to_bytes(4, "big")).decode()}

    def _get(self, key: str, **parameters: str) -> tuple[Mapping[str, Any], bytes]:
        request = {"Bucket": self._location.bucket, "Key": self._path(key), **parameters}
        try:
            response, data = self._awaited(lambda filesystem: _fetch(filesystem, request))
        except s3_faults.FAILURES as error:
            raise s3_faults.translate(error, self._bucket.request("read", key)) from error
        s3.version_of(response.get("ETag"), self._bucket.request("read", key))
        return response, data

    def _range(self, key: str, start: int, length: int) -> bytes:
        response, data = self._get(key, Range=f"bytes={start}-{start + length - 1}")
        return data if "ContentRange" in response else data[start : start + length]  # some services answer with all

    def _path(self, key: str) -> str:
        return self._location.root + interface.check_key(key)


def is_renewable(filesystem: "s3fs.S3FileSystem") -> bool:
    """Whether the filesystem found its credentials by itself, so that it can find newer ones.

    A key that was handed to it stays what it is, and a session stays its maker's.
    """
    given = filesystem.key or filesystem.client_kwargs.get("aws_access_key_id")
    session = filesystem.storage_options.get("session") is not None or not getattr(
        filesystem, "_session_is_owned", True
    )
    return not (filesystem.anon or given or session)


async def _request(filesystem: Any, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    response: Mapping[str, Any] = await filesystem._call_s3(operation, **parameters)  # noqa: SLF001 - as below
    return response


async def _fetch(filesystem: Any, request: Mapping[str, str]) -> tuple[Mapping[str, Any], bytes]:
    response = await filesystem._call_s3("get_object", **request)  # noqa: SLF001 - fsspec's spelling of "call_s3, awaitable"
    async with response["Body"] as body:
        return response, await body.read()
