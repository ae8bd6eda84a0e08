"""adlfs's options mean the same to obstore's Azure: seen on the wire, and told without secrets."""

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from obstore.exceptions import GenericError
from store.clouds import everything
from support.answering import Answer, Asked, answering

from ckpt_remote import errors
from ckpt_remote.store import Policy, azure_options, obstore, open_store, retry
from ckpt_remote.store.azure_options import parse_azure_options
from ckpt_remote.store.urls import parse_container_url

KEY = "dmVyeS1zZWNyZXQta2V5"
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdl&sig=very-secret-signature"
MODIFIED = "Sun, 22 Nov 2026 15:00:00 GMT"
HEADERS = {"ETag": '"0x1"', "Last-Modified": MODIFIED}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "Policy", lambda **given: Policy(**{"first_delay": 0.0} | given))


def well(asked: Asked) -> Answer:
    return Answer(201 if asked.method == "PUT" else 200, b"", HEADERS)


def connection_string(endpoint: str, secret: str = f"AccountKey={KEY}") -> str:
    return f"AccountName=acct;{secret};BlobEndpoint={endpoint}/acct;"


def asked_with(storage_options: Callable[[str], Mapping[str, Any]]) -> Asked:
    """What a write with these options sends."""
    with answering(well) as server:
        with open_store("abfs://box/run", storage_options(server.endpoint)) as store:
            store.put("key", [b"abc"], "create")
        (asked,) = server.asked
        return Asked(asked.method, asked.path, {k.lower(): v for k, v in asked.headers.items()}, asked.body)


def test_an_account_key_signs_and_the_condition_is_azures() -> None:
    asked = asked_with(lambda endpoint: {"connection_string": connection_string(endpoint)})
    assert asked.headers["authorization"].startswith("SharedKey acct:")
    assert asked.headers["if-none-match"] == "*"
    assert asked.path == "/acct/box/run/key"


@pytest.mark.parametrize("mark", ["", "?"])
def test_a_shared_access_signature_goes_into_the_query(mark: str) -> None:
    secret = f"SharedAccessSignature={mark}{SAS}"
    asked = asked_with(lambda endpoint: {"connection_string": connection_string(endpoint, secret)})
    assert "sig=very-secret-signature" in asked.path
    assert "authorization" not in asked.headers


def tokens(*, asynchronous: bool) -> Any:
    """A credential of azure-identity's kind."""

    def get_token(*scopes: str) -> SimpleNamespace:
        assert scopes == ("https://storage.azure.com/.default",)
        return SimpleNamespace(token="a-token", expires_on=time.time() + 3600)

    async def get_token_later(*scopes: str) -> SimpleNamespace:
        return get_token(*scopes)

    return SimpleNamespace(get_token=get_token_later if asynchronous else get_token)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_credential_object_gives_the_tokens(monkeypatch: pytest.MonkeyPatch, *, asynchronous: bool) -> None:
    with answering(well) as server:
        send_to(server.endpoint, monkeypatch)
        given = {"account_name": "acct", "credential": tokens(asynchronous=asynchronous)}
        with open_store("abfs://box/run", given) as store:
            store.put("key", [b"abc"], "create")
        headers = {name.lower(): value for name, value in server.asked[0].headers.items()}
        assert headers["authorization"] == "Bearer a-token"


def test_anonymous_requests_are_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(well) as server:
        send_to(server.endpoint, monkeypatch)
        with open_store("abfs://box/run", {"account_name": "acct", "anon": True}) as store:
            store.size("key")
        assert "authorization" not in {name.lower() for name in server.asked[0].headers}


