"""Requests of Google's JSON API that both engines share, and what its answers mean.

Promises: exact keys, generations as versions (they never come back), body and version in one answer, every page of a
listing, every failure of a deletion; an upload is one request whose checksum the service verifies before anybody sees
the object, and it forbids caches to keep it. Errors are decided by status and by Google's reason. The requests go out
through a function of the account (see `google`). Nothing is retried here.
"""

import asyncio
import base64
import contextlib
import functools
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
import google.auth.exceptions as google_auth
from gcsfs import retry as gcsfs_retry

from ckpt_remote import errors, parallel
from ckpt_remote.buffers import Buffer, join, total_size
from ckpt_remote.bundle import crc32c
from ckpt_remote.store import faults, interface

__all__ = ["FAILURES", "NO_STORE", "Answer", "Bucket", "Query", "translate", "version_of"]

_CREDENTIALS: tuple[type[Exception], ...] = (
    google_auth.GoogleAuthError,
    gcsfs_retry.HttpError,
    getattr(gcsfs_retry, "NonRetryableError", gcsfs_retry.HttpError),  # newer than the oldest gcsfs that we support
)

FAILURES: tuple[type[Exception], ...] = (
    OSError,
    asyncio.TimeoutError,
    aiohttp.ClientError,
    *_CREDENTIALS,
)
"""What a request may raise where no answer came: broken connections, and credentials that cannot be renewed."""

NO_STORE = "no-store"
"""`Cache-Control` of every object: Google lets caches keep publicly readable objects for an hour by default."""

# Google's older word for 429.
_TOO_MANY = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
_DELETIONS = 16  # at a time: the JSON API has no bulk deletion that every service knows
_READ = 16 << 20  # whole objects are read without knowing their size; they are indexes and states
_CRC32C = "crc32c="


