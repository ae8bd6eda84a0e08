"""A store in trouble is asked for the cause once, and the answer holds for as long as it can be right."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from store.clouds import CLOUDS, Cloud
from support.answering import Answer, Asked, answering, s3_error
from support.clock import Time

from ckpt_remote import errors
from ckpt_remote.store import faults, open_store
from ckpt_remote.store.diagnosis import HOLD, Inquiry

ONE, OTHER = faults.Request("read", "s3://bucket/one"), faults.Request("write", "s3://bucket/other")
BUSY = functools.partial(faults.unreachable, cause="the store answered HTTP 503", retry_after=3.0)
GONE = functools.partial(faults.not_found, what="there is no bucket")
THREADS = 16
DONE = Answer(200, b"abc", {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"})


class Asking:
    """A question whose answer is `says`; each takes a second."""

    def __init__(self, says: faults.Meaning | None = None) -> None:
        self.says = says
        self.times = 0
        self.time = Time()
        self.inquiry = Inquiry(self, self.time.clock)

    def __call__(self) -> faults.Meaning | None:
        self.times += 1
        self.time.now += 1
        return self.says


@pytest.mark.parametrize("says", [BUSY, None])
def test_an_answer_that_leaves_hope_holds_for_a_while_and_for_every_object(says: faults.Meaning | None) -> None:
    asking = Asking(says)
    told, questions = asking.inquiry.explain(ONE)
    assert questions == 1
    asking.time.now += HOLD - 0.1
    again, questions = asking.inquiry.explain(OTHER)
    assert (asking.times, questions) == (1, 0)
    if says is not None:
        assert "read s3://bucket/one" in str(told)
        assert "write s3://bucket/other" in str(again)
        assert faults.is_passing(again)
        assert again.retry_after == 3.0
    asking.time.now += 0.1
    assert asking.inquiry.explain(ONE)[1] == 1


def test_an_answer_that_leaves_no_hope_is_not_given_to_who_fails_later() -> None:
    asking = Asking(GONE)
    assert isinstance(asking.inquiry.explain(ONE)[0], errors.NotFoundError)
    asking.time.now += 0.001
    asking.says = None
    assert asking.inquiry.explain(OTHER) == (None, 1)


def test_trouble_is_forgotten_when_a_request_passes_and_well_being_is_not() -> None:
    asking = Asking(BUSY)
    asking.inquiry.explain(ONE)
    asking.inquiry.forget()
    asking.says = None
    assert asking.inquiry.explain(ONE) == (None, 1)
    asking.inquiry.forget()
    assert asking.inquiry.explain(ONE) == (None, 0)


def test_what_was_learnt_in_another_way_holds_as_well() -> None:
    asking = Asking()
    asking.inquiry.explain(ONE)
    asking.inquiry.note(BUSY)
    assert "HTTP 503" in str(asking.inquiry.explain(OTHER)[0])
    assert asking.times == 1


def test_a_question_that_fails_leaves_nothing_behind() -> None:
    class Interrupted(Asking):
        def __call__(self) -> faults.Meaning | None:
            super().__call__()
            if self.times == 1:
                raise KeyboardInterrupt
            return None

    asking = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        asking.inquiry.explain(ONE)
    assert asking.inquiry.explain(ONE) == (None, 1)


@pytest.mark.parametrize("says", [BUSY, GONE, None])
def test_threads_that_failed_before_the_answer_came_share_it(says: faults.Meaning | None) -> None:
    """The question is answered once all of them have looked at the clock, as everybody who fails does first."""
    looks, all_failed = iter(range(THREADS)), threading.Event()

    def clock() -> float:
        if next(looks, THREADS) == THREADS - 1:
            all_failed.set()
        return 1.0 if all_failed.is_set() else 0.0

    def ask() -> faults.Meaning | None:
        assert all_failed.wait(60)
        return says

    inquiry = Inquiry(ask, clock)
    with ThreadPoolExecutor(THREADS) as threads:
        told = list(threads.map(lambda _: inquiry.explain(ONE), range(THREADS)))
    assert sum(questions for _, questions in told) == 1
    assert {str(error) for error, _ in told} == {str(says and says(ONE))}


@pytest.mark.parametrize("engine", ["s3-obstore", "gs-obstore", "azure"])
def test_however_many_requests_fail_at_once_the_store_is_asked_once(engine: str) -> None:
    cloud, together = CLOUDS[engine], threading.Barrier(THREADS)
    failing = cloud.failing(503, "SlowDown")

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("key"):
            together.wait(60)
        return failing(asked)

    with answering(answer) as server, cloud.open(server) as store, ThreadPoolExecutor(THREADS) as threads:
        reads = [threads.submit(store.single.read, f"{number}-key") for number in range(THREADS)]
        for number, read in enumerate(reads):
            with pytest.raises(errors.StoreError, match=f"{number}-key.*SlowDown") as caught:
                read.result()
            assert caught.value.transient
        assert sum(not asked.path.endswith("key") for asked in server.asked) == 1


@pytest.fixture(params=["s3-obstore", "gs-obstore"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return CLOUDS[request.param]


def test_one_object_s_refusal_is_no_answer_for_another(cloud: Cloud) -> None:
    """403 and 404 have classes of their own: nobody is asked, and nothing is remembered."""
    busy, refused, missing = (
        cloud.failing(*it) for it in ((503, "SlowDown"), (403, "AccessDenied"), (404, "NoSuchKey"))
    )

    def answer(asked: Asked) -> Answer:
        name = asked.path.rpartition("/")[2].rpartition("%2F")[2]
        return {"closed": refused, "missing": missing, "busy": busy}.get(name, lambda _: DONE)(asked)

    with answering(answer) as server, cloud.open(server) as opened:
        store = opened.single
        for _ in range(2):
            with pytest.raises(errors.StoreError, match="AccessDenied") as caught:
                store.read("closed")
            assert not caught.value.transient
            with pytest.raises(errors.NotFoundError):
                store.read("missing")
            with pytest.raises(errors.StoreError, match="SlowDown") as caught:
                store.read("busy")
            assert caught.value.transient


def test_a_bucket_that_was_missing_is_not_missed_for_longer_than_it_is(cloud: Cloud) -> None:
    busy, missing = cloud.failing(503, "SlowDown"), cloud.failing(404, "NoSuchBucket")
    there = threading.Event()

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("key"):
            return busy(asked)
        return Answer(200, b"{}") if there.is_set() else missing(asked)

    with answering(answer) as server, cloud.open(server) as store:
        with pytest.raises(errors.NotFoundError, match="no bucket 'bucket'"):
            store.single.read("key")
        there.set()
        with pytest.raises(errors.StoreError) as caught:
            store.single.read("key")
        assert caught.value.transient


def test_a_truncated_object_is_seen_right_after_an_outage(cloud: Cloud) -> None:
    """A range beyond the end looks like 503 to obstore."""
    busy, beyond = cloud.failing(503, "SlowDown"), cloud.failing(416, "InvalidRange")
    over = threading.Event()

    def answer(asked: Asked) -> Answer:
        if not over.is_set():
            return busy(asked)
        if "range" in map(str.lower, asked.headers):
            return beyond(asked)
        return Answer(
            200, b'{"size": "3"}' if "storage/v1" in asked.path else b"abc", {**DONE.headers, "x-goog-generation": "7"}
        )

    with answering(answer) as server, cloud.open(server) as store:
        with pytest.raises(errors.StoreError) as caught:
            store.single.read_range("key", 5, 1)
        assert caught.value.transient
        over.set()
        store.single.read("key")
        with pytest.raises(errors.CorruptError, match="ends after 3 bytes"):
            store.single.read_range("key", 5, 1)


def test_an_answer_does_not_outlive_the_credentials_it_was_given_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the old ones the store said 503, with the new ones it says why."""
    handed_out = iter(["first-token", "second-token", "third-token"])

    def answer(asked: Asked) -> Answer:
        if asked.path == "/credentials":
            found = f'"Token": "{next(handed_out)}", "Expiration": "2099-01-01T00:00:00Z"'
            return Answer(200, f'{{"AccessKeyId": "K", "SecretAccessKey": "S", {found}}}'.encode())
        token = {name.lower(): value for name, value in asked.headers.items()}["x-amz-security-token"]
        if asked.path == "/bucket/run/expired" and token == "first-token":
            return s3_error(403, "InvalidAccessKeyId")
        if token == "first-token":
            return s3_error(403, "InvalidAccessKeyId") if "list-type" in asked.path else s3_error(503, "SlowDown")
        return s3_error(400, "InvalidRequest") if asked.path != "/bucket/run/expired" else DONE

    with answering(answer) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.endpoint}/credentials")
        with open_store("s3://bucket/run", {"endpoint_url": server.endpoint}) as opened:
            store = opened.single
            with pytest.raises(errors.StoreError, match="SlowDown"):
                store.read("key")
            assert store.read("expired").data == b"abc"
            with pytest.raises(errors.StoreError, match="HTTP 400 InvalidRequest") as caught:
                store.read("key")
            assert not caught.value.transient
