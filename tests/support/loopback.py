"""An HTTP server of this process, on a free port of 127.0.0.1, for as long as a `with` block.

Promises: it takes dozens of connections at once; when the block ends it neither takes nor answers requests,
those on kept-alive connections included; no handler gets a part of a body; a client that goes away is no event, any
other failure of a handler is printed. The handler decides everything else.
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Handler", "Server", "serving"]


class Handler(BaseHTTPRequestHandler):
    """What our handlers share: kept-alive connections, whole bodies, silence."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body leave as two packets

    def body(self) -> bytes:
        """The request's body, in one piece however it is sent.

        Raises:
            ConnectionError: The client went away before its end.
        """
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self._line().partition(b";")[0], 16):
            chunks.append(self._read(size))
            self._line()
        while self._line().strip():
            pass  # trailers
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError(f"{len(data)} of {size} bytes came")
        return data

    def _line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"the last line ends after {line!r}")
        return line

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Nothing: tests look at what the server recorded."""


class Server(ThreadingHTTPServer):
    """The server; `endpoint` is its address."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._open: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[Server]:
    """Serve until the block ends."""
    server = Server(handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
