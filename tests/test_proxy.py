"""The fault proxy does what the plan says, and tells what it did."""

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from support.answering import Answer, answering
from support.proxy import FAULTS, Arrival, Cut, Hold, Pass, Refuse, Truncate, proxy, random_faults
from support.servers import free_port


@pytest.fixture
def store():
    """A store that says which request it answers."""
    with answering(lambda asked: Answer(200, b"answer to " + asked.body, {"X-Path": asked.path})) as server:
        yield server


def plan_of(*verdicts):
    """Verdicts for the first requests; the others pass."""
    return lambda arrival: verdicts[arrival.index] if arrival.index < len(verdicts) else Pass()


def ask(faulty, body=b"", method="PUT", path="/bucket/key", headers=None):
    """Status, body and headers; None where the connection ended without an answer."""
    parts = urlsplit(faulty.endpoint)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    except http.client.RemoteDisconnected:
        return None
    finally:
        connection.close()


def bodies(store):
    return [asked.body for asked in store.asked]


class TestPass:
    def test_request_and_answer_are_unchanged(self, store):
        headers = {"Host": "bucket.example", "X-Test": "1", "If-Match": '"etag"'}
        with proxy(store.endpoint) as faulty:
            status, body, answered = ask(faulty, b"one", path="/b/a%20b%2Fc?x=%2B", headers=headers)
        assert (status, body, answered["X-Path"]) == (200, b"answer to one", "/b/a b/c?x=+")
        (asked,) = store.asked
        assert {"Content-Length": "3", **headers}.items() <= asked.headers.items()
        assert asked.method == "PUT"

    def test_a_kept_connection_carries_many(self, store):
        with proxy(store.endpoint) as faulty:
            parts = urlsplit(faulty.endpoint)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
            for method, body in (("PUT", b"one"), ("HEAD", None), ("GET", None), ("DELETE", None)):
                connection.request(method, "/b/k", body)
                response = connection.getresponse()
                length = len(b"answer to " + (body or b""))
                assert (response.status, response.headers["Content-Length"]) == (200, str(length))
                assert len(response.read()) == (0 if method == "HEAD" else length)
            connection.close()

    def test_headers_are_set_or_left_out(self, store):
        with proxy(store.endpoint, plan_of(Pass(headers={"If-Match": None, "X-New": "2"}))) as faulty:
            ask(faulty, headers={"if-match": "old", "x-kept": "1"})
        (asked,) = store.asked
        sent = {name.lower(): value for name, value in asked.headers.items()}
        assert (sent.get("if-match"), sent["x-new"], sent["x-kept"]) == (None, "2", "1")

    def test_a_delay_passes_before_the_store_sees_it(self):
        seen = []
        with (
            answering(lambda asked: seen.append(time.monotonic()) or Answer(200)) as store,
            proxy(store.endpoint, plan_of(Pass(delay=0.2))) as faulty,
        ):
            start = time.monotonic()
            assert ask(faulty)[0] == 200
        assert seen[0] - start >= 0.2