def send_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a connection string names an endpoint without https."""
    real = azure_options._options

    def redirected(meant: Mapping[str, Any]) -> azure_options.AzureOptions:
        return real({**meant, "endpoint": f"{endpoint}/acct"})

    monkeypatch.setattr(azure_options, "_options", redirected)


@pytest.mark.parametrize(
    ("url", "canonical", "account"),
    [
        ("abfs://box/run/", "abfs://box/run", None),
        ("abfss://box/run", "abfs://box/run", None),
        ("az://box", "abfs://box", None),
        ("azure://box/a/b", "abfs://box/a/b", None),
        (
            "abfss://box@acct.dfs.core.windows.net/run",
            "abfs://box@acct.dfs.core.windows.net/run",
            "acct",
        ),
        (
            "az://acct.blob.core.windows.net/box/run",
            "abfs://box@acct.blob.core.windows.net/run",
            "acct",
        ),
    ],
)
def test_every_form_of_a_url_is_taken(url: str, canonical: str, account: str | None) -> None:
    given = {"account_key": KEY} | ({} if account else {"account_name": "other"})
    with open_store(url, given) as store:
        assert store.url == canonical
        assert store.engine == "obstore (the only one for abfs://)"
    parsed = parse_azure_options(given, parse_container_url(url))
    assert parsed.account_name == (account or "other")
    assert parsed.endpoint == f"https://{account or 'other'}.blob.core.windows.net"


@pytest.mark.parametrize("url", ["abfs://", "abfs:///run", "abfs://box/a//b", "abfs://acct.dfs.core.windows.net"])
def test_a_url_without_a_plain_directory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"container|segment"):
        open_store(url, {"account_name": "acct", "account_key": KEY})


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="no credentials") as caught:
        open_store("abfs://acct:very-secret@box/run")
    assert "very-secret" not in str(caught.value)


def test_the_environment_fills_gaps_as_for_adlfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "environment")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    location = parse_container_url("abfs://box/run")
    parsed = parse_azure_options({}, location)
    assert (parsed.account_name, parsed.account_key) == ("environment", KEY)
    assert parse_azure_options({"account_name": "given"}, location).account_name == "given"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=portal;AccountKey=a2V5;EndpointSuffix=x.test")
    parsed = parse_azure_options({"account_name": "given"}, location)
    assert (parsed.account_name, parsed.account_key) == ("portal", "a2V5")
    assert parsed.endpoint == "https://portal.blob.x.test"


def test_credentials_have_adlfs_precedence() -> None:
    location = parse_container_url("abfs://box@acct.dfs.core.windows.net/run")
    principal = {"client_id": "i", "client_secret": "s", "tenant_id": "t"}
    everything = {"credential": tokens(asynchronous=False), "account_key": KEY, "sas_token": SAS, **principal}
    for name in ("credential", "account_key", "sas_token", "service_principal"):
        parsed = parse_azure_options({**everything, "anon": True}, location)
        found = {one: getattr(parsed, one) for one in ("credential", "account_key", "sas_token", "service_principal")}
        assert {one for one, value in found.items() if value} == {name}
        assert not parsed.anon
        everything.pop(name, None)
    assert parse_azure_options({"anon": True}, location).anon
    assert parse_azure_options({"credential": SAS}, location).sas_token == SAS
    assert parse_azure_options({"credential": KEY}, location).account_key == KEY


def test_no_account_is_named() -> None:
    with pytest.raises(ValueError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("abfs://box/run")


@pytest.mark.parametrize(
    ("given", "named"),
    [({"acount_name": "x"}, "Did you mean 'account_name'"), ({"asynchronous": True}, "asynchronous")],
)
def test_an_option_that_nobody_knows_is_an_error(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        open_store("abfs://box/run", given)


def test_an_option_that_cannot_be_honoured_is_unsupported() -> None:
    with pytest.raises(errors.UnsupportedError, match="location_mode"):
        open_store("abfs://box/run", {"account_name": "acct", "location_mode": "secondary"})
    open_store("abfs://box/run", {"account_name": "acct", "location_mode": "primary"})


def test_no_signature_reaches_a_message_a_representation_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """It is in the query of every URL."""
    caplog.set_level("INFO")
    said = []
    for status in (400, 401, 403, 404, 409, 412, 503):
        with answering(lambda _, status=status: Answer(status)) as server:
            given = {"connection_string": connection_string(server.endpoint, f"SharedAccessSignature={SAS}")}
            with open_store("abfs://box/run", given) as store:
                said += [repr(store), repr(parse_azure_options(given, parse_container_url("abfs://box/run")))]
                for use in everything(store).values():
                    with pytest.raises(errors.CheckpointError) as caught:
                        use()
                    said += traceback.format_exception(caught.value)
    assert "very-secret-signature" not in "".join(said) + caplog.text


@pytest.mark.parametrize("name", ["account_key", "credential", "connection_string"])
@pytest.mark.parametrize("key", ["very secret!", "dmVyeS1zZWNyZXQta2V", "very-secret_", "dmVyeQ==x"])
def test_a_key_that_is_no_key_is_refused_and_not_repeated(name: str, key: str) -> None:
    value = f"AccountName=acct;AccountKey={key}" if name == "connection_string" else key
    with pytest.raises(ValueError, match="account key for Azure is not base64") as caught:
        open_store("abfs://box/run", {"account_name": "acct", name: value})
    assert key not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("very-secret", "lacks AccountName and BlobEndpoint"),
        ("UseDevelopmentStorage=true", "lacks AccountName and BlobEndpoint"),
        (f"AccountKey={KEY}", "lacks AccountName and BlobEndpoint"),
        ("AccountName=acct;EndpointSuffix=core.windows.net", "lacks AccountKey and SharedAccessSignature"),
        (f"AccountName=acct;AccountKey={KEY};BlobEndpoint=127.0.0.1/acct", "'127.0.0.1/acct' is not"),
        (
            f"AccountName=acct;AccountKey={KEY};DefaultEndpointsProtocol=ftp",
            "'ftp://acct.blob.core.windows.net' is not",
        ),
        (f"AccountName=acct;AccountKey={KEY};BlobEndpoint=http://u:very-secret@no host/", "'http://no host' is not"),
    ],
)
def test_a_connection_string_that_is_none_is_refused_and_not_repeated(text: str, lacking: str) -> None:
    with pytest.raises(ValueError, match=lacking) as caught:
        open_store("abfs://box/run", {"connection_string": text})
    assert "very-secret" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_names_in_a_connection_string_are_read_in_any_case() -> None:
    parsed = parse_azure_options(
        {"connection_string": f"accountname=acct;ACCOUNTKEY={KEY}"}, parse_container_url("abfs://box/run")
    )
    assert (parsed.account_name, parsed.account_key) == ("acct", KEY)


def test_who_may_not_write_is_not_refused_what_passes_later() -> None:
    """The store is asked by a write that can never happen."""
    with (
        answering(lambda asked: Answer(403 if asked.method == "PUT" else 503)) as server,
        open_store("abfs://box/run", {"connection_string": connection_string(server.endpoint)}) as store,
    ):
        with pytest.raises(errors.StoreError) as caught:
            store.single.read("key")
        assert caught.value.transient
        with pytest.raises(errors.StoreError, match="access was refused") as caught:
            list(store.single.list())
        assert not caught.value.transient


def test_the_query_of_a_url_stays_out_of_what_obstore_reported() -> None:
    told = obstore._quiet(GenericError(f"Error performing PUT http://x.test/box/key?{SAS} in 1ms"))
    assert str(told) == "Error performing PUT http://x.test/box/key"


def test_the_table_in_the_docs_names_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "storage-options.md").read_text()
    section = text.partition("## Azure")[2].partition("\n## ")[0]
    known = (*azure_options._MEANT, *azure_options._REFUSED, *azure_options._WITHOUT_EFFECT)
    assert [option for option in known if f"`{option}`" not in section] == []
