"""An HTTP server that answers as the test says, for what real servers do too rarely.

Promises: every request is recorded before it is answered; it binds 127.0.0.1 only and ends with the `with`
block. It is no
store: it remembers nothing but the requests.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

__all__ = ["Answer", "Answering", "Asked", "answering", "s3_error"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer; `promised` is the length to announce where it differs from the body's."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None


@dataclass(frozen=True, slots=True)
class Answering:
    """The server: its address, and what it was asked so far."""

    endpoint: str
    asked: list[Asked]

    def count(self, method: str) -> int:
        """How many requests of this method arrived."""
        return sum(asked.method == method for asked in self.asked)


def s3_error(status: int, code: str, extra: str = "") -> Answer:
    """S3's way to fail."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>It failed.</Message>{extra}</Error>'
    )
    return Answer(status, body.encode(), {"Content-Type": "application/xml", "x-amz-request-id": "1"})


@contextlib.contextmanager
def answering(answer: Callable[[Asked], Answer]) -> Iterator[Answering]:
    """Serve `answer` until the block ends."""
    asked: list[Asked] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answer, asked))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Answering(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(answer: Callable[[Asked], Answer], asked: list[Asked]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Asked(self.command, unquote(self.path), dict(self.headers), body)
            asked.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.promised is None else reply.promised))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
            if reply.promised is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
            """Nothing: tests look at `asked`."""

    return Handler
