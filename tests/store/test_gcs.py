"""What is particular to Google's answers, the same on both engines, and what is asked of it."""

import base64
import json
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import gcsfs
import pytest
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials
from store.clouds import CLOUDS, TOKEN, everything
from support.answering import Answer, Answering, Asked, answering
from support.clock import Time
from support.engines import google_obstore
from support.gcs import GCSServer, gcs

from ckpt_remote import errors
from ckpt_remote.bundle import crc32c
from ckpt_remote.store import Policy, Store, Version, open_store, pace, retry
from ckpt_remote.store.pace import Pace

google_error = CLOUDS["gs-obstore"].failing
MODIFIED = "Sun, 22 Nov 2026 15:00:00 GMT"


@pytest.fixture(params=["obstore", "gcsfs"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, _unhurried: None) -> None:
    """Retries happen, but nobody waits for them."""
    monkeypatch.setattr(retry, "Policy", lambda **given: Policy(**{"first_delay": 0.0} | given))


Opener = Callable[..., Store]


@pytest.fixture
def opened(engine: str) -> Opener:
    def open_directory(server: Answering | GCSServer, bucket: str = "bucket", **options: Any) -> Store:
        given = {"token": Credentials(TOKEN), **options}
        if engine == "obstore":
            return google_obstore(f"gs://{bucket}/run", server.endpoint, given.pop("token"), **given)
        return open_store(f"gs://{bucket}/run", {"endpoint_url": server.endpoint, **given})

    return open_directory


def anonymous(server: Answering) -> Store:
    """The directory through gcsfs, without an account."""
    return open_store("gs://bucket/run", {"token": "anon", "endpoint_url": server.endpoint})


def always(answer: Answer) -> Callable[[Asked], Answer]:
    return lambda _: answer


def is_json(asked: Asked) -> bool:
    return asked.path.startswith(("/storage/v1/", "/upload/storage/v1/", "/download/storage/v1/"))


def is_upload(asked: Asked) -> bool:
    return asked.method in ("PUT", "POST")


def resource(data: bytes, generation: str = "7", **changes: Any) -> dict[str, Any]:
    """What the JSON API tells of an object."""
    return {
        "name": "run/key",
        "generation": generation,
        "size": str(len(data)),
        "crc32c": base64.b64encode(crc32c(data).to_bytes(4, "big")).decode(),
        **changes,
    }


def well(asked: Asked, data: bytes = b"abc", **changes: Any) -> Answer:
    """A success of whatever was asked."""
    told = resource(data, **changes)
    headers = {"ETag": '"e"', "Last-Modified": MODIFIED, "x-goog-generation": str(told["generation"])}
    if asked.path.startswith("/download/") or (not is_json(asked) and asked.method == "GET"):
        return Answer(200, data, {**headers, "x-goog-hash": f"crc32c={told['crc32c']}"})
    if is_json(asked) and asked.method == "GET" and asked.path.partition("?")[0].endswith("/o"):
        return Answer(200, b"{}")
    return Answer(200, json.dumps(told).encode() if is_json(asked) else b"", headers)


def failure(use: Callable[[], object]) -> errors.CheckpointError:
    with pytest.raises(errors.CheckpointError) as caught:
        use()
    return caught.value


def uploads(server: Answering) -> list[Asked]:
    return [asked for asked in server.asked if is_upload(asked)]


# What is sent


def test_conditions_are_sent_as_google_spells_them(engine: str, opened: Opener) -> None:
    with answering(well) as server, opened(server) as store:
        for mode in ("create", Version("5"), "overwrite"):
            assert store.put("key", [b"a", b"bc"], mode) == Version("7")
        sent = uploads(server)
    if engine == "obstore":
        assert {"/bucket/run/key"} == {asked.path for asked in sent}
        conditions = [asked.headers.get("x-goog-if-generation-match") for asked in sent]
    else:
        conditions = [dict(parse_qsl(urlsplit(asked.path).query)).get("ifGenerationMatch") for asked in sent]
    assert conditions == ["0", "5", None]


def test_no_cache_may_keep_an_object(opened: Opener) -> None:
    with answering(well) as server, opened(server) as store:
        store.put("key", [b"abc"], "create")
        (sent,) = uploads(server)
    assert (sent.headers.get("cache-control") or parts(sent)[0]["cacheControl"]) == "no-store"


def parts(sent: Asked) -> tuple[dict[str, str], bytes]:
    """A multipart upload, taken apart by Python's own reader of such messages."""
    content_type = sent.headers.get("Content-Type") or sent.headers["content-type"]
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + sent.body)
    properties, media = message.iter_parts()
    return json.loads(properties.get_payload(decode=True)), media.get_payload(decode=True)


