"""Uploads are verified as far as the user asks for it and the store offers it."""

import base64
from collections.abc import Callable

import pytest
from support.answering import Answer, Answering, Asked, answering, s3_error
from support.servers import S3Server

from ckpt_remote import errors
from ckpt_remote.bundle import crc32c
from ckpt_remote.store import PutMode, Store, Version, aws, faults, open_store, options

BODY = b"some tensors"
KEYS = {"key": "TESTACCESSKEY0001", "secret": "very-secret-0001"}
DONE = Answer(200, b"", {"ETag": '"e"'})
MODES: list[PutMode] = ["create", "overwrite", Version('"old"')]


def reported(size: int = len(BODY), etag: str = '"e"', **headers: str) -> Answer:
    named = {f"x-amz-checksum-{name}": value for name, value in headers.items()}
    return Answer(200, b"x" * size, {"ETag": etag, "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT", **named})


@pytest.fixture(params=["obstore", "s3fs"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(engine: str) -> Callable[..., Store]:
    def open_directory(server: Answering | S3Server, url: str = "s3://bucket/run", **given: object) -> Store:
        elsewhere = {"config_kwargs": {"user_agent_extra": "x"}} if engine == "s3fs" else {}  # obstore cannot
        known = server.storage_options if isinstance(server, S3Server) else {**KEYS, "endpoint_url": server.endpoint}
        return open_store(url, {**known, **elsewhere, **given}).single

    return open_directory


Opener = Callable[..., Store]


def to_heads(answer: Answer) -> Callable[[Asked], Answer]:
    return lambda asked: answer if asked.method == "HEAD" else DONE


def sent(server: Answering) -> dict[str, str]:
    """The checksums that came with the last put."""
    put = [asked for asked in server.asked if asked.method == "PUT"][-1]
    headers = {name.lower(): value for name, value in put.headers.items()}
    prefix = "x-amz-checksum-"
    return {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}


def crc64nvme(data: bytes) -> str:
    """The checksum bit by bit, as the NVM Express command set specification defines it."""
    value = 2**64 - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
    return base64.b64encode((value ^ 2**64 - 1).to_bytes(8, "big")).decode()


@pytest.mark.parametrize("given", [{}, {"consistency": "none"}], ids=["default", "none"])
def test_who_does_not_ask_for_it_does_not_pay_for_it(opened: Opener, given: dict[str, str]) -> None:
    with answering(to_heads(reported(size=0))) as server, opened(server, **given) as store:
        for mode in MODES:
            store.put("key", [BODY], mode)
        assert ["PUT"] * len(MODES) == [asked.method for asked in server.asked]
        assert sent(server) == {}


@pytest.mark.parametrize("consistency", ["size", "checksum"])
def test_the_size_that_the_store_reports_is_the_one_that_was_sent(opened: Opener, consistency: str) -> None:
    for answer in (reported(), reported(etag='"another-writer-s"', size=0)):
        with answering(to_heads(answer)) as server, opened(server, consistency=consistency) as store:
            for mode in MODES:
                store.put("key", [BODY[:5], BODY[5:]], mode)
            assert ["PUT", "HEAD"] * len(MODES) == [asked.method for asked in server.asked]


@pytest.mark.parametrize("consistency", ["size", "checksum"])
@pytest.mark.parametrize("answer", [reported(size=3), Answer(404), Answer(403), Answer(400), Answer(503)])
def test_anything_else_is_a_failure_after_which_the_write_may_have_landed(
    opened: Opener, consistency: str, answer: Answer
) -> None:
    with answering(to_heads(answer)) as server, opened(server, consistency=consistency) as store:
        for mode in MODES:
            with pytest.raises(errors.StoreError) as caught:
                store.put("key", [BODY], mode)
            assert caught.value.transient
            assert not isinstance(caught.value, faults.ExpiredError)
            assert "s3://bucket/run/key" in str(caught.value)
            if answer.status == 200:
                assert "ContentLength 12 was sent" in str(caught.value)
                assert "3 is reported" in str(caught.value)
        assert server.count("PUT") == len(MODES)


def test_a_put_is_not_sent_again_because_credentials_end_before_it_is_verified(
    engine: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-0001")
    ended = s3_error(400, "ExpiredToken")
    with answering(lambda asked: DONE if asked.method == "PUT" else ended) as server:
        store = opened(server, key=None, secret=None, consistency="size")
        with store, pytest.raises(errors.StoreError, match="cannot be verified"):
            store.put("key", [BODY], "create")
        assert server.count("PUT") == 1


def test_a_checksum_is_sent_for_the_store_to_compare(engine: str, opened: Opener) -> None:
    ours = base64.b64encode(crc32c(BODY).to_bytes(4, "big")).decode()
    with answering(to_heads(reported(crc32c=ours))) as server, opened(server, consistency="checksum") as store:
        store.put("key", [BODY[:5], BODY[5:]], "create")
        assert sent(server) == ({"crc32c": ours} if engine == "s3fs" else {"crc64nvme": crc64nvme(BODY)})


@pytest.mark.parametrize("engine", ["s3fs"])  # obstore does not tell its checksum: the store alone compares it
def test_the_checksum_that_the_store_reports_is_compared(opened: Opener) -> None:
    def answer(asked: Asked) -> Answer:
        mode = {name.lower(): value for name, value in asked.headers.items()}.get("x-amz-checksum-mode")
        return to_heads(reported(**({"crc32c": "AAAAAA=="} if mode == "ENABLED" else {})))(asked)

    with answering(answer) as server, opened(server, consistency="checksum") as store:
        with pytest.raises(errors.StoreError, match=r"ChecksumCRC32C .* was sent.*AAAAAA== is reported") as caught:
            store.put("key", [BODY], "create")
        assert caught.value.transient


@pytest.mark.parametrize("consistency", ["size", "checksum"])
def test_a_real_store_agrees(opened: Opener, ministack: S3Server, moto: S3Server, consistency: str) -> None:
    for server in (ministack, moto):
        bucket = server.new_bucket()
        with opened(server, f"s3://{bucket}/run", consistency=consistency) as store:
            version = store.put("key", [BODY[:5], BODY[5:]], "create")
            store.put("key", [b""], version)
            store.put("key", [BODY], "overwrite")
            assert store.read("key").data == BODY
        kept = server.client().head_object(Bucket=bucket, Key="run/key", ChecksumMode="ENABLED")
        asked_for = consistency == "checksum" and server is ministack  # moto keeps none
        assert any(name.startswith("ChecksumC") for name in kept) == asked_for


@pytest.mark.parametrize("engine", ["s3fs"])  # obstore computes its checksum from what it sends
def test_a_real_store_refuses_a_body_that_is_not_what_was_sent(
    opened: Opener, ministack: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_remote.store.s3fs.crc32c", lambda data: 7)
    with opened(ministack, f"s3://{ministack.new_bucket()}/run", consistency="checksum") as store:
        with pytest.raises(errors.StoreError, match="BadDigest") as caught:
            store.put("key", [BODY], "create")
        assert caught.value.transient
        assert list(store.list()) == []


def test_amazon_compares_a_checksum_unless_told_otherwise() -> None:
    """Nothing is sent: only the configuration of obstore's client is looked at."""
    amazon, elsewhere = None, "http://127.0.0.1:1"
    for endpoint, consistency, expected in (
        (amazon, None, "crc64nvme"),
        (amazon, "size", None),
        (amazon, "none", None),
        (amazon, "checksum", "crc64nvme"),
        (elsewhere, None, None),
        (elsewhere, "checksum", "crc64nvme"),
    ):
        given = {**KEYS, "region": "eu-north-1", "endpoint_url": endpoint, "consistency": consistency}
        parsed = options.parse_s3_options({name: value for name, value in given.items() if value})
        client = aws._client(parsed, aws._session(None), parsed.region)
        found = aws.Account(parsed, "bucket", client, None, "a test").open(1.0).config.get("checksum_algorithm")
        assert (found and found.lower()) == expected, (endpoint, consistency)


def test_a_value_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="consistency is one of none, size, checksum"):
        open_store("s3://bucket/run", {"consistency": "md5"})


def test_what_was_created_damaged_is_removed_so_that_it_does_not_pass_for_the_real_thing(opened: Opener) -> None:
    with answering(to_heads(reported(size=3))) as server, opened(server, consistency="size") as store:
        for mode in MODES:
            with pytest.raises(errors.StoreError):
                store.put("key", [BODY], mode)
    removals = [asked for asked in server.asked if asked.method == "DELETE"]
    assert ['"e"'] == [{name.lower(): value for name, value in it.headers.items()}["if-match"] for it in removals]
