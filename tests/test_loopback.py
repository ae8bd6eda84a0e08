"""The servers of this process take a request whole, or not at all."""

import contextlib
import http.client
import socket
from urllib.parse import urlsplit

import pytest
from support.gcs import gcs
from support.loopback import Handler, serving

LENGTH = b"Content-Length: 10\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "with a length": LENGTH + b"0123456789",
    "in chunks": CHUNKED + b"4\r\n0123\r\n6;name=value\r\n456789\r\n0\r\n\r\n",
    "in chunks with a trailer": CHUNKED + b"a\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
}
CUT = {
    "before the body": LENGTH,
    "in the body": LENGTH + b"0123",
    "before the first chunk": CHUNKED,
    "in the size of a chunk": CHUNKED + b"a\r\n0123456789\r\n1",
    "in a chunk": CHUNKED + b"a\r\n0123",
    "behind a chunk": CHUNKED + b"a\r\n0123456789",
    "between two chunks": CHUNKED + b"a\r\n0123456789\r\n",
    "before the end of the trailers": CHUNKED + b"a\r\n0123456789\r\n0\r\n",
}


def send(endpoint, target, rest):
    """Puts, says no more, and returns the status; None where the server hangs up without an answer."""
    parts = urlsplit(endpoint)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as client:
        client.sendall(f"PUT {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode() + rest)
        client.shutdown(socket.SHUT_WR)
        with contextlib.closing(http.client.HTTPResponse(client)) as answer:
            try:
                answer.begin()
            except http.client.RemoteDisconnected:
                return None
            return answer.status


@pytest.fixture
def recorder():
    """A server that only takes down the bodies that it is given."""
    bodies = []

    class Recorder(Handler):
        def _record(self):
            bodies.append(self.body())
            self.send_response(204)
            self.end_headers()

        do_PUT = _record  # noqa: N815 - http.server's name

    with serving(Recorder) as server:
        yield server.endpoint, bodies


@pytest.mark.parametrize("rest", WHOLE.values(), ids=WHOLE)
def test_a_body_arrives_in_one_piece_however_it_is_sent(rest, recorder):
    endpoint, bodies = recorder

    assert 204 == send(endpoint, "/key", rest)
    assert [b"0123456789"] == bodies


@pytest.mark.parametrize("rest", CUT.values(), ids=CUT)
def test_a_body_that_is_cut_short_is_no_body_and_no_event(rest, recorder, capsys):
    endpoint, bodies = recorder

    assert send(endpoint, "/key", rest) is None
    assert [] == bodies
    assert "" == capsys.readouterr().err


def test_google_stores_no_object_of_which_a_part_came():
    with gcs() as server:
        bucket = server.new_bucket()
        whole = send(server.endpoint, f"/{bucket}/whole", WHOLE["with a length"])
        cut = send(server.endpoint, f"/{bucket}/cut", CUT["in the body"])

        assert (200, None) == (whole, cut)
        assert {"whole": b"0123456789"} == server.objects(bucket)