def test_gcsfs_sends_the_checksum_along_so_that_google_verifies_it_before_anybody_sees_the_object() -> None:
    data = b"line\r\n--==0==--\r\n\n--==0==\r\n"
    with answering(lambda asked: well(asked, data)) as server, anonymous(server) as store:
        store.put("key", [data[:7], data[7:]], "create")
        (sent,) = server.asked
    properties, media = parts(sent)
    assert media == data
    assert properties["name"] == "run/key"
    assert properties["crc32c"] == resource(data)["crc32c"]


def test_who_pays_is_said_with_every_request(engine: str, opened: Opener) -> None:
    with answering(well) as server, opened(server, requester_pays="my-project") as store:
        store.put("key", [b"abc"], "create")
        store.read("key")
        store.size("key")
    for asked in server.asked:
        told = asked.headers.get("x-goog-user-project") or dict(parse_qsl(urlsplit(asked.path).query))["userProject"]
        assert told == "my-project"


def test_every_request_carries_the_token(opened: Opener) -> None:
    with answering(well) as server, opened(server) as store:
        for name in ("read", "size", "list", "create", "overwrite", "replace"):
            everything(store)[name]()
        store.delete(["key"])
    assert len(server.asked) >= 7
    for asked in server.asked:
        assert (asked.headers.get("authorization") or asked.headers.get("Authorization")) == f"Bearer {TOKEN}"


# What is answered


def test_googles_older_word_for_too_many_requests_is_no_refusal() -> None:
    with answering(google_error(403, "rateLimitExceeded")) as server, anonymous(server) as store:
        error = failure(lambda: store.put("key", [b"abc"], "create"))
    assert isinstance(error, errors.StoreError)
    assert error.transient


def test_a_service_that_answers_404_where_the_object_to_be_replaced_is_gone_reports_a_conflict() -> None:
    def answer(asked: Asked) -> Answer:
        return google_error(404, "notFound")(asked) if is_upload(asked) else well(asked)

    with answering(answer) as server, anonymous(server) as store:
        assert isinstance(failure(lambda: store.put("key", [b"abc"], Version("5"))), errors.ConflictError)
        assert isinstance(failure(lambda: store.put("key", [b"abc"], "create")), errors.NotFoundError)


def test_bytes_that_are_not_those_that_google_sent_are_never_returned() -> None:
    other = {"x-goog-generation": "7", "x-goog-hash": f"crc32c={resource(b'other')['crc32c']},md5=x"}
    with answering(always(Answer(200, b"bytes", other))) as server, anonymous(server) as store:
        assert "crc32c" in str(failure(lambda: store.read("key")))