@dataclass(frozen=True, slots=True)
class Query:
    """One HTTP request; `path` is below the service's root, percent-encoded."""

    method: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Buffer | None = None
    answered: int = 0
    """How many bytes the answer may have, as far as that is known; for the deadline."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Bucket:
    """A directory of a bucket.

    Args:
        name: The bucket.
        root: What every key of the directory begins with in the bucket: empty, or ending with a slash.
        url: The directory's URL.
        send: Sends one request once.
        credentials: Where the credentials come from, for messages.
        endpoint: Where requests go, for messages.
    """

    name: str
    root: str
    url: str
    send: Callable[[Query], Answer]
    credentials: str
    endpoint: str

    def request(self, verb: str, key: str = "") -> faults.Request:
        """How messages speak of an operation on `key`, or on the directory."""
        return faults.Request(verb, f"{self.url}/{key}" if key else self.url, self.credentials, self.endpoint)

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        request = self.request("read", key)
        answer = self._ask(request, self._download(key))
        _require_digest(answer, request)
        return interface.Object(answer.body, version_of(answer.headers.get("x-goog-generation"), request))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`, for a length that is not zero."""
        request = self.request("read", key)
        query = self._download(key, {"Range": f"bytes={start}-{start + length - 1}"}, length)
        answer = self._exchange(request, query)
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise faults.corrupt(request, start, length, self.size(key))
        _require_success(answer, request)
        data = answer.body if answer.status == HTTPStatus.PARTIAL_CONTENT else answer.body[start : start + length]
        if len(data) != length:
            raise faults.corrupt(request, start, length, self.size(key))
        return data

    def size(self, key: str) -> int:
        """As `Store.size`."""
        return int(self._resource("look up", key)["size"])

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`. The buffers are copied together first."""
        request = self.request("write", key)
        checksum = _checksum(buffers)
        properties = {
            "name": self.root + key,
            "contentType": "application/octet-stream",
            "cacheControl": NO_STORE,
            "crc32c": checksum,
        }
        boundary = secrets.token_hex(16)
        query = Query(
            "POST",
            f"upload/{self._objects}",
            {"uploadType": "multipart", **_condition(mode)},
            {"Content-Type": f"multipart/related; boundary={boundary}"},
            _multipart(boundary, properties, buffers),
        )
        answer = self._exchange(request, query)
        if answer.status == HTTPStatus.NOT_FOUND:
            self.require()
            if isinstance(mode, interface.Version):  # some services answer so where the object to be replaced is gone
                raise faults.conflict(request)
        resource = _parsed(_require_success(answer, request), request)
        version = version_of(resource.get("generation"), request)
        self._require_same(key, resource, mode, total_size(buffers), checksum)
        return version

    def verify(
        self,
        key: str,
        version: interface.Version,
        buffers: Sequence[Buffer],
        mode: interface.PutMode,
        *,
        checksum: bool = True,
    ) -> None:
        """Compare what the service has at `version` with what was sent; nothing if that was replaced already.

        Raises:
            StoreError: It is not the same. Transient: another upload may pass, since a damaged object that was created
                is removed.
        """
        try:
            resource = self._resource("look up", key, generation=version.token)
        except errors.NotFoundError:
            return
        expected = _checksum(buffers) if checksum else None
        self._require_same(key, resource, mode, total_size(buffers), expected)

    def list(self, prefix: str) -> Iterator[interface.ObjectInfo]:
        """As `Store.list`, page by page."""
        request = self.request("list")
        parameters = {"prefix": self.root + prefix, "fields": "items(name,size),nextPageToken"}
        while True:
            answer = self._exchange(request, Query("GET", self._objects, parameters))
            if answer.status == HTTPStatus.NOT_FOUND:
                raise self._no_bucket(request)
            page = _parsed(_require_success(answer, request), request)
            for entry in page.get("items", ()):
                key = entry["name"][len(self.root) :]
                if _is_key(key):
                    yield interface.ObjectInfo(key, int(entry["size"]))
            if not page.get("nextPageToken"):
                return
            parameters = {**parameters, "pageToken": page["nextPageToken"]}

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`, one request for each key."""
        tasks = [functools.partial(self._delete, key) for key in keys]
        outcomes = dict(zip(keys, parallel.run_all(tasks, threads=_DELETIONS, name="ckpt_remote-delete"), strict=True))
        failures = {key: failure for key, failure in outcomes.items() if failure is not None}
        if any(isinstance(failure, errors.NotFoundError) for failure in failures.values()):
            try:
                self.require()
            except errors.CheckpointError as error:
                missing: errors.CheckpointError = error
                return {key: missing if isinstance(it, errors.NotFoundError) else it for key, it in failures.items()}
        return {key: it for key, it in failures.items() if not isinstance(it, errors.NotFoundError)}

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`."""
        request = self.request("delete", key)
        answer = self._exchange(request, Query("DELETE", self._object(key), {"ifGenerationMatch": version.token}))
        if answer.status == HTTPStatus.NOT_FOUND:
            return True
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            try:
                self._resource("look up", key)
            except errors.NotFoundError:
                return True
        _require_success(answer, request)
        return True

    def require(self) -> None:
        """As `Store.require_container`: by the permission to list, which all who write have, unlike that to see it."""
        request = self.request("open")
        answer = self._exchange(request, self._peek)
        if answer.status == HTTPStatus.NOT_FOUND:
            raise self._no_bucket(request)
        if answer.status != HTTPStatus.FORBIDDEN:
            _require_success(answer, request)

    def trouble(self) -> faults.Meaning | None:
        """What is wrong with the bucket or the account, by the answer to a question; None if that tells nothing."""
        try:
            answer = self.send(self._peek)
        except FAILURES as error:
            return functools.partial(translate, error)
        if answer.status == HTTPStatus.NOT_FOUND:
            return self._no_bucket
        if answer.status == HTTPStatus.FORBIDDEN and _reason(answer) not in _TOO_MANY:
            return None
        return functools.partial(_failure, answer) if answer.status >= HTTPStatus.MULTIPLE_CHOICES else None

    def _delete(self, key: str) -> errors.CheckpointError | None:
        try:
            self._ask(self.request("delete", key), Query("DELETE", self._object(key)))
        except errors.CheckpointError as error:
            return error
        return None

    def _require_same(
        self, key: str, resource: Mapping[str, Any], mode: interface.PutMode, size: int, checksum: str | None
    ) -> None:
        stored = int(resource.get("size", size)), str(resource.get("crc32c", checksum))
        if stored[0] == size and checksum in (None, stored[1]):
            return
        request = self.request("write", key)
        if mode == "create":  # it is ours and of no use; left there, it would pass for what was to be created
            with contextlib.suppress(errors.CheckpointError):
                self.remove(key, version_of(resource.get("generation"), request))
        sent = f"{size} bytes" + (f" with crc32c {checksum}" if checksum else "")
        raise faults.unreachable(
            request, f"{sent} were sent, but the store reports {stored[0]} bytes with crc32c {stored[1]}"
        )

    def _resource(self, verb: str, key: str, **parameters: str) -> Mapping[str, Any]:
        """The object's metadata."""
        request = self.request(verb, key)
        return _parsed(self._ask(request, Query("GET", self._object(key), parameters)), request)

    def _ask(self, request: faults.Request, query: Query) -> Answer:
        return _require_success(self._exchange(request, query), request)

    def _exchange(self, request: faults.Request, query: Query) -> Answer:
        try:
            return self.send(query)
        except FAILURES as error:
            raise translate(error, request) from error

    def _download(self, key: str, headers: Mapping[str, str] | None = None, length: int = _READ) -> Query:
        return Query("GET", f"download/{self._object(key)}", {"alt": "media"}, headers or {}, answered=length)

    def _object(self, key: str) -> str:
        return f"{self._objects}/{quote(self.root + key, safe='')}"

    @property
    def _objects(self) -> str:
        return f"storage/v1/b/{quote(self.name, safe='')}/o"

    @property
    def _peek(self) -> Query:
        return Query("GET", self._objects, {"prefix": self.root, "maxResults": "1", "fields": "items(name,size)"})

    def _no_bucket(self, request: faults.Request) -> errors.NotFoundError:
        return faults.not_found(request, f"there is no bucket {self.name!r}")


