"""A proxy that does to HTTP requests what networks and overloaded stores do to them.

    with proxy(server.endpoint, random_faults(seed=7, rate=0.25)) as faulty:
        client(faulty.endpoint)

Promises: a plan decides about each request when it arrives, one at a time and in the order of arrival; what it
decided and what the store answered is in the log before the client gets its answer; a request that is held back
reaches the store at the moment that the plan names, or at `release()`, or never. Requests and answers go
through unchanged, the `Host` header included, unless the plan says otherwise; nothing is sent twice. Bodies are
held in memory; a store that cannot be reached is a 502. Signatures are left alone: a plan that changes signed
headers needs a server that checks none.
"""

import contextlib
import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from support.loopback import Handler, serving

__all__ = [
    "FAULTS", "Arrival", "Cut", "Hold", "Pass", "Passage", "Plan", "Proxy", "Refuse", "Truncate", "Verdict", "proxy",
    "random_faults",
]  # fmt: skip

_SECONDS = 60.0
_HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "transfer-encoding"})
_READS = frozenset({"GET", "HEAD"})
_JSON_API = ("/storage/v1", "/upload/storage/v1", "/download/storage/v1")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that arrived; `index` counts them from 0. Header names are in lower case."""

    index: int
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.method not in _READS


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward it.

    Args:
        delay: Seconds to wait first.
        headers: Headers to set, or to leave out where the value is None.
    """

    delay: float = 0.0
    headers: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error, before the store sees the request or although it `landed`.

    Args:
        retry_after: Seconds to ask for in the `Retry-After` header.
    """

    status: int = 503
    code: str = "SlowDown"
    retry_after: int | None = None
    landed: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection without an answer, before the store sees the request or although it `landed`."""

    landed: bool


@dataclass(frozen=True, slots=True)
class Truncate:
    """Forward it, and close the connection after `keep` bytes of the answer's body."""

    keep: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Close the connection without an answer, and forward the request late.

    Args:
        requests: After so many more requests were answered; None: only when the proxy is told to.
    """

    requests: int | None = None


Verdict: TypeAlias = Pass | Refuse | Cut | Truncate | Hold
"""What to do with a request."""

Plan: TypeAlias = Callable[[Arrival], Verdict]
"""Decides about each request."""

FAULTS: Sequence[Verdict] = (
    Refuse(503),
    Refuse(429, "TooManyRequests", retry_after=0),
    Refuse(503, landed=True),
    Refuse(500, "InternalError", landed=True),
    Cut(landed=False),
    Cut(landed=True),
    Hold(1),
    Hold(4),
)
"""The ways in which a write can go wrong without the client learning whether it landed, and some where it does."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of a request; `status` is the store's answer, None as long as the store has not seen it."""

    arrival: Arrival
    verdict: Verdict
    status: int | None


