"""What a store's answers mean: the same whichever the cloud and the engine."""

import traceback
from collections import Counter
from collections.abc import Callable

import pytest
from store.clouds import CLOUDS, SECRETS, Cloud, everything
from support.answering import Answer, Answering, Asked, answering
from support.servers import free_port

from ckpt_remote import errors, flow
from ckpt_remote.store import Policy, Retry, retry

DONE = {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT", "x-goog-generation": "7"}
CONDITIONAL = ("create", "replace")
TOLD = [name for name in CLOUDS if name != "azure"]
"""Where obstore tells nothing, neither a status nor headers, another client is asked. Azure has no other."""


def among(*names: str) -> pytest.MarkDecorator:
    """These clouds only."""
    return pytest.mark.parametrize("cloud", [CLOUDS[name] for name in names], ids=names)


@pytest.fixture(params=CLOUDS.values(), ids=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return request.param


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, _unhurried: None) -> None:
    """Retries happen, but nobody waits for them."""
    monkeypatch.setattr(retry, "Policy", lambda **given: Policy(**{"first_delay": 0.0} | given))


def failure(use: Callable[[], object]) -> errors.StoreError:
    with pytest.raises(errors.StoreError) as caught:
        use()
    return caught.value


def methods(asked: list[Asked]) -> Counter[str]:
    return Counter(request.method for request in asked)


@pytest.mark.parametrize(("status", "word"), [(403, "AccessDenied"), (403, "InvalidAccessKeyId"), (401, "authError")])
def test_a_refusal_is_final_and_names_where_the_credentials_came_from(cloud: Cloud, status: int, word: str) -> None:
    with answering(cloud.failing(status, word)) as server, cloud.open(server) as store:
        for name, use in everything(store).items():
            before = len(server.asked)
            error = failure(use)
            assert not error.transient, name
            assert f"Credentials used: {cloud.credentials}." in str(error), name
            assert cloud.url in str(error), name
            assert len(server.asked) - before <= 3, name


@among("s3-obstore", "s3-s3fs", "gs-gcsfs")
@pytest.mark.parametrize("status", [401, 403])
def test_who_has_no_credentials_is_told_so_and_asked_for_some(cloud: Cloud, status: int) -> None:
    with answering(cloud.failing(status, "AccessDenied")) as server, cloud.open(server, anonymous=True) as store:
        for name, use in everything(store).items():
            before = len(server.asked)
            error = failure(use)
            assert not error.transient, name
            assert "No credentials were used: give some" in str(error), name
            assert "anew" not in str(error), name
            assert len(server.asked) - before <= 2, name


def test_a_bucket_that_may_not_be_listed_is_accepted(cloud: Cloud) -> None:
    with answering(cloud.failing(403, "forbidden")) as server, cloud.open(server) as store:
        store.require_container()


@pytest.mark.parametrize(("status", "word"), [(503, "SlowDown"), (500, "InternalError"), (429, "rateLimitExceeded")])
def test_an_overloaded_store_gets_six_requests_and_a_conditional_put_once(cloud: Cloud, status: int, word: str) -> None:
    """Those included that ask why, of which there is one."""
    for name in everything(None):
        with answering(cloud.failing(status, word)) as server, cloud.open(server) as store:
            error = failure(everything(store)[name])
        assert error.transient, name
        assert word in str(error) or str(status) in str(error) or cloud is CLOUDS["azure"], name
        if name in CONDITIONAL:
            assert sum(asked.path.partition("?")[0].endswith("key") for asked in server.asked if asked.body) <= 1, name
            assert len(server.asked) <= 2, name
        else:
            assert len(server.asked) == 6, name


def reading_back() -> flow.Flow[object]:
    """As every flow does that publishes something."""
    while True:
        try:
            return (yield flow.Put("key", (b"abc",), "create"))
        except errors.StoreError as error:
            failed = error
        if (yield flow.Get("key")) is not None:
            return None
        yield flow.Pause(failed)


def test_the_requests_of_a_flow_are_no_more_than_six_of_a_kind(cloud: Cloud) -> None:
    with answering(cloud.failing(503, "SlowDown")) as server, cloud.open(server) as store:
        failure(lambda: flow.run(reading_back(), store, Retry(Policy(first_delay=0.0))))
        assert max(methods(server.asked).values()) <= 6
        assert len(server.asked) <= 7


def test_objects_that_fail_in_a_bucket_that_is_well_get_no_more(cloud: Cloud) -> None:
    failing = cloud.failing(503, "SlowDown")
    well = Answer(200, b"{}", DONE)

    def answer(asked: Asked) -> Answer:
        about = asked.path.partition("?")[0].endswith("key") or asked.method == "POST"  # gcsfs names it in the body
        return failing(asked) if about else well

    for name in ("read", "read_range", "size", "overwrite"):
        with answering(answer) as server, cloud.open(server) as store:
            assert failure(everything(store)[name]).transient, name
            assert len(server.asked) <= 6, name


@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_failed_precondition_is_a_conflict_at_once(cloud: Cloud, name: str) -> None:
    refused = cloud.failing(412, "PreconditionFailed")

    def answer(asked: Asked) -> Answer:
        return refused(asked) if asked.method in ("PUT", "POST") else Answer(200, b'{"size": "3"}', DONE)

    with answering(answer) as server, cloud.open(server) as store:
        with pytest.raises(errors.ConflictError):
            everything(store)[name]()
        sent = methods(server.asked)
    assert sent["PUT"] + sent["POST"] == 1


@among("s3-obstore", "gs-obstore", "azure")
def test_a_race_that_stays_open_gets_no_more_than_six_requests(cloud: Cloud) -> None:
    """The object that is written is not there yet, the bucket is."""
    racing, missing = cloud.failing(409, "OperationAborted"), cloud.failing(404, "NoSuchKey")

    def answer(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return racing(asked)
        return missing(asked) if asked.path.endswith("key") else Answer(200, b"{}")

    with answering(answer) as server, cloud.open(server) as store:
        assert failure(everything(store)["overwrite"]).transient
        assert len(server.asked) <= 6


@among("s3-obstore", "gs-obstore")
def test_who_may_not_ask_about_the_bucket_is_not_refused_what_passes_later(cloud: Cloud) -> None:
    busy, refused = cloud.failing(503, "SlowDown"), cloud.failing(403, "AccessDenied")
    with (
        answering(lambda asked: (busy if asked.path.endswith("key") else refused)(asked)) as server,
        cloud.open(server) as store,
    ):
        for name in ("read", "create", "overwrite"):
            assert failure(everything(store)[name]).transient, name


@among(*TOLD)
def test_a_request_that_makes_no_sense_fails_at_once(cloud: Cloud) -> None:
    with answering(cloud.failing(400, "InvalidArgument")) as server, cloud.open(server) as store:
        for name, use in everything(store).items():
            before = len(server.asked)
            error = failure(use)
            assert not error.transient, name
            assert "InvalidArgument" in str(error), name
            sent = methods(server.asked[before:])
            assert sum(sent.values()) <= 3, name
            assert sent["HEAD"] <= 2, name


@among("s3-s3fs", "gs-gcsfs")
def test_a_full_store_is_final_where_the_engine_tells_it(cloud: Cloud) -> None:
    """obstore has one class for 503 and 507."""
    with answering(cloud.failing(507, "XMinioStorageFull")) as server, cloud.open(server) as store:
        for name in ("create", "overwrite", "replace"):
            before = len(server.asked)
            error = failure(everything(store)[name])
            assert not error.transient, name
            assert "Make room" in str(error), name
            assert len(server.asked) - before == 1, name


@among(*TOLD)
def test_a_wish_to_be_left_alone_is_handed_on(cloud: Cloud) -> None:
    busy = cloud.failing(503, "SlowDown", {"Retry-After": "60"})
    with answering(busy) as server, cloud.open(server) as store:
        for name, use in everything(store.single).items():
            assert failure(use).retry_after == pytest.approx(60, abs=10), name
        assert store.single.delete(["key"])["key"].retry_after == pytest.approx(60, abs=10)


@pytest.mark.parametrize("name", ["read", "read_range"])
def test_a_body_that_breaks_off_is_never_returned(cloud: Cloud, name: str) -> None:
    whole = Answer(200, b'{"size": "10", "generation": "7"}', {**DONE, "Content-Length": "10"})
    headers = {**DONE, "Content-Range": "bytes 0-9/10", "x-ms-blob-type": "BlockBlob"}

    def answer(asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        if asked.method == "HEAD":
            return Answer(200, b"", DONE, promised=10)
        if asked.method == "GET" and (path.startswith("/download/") or ("/storage/" not in path and "run" in path)):
            return Answer(206 if name == "read_range" else 200, b"01234", headers, promised=10)
        return whole

    with answering(answer) as server, cloud.open(server) as store:
        use = {"read": lambda: store.read("key"), "read_range": lambda: store.read_range("key", 0, 10)}[name]
        assert failure(use).transient
        assert methods(server.asked)["GET"] > 1


@pytest.mark.timeout(60)
def test_an_unreachable_endpoint_is_a_clear_passing_failure(cloud: Cloud) -> None:
    nowhere = Answering(f"http://127.0.0.1:{free_port()}", [])
    with cloud.open(nowhere) as store:
        for name, use in {**everything(store), "require": store.require_container}.items():
            error = failure(use)
            assert error.transient, name
            assert "no connection could be made" in str(error), name
            assert f"Check the endpoint {nowhere.endpoint}" in str(error), name
        assert isinstance(store.delete(["key"])["key"], errors.StoreError)


def test_no_secret_reaches_a_message_a_representation_or_a_log(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for status in (400, 401, 403, 404, 409, 412, 503):
        with answering(cloud.failing(status, "SignatureDoesNotMatch")) as server, cloud.open(server) as store:
            said = [repr(store), store.url, store.engine]
            for use in everything(store).values():
                with pytest.raises(errors.CheckpointError) as caught:
                    use()
                said += traceback.format_exception(caught.value)
            text = "".join(said) + caplog.text
            assert [secret for secret in SECRETS if secret in text] == []
