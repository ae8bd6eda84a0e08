"""The same storage options mean the same on both engines: seen on the wire."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
from support.answering import Answer, Asked, answering

from ckpt_remote import errors
from ckpt_remote.store import Store, open_store, options
from ckpt_remote.store.options import parse_s3_options

KEYS = {"key": "TESTACCESSKEY0001", "secret": "very-secret-0001"}
DONE = Answer(200, b"", {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"})


@pytest.fixture(params=["obstore", "fsspec S3FileSystem"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def opened(engine: str, storage_options: Mapping[str, Any]) -> Store:
    given = dict(storage_options)
    if engine != "obstore":  # an option without a meaning of its own that only s3fs takes
        given["config_kwargs"] = {"user_agent_extra": "test"} | given.get("config_kwargs", {})
    store = open_store("s3://bucket/run", given)
    assert store.engine.startswith(engine)
    return store


def requests(engine: str, storage_options: Mapping[str, Any], *, endpoint: bool = True) -> list[Asked]:
    """What a write, a read and a look-up with these options send."""
    with answering(lambda _: DONE) as server:
        where = {"endpoint_url": server.endpoint} if endpoint else {}
        with opened(engine, {**where, **storage_options}) as store:
            store.put("key", [b"abc"], "create")
            store.read("key")
            store.size("key")
        return [Asked(asked.method, asked.path, _lower(asked.headers), asked.body) for asked in server.asked]


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_key_secret_token_and_region_sign_every_request(engine: str) -> None:
    given = {**KEYS, "token": "session-token", "client_kwargs": {"region_name": "eu-north-1"}}
    for asked in requests(engine, given):
        assert "Credential=TESTACCESSKEY0001/" in asked.headers["authorization"]
        assert "/eu-north-1/s3/" in asked.headers["authorization"]
        assert asked.headers["x-amz-security-token"] == "session-token"
        assert asked.path == "/bucket/run/key"


@pytest.mark.parametrize(
    "given",
    [
        {"username": "TESTACCESSKEY0001", "password": "very-secret-0001", "region": "eu-north-1"},
        {
            "client_kwargs": {
                "aws_access_key_id": "TESTACCESSKEY0001",
                "aws_secret_access_key": "very-secret-0001",
                "region_name": "eu-north-1",
            }
        },
        {**KEYS, "config_kwargs": {"region_name": "eu-north-1"}},
    ],
)
def test_every_spelling_of_key_and_region_is_one(engine: str, given: dict[str, Any]) -> None:
    for asked in requests(engine, given):
        assert "Credential=TESTACCESSKEY0001/" in asked.headers["authorization"]
        assert "/eu-north-1/s3/" in asked.headers["authorization"]


def test_anonymous_requests_are_not_signed(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MUSTNOTBEUSED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "must-not-be-used")
    for asked in requests(engine, {"anon": True}):
        assert "authorization" not in asked.headers


def test_requester_pays_is_said_with_every_request(engine: str) -> None:
    for given in ({"requester_pays": True}, {"s3_additional_kwargs": {"RequestPayer": "requester"}}):
        for asked in requests(engine, {**KEYS, **given}):
            assert asked.headers["x-amz-request-payer"] == "requester"


def test_encryption_and_storage_class_go_with_the_write(engine: str) -> None:
    extra = {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "my-key",
        "BucketKeyEnabled": True,
        "StorageClass": "STANDARD_IA",
    }
    put, *others = requests(engine, {**KEYS, "s3_additional_kwargs": extra})
    assert put.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert put.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "my-key"
    assert put.headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
    assert put.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert all("x-amz-storage-class" not in asked.headers for asked in others)


def test_the_environment_gives_credentials(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYOFENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-environment")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    for asked in requests(engine, {}):
        assert "Credential=KEYOFENVIRONMENT/" in asked.headers["authorization"]
        assert "/ap-south-1/s3/" in asked.headers["authorization"]
        assert asked.headers["x-amz-security-token"] == "token-of-environment"


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_profile_gives_credentials_that_a_process_renews(
    engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, by_variable: bool
) -> None:
    answer = {
        "Version": 1,
        "AccessKeyId": "KEYOFPROCESS",
        "SecretAccessKey": "secret",
        "SessionToken": "token-of-process",
        "Expiration": "2999-01-01T00:00:00Z",
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    command = f"{sys.executable} -c \"print(open('{tmp_path}/answer.json').read())\""
    (tmp_path / "config").write_text(f"[profile team]\nregion = sa-east-1\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if by_variable:
        monkeypatch.setenv("AWS_PROFILE", "team")
    for asked in requests(engine, {} if by_variable else {"profile": "team"}):
        assert "Credential=KEYOFPROCESS/" in asked.headers["authorization"]
        assert "/sa-east-1/s3/" in asked.headers["authorization"]
        assert asked.headers["x-amz-security-token"] == "token-of-process"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_gives_the_endpoint(engine: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with answering(lambda _: DONE) as server:
        monkeypatch.setenv(variable, server.endpoint)
        with opened(engine, KEYS) as store:
            store.put("key", [b"abc"], "create")
        assert server.count("PUT") == 1


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_an_endpoint_that_was_given_beats_the_environment(
    engine: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with answering(lambda _: Answer(500)) as other:
        monkeypatch.setenv(variable, other.endpoint)
        assert requests(engine, KEYS)
        assert not other.asked


def test_fsspecs_configuration_fills_gaps_and_yields(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda _: DONE) as server:
        variables = {
            "FSSPEC_S3_ENDPOINT_URL": server.endpoint,
            "FSSPEC_S3_KEY": "12345",  # fsspec reads it as JSON: a number
            "FSSPEC_S3_SECRET": "secret",
            "FSSPEC_S3": '{"requester_pays": true}',
        }
        fsspec.config.set_conf_env(fsspec.config.conf, variables)
        with opened(engine, {}) as store:
            store.put("key", [b"abc"], "create")
        with opened(engine, KEYS) as store:
            store.put("key", [b"abc"], "create")
        first, second = (_lower(asked.headers) for asked in server.asked)
        assert "Credential=12345/" in first["authorization"]
        assert first["x-amz-request-payer"] == "requester"
        assert "Credential=TESTACCESSKEY0001/" in second["authorization"]


def test_virtual_addressing_names_the_bucket_in_the_host_also_behind_a_proxy(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy makes names of hosts that do not exist reachable, and shows that the environment's is used."""
    styles = {"virtual": "http://bucket.store.test/run/key", "path": "http://store.test/bucket/run/key"}
    for style, address in styles.items():
        given = {
            **KEYS,
            "endpoint_url": "http://store.test",
            "config_kwargs": {"s3": {"addressing_style": style}},
        }
        with answering(lambda _: DONE) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
            monkeypatch.setenv("http_proxy", proxy.endpoint)
            with opened(engine, given) as store:
                store.put("key", [b"abc"], "create")
            assert [address] == [asked.path for asked in proxy.asked]


