"""What the two APIs of our Google Cloud Storage are asked, what they answer, and how they refuse.

Promises: header names are compared without case, a path is split before it is decoded, so that a name may
hold slashes; byte ranges mean what RFC 9110 says. It knows no API.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import parse_qsl, unquote

__all__ = ["Refusal", "Request", "Response", "ranged", "refuse"]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived; `target` is the path and query, still percent-encoded."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def segments(self) -> list[str]:
        """The path, split at its slashes and then decoded."""
        return [unquote(segment) for segment in self.target.partition("?")[0].split("/")[1:]]

    @property
    def path(self) -> str:
        """The path, decoded."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of several with one name the last."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def header(self, name: str) -> str | None:
        """A header's value, if it was sent."""
        value = self.headers.get(name)
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. `headers` may repeat a name."""

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = field(default_factory=tuple)


class Refusal(Exception):  # noqa: N818 - part of the protocol, no error of ours
    """A request that the store turns down.

    Args:
        status: The HTTP status.
        reason: The JSON API's word for it.
        code: The XML API's word for it.
        message: A sentence for people.
        headers: What the answer carries besides.
    """

    def __init__(
        self, status: int, reason: str, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.code = code
        self.message = message
        self.headers = tuple((headers or {}).items())


class refuse:  # noqa: N801 - reads as the verb it is: `raise refuse.unmet()`
    """The refusals that several parts share."""

    @staticmethod
    def no_bucket() -> Refusal:
        return Refusal(404, "notFound", "NoSuchBucket", "The specified bucket does not exist.")

    @staticmethod
    def no_object(bucket: str, name: str) -> Refusal:
        return Refusal(404, "notFound", "NoSuchKey", f"No such object: {bucket}/{name}")

    @staticmethod
    def unmet() -> Refusal:
        message = "At least one of the pre-conditions you specified did not hold."
        return Refusal(412, "conditionNotMet", "PreconditionFailed", message)

    @staticmethod
    def unchanged() -> Refusal:
        return Refusal(304, "notModified", "NotModified", "")

    @staticmethod
    def invalid(message: str) -> Refusal:
        return Refusal(400, "invalid", "InvalidArgument", message)

    @staticmethod
    def unknown(what: str) -> Refusal:
        return Refusal(501, "notImplemented", "NotImplemented", f"This fake does not know {what}.")


def ranged(request: Request, data: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, body and headers of a download: all of `data`, or the one range that is asked for.

    Raises:
        Refusal: 416, because the range begins after the end.
    """
    match = _RANGE.fullmatch(request.header("Range") or "")
    if match is None or match.group() == "bytes=-":  # a range that is none is ignored
        return 200, data, []
    first, last = match.groups()
    size = len(data)
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return 200, data, []
    if start >= size or (not first and not int(last)):
        message = "The requested range cannot be satisfied."
        raise Refusal(
            416, "requestedRangeNotSatisfiable", "InvalidRange", message, {"Content-Range": f"bytes */{size}"}
        )
    return 206, data[start:end], [("Content-Range", f"bytes {start}-{end - 1}/{size}")]


def headers_with(request: Request, prefix: str) -> Iterator[tuple[str, str]]:
    """The rest of the name and the value of each header that begins with `prefix`, in lower case."""
    for name, value in request.headers.items():
        if name.lower().startswith(prefix):
            yield name.lower().removeprefix(prefix), str(value)