class TestFaults:
    @pytest.mark.parametrize("landed", [False, True])
    def test_a_refusal_comes_before_or_after_it_landed(self, store, landed):
        refusal = Refuse(429, "TooMany", retry_after=7, landed=landed)
        with proxy(store.endpoint, plan_of(refusal)) as faulty:
            status, body, headers = ask(faulty, b"one")
        assert (status, headers["Retry-After"]) == (429, "7")
        assert b"<Code>TooMany</Code>" in body
        assert bodies(store) == [b"one"] * landed
        assert [(passage.verdict, passage.status) for passage in faulty.log] == [(refusal, 200 if landed else None)]

    def test_a_refusal_speaks_the_api_that_was_asked(self, store):
        with proxy(store.endpoint, lambda _: Refuse(503)) as faulty:
            _, body, headers = ask(faulty, path="/upload/storage/v1/b/x/o", method="POST")
            assert headers["Content-Type"] == "application/json"
            assert b'"code": 503' in body
            assert ask(faulty, method="HEAD")[:2] == (503, b"")

    @pytest.mark.parametrize("landed", [False, True])
    def test_a_cut_is_no_answer_before_or_after_it_landed(self, store, landed):
        with proxy(store.endpoint, plan_of(Cut(landed=landed))) as faulty:
            assert ask(faulty, b"one") is None
            assert ask(faulty, b"two") is not None
        assert bodies(store) == [b"one"] * landed + [b"two"]

    def test_a_truncated_answer_promises_more_than_it_holds(self, store):
        with (
            proxy(store.endpoint, plan_of(Truncate(4))) as faulty,
            pytest.raises(http.client.IncompleteRead) as caught,
        ):
            ask(faulty, b"one")
        assert (caught.value.partial, caught.value.expected) == (b"answ", len(b"er to one"))
        assert bodies(store) == [b"one"]

    def test_a_store_that_is_away_is_a_bad_gateway(self):
        with proxy(f"http://127.0.0.1:{free_port()}") as faulty:
            assert ask(faulty)[0] == 502


class TestHold:
    def test_it_lands_after_that_many_more_requests(self, store):
        with proxy(store.endpoint, plan_of(Hold(2))) as faulty:
            assert ask(faulty, b"late") is None
            ask(faulty, b"one")
            assert (faulty.held, faulty.log[0].status) == (1, None)
            ask(faulty, b"two")
            assert (faulty.held, faulty.log[0].status) == (0, 200)
            ask(faulty, b"three")
        assert bodies(store) == [b"one", b"two", b"late", b"three"]

    def test_it_lands_when_it_is_released_in_the_order_of_arrival(self, store):
        with proxy(store.endpoint, plan_of(Hold(), Hold())) as faulty:
            assert ask(faulty, b"first") is None
            assert ask(faulty, b"second") is None
            ask(faulty, b"now")
            assert faulty.release() == [200, 200]
            assert faulty.release() == []
        assert bodies(store) == [b"now", b"first", b"second"]

    def test_it_never_lands_after_the_end(self, store):
        with proxy(store.endpoint, plan_of(Hold())) as faulty:
            ask(faulty, b"late")
        assert store.asked == []


class TestRandomFaults:
    def test_the_same_seed_decides_the_same(self):
        arrivals = [Arrival(index, "PUT", "/b/k", {}) for index in range(400)]
        one, two, other = (list(map(random_faults(seed, 0.25), arrivals)) for seed in (1, 1, 2))
        assert one == two != other
        assert 60 < sum(verdict != Pass() for verdict in one) < 140
        assert all(fault in one for fault in FAULTS)
        assert all(verdict in (Pass(), *FAULTS) for verdict in one)

    def test_only_writes_are_concerned_unless_said_otherwise(self):
        arrivals = [Arrival(index, method, "/b/k", {}) for index, method in enumerate(("GET", "HEAD", "PUT", "POST"))]
        verdicts = list(map(random_faults(1, 1.0, [Refuse()]), arrivals))
        assert verdicts == [Pass(), Pass(), Refuse(), Refuse()]
        reads = random_faults(1, 1.0, [Refuse()], lambda arrival: not arrival.writes)
        assert list(map(reads, arrivals)) == [Refuse(), Refuse(), Pass(), Pass()]

    def test_every_request_is_logged_once_whatever_happens(self, store):
        with proxy(store.endpoint, random_faults(3, 0.5)) as faulty:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: ask(faulty, str(number).encode()), range(200)))
            faulty.release()
        assert [passage.arrival.index for passage in faulty.log] == list(range(200))
        landed = [passage for passage in faulty.log if passage.status is not None]
        assert len(landed) == len(store.asked) == len(set(bodies(store)))
        for passage in faulty.log:
            unseen = isinstance(passage.verdict, Refuse | Cut) and not passage.verdict.landed
            assert (passage.status is None) == unseen
