"""Google's accounts: found as gcsfs finds them, renewed in time, and the same on both engines."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gcsfs
import pytest
import requests
from google.oauth2.credentials import Credentials
from support.answering import Answer, Asked, answering
from support.engines import google_obstore
from support.gcs import GCSServer, gcs

from ckpt_remote import errors
from ckpt_remote.store import google, open_store
from ckpt_remote.store.faults import Request
from ckpt_remote.store.gcs_options import parse_gcs_options

REQUEST = Request("open", "gs://bucket/run")
HEADERS = {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT", "x-goog-generation": "7"}


def token_of(asked: Asked) -> str:
    return asked.headers.get("authorization") or asked.headers.get("Authorization") or ""


def well(asked: Asked) -> Answer:
    return Answer(200, b'{"generation": "7", "size": "3"}', HEADERS)


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """`GOOGLE_APPLICATION_CREDENTIALS` of a workload whose tokens come from an address of ours."""

    def configure(endpoint: str) -> None:
        (tmp_path / "subject").write_text("a-subject")
        configuration = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/anything",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{endpoint}/token",
            "credential_source": {"file": str(tmp_path / "subject")},
        }
        (tmp_path / "credentials.json").write_text(json.dumps(configuration))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "credentials.json"))
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a-project")

    return configure


def issuing(tokens: Iterator[str], lifetime: int) -> Callable[[Asked], Answer]:
    """A service that issues tokens, and a store that takes any."""

    def answer(asked: Asked) -> Answer:
        if asked.path != "/token":
            return well(asked)
        issued = {
            "access_token": next(tokens),
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": lifetime,
        }
        return Answer(200, json.dumps(issued).encode(), {"Content-Type": "application/json"})

    return answer


@pytest.mark.usefixtures("_unhurried")
def test_google_auth_finds_the_token_and_renews_it_before_it_ends(workload: Callable[..., None]) -> None:
    numbers = iter(f"token-{number}" for number in range(1000))
    # Four minutes are less than what both obstore and gcsfs want to have left.
    with answering(issuing(numbers, 240)) as server:
        workload(server.endpoint)
        for opened in (
            google_obstore("gs://bucket/run", server.endpoint, "google_default", consistency="none"),
            open_store("gs://bucket/run", {"endpoint_url": server.endpoint, "token": "google_default"}),
            open_store("gs://bucket/run", {"endpoint_url": server.endpoint}),
        ):
            start, used = len(server.asked), {""}
            with opened as store:
                while (
                    len(used) < 3
                ):  # obstore keeps any token for a tenth of a second; pytest's timeout is the deadline
                    store.put("key", [b"abc"], "overwrite")
                    used |= {token_of(asked) for asked in server.asked[start:] if asked.path != "/token"}
            assert all(token.startswith("Bearer token-") for token in used if token)


def test_a_token_is_asked_for_once_while_it_is_good(workload: Callable[..., None]) -> None:
    with answering(issuing(iter(["the-token"]), 3600)) as server:
        workload(server.endpoint)
        with google_obstore("gs://bucket/run", server.endpoint, "google_default", consistency="none") as store:
            for number in range(3):
                store.put(f"key-{number}", [b"abc"], "create")
        assert {"Bearer the-token"} == {token_of(asked) for asked in server.asked if asked.path != "/token"}


def test_a_refusal_names_where_the_token_came_from(workload: Callable[..., None]) -> None:
    def answer(asked: Asked) -> Answer:
        return issue(asked) if asked.path == "/token" else Answer(403)

    issue = issuing(iter("token" for _ in range(10)), 3600)
    with answering(answer) as server:
        workload(server.endpoint)
        with (
            open_store("gs://bucket/run", {"endpoint_url": server.endpoint}) as store,
            pytest.raises(errors.StoreError, match="found by gcsfs"),
        ):
            store.read("key")


def test_without_credentials_obstore_reads_as_anybody_and_refuses_to_write_before_it_asks() -> None:
    with answering(well) as server, google_obstore("gs://bucket/run", server.endpoint, "anon") as store:
        assert store.read("key").version.token == "7"
        with pytest.raises(errors.StoreError, match="no credentials") as caught:
            store.put("key", [b"abc"], "create")
        assert not caught.value.transient
        assert {""} == {token_of(asked) for asked in server.asked}
        assert {"GET"} == {asked.method for asked in server.asked}


@pytest.mark.parametrize(
    "token",
    ["/no/such/file.json", {"refresh_token": "x"}, "google_default", "cache"],
    ids=["file", "dict", "default", "cache"],
)
def test_credentials_that_are_not_there_are_named_at_the_first_request(
    token: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FETCH_RAW_TOKEN_EXPIRY", "false")  # gcsfs would ask Google about a bare token
    monkeypatch.setattr("gcsfs.credentials.GoogleCredentials.tokens", {}, raising=False)
    if token == "/no/such/file.json":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", token)
        token = "google_default"
    with open_store("gs://bucket/run", {"token": token}) as store:
        for use in (lambda: store.read("key"), store.require_container, lambda: store.put("key", [], "create")):
            with pytest.raises(errors.StoreError, match="credentials") as caught:
                use()
            assert not caught.value.transient


def test_a_bare_token_in_the_url_of_a_failed_look_up_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(url: str, params: dict[str, str], **_: object) -> None:
        raise requests.ConnectionError(f"Max retries exceeded with url: {url}?access_token={params['access_token']}")

    monkeypatch.setattr("gcsfs.credentials.requests.get", look_up)
    with open_store("gs://bucket/run", {"token": "very-secret"}) as store, pytest.raises(errors.StoreError) as caught:
        store.read("key")
    assert "very-secret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.transient


def test_obstore_may_hold_a_token_no_longer_than_a_minute() -> None:
    """Whoever gave us the credentials may change them at any time."""
    expiry = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None) + dt.timedelta(hours=1)  # google-auth's is naive
    parsed = parse_gcs_options({"token": Credentials("a-token", expiry=expiry)})
    provider = google._Provider(google.connect(parsed, REQUEST).filesystem.credentials)
    until = provider()["expires_at"] - dt.datetime.now(dt.timezone.utc)
    assert dt.timedelta(minutes=5) < until <= dt.timedelta(minutes=6)  # obstore asks again five minutes before


def test_no_bucket_is_asked_for_its_kind() -> None:
    """`gcsfs.GCSFileSystem` would: over gRPC, for a minute and a half where nobody answers."""
    made = google.connect(parse_gcs_options({"token": "anon"}), REQUEST).filesystem
    assert type(made) is gcsfs.core.GCSFileSystem
    assert os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT") is None


@pytest.mark.usefixtures("_unhurried")
@pytest.mark.parametrize("kind", [gcsfs.core.GCSFileSystem, gcsfs.GCSFileSystem])
def test_a_filesystem_that_a_user_brings_is_used_as_it_is(gcs_server: GCSServer, kind: type) -> None:
    filesystem = kind(**gcs_server.storage_options, skip_instance_cache=True)
    bucket = gcs_server.new_bucket()
    with open_store(f"gcs://{bucket}/run", filesystem=filesystem) as store:
        assert store.engine == f"fsspec {kind.__name__} (a filesystem was given)"
        assert store.url == f"gs://{bucket}/run"
        version = store.put("key", [b"1"], "create")
        store.put("key", [b"2"], version)
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"3"], version)
    assert gcs_server.read(bucket, "run/key") == b"2"
    assert not filesystem.session.closed  # it is not ours to close


def test_an_asynchronous_filesystem_is_refused() -> None:
    filesystem = gcsfs.core.GCSFileSystem(token="anon", asynchronous=True, skip_instance_cache=True)
    with pytest.raises(ValueError, match="asynchronous"):
        open_store("gs://bucket/run", filesystem=filesystem)


def test_a_service_that_says_nothing_is_left_after_the_users_time() -> None:
    over = threading.Event()

    def silent(asked: Asked) -> Answer:
        over.wait()
        return Answer(200)

    with answering(silent) as server:
        options = {"token": "anon", "endpoint_url": server.endpoint, "requests_timeout": 0.1}
        with open_store("gs://bucket/run", options) as store:
            try:
                start = time.monotonic()
                put, inner = (lambda: store.put("key", [b"1"], "create")), store.single
                for use in (put, inner.require_container, lambda: inner.read("key")):
                    with pytest.raises(errors.StoreError) as caught:
                        use()
                    assert caught.value.transient
                assert time.monotonic() - start < 10.0  # half of what a single one may take by default
            finally:
                over.set()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("use", ["read", "put"])
def test_control_c_ends_the_wait_for_an_answer_that_does_not_come(use: str) -> None:
    over, main = threading.Event(), threading.main_thread().ident

    def answer(asked: Asked) -> Answer:
        if not over.is_set():
            signal.pthread_kill(main, signal.SIGINT)  # as the terminal does
            over.wait()
        return well(asked)

    with (
        answering(answer) as server,
        open_store("gs://bucket/run", {"token": "anon", "endpoint_url": server.endpoint}) as store,
    ):
        arguments = {"read": ("key",), "put": ("key", [b"1"], "create")}[use]
        try:
            with pytest.raises(KeyboardInterrupt):
                getattr(store, use)(*arguments)
        finally:
            over.set()


IN_A_FORK = """
import json, os, sys, warnings
import gcsfs.core
from ckpt_remote import errors
from ckpt_remote.store import open_store
from support.engines import google_obstore

