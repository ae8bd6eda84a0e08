"""An S3 server that forgets what is large, for measuring clients: it costs little, and can be as slow as a link.

    with sink([25e6] * 4) as links:                   four links of 25 MB/s each, to one and the same server
        client(links[0].endpoint)
        links[0].received

Promises: conditions are enforced, on PUT and on DELETE; an object of up to a mebibyte is kept as it is, of a larger one
its size and its end (the rest reads as zeros); all that goes through one link shares its bandwidth, in each direction,
however many connections there are. It checks no signatures, and listens on 127.0.0.1 only.
"""

import contextlib
import hashlib
import html
import itertools
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.loopback import Handler, serving
from support.servers import S3Server

__all__ = ["Link", "sink"]

_KEPT = 2**20
_END = 2**16
_CHUNK = 2**18
_DATE = "2026-01-01T00:00:00.000Z"


@dataclass(slots=True)
class Link:
    """The way of one client to the server.

    Args:
        rate: Bytes per second in each direction; None for as fast as it goes.
    """

    rate: float | None
    endpoint: str = ""
    received: int = 0
    requests: Counter = field(default_factory=Counter)
    _due: dict = field(default_factory=lambda: dict.fromkeys(("in", "out"), 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def server(self) -> S3Server:
        """What clients need to know."""
        return S3Server("sink", self.endpoint)

    def carry(self, size: int, way: str) -> None:
        """Waits as long as so many bytes take, after all that were to go before."""
        with self._lock:
            self.received += size if way == "in" else 0
            if self.rate is None:
                return
            now = time.monotonic()
            due = self._due[way] = max(self._due[way], now) + size / self.rate
        if due > now:
            time.sleep(due - now)

    def count(self, request: str) -> None:
        with self._lock:
            self.requests[request] += 1


@dataclass(frozen=True, slots=True)
class _Object:
    size: int
    end: bytes
    etag: str

    def read(self, start: int, stop: int) -> bytes:
        kept = self.size - len(self.end)
        return bytes(max(0, min(stop, kept) - start)) + self.end[max(0, start - kept) : max(0, stop - kept)]


class _Bucket:
    """All objects, by bucket and key."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, _Object] = {}
        self._numbers = itertools.count()

    def etag(self) -> str:
        return hashlib.md5(str(next(self._numbers)).encode(), usedforsecurity=False).hexdigest()


class _RefusedError(Exception):
    """The request's answer is an error: its status and S3's word for it."""


class _S3(Handler):
    link: Link
    bucket: _Bucket

    def answer(self) -> None:
        """Answers any request; what is refused as S3 prints errors."""
        request = "COPY" if "x-amz-copy-source" in self.headers else self.command
        self.link.count(request)
        try:
            getattr(self, f"_{request.lower()}")()
        except _RefusedError as refusal:
            status, word = refusal.args
            self._answer(status, f"<Error><Code>{word}</Code><Message>{word}</Message></Error>".encode())

    do_PUT = do_HEAD = do_GET = do_DELETE = do_POST = answer  # noqa: N815 - http.server's names

    def _put(self) -> None:
        body = self._receive()
        with self.bucket.lock:
            self._check_conditions()
            made = _Object(*body, self.bucket.etag())
            self.bucket.objects[self._path] = made
        self._answer(200, etag=made.etag)

    def _head(self) -> None:
        found = None if self._is_bucket else self._find()
        self._answer(200, length=found.size if found else 0, etag=found and found.etag)

    def _get(self) -> None:
        if self._is_bucket:
            self._answer(200, self._listing().encode())
            return
        found = self._find()
        start, stop, status = 0, found.size, 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, found.size - int(last))
            stop, status = min(found.size, int(last) + 1) if first and last else found.size, 206
            if start >= found.size:
                raise _RefusedError(416, "InvalidRange")
        self._answer(status, found.read(start, stop), etag=found.etag, span=(start, stop, found.size))

    def _copy(self) -> None:
        raise _RefusedError(501, "NotImplemented")

    def _delete(self) -> None:
        with self.bucket.lock:
            if self._path in self.bucket.objects:
                self._check_conditions()
                del self.bucket.objects[self._path]
        self._answer(204)

    def _post(self) -> None:
        keys = [html.unescape(key.decode()) for key in re.findall(b"<Key>(.*?)</Key>", self.body())]
        with self.bucket.lock:
            for key in keys:
                self.bucket.objects.pop(f"{self._path.split('/')[0]}/{key}", None)
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    @property
    def _path(self) -> str:
        """The bucket, a slash, and the key: what an object is known by."""
        return unquote(urlsplit(self.path).path).strip("/")

    @property
    def _is_bucket(self) -> bool:
        return "/" not in self._path

    def _find(self) -> _Object:
        with self.bucket.lock:
            found = self.bucket.objects.get(self._path)
        if found is None:
            raise _RefusedError(404, "NoSuchKey")
        return found

    def _check_conditions(self) -> None:
        there = self.bucket.objects.get(self._path)
        if self.headers.get("If-None-Match") == "*" and there is not None:
            raise _RefusedError(412, "PreconditionFailed")
        wanted = self.headers.get("If-Match")
        if wanted is not None and (there is None or wanted.strip('"') != there.etag):
            raise _RefusedError(412 if there else 404, "PreconditionFailed" if there else "NoSuchKey")

    def _receive(self) -> tuple[int, bytes]:
        left = size = int(self.headers["Content-Length"])
        kept = size if size <= _KEPT else _END
        scratch = memoryview(bytearray(min(_CHUNK, size)))
        while left > kept:
            taken = self.rfile.readinto(scratch[: min(len(scratch), left - kept)])
            if not taken:
                raise ConnectionError("the client went away")
            left -= taken
            self.link.carry(taken, "in")
        end = self._read(left)
        self.link.carry(left, "in")
        return size, end

    def _listing(self) -> str:
        query = parse_qs(urlsplit(self.path).query)
        prefix = query.get("prefix", [""])[0]
        with self.bucket.lock:
            found = sorted(
                (key.split("/", 1)[1], it)
                for key, it in self.bucket.objects.items()
                if key.startswith(f"{self._path}/")
            )
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_DATE}</LastModified><ETag>&quot;{it.etag}&quot;</ETag>"
            f"<Size>{it.size}</Size></Contents>"
            for key, it in found
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"

    def _answer(self, status, body=b"", *, length=None, etag=None, span=None) -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if span and status == 206:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{span[2]}")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), _CHUNK):
            part = body[start : start + _CHUNK]
            self.link.carry(len(part), "out")
            self.wfile.write(part)


@contextlib.contextmanager
def sink(rates: Sequence[float | None]) -> Iterator[list[Link]]:
    """Serves one store through several links, each with a port of its own, until the block ends."""
    bucket, links = _Bucket(), [Link(rate) for rate in rates]
    with contextlib.ExitStack() as stack:
        for link in links:
            handler = type("S3", (_S3,), {"link": link, "bucket": bucket})
            link.endpoint = stack.enter_context(serving(handler)).endpoint
        yield links