@dataclass(frozen=True, slots=True)
class _Forward:
    """A request as it goes on to the store."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(slots=True)
class _Late:
    arrival: Arrival
    forward: _Forward
    requests: int | None


class Proxy:
    """The running proxy.

    Attributes:
        endpoint: Where clients find it.
    """

    endpoint: str

    def __init__(self, store: str, plan: Plan) -> None:
        self.endpoint = ""
        self._store = urlsplit(store)
        self._plan = plan
        self._lock = threading.Lock()
        self._arrived = 0
        self._passages: dict[int, Passage] = {}
        self._late: list[_Late] = []
        self._ended = threading.Event()

    @property
    def log(self) -> list[Passage]:
        """Every request that was decided about and answered or held, in the order of arrival."""
        with self._lock:
            return [self._passages[index] for index in sorted(self._passages)]

    @property
    def held(self) -> int:
        """How many requests wait to land late."""
        with self._lock:
            return len(self._late)

    def release(self) -> list[int]:
        """Forward what is held, in the order of arrival, and return the store's answers."""
        with self._lock:
            due, self._late = self._late, []
        return [self._land(late) for late in due]

    def _decide(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[Arrival, Verdict]:
        with self._lock:
            arrival = Arrival(self._arrived, method, path, headers)
            self._arrived += 1
            return arrival, self._plan(arrival)

    def _hold(self, arrival: Arrival, verdict: Hold, forward: _Forward) -> None:
        with self._lock:
            self._late.append(_Late(arrival, forward, verdict.requests))

    def _record(self, arrival: Arrival, verdict: Verdict, status: int | None) -> None:
        with self._lock:
            self._passages[arrival.index] = Passage(arrival, verdict, status)

    def _answered(self, arrival: Arrival) -> None:
        """Let what was waiting for this request land."""
        with self._lock:
            for late in self._late:
                if late.requests is not None and late.arrival.index != arrival.index:
                    late.requests -= 1
            due = [late for late in self._late if late.requests is not None and late.requests <= 0]
            self._late = [late for late in self._late if late not in due]
        for late in due:
            self._land(late)

    def _land(self, late: _Late) -> int:
        status = self._forward(late.forward).status
        with self._lock:
            self._passages[late.arrival.index] = replace(self._passages[late.arrival.index], status=status)
        return status

    def _forward(self, request: _Forward) -> _Answer:
        # A connection for each: a kept one that the store closes would make it unclear whether a request landed.
        connection = http.client.HTTPConnection(self._store.hostname or "", self._store.port, timeout=_SECONDS)
        with contextlib.closing(connection):
            try:
                connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
                for name, value in request.headers:
                    connection.putheader(name, value)
                connection.endheaders(request.body or None)
                response = connection.getresponse()
                return _Answer(response.status, response.getheaders(), response.read())
            except (OSError, http.client.HTTPException) as error:
                return _Answer(502, [("Content-Type", "text/plain")], f"The store is away: {error!r}".encode())


@contextlib.contextmanager
def proxy(endpoint: str, plan: Plan = lambda _: Pass()) -> Iterator[Proxy]:
    """Serve in front of `endpoint` until the block ends; what is still held then never lands."""
    running = Proxy(endpoint, plan)
    with serving(_handler(running)) as server:
        running.endpoint = server.endpoint
        try:
            yield running
        finally:
            running._ended.set()


def random_faults(
    seed: int, rate: float, faults: Sequence[Verdict] = FAULTS, concerns: Callable[[Arrival], bool] | None = None
) -> Plan:
    """A plan that lets a share of the requests go wrong, each in one of the ways given.

    The same seed decides the same about the request of the same number.

    Args:
        rate: The share, from 0 to 1.
        concerns: Which requests may go wrong; writes, unless said otherwise.
    """

    def plan(arrival: Arrival) -> Verdict:
        chance = random.Random(f"{seed}/{arrival.index}")
        exposed = concerns(arrival) if concerns else arrival.writes
        return chance.choice(faults) if exposed and chance.random() < rate else Pass()

    return plan


def _handler(running: Proxy) -> type[Handler]:
    class ProxyHandler(Handler):
        def _serve(self) -> None:
            body = self.body()
            names = {name.lower(): str(value) for name, value in self.headers.items()}
            arrival, verdict = running._decide(self.command, unquote(self.path), names)
            forward = _Forward(self.command, self.path, _changed(self.headers.items(), verdict, body), body)
            if isinstance(verdict, Pass):
                running._ended.wait(verdict.delay)
            lands = isinstance(verdict, Pass | Truncate) or (isinstance(verdict, Refuse | Cut) and verdict.landed)
            answer = running._forward(forward) if lands else None
            running._record(arrival, verdict, answer.status if answer else None)
            if isinstance(verdict, Hold):
                running._hold(arrival, verdict, forward)
            running._answered(arrival)
            self._reply(arrival, verdict, answer)

        def _reply(self, arrival: Arrival, verdict: Verdict, answer: _Answer | None) -> None:
            if isinstance(verdict, Cut | Hold):
                self.close_connection = True
            elif isinstance(verdict, Refuse):
                self._send(_refusal(arrival, verdict), None)
            else:
                assert answer is not None
                self._send(answer, verdict.keep if isinstance(verdict, Truncate) else None)

        def _send(self, answer: _Answer, keep: int | None) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                if name.lower() not in _HOP_BY_HOP and (name.lower() != "content-length" or self.command == "HEAD"):
                    self.send_header(name, value)
            if self.command != "HEAD" and answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[:keep])
            self.close_connection = self.close_connection or keep is not None

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    return ProxyHandler


def _changed(headers: Sequence[tuple[str, str]], verdict: Verdict, body: bytes) -> list[tuple[str, str]]:
    """The headers that go on: the client's, with one length for the body, and with what the verdict sets."""
    changes = {name.lower(): value for name, value in verdict.headers.items()} if isinstance(verdict, Pass) else {}
    dropped = {*_HOP_BY_HOP, "content-length", *changes}
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    kept += [(name, value) for name, value in changes.items() if value is not None]
    has_length = body or any(name.lower() == "content-length" for name, _ in headers)
    return [*kept, ("Content-Length", str(len(body)))] if has_length else kept


def _refusal(arrival: Arrival, verdict: Refuse) -> _Answer:
    """An error in the words of the API that was asked."""
    message = "The proxy lets this request fail."
    if arrival.path.startswith(_JSON_API):
        error = {"code": verdict.status, "message": message, "errors": [{"reason": verdict.code, "message": message}]}
        content, body = "application/json", json.dumps({"error": error})
    else:
        content = "application/xml"
        body = f'<?xml version="1.0"?><Error><Code>{verdict.code}</Code><Message>{message}</Message></Error>'
    headers = [("Content-Type", content), ("x-amz-request-id", str(arrival.index))]
    if verdict.retry_after is not None:
        headers.append(("Retry-After", str(verdict.retry_after)))
    return _Answer(verdict.status, headers, b"" if arrival.method == "HEAD" else body.encode())