def translate(error: Exception, request: faults.Request) -> errors.CheckpointError:
    """What it means that no answer came. Raise it `from` the error."""
    if isinstance(error, google_auth.TransportError) or getattr(error, "retryable", False) is True:
        return faults.unreachable(request, f"the credentials could not be renewed for now ({type(error).__name__})")
    if isinstance(error, _CREDENTIALS):
        return faults.refused(request, f"the credentials could not be found or renewed: {type(error).__name__}")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL):  # no passing trouble
        return errors.StoreError(
            f"Cannot {request.verb} {request.url}: no connection is possible ({type(error).__name__}: {error}). "
            f"Check the endpoint_url and the certificates.",
            path=request.url,
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return faults.unreachable(request, f"no connection could be made ({type(error.os_error).__name__})")
    return faults.unreachable(request, f"the store could not be reached ({type(error).__name__})")


def _require_success(answer: Answer, request: faults.Request) -> Answer:
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise _failure(answer, request)
    return answer


def _failure(answer: Answer, request: faults.Request) -> errors.CheckpointError:
    reason, wish = _reason(answer), faults.retry_after(answer.headers)
    if answer.status == HTTPStatus.UNAUTHORIZED:
        return faults.expired(request, f"HTTP 401 {reason}".strip())
    if reason in _TOO_MANY:
        return faults.from_status(request, HTTPStatus.TOO_MANY_REQUESTS, reason, wish)
    return faults.from_status(request, answer.status, reason, wish)


def _reason(answer: Answer) -> str:
    """Google's word for a failure; empty where the answer is not in Google's form."""
    try:
        reason = json.loads(answer.body)["error"]["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return reason if isinstance(reason, str) and reason.isalnum() else ""


def _parsed(answer: Answer, request: faults.Request) -> Mapping[str, Any]:
    try:
        parsed = json.loads(answer.body)
    except ValueError as error:
        raise faults.unreachable(request, "the answer is not in the form of Google's JSON API") from error
    return parsed if isinstance(parsed, Mapping) else {}


def version_of(generation: str | None, request: faults.Request) -> interface.Version:
    """The version that a generation is.

    Raises:
        UnsupportedError: The service tells none.
    """
    if not generation:
        raise errors.UnsupportedError(
            f"Cannot {request.verb} {request.url} safely: the service tells no generation, without which no safe write "
            f"is possible. Use Google Cloud Storage, or an emulator that has generations.",
            path=request.url,
        )
    return interface.Version(str(generation))


def _condition(mode: interface.PutMode) -> dict[str, str]:
    if mode == "overwrite":
        return {}
    return {"ifGenerationMatch": "0" if mode == "create" else mode.token}


def _multipart(boundary: str, properties: Mapping[str, str], buffers: Sequence[Buffer]) -> bytes:
    """The object and what is to be known about it, as RFC 2387 puts them together.

    An upload of the bare media could not tell the checksum and forbid caching. The boundary is random, so that no
    object can hold it.
    """
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(properties)}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return join([head.encode(), *buffers, f"\r\n--{boundary}--\r\n".encode()])


def _checksum(buffers: Sequence[Buffer]) -> str:
    """The crc32c as Google spells it."""
    checksum = functools.reduce(lambda value, buffer: crc32c(buffer, value), buffers, 0)
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _require_digest(answer: Answer, request: faults.Request) -> None:
    """Pass if a whole body is what the service says that it sent."""
    words = answer.headers.get("x-goog-hash", "").split(",")
    told = next((word.strip()[len(_CRC32C) :] for word in words if word.strip().startswith(_CRC32C)), None)
    if told is not None and "content-encoding" not in answer.headers and told != _checksum([answer.body]):
        raise faults.unreachable(request, "the bytes that arrived are not those that were sent (crc32c)")


def _is_key(name: str) -> bool:
    try:
        interface.check_key(name)
    except ValueError:
        return False
    return True