url, options = sys.argv[1], json.loads(sys.argv[2])
filesystem = gcsfs.core.GCSFileSystem(**options, skip_instance_cache=True)
obstore, ours, theirs = (
    google_obstore(url, options["endpoint_url"]), open_store(url, options), open_store(url, filesystem=filesystem)
)
ours.put("key", [b"1"], "create")
print(obstore.read("key").data, theirs.read("key").data, flush=True)
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about is what is tested
if os.fork() == 0:
    for store in (obstore, theirs):
        for use in (lambda: store.read("key"), lambda: list(store.list()), lambda: store.put("other", [], "create")):
            try:
                use()
            except errors.UnsupportedError as error:
                print("spawn" in str(error), flush=True)
    print(ours.read("key").data, flush=True)
    os._exit(0)
os.wait()
print(ours.read("key").data)
"""


def test_a_forked_process_connects_anew_or_is_told_to_instead_of_hanging() -> None:
    with gcs(writes_per_second=None) as server:
        url = f"gs://{server.new_bucket()}/run"
        paths = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
        environment = {**os.environ, "PYTHONPATH": paths}
        command = [sys.executable, "-c", IN_A_FORK, url, json.dumps(server.storage_options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["b'1' b'1'", *["True"] * 6, "b'1'", "b'1'"]


def test_many_threads_that_begin_together_find_one_account(
    gcs_server: GCSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[google.Account] = []
    real = google.connect

    def count(*arguments: Any, **named: Any) -> google.Account:
        connected.append(real(*arguments, **named))
        return connected[-1]

    monkeypatch.setattr(google, "connect", count)
    url = f"gs://{gcs_server.new_bucket()}/run"
    for store in (google_obstore(url, gcs_server.endpoint), open_store(url, gcs_server.storage_options)):
        connected.clear()
        threads = [threading.Thread(target=store.require_container) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(connected) == 1
        store.close()
