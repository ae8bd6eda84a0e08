"""gcsfs's storage options are read once, decide the engine, and reach the service."""

import inspect
from pathlib import Path
from typing import Any

import fsspec.config
import gcsfs
import gcsfs.core
import pytest
from support.answering import Answer, answering

from ckpt_remote.store import gcs_options, open_store
from ckpt_remote.store.gcs_options import parse_gcs_options

KNOWN = {*gcs_options._MEANT, *gcs_options._GCSFS_ONLY, *gcs_options._WITHOUT_EFFECT}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tokn": "x"}, "'tokn'.*Did you mean 'token'"),
        ({"key": "x", "secret": "y"}, "'key' for gs://"),
        ({"endpoint": "http://x"}, "'endpoint'.*Did you mean 'endpoint_url'"),
        ({"asynchronous": True}, "asynchronous"),
        ({"endpoint_url": "127.0.0.1:4443"}, "endpoint_url must begin with http"),
        ({"consistency": "sha1"}, "consistency is one of"),
    ],
)
def test_an_option_that_nobody_knows_is_an_error(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){named}"):
        open_store("gs://bucket/run", given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"endpoint_url": "http://127.0.0.1:1"}, "endpoint_url"),
        ({"session_kwargs": {"trust_env": True}}, "session_kwargs"),
        ({"token": "anon"}, "token='anon'"),
    ],
)
def test_what_obstore_cannot_do_is_left_to_gcsfs_which_says_so(given: dict[str, Any], reason: str) -> None:
    with open_store("gs://bucket/run", given) as store:
        assert store.engine == f"fsspec GCSFileSystem (obstore does not take {reason})"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STORAGE_EMULATOR_HOST", "127.0.0.1:4443"),
        ("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.test"),
        ("GOOGLE_SERVICE_ACCOUNT", "/no/such/file"),
    ],
)
def test_an_environment_that_obstore_would_read_otherwise_is_left_to_gcsfs(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with open_store("gs://bucket/run") as store:
        assert store.engine.startswith("fsspec GCSFileSystem (obstore ")
        assert variable in store.engine


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"token": "a-token", "project": "a-project", "access": "read_write"},
        {"requester_pays": True, "consistency": "md5", "requests_timeout": 60},
        {"block_size": 1, "use_listings_cache": True, "cache_timeout": 5, "timeout": 3, "version_aware": True},
    ],
)
def test_what_both_can_do_or_neither_needs_stays_with_obstore(given: dict[str, Any]) -> None:
    with open_store("gs://bucket/run", given) as store:
        assert store.engine == "obstore (default for gs://)"


def test_the_emulator_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(lambda _: Answer(200, b"{}")) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        with open_store("gs://bucket/run", {"token": "anon"}) as store:
            store.require_container()
        assert server.asked


def test_fsspecs_configuration_fills_gaps_and_yields() -> None:
    with answering(lambda _: Answer(200, b"{}")) as server, answering(lambda _: Answer(200, b"{}")) as other:
        variables = {"FSSPEC_GS_ENDPOINT_URL": server.endpoint, "FSSPEC_GS_TOKEN": "anon"}
        fsspec.config.set_conf_env(fsspec.config.conf, variables)
        with open_store("gs://bucket/run") as store:
            store.require_container()
        with open_store("gs://bucket/run", {"endpoint_url": other.endpoint}) as store:
            store.require_container()
        assert (len(server.asked), len(other.asked)) == (1, 1)


def test_every_option_of_gcsfs_is_known() -> None:
    """A newer gcsfs may have new options: each needs a decision and a line in docs/storage-options.md."""
    for kind in (gcsfs.core.GCSFileSystem, gcsfs.GCSFileSystem):
        names = set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
        assert names <= KNOWN


def test_secrets_stay_out_of_the_options_representation() -> None:
    assert "very-secret" not in repr(parse_gcs_options({"token": "very-secret"}))


def test_the_table_in_the_docs_names_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "storage-options.md").read_text()
    section = text.partition("## Google Cloud Storage")[2].partition("\n## ")[0]
    assert [option for option in sorted(KNOWN) if f"`{option}`" not in section] == []


@pytest.mark.parametrize("token", ["/no/such/key.json", "key.json", "./secret"])
def test_a_token_that_looks_like_a_file_must_be_one(token: str) -> None:
    with pytest.raises(ValueError, match="there is none"):
        parse_gcs_options({"token": token})
