"""What is particular to S3's answers, the same on both engines, where real servers do not give them on demand."""

from collections.abc import Callable, Iterator

import fsspec
import pytest
from store.clouds import CLOUDS, everything
from support.answering import Answer, Answering, Asked, answering, s3_error
from support.radosgw import unquoted_etags
from support.servers import S3Server

from ckpt_remote import errors
from ckpt_remote.store import Object, Policy, Store, Version, open_store, retry


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
    return CLOUDS[f"s3-{engine}"].open


def always(answer: Answer) -> Callable[[Asked], Answer]:
    return lambda _: answer


def failure(use: Callable[[], object]) -> errors.CheckpointError:
    with pytest.raises(errors.CheckpointError) as caught:
        use()
    return caught.value


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
