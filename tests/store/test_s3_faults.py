"""What goes wrong between S3 and its clients, and what each engine makes of it: the same."""

import threading
import time
from collections.abc import Callable

import fsspec
import pytest
from support.answering import Answer, Answering, Asked, answering, s3_error

from ckpt_remote import errors
from ckpt_remote.store import Store, Version, aws, deadline, faults, open_store, s3_faults

ETAG = {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"}
DONE = Answer(200, b"", ETAG)
THERE = Answer(200, b"abc", ETAG)
MISSING = Answer(404)
Script = Callable[[Asked], Answer]


@pytest.fixture(params=["obstore", "s3fs"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(engine: str) -> Callable[[Answering], Store]:
    def open_directory(server: Answering, **options: object) -> Store:
        keys = {"key": "TESTACCESSKEY0001", "secret": "very-secret-0001", "endpoint_url": server.endpoint}
        config = options | ({"user_agent_extra": "x"} if engine == "s3fs" else {})  # which obstore does not take
        store = open_store("s3://bucket/run", {**keys, "config_kwargs": config}).single
        assert store.engine.startswith("obstore" if engine == "obstore" else "fsspec S3FileSystem")
        return store

    return open_directory


Opener = Callable[..., Store]


def uses(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: store.read("key"),
        "read_range": lambda: store.read_range("key", 0, 3),
        "list": lambda: list(store.list()),
        "create": lambda: store.put("key", [b"abc"], "create"),
        "overwrite": lambda: store.put("key", [b"abc"], "overwrite"),
        "replace": lambda: store.put("key", [b"abc"], Version('"e"')),
        "remove": lambda: store.remove("key", Version('"e"')),
    }


def failure_of(use: Callable[[], object]) -> errors.StoreError:
    with pytest.raises(errors.StoreError) as caught:
        use()
    return caught.value


def but(answer: Answer, *, head: Answer = THERE) -> Script:
    """Everything but a HEAD gets `answer`."""
    return lambda asked: head if asked.method == "HEAD" else answer


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "RequestTimeout"),
        (400, "IncompleteBody"),
        (400, "BadDigest"),
        (409, "OperationAborted"),
        (409, "ConditionalRequestConflict"),
        (429, "SlowDown"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
    ],
)
def test_what_may_pass_is_transient_and_never_a_conflict(opened: Opener, status: int, code: str) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.method != "HEAD":
            return s3_error(status, code)
        return THERE if status != 409 or asked.path == "/bucket" else MISSING

    with answering(answer) as server, opened(server) as store:
        for name, use in uses(store).items():
            before = len(server.asked)
            method = {"create": "PUT", "overwrite": "PUT", "replace": "PUT", "remove": "DELETE"}.get(name, "GET")
            assert failure_of(use).transient, name
            assert sum(asked.method == method for asked in server.asked[before:]) == 1, name


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"<?xml version='1.0'?><Error></Error>", b"<Error><Code>"]
)
def test_an_error_without_a_code_is_judged_by_its_status(opened: Opener, body: bytes) -> None:
    for status, transient in ((503, True), (502, True), (403, False)):
        answer = Answer(status, body, {"Content-Type": "application/xml"})
        with answering(but(answer)) as server, opened(server) as store:
            for name, use in uses(store).items():
                assert failure_of(use).transient is transient, (name, status)


@pytest.mark.parametrize("code", ["InternalError", "SlowDown"])
def test_an_error_in_a_body_with_status_200_is_no_success(opened: Opener, code: str) -> None:
    body = s3_error(500, code).body
    with answering(but(Answer(200, body, {"Content-Type": "application/xml"}))) as server, opened(server) as store:
        for name, use in uses(store).items():
            assert failure_of(use).transient, name
        failures = store.delete(["key"])
        assert {"key"} == set(failures)


def test_half_a_listing_is_no_listing(opened: Opener) -> None:
    body = b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>run/a</Key><Size>1</Si"
    for answer in (
        Answer(200, body),
        Answer(200, body, promised=1000),
        Answer(200, body, promised=1000, after="reset"),
    ):
        with answering(but(answer)) as server, opened(server) as store:
            assert failure_of(lambda store=store: list(store.list())).transient


@pytest.mark.parametrize("after", ["closed", "reset"])
@pytest.mark.parametrize("received", [b"", b"a"])
def test_an_answer_that_breaks_off_is_transient(opened: Opener, after: str, received: bytes) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            return THERE
        headers = {**ETAG, "Content-Range": "bytes 0-2/3"}
        return Answer(206 if "range" in map(str.lower, asked.headers) else 200, received, headers, 3, after)

    with answering(answer) as server, opened(server) as store:
        for name in ("read", "read_range", "list"):
            assert failure_of(uses(store)[name]).transient, name


