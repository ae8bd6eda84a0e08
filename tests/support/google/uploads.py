"""The three ways to upload to the JSON API: media, multipart, resumable.

Promises: a resumable upload is one object, written when its last byte is there, and its conditions are those
of its beginning, looked at when it ends; bytes that are sent again are skipped; a multipart body is taken apart
by RFC 2046 to the letter: delimiters are preceded by CRLF, so that no payload is cut at a look-alike.

gcsfs's small uploads (`pipe_file` and files below its chunk size) end their multipart lines with bare LF, and
their boundary is always `==0==`. Google takes that; a strict reader must not, and a payload that holds
`\\n--==0==` is ambiguous. Here they get 400.
"""

import json
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from typing import Any

from support.google.messages import Refusal, Request, refuse
from support.google.objects import Blob, Conditions, Digests, Objects

__all__ = ["Incomplete", "Uploads"]

_QUANTUM = 256 * 1024
_SETTABLE = frozenset(
    {
        "cacheControl", "contentDisposition", "contentEncoding", "contentLanguage", "contentType", "customTime",
        "metadata", "storageClass",
    }
)  # fmt: skip
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A resumable upload that goes on: how many bytes are there."""

    received: int


@dataclass(slots=True)
class _Session:
    bucket: str
    name: str
    properties: Mapping[str, Any]
    announced: Digests
    conditions: Conditions
    data: bytearray = field(default_factory=bytearray)
    result: Blob | None = None
    cancelled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class Uploads:
    """Uploads into `objects`, those under way included."""

    objects: Objects
    _sessions: dict[str, _Session] = field(default_factory=dict)

    def media(self, request: Request, bucket: str) -> Blob:
        """The body is the object."""
        metadata = {"name": request.query.get("name", "")}
        return self._put(request, bucket, metadata, request.body, request.header("Content-Type"))

    def multipart(self, request: Request, bucket: str) -> Blob:
        """The body is metadata and object."""
        (_, first), (headers, data) = _parts(request)
        return self._put(request, bucket, _metadata(first), data, headers.get("Content-Type"))

    def begin(self, request: Request, bucket: str) -> str:
        """Open a resumable upload, and return its id."""
        metadata = _metadata(request.body)
        self.objects.bucket(bucket)
        session = _Session(
            bucket,
            request.query.get("name") or metadata.get("name", ""),
            settable(metadata, request.header("X-Upload-Content-Type")),
            _announced(request, metadata),
            conditions(request),
        )
        key = uuid.uuid4().hex
        self._sessions[key] = session
        return key

    def go_on(self, request: Request) -> Blob | Incomplete:
        """Take some bytes, or say how many there are; the object once they are all there."""
        session = self._session(request)
        with session.lock:
            if session.cancelled:
                raise Refusal(499, "clientClosedRequest", "ClientClosedRequest", "The upload was cancelled.")
            if session.result is not None:
                return session.result
            total = _take(session, request)
            if total != len(session.data):
                return Incomplete(len(session.data))
            session.result = self.objects.put(
                session.bucket,
                session.name,
                bytes(session.data),
                properties=session.properties,
                conditions=session.conditions,
                announced=session.announced,
            )
            session.data.clear()
            return session.result

    def cancel(self, request: Request) -> None:
        """Give an upload up."""
        session = self._session(request)
        with session.lock:
            session.cancelled = session.result is None
            session.data.clear()

    def _session(self, request: Request) -> _Session:
        session = self._sessions.get(request.query.get("upload_id", ""))
        if session is None:
            raise Refusal(404, "notFound", "NoSuchUpload", "There is no such upload.")
        return session

    def _put(
        self, request: Request, bucket: str, metadata: Mapping[str, Any], data: bytes, content_type: str | None
    ) -> Blob:
        return self.objects.put(
            bucket,
            request.query.get("name") or metadata.get("name", ""),
            data,
            properties=settable(metadata, content_type),
            conditions=conditions(request),
            announced=_announced(request, metadata),
        )


def conditions(request: Request, prefix: str = "if") -> Conditions:
    """The conditions of a query; `ifSource` is the prefix of a copy's other end."""
    numbers = {}
    for name in ("GenerationMatch", "GenerationNotMatch", "MetagenerationMatch", "MetagenerationNotMatch"):
        numbers[name] = number(request, prefix + name)
    return Conditions(*numbers.values())


def number(request: Request, name: str) -> int | None:
    """A parameter that is a number, if it was sent."""
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise refuse.invalid(f"Invalid argument: {name}={text}.")
    return int(text)


def settable(metadata: Mapping[str, Any], content_type: str | None = None) -> dict[str, Any]:
    """The fields of a resource that a client may set."""
    chosen = {name: value for name, value in metadata.items() if name in _SETTABLE}
    return {"contentType": content_type, **chosen} if content_type else chosen


def _announced(request: Request, metadata: Mapping[str, Any]) -> Digests:
    header = Digests.parsed(request.header("x-goog-hash"))
    return Digests(metadata.get("crc32c", header.crc32c), metadata.get("md5Hash", header.md5))


def _metadata(body: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(body or b"{}")
    except ValueError as error:
        raise Refusal(400, "parseError", "InvalidArgument", "The metadata is no JSON.") from error
    if not isinstance(metadata, dict):
        raise Refusal(400, "parseError", "InvalidArgument", "The metadata is no JSON object.")
    return metadata


def _parts(request: Request) -> list[tuple[Message, bytes]]:
    boundary = request.headers.get_boundary()
    if not boundary:
        raise refuse.invalid("A multipart upload names its boundary.")
    delimiter = b"\r\n--" + boundary.encode()
    pieces = (b"\r\n" + request.body).split(delimiter)
    if len(pieces) != 4 or not pieces[3].startswith(b"--"):
        raise refuse.invalid("A multipart upload has two parts between CRLF and its boundary.")
    parts = []
    for piece in pieces[1:3]:
        padding, line, rest = piece.partition(b"\r\n")
        head, empty, content = (b"\r\n" + rest).partition(b"\r\n\r\n")
        if padding.strip(b" \t") or not line or not empty:
            raise refuse.invalid("A part of a multipart upload has headers, an empty line, and content.")
        parts.append((BytesParser().parsebytes(head.lstrip(b"\r\n")), content))
    return parts


def _take(session: _Session, request: Request) -> int | None:
    """Add the request's bytes to the session, and return the object's size where it is known."""
    text = request.header("Content-Range")
    if text is None:
        if session.data:
            raise refuse.invalid("A later part of an upload says with Content-Range which it is.")
        session.data += request.body
        return len(session.data)
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise refuse.invalid(f"Failed to parse Content-Range header {text!r}.")
    first, last, size = match.groups()
    total = None if size == "*" else int(size)
    if first is None:
        return total
    _check_chunk(session, request, int(first), int(last), total)
    session.data += request.body[len(session.data) - int(first) :]
    return total


def _check_chunk(session: _Session, request: Request, first: int, last: int, total: int | None) -> None:
    received, length = len(session.data), len(request.body)
    if last + 1 - first != length or (total is not None and last >= total):
        raise refuse.invalid(f"The Content-Range header does not fit a body of {length} bytes.")
    if first > received:
        message = f"the upload offset is {first} byte(s), which exceeds already uploaded size of {received} byte(s)"
        raise refuse.invalid(f"Invalid request. According to the Content-Range header, {message}.")
    if total != last + 1 and length % _QUANTUM:
        raise refuse.invalid(f"Every part but the last is a multiple of {_QUANTUM} bytes.")
