"""An HTTP server that answers as the test says, for what real servers do too rarely.

Promises: every request is recorded before it is answered; it binds 127.0.0.1 only and ends with the `with`
block. It is no store: it remembers nothing but the requests.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from support.loopback import Handler, serving

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
    """What to answer.

    Args:
        status: The status.
        body: The body; a HEAD gets none.
        headers: The headers, but for the length.
        promised: The length to announce where it differs from the body's; the connection is closed then.
        after: What becomes of the connection, which the client is not told.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None
    after: Literal["kept", "closed", "reset"] = "kept"


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
    with serving(_handler(answer, asked)) as server:
        yield Answering(server.endpoint, asked)


def _handler(answer: Callable[[Asked], Answer], asked: list[Asked]) -> type[Handler]:
    class Script(Handler):
        def _serve(self) -> None:
            request = Asked(self.command, unquote(self.path), dict(self.headers), self.body())
            asked.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.promised is None else reply.promised))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
            if reply.after == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            self.close_connection = self.close_connection or reply.promised is not None or reply.after != "kept"

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    return Script