def test_a_server_that_cuts_without_an_answer_is_transient(opened: Opener) -> None:
    """obstore asks once; aiohttp once more where it used a kept connection, as if the server had closed it before."""

    def answer(asked: Asked) -> Answer:
        if asked.method == "HEAD":
            return THERE
        raise ConnectionAbortedError  # the connection is closed, and that is all

    with answering(answer) as server, opened(server) as store:
        for name, use in uses(store).items():
            before = len(server.asked)
            assert failure_of(use).transient, name
            sent = sum(asked.method != "HEAD" for asked in server.asked[before:])
            assert 1 <= sent <= (1 if store.engine.startswith("obstore") else 2), name


def test_connections_that_the_server_closes_behind_our_back_fail_at_most_for_the_moment(opened: Opener) -> None:
    """Whether the end of one is noticed before it is used again is a race; then the next request opens another."""
    closing = Answer(200, b"", ETAG, after="closed")
    found = Answer(200, b"abc", ETAG, after="closed")
    with (
        answering(lambda asked: found if asked.method == "GET" else closing) as server,
        opened(server) as store,
    ):

        def twice(request: Callable[[], object]) -> object:
            try:
                return request()
            except errors.StoreError as error:
                assert error.transient  # noqa: PT017 - that it fails at all is a race
                return request()

        for number in range(20):
            twice(lambda key=f"key-{number}": store.put(key, [b"abc"], "create"))
            assert twice(lambda: store.read("key").data) == b"abc"
            twice(lambda: store.size("key"))
        assert len(server.asked) >= 60


def test_the_object_to_replace_may_be_gone(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return s3_error(404, "NoSuchKey")
        return MISSING if asked.path.startswith("/bucket/run") else DONE

    with answering(answer) as server, opened(server) as store, pytest.raises(errors.ConflictError):
        store.put("key", [b"abc"], Version('"e"'))


def test_a_slow_answer_to_a_conditional_delete_is_not_taken_for_a_service_without_them(opened: Opener) -> None:
    with answering(but(s3_error(400, "RequestTimeout"))) as server, opened(server) as store:
        assert failure_of(lambda: store.remove("key", Version('"e"'))).transient
        assert server.count("DELETE") == 1


def test_a_bulk_delete_that_was_refused_for_its_credentials_is_not_tried_key_by_key(opened: Opener) -> None:
    with answering(but(s3_error(400, "ExpiredToken"))) as server, opened(server) as store:
        assert {"a", "b"} == set(store.delete(["a", "b"]))
        assert len(server.asked) == 1


def test_a_range_of_a_service_that_knows_no_ranges_is_never_another_range(opened: Opener) -> None:
    whole = Answer(200, b"0123456789", ETAG)
    with answering(but(whole, head=whole)) as server, opened(server) as store:
        try:
            assert store.read_range("key", 3, 4) == b"3456"
        except errors.StoreError:
            assert "obstore" in store.engine  # which refuses it


@pytest.mark.timeout(60)
def test_a_server_that_stays_silent_is_asked_once_and_left(opened: Opener) -> None:
    """After a second or two instead of twenty."""
    over = threading.Event()

    def answer(asked: Asked) -> Answer:
        over.wait()
        return DONE

    with answering(answer) as server, opened(server, read_timeout=0.5) as store:
        try:
            asked = {name: use for name, use in uses(store).items() if name not in ("overwrite", "replace")}
            for name, use in {**asked, "size": lambda: store.size("key")}.items():
                before, start = len(server.asked), time.monotonic()
                assert failure_of(use).transient, name
                assert time.monotonic() - start < 3, name
                assert len(server.asked) - before == 1, name
        finally:
            over.set()


def test_nobody_waits_half_a_minute_for_an_answer_to_a_small_request() -> None:
    assert deadline.CONNECT_SECONDS + deadline.seconds_for(64 * 1024) <= 30
    parsed = aws.options.parse_s3_options(
        {"key": "K", "secret": "S", "region": "x", "endpoint_url": "http://127.0.0.1"}
    )
    account = aws.connect(parsed, "bucket", faults.Request("open", "s3://bucket"))
    assert account.client.meta.config.connect_timeout + account.client.meta.config.read_timeout <= 30
    filesystem = fsspec.filesystem("s3", key="K", secret="S", skip_instance_cache=True)
    assert filesystem._prepare_config_kwargs()["read_timeout"] + filesystem.connect_timeout <= 30


@pytest.mark.parametrize("code", sorted(s3_faults.EXPIRED))
def test_every_word_for_the_end_of_credentials_is_understood(code: str) -> None:
    for status in (400, 401, 403):
        error = s3_faults.from_code(faults.Request("read", "s3://bucket"), status, code)
        assert isinstance(error, faults.ExpiredError)
        assert not error.transient