def test_the_users_number_of_attempts_holds(engine: str) -> None:
    given = {**KEYS, "config_kwargs": {"retries": {"max_attempts": 1, "mode": "standard"}}}
    with answering(lambda _: Answer(503)) as server:
        with (
            opened(engine, {**given, "endpoint_url": server.endpoint}) as store,
            pytest.raises(errors.StoreError),
        ):
            store.read("key")
        assert server.count("GET") == 2


def test_bodies_are_not_digested_unless_the_user_wants_it(engine: str) -> None:
    put = requests("obstore", KEYS)[0]
    assert put.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    signing = {**KEYS, "config_kwargs": {"s3": {"payload_signing_enabled": True}}}
    put = requests(engine, signing)[0]
    assert put.headers["x-amz-content-sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"keys": "x"}, "'keys'.*Did you mean 'key'"),
        ({"endpoint": "x"}, "'endpoint'.*Did you mean 'endpoint_url'"),
        ({"client_kwargs": {"region": "x"}}, "client_kwargs has no option 'region'"),
        ({"config_kwargs": {"timeout": 5}}, "config_kwargs has no option 'timeout'"),
        (
            {"s3_additional_kwargs": {"StorageKlass": "x"}},
            "s3_additional_kwargs has no option 'StorageKlass'",
        ),
        ({"asynchronous": True}, "asynchronous"),
    ],
)
def test_an_option_that_nobody_knows_is_an_error(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){named}"):
        open_store("s3://bucket/run", given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"client_kwargs": {"verify": "/ca.pem"}}, "client_kwargs['verify']"),
        ({"config_kwargs": {"proxies": {"http": "http://p"}}}, "config_kwargs['proxies']"),
        ({"config_kwargs": {"signature_version": "s3"}}, "config_kwargs['signature_version']"),
        (
            {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}},
            "config_kwargs['s3']['use_accelerate_endpoint']",
        ),
        ({"s3_additional_kwargs": {"ACL": "private"}}, "s3_additional_kwargs['ACL']"),
        ({"s3_additional_kwargs": {"SSECustomerKey": "k"}}, "s3_additional_kwargs['SSECustomerKey']"),
    ],
)
def test_what_obstore_cannot_do_is_left_to_s3fs_which_says_so(given: dict[str, Any], reason: str) -> None:
    with open_store("s3://bucket/run", given) as store:
        assert store.engine == f"fsspec S3FileSystem (obstore does not take {reason})"


@pytest.mark.parametrize(
    "given",
    [
        {"default_block_size": 1, "use_listings_cache": True, "max_concurrency": 2, "version_aware": False},
        {"client_kwargs": {"verify": False, "use_ssl": False}},
        {"config_kwargs": {"max_pool_connections": 50, "read_timeout": 9, "connect_timeout": 2}},
        {"config_kwargs": {"signature_version": "s3v4", "request_checksum_calculation": "when_required"}},
    ],
)
def test_what_both_can_do_or_neither_needs_stays_with_obstore(given: dict[str, Any]) -> None:
    with open_store("s3://bucket/run", given) as store:
        assert store.engine == "obstore (default for s3://)"


def test_every_option_of_s3fs_is_known() -> None:
    """A newer s3fs may have new options: each needs a decision and a line in docs/storage-options.md."""
    import inspect

    import s3fs

    known = {
        *options._MEANT,
        *options._GROUPS,
        *options._S3FS_ONLY,
        *options._WITHOUT_EFFECT,
        *options._ALIASES,
    }
    assert set(inspect.signature(s3fs.S3FileSystem.__init__).parameters) - {"self", "kwargs"} <= known


def test_secrets_stay_out_of_the_options_representation() -> None:
    parsed = parse_s3_options({**KEYS, "token": "session-token", "client_kwargs": {"region_name": "eu-north-1"}})
    assert "very-secret-0001" not in repr(parsed)
    assert "session-token" not in repr(parsed)
    assert "eu-north-1" in repr(parsed)


def test_the_table_in_the_docs_names_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "storage-options.md").read_text()
    known = (
        *options._MEANT,
        *options._GROUPS,
        *options._S3FS_ONLY,
        *options._WITHOUT_EFFECT,
        *options._ALIASES,
    )
    assert [option for option in known if f"`{option}`" not in text] == []