def test_a_service_without_generations_is_unsupported(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        it = well(asked)
        headers = {name: value for name, value in it.headers.items() if name != "x-goog-generation"}
        return Answer(it.status, b'{"size": "3"}' if is_json(asked) and is_upload(asked) else it.body, headers)

    with answering(answer) as server, opened(server) as store:
        for name in ("read", "create"):
            assert isinstance(failure(everything(store)[name]), errors.UnsupportedError), name


def test_deletions_that_were_refused_are_reported_by_key(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("kept"):
            return google_error(403, "forbidden")(asked)
        if asked.path.endswith("gone"):
            return google_error(404, "notFound")(asked)
        return Answer(204) if asked.method == "DELETE" else well(asked)

    with answering(answer) as server, opened(server) as store:
        failures = store.delete(["kept", "gone", "deleted"])
    assert {"kept"} == set(failures)
    assert isinstance(failures["kept"], errors.StoreError)
    assert "gs://bucket/run/kept" in str(failures["kept"])
    assert server.count("DELETE") == 3


def test_a_deletion_that_may_pass_later_is_repeated_alone(opened: Opener) -> None:
    busy = iter([True])

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/b") and next(busy, False):
            return google_error(503, "backendError")(asked)
        return Answer(204)

    with answering(answer) as server, opened(server) as store:
        assert store.delete(["a", "b"]) == {}
        assert sorted(asked.path[-2:] for asked in server.asked) == ["/a", "/b", "/b"]


def test_one_version_is_removed_by_its_generation_alone(opened: Opener) -> None:
    with answering(always(Answer(204))) as server, opened(server) as store:
        store.remove("key", Version("5"))
        (asked,) = server.asked
    assert asked.method == "DELETE"
    assert dict(parse_qsl(urlsplit(asked.path).query))["ifGenerationMatch"] == "5"


def test_a_filesystem_without_credentials_is_told_so() -> None:
    with answering(google_error(401, "required")) as server:
        filesystem = gcsfs.GCSFileSystem(token="anon", endpoint_url=server.endpoint, skip_instance_cache=True)
        with open_store("gs://bucket/run", filesystem=filesystem) as store:
            assert "No credentials were used" in str(failure(lambda: store.read("key")))


# Uploads are compared with what the service reports


@pytest.mark.parametrize("wrong", [{"size": "2"}, {"crc32c": "AAAAAA=="}])
@pytest.mark.parametrize("mode", ["create", Version("5")])
def test_an_upload_that_arrived_otherwise_than_sent_is_a_passing_failure(
    opened: Opener, wrong: dict[str, str], mode: object
) -> None:
    with answering(lambda asked: well(asked, **wrong)) as server, opened(server) as store:
        error = failure(lambda: store.put("key", [b"abc"], mode))
        removed = [dict(parse_qsl(urlsplit(asked.path).query)) for asked in server.asked if asked.method == "DELETE"]
    assert isinstance(error, errors.StoreError)
    assert error.transient
    assert "3 bytes" in str(error)
    assert next(iter(wrong.values())) in str(error)
    # Created damaged, it would pass for what was to be created; replaced damaged, it is still what is there.
    assert removed == ([{"ifGenerationMatch": "7"}] if mode == "create" else [])


@pytest.mark.parametrize(
    ("consistency", "questions", "found"),
    [("none", 0, True), ("size", 1, True), ("md5", 1, False), ("crc32c", 1, False), (None, 1, False)],
)
def test_the_user_says_how_obstores_uploads_are_compared(
    consistency: str | None, questions: int, *, found: bool
) -> None:
    given = {} if consistency is None else {"consistency": consistency}
    with (
        answering(lambda asked: well(asked, crc32c="AAAAAA==")) as server,
        google_obstore("gs://bucket/run", server.endpoint, **given) as store,
    ):
        if found:
            store.put("key", [b"abc"], "create")
        else:
            failure(lambda: store.put("key", [b"abc"], "create"))
        assert server.count("GET") == questions


def test_what_was_replaced_meanwhile_is_not_compared(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        return google_error(404, "notFound")(asked) if asked.method == "GET" else well(asked)

    with answering(answer) as server, opened(server) as store:
        assert store.put("key", [b"abc"], "create") == Version("7")


# Credentials


class Renewable(Credentials):
    """A token that can be renewed, and tells how often that was done."""

    def __init__(self, token: str, following: str | None) -> None:
        super().__init__(token)
        self.following = following
        self.renewals = 0

    def refresh(self, request: object) -> None:
        self.renewals += 1
        if self.following is None:
            raise RefreshError("no more")
        self.token = self.following


def wants(token: str) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        given = asked.headers.get("authorization") or asked.headers.get("Authorization")
        return well(asked) if given == f"Bearer {token}" else google_error(401, "authError")(asked)

    return answer


def test_a_token_that_is_refused_is_renewed_and_the_request_sent_once_more(opened: Opener) -> None:
    credentials = Renewable("old", "new")
    with answering(wants("new")) as server, opened(server, token=credentials) as store:
        assert store.put("key", [b"abc"], "create") == Version("7")
        assert len(uploads(server)) == 2
        assert store.read("key").data == b"abc"
    assert credentials.renewals == 1


def test_a_token_that_cannot_be_renewed_is_refused_after_one_more_request(opened: Opener) -> None:
    with answering(wants("other")) as server, opened(server, token=Renewable("old", None)) as store:
        error = failure(lambda: store.put("key", [b"abc"], "create"))
        assert isinstance(error, errors.StoreError)
        assert not error.transient
        assert "fetched anew" in str(error)
        assert len(uploads(server)) == 2


# One write a second


def test_twenty_quick_writes_of_one_object_pass_where_google_takes_one_a_second(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time(1000.0)
    monkeypatch.setattr(pace, "GOOGLE", Pace(1.0, time.clock, time.sleep))
    with gcs(writes_per_second=1.0, clock=time.clock) as server, opened(server, server.new_bucket()) as store:
        version = store.put("state", [b"0"], "create")
        for number in range(1, 20):
            version = store.put("state", [b"%d" % number], version)
            store.put(f"data-{number}", [b""], "create")
        assert [entry.status for entry in server.log if entry.status >= 400] == []
    assert time.slept == [1.0] * 19


def test_without_waiting_google_would_have_refused(opened: Opener) -> None:
    """The twin of the test above: the limit is real, and its refusal passes."""
    with gcs(writes_per_second=1.0, clock=lambda: 0.0) as server, opened(server, server.new_bucket()) as store:
        version = store.put("state", [b"0"], "create")
        error = failure(lambda: store.put("state", [b"1"], version))
        assert isinstance(error, errors.StoreError)
        assert error.transient
