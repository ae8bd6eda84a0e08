"""What S3's answers mean, the same on both engines, where real servers do not give them on demand."""

import traceback
from collections.abc import Callable, Iterator

import fsspec
import pytest
from support.answering import Answer, Answering, Asked, answering, s3_error
from support.radosgw import unquoted_etags
from support.servers import S3Server, free_port

from ckpt_remote import errors
from ckpt_remote.store import Object, Policy, Retrying, Store, Version, open_store, retry

KEY, SECRET, TOKEN = "TESTACCESSKEY0001", "very-secret-0001", "very-secret-token-0001"


@pytest.fixture(params=["obstore", "s3fs"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries happen, but nobody waits for them."""
    monkeypatch.setattr(retry, "Policy", lambda **given: Policy(**{"first_delay": 0.0} | given))


Opener = Callable[[Answering], Store]


@pytest.fixture
def opened(engine: str) -> Opener:
    def open_directory(server: Answering) -> Store:
        options = {"key": KEY, "secret": SECRET, "token": TOKEN, "endpoint_url": server.endpoint}
        if engine == "obstore":
            return open_store("s3://bucket/run", options)
        filesystem = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        filesystem.config_kwargs = {"retries": {"total_max_attempts": 1}}
        return open_store("s3://bucket/run", filesystem=filesystem)

    return open_directory


def always(answer: Answer) -> Callable[[Asked], Answer]:
    return lambda _: answer


def for_objects(answer: Answer) -> Callable[[Asked], Answer]:
    """The bucket is fine; requests about objects get `answer`."""
    return lambda asked: answer if asked.path.startswith("/bucket/run") else Answer(200)


def everything(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: store.read("key"),
        "read_range": lambda: store.read_range("key", 0, 3),
        "size": lambda: store.size("key"),
        "list": lambda: list(store.list()),
        "create": lambda: store.put("key", [b"abc"], "create"),
        "overwrite": lambda: store.put("key", [b"abc"], "overwrite"),
        "replace": lambda: store.put("key", [b"abc"], Version('"etag"')),
    }


def failure(use: Callable[[], object]) -> errors.CheckpointError:
    with pytest.raises(errors.CheckpointError) as caught:
        use()
    return caught.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (401, "Unauthorized"),
    ],
)
def test_a_refusal_is_final_and_names_where_the_credentials_came_from(opened: Opener, status: int, code: str) -> None:
    with answering(always(s3_error(status, code))) as server, opened(server) as store:
        for name, use in everything(store).items():
            before = len(server.asked)
            error = failure(use)
            assert isinstance(error, errors.StoreError), name
            assert not error.transient, name
            assert "credentials" in str(error).lower(), name
            assert "storage_options" in str(error) or "filesystem" in str(error), name
            assert "s3://bucket/run" in str(error), name
            assert len(server.asked) - before <= 2, name


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")])
def test_an_overloaded_store_is_asked_six_times_and_a_conditional_put_sent_once(
    opened: Opener, status: int, code: str
) -> None:
    with answering(always(s3_error(status, code))) as server, opened(server) as store:
        uses = everything(store)
        for name, method, times in (
            ("read", "GET", 6),
            ("read_range", "GET", 6),
            ("overwrite", "PUT", 6),
            ("create", "PUT", 1),
            ("replace", "PUT", 1),
        ):
            before = server.count(method)
            error = failure(uses[name])
            assert isinstance(error, errors.StoreError), name
            assert error.transient, name
            assert server.count(method) - before == times, name


def test_a_store_that_recovers_is_read(opened: Opener) -> None:
    replies = iter([s3_error(503, "SlowDown"), s3_error(503, "SlowDown")])

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET":
            return next(
                replies,
                Answer(200, b"abc", {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"}),
            )
        return Answer(200)

    with answering(answer) as server, opened(server) as store:
        assert store.read("key").data == b"abc"


def test_an_expired_token_is_final(opened: Opener) -> None:
    with answering(always(s3_error(400, "ExpiredToken"))) as server, opened(server) as store:
        for name, use in everything(store).items():
            error = failure(use)
            assert isinstance(error, errors.StoreError), name
            assert not error.transient, name
            if name != "size":  # a HEAD has no words
                assert "ExpiredToken" in str(error), name
                assert "Credentials used" in str(error), name
            assert "s3://bucket/run" in str(error), name
        assert server.count("PUT") == 3


def test_an_undecided_race_is_no_conflict(opened: Opener) -> None:
    """S3's 409 says that another conditional write is under way, not that it won."""

    def answer(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return s3_error(409, "ConditionalRequestConflict")
        return Answer(404) if asked.path.startswith("/bucket/run") else Answer(200)

    with answering(answer) as server, opened(server) as store:
        for mode in ("create", Version('"etag"')):
            error = failure(lambda mode=mode: store.put("key", [b"abc"], mode))
            assert isinstance(error, errors.StoreError)
            assert error.transient
        assert server.count("PUT") == 2


@pytest.mark.parametrize("mode", ["create", Version('"etag"')])
def test_a_failed_precondition_is_a_conflict(opened: Opener, mode: object) -> None:
    there = Answer(200, b"", {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"})
    refusal = s3_error(412, "PreconditionFailed")
    with (
        answering(lambda asked: refusal if asked.method == "PUT" else there) as server,
        opened(server) as store,
    ):
        assert isinstance(failure(lambda: store.put("key", [b"abc"], mode)), errors.ConflictError)
        assert server.count("PUT") == 1


def test_conditions_are_sent_as_s3_spells_them(opened: Opener) -> None:
    with answering(always(Answer(200, b"", {"ETag": '"new"'}))) as server, opened(server) as store:
        store.put("key", [b"a", b"bc"], "create")
        store.put("key", [b"a", b"bc"], Version('"old"'))
        store.put("key", [b"a", b"bc"], "overwrite")
        puts = [asked for asked in server.asked if asked.method == "PUT"]
        sent = [{name.lower(): value for name, value in asked.headers.items()} for asked in puts]
        assert [(headers.get("if-none-match"), headers.get("if-match")) for headers in sent] == [
            ("*", None),
            (None, '"old"'),
            (None, None),
        ]
        assert {"/bucket/run/key"} == {asked.path for asked in puts}


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_a_body_that_breaks_off_is_never_returned(opened: Opener, mode: str) -> None:
    headers = {
        "ETag": '"e"',
        "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT",
        "Content-Range": "bytes 0-9/10",
    }
    for status, name in ((200, "read"), (206, "read_range")):
        cut = Answer(status, b"01234", headers, promised=10)
        whole = Answer(200, b"", {"Content-Length-Was": "10"}, promised=None)

        def answer(asked: Asked, cut: Answer = cut, whole: Answer = whole) -> Answer:
            return cut if asked.method == "GET" else whole

        with answering(answer) as server, opened(server) as store:
            use = {"read": lambda: store.read("key"), "read_range": lambda: store.read_range("key", 0, 10)}[name]
            error = failure(use)
            assert isinstance(error, errors.StoreError | errors.CorruptError)
            assert server.count("GET") > 1 or isinstance(error, errors.CorruptError)


def test_deletions_that_were_refused_are_reported_by_key(opened: Opener) -> None:
    body = b"".join(
        (
            b"<DeleteResult>",
            b"<Error><Key>run/kept</Key><Code>AccessDenied</Code><Message>no</Message></Error>",
            b"<Error><Key>run/gone</Key><Code>NoSuchKey</Code><Message>no</Message></Error>",
            b"</DeleteResult>",
        )
    )
    with (
        answering(always(Answer(200, body, {"Content-Type": "application/xml"}))) as server,
        opened(server) as store,
    ):
        failures = store.delete(["kept", "gone", "deleted"])
        assert {"kept"} == set(failures)
        assert isinstance(failures["kept"], errors.StoreError)
        assert "s3://bucket/run/kept" in str(failures["kept"])
        assert len(server.asked) == 1


def test_a_deletion_that_may_pass_later_is_repeated_alone(opened: Opener) -> None:
    busy = b"<DeleteResult><Error><Key>run/b</Key><Code>SlowDown</Code></Error></DeleteResult>"
    replies = iter([busy, b"<DeleteResult></DeleteResult>"])
    reply = lambda _: Answer(200, next(replies), {"Content-Type": "application/xml"})  # noqa: E731 - two lines of a script
    with answering(reply) as server, opened(server) as store:
        assert store.delete(["a", "b"]) == {}
        assert b"<Key>run/a</Key>" not in server.asked[1].body
        assert b"<Key>run/b</Key>" in server.asked[1].body


def test_a_service_without_bulk_delete_is_asked_key_by_key(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.method == "POST":
            return s3_error(501, "NotImplemented")
        return s3_error(403, "AccessDenied") if asked.path.endswith("/b") else Answer(204)

    with answering(answer) as server, opened(server) as store:
        assert {"b"} == set(store.delete(["a", "b"]))
        assert server.count("DELETE") == 2


def test_a_bucket_that_may_not_be_listed_is_accepted(opened: Opener) -> None:
    with answering(always(Answer(403))) as server, opened(server) as store:
        store.require_container()


@pytest.mark.timeout(60)
def test_an_unreachable_endpoint_is_a_clear_passing_failure(opened: Opener) -> None:
    nowhere = Answering(f"http://127.0.0.1:{free_port()}", [])
    with opened(nowhere) as store:
        for name, use in {**everything(store), "require": store.require_container}.items():
            error = failure(use)
            assert isinstance(error, errors.StoreError), name
            assert error.transient, name
            assert "endpoint" in str(error), name
        assert isinstance(store.delete(["key"])["key"], errors.StoreError)


def test_no_secret_reaches_a_message_a_representation_or_a_log(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """S3 echoes the signed headers, the session token among them, when a signature is wrong."""
    echo = f"<CanonicalRequest>x-amz-security-token:{TOKEN}</CanonicalRequest><X>{SECRET}</X>"
    caplog.set_level("INFO")
    for status in (403, 400, 503, 409, 412):
        with (
            answering(always(s3_error(status, "SignatureDoesNotMatch", echo))) as server,
            opened(server) as store,
        ):
            said = [repr(store), store.url, store.engine]
            for use in everything(store).values():
                said += traceback.format_exception(failure(use))
            text = "".join(said) + caplog.text
            assert SECRET not in text
            assert TOKEN not in text


def test_the_inner_store_itself_never_repeats(opened: Opener) -> None:
    with answering(always(s3_error(503, "SlowDown"))) as server, opened(server) as store:
        assert isinstance(store, Retrying)
        inner = store._inner
        for method, use in (("GET", "read"), ("PUT", "overwrite")):
            failure(everything(inner)[use])
            assert server.count(method) == 1


@pytest.fixture
def gateway(engine: str, ministack: S3Server) -> Iterator[Store]:
    """A directory on a service that takes ETags only without their quotes."""
    with unquoted_etags(ministack) as server:
        options, url = server.storage_options, f"s3://{ministack.new_bucket()}/run"
        if engine == "obstore":
            store = open_store(url, options)
        else:
            store = open_store(url, filesystem=fsspec.filesystem("s3", **options, skip_instance_cache=True))
        with store:
            yield store


def test_a_service_that_wants_etags_without_quotes_is_served(gateway: Store) -> None:
    old = gateway.put("key", [b"old"], "create")
    new = gateway.put("key", [b"new"], old)
    assert gateway.read("key") == Object(b"new", new)
    newer = gateway.put("key", [b"newer"], new)
    assert gateway.read("key") == Object(b"newer", newer)
    gateway.remove("key", newer)
    assert list(gateway.list()) == []


def test_a_service_that_wants_etags_without_quotes_refuses_old_versions(gateway: Store) -> None:
    old = gateway.put("key", [b"old"], "create")
    gateway.put("other", [b"other"], "create")
    new = gateway.put("key", [b"new"], old)
    for mode in ("create", old):
        assert isinstance(failure(lambda mode=mode: gateway.put("key", [b"zombie"], mode)), errors.ConflictError)
    assert isinstance(failure(lambda: gateway.put("missing", [b"zombie"], old)), errors.ConflictError)
    assert gateway.read("key") == Object(b"new", new)
    assert {info.key for info in gateway.list()} == {"key", "other"}


def test_a_service_that_ignores_conditions_on_deletion_keeps_what_others_wrote(gateway: Store) -> None:
    old = gateway.put("key", [b"old"], "create")
    new = gateway.put("key", [b"new"], old)
    error = failure(lambda: gateway.remove("key", old))
    assert isinstance(error, errors.ConflictError)
    assert gateway.read("key") == Object(b"new", new)


@pytest.mark.parametrize("named", [b"", b"<Key>run/other</Key>"])
def test_a_deletion_that_was_refused_for_nobody_in_particular_may_be_any(opened: Opener, named: bytes) -> None:
    body = b"<DeleteResult><Error>" + named + b"<Code>InternalError</Code></Error></DeleteResult>"
    with answering(always(Answer(200, body, {"Content-Type": "application/xml"}))) as server, opened(server) as store:
        assert {"a", "b"} == set(store.single.delete(["a", "b"]))
