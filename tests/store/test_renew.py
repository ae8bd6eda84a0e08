"""Credentials that end while a job runs: fetched anew once, and what was refused is sent once more."""

import contextlib
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from support.answering import Answer, Asked, answering, s3_error

from ckpt_remote import errors, progress
from ckpt_remote.store import Store, Version, open_store

SECRET = "very-secret-0001"
ETAG = {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"}
THREADS = 32


def accepted(asked: Asked, headers: Mapping[str, str]) -> Answer:
    if "list-type=2" in asked.path:
        return Answer(200, b"<ListBucketResult></ListBucketResult>")
    if asked.method == "POST":
        return Answer(200, b"<DeleteResult></DeleteResult>")
    if "range" in headers:
        return Answer(206, b"abc", {**ETAG, "Content-Range": "bytes 0-2/3"})
    return Answer(200, b"abc" if asked.method == "GET" else b"", ETAG)


class Service:
    """S3, and what hands out credentials for it, as containers have it; `valid` is the only token that counts."""

    def __init__(self, status: int = 400, code: str = "ExpiredToken") -> None:
        self.valid = self.handed_out = "first-token"
        self.refusal = s3_error(status, code, "<Token-0>first-token</Token-0>")  # as S3 echoes it
        self.fetched = 0
        self.refused: list[Asked] = []
        self.accepted: list[Asked] = []
        self.gate: Callable[[Asked], object] = lambda _: None

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/credentials":
            self.fetched += 1
            self.gate(asked)
            found = {"AccessKeyId": "KEY", "SecretAccessKey": SECRET, "Token": self.handed_out}
            return Answer(200, json.dumps(found | {"Expiration": "2099-01-01T00:00:00Z"}).encode())
        headers = {name.lower(): value for name, value in asked.headers.items()}
        if headers.get("x-amz-security-token") != self.valid:
            self.gate(asked)
            self.refused.append(asked)
            return self.refusal
        self.accepted.append(asked)
        return accepted(asked, headers)

    def renew(self) -> None:
        """The old token has ended, and there is a new one."""
        self.valid = self.handed_out = "second-token"

    def expire(self) -> None:
        """The old token has ended, and there is no other."""
        self.valid = "nobody-has-it"


@pytest.fixture(params=["obstore", "s3fs"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


Opener = Callable[[Service], Store]


@pytest.fixture
def opened(engine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    stack = []

    def open_directory(service: Service) -> Store:
        server = answering(service)
        endpoint = server.__enter__().endpoint
        stack.append(server)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint}/credentials")
        return store_of(engine, endpoint)

    yield open_directory
    for server in stack:
        server.__exit__(None, None, None)


def store_of(engine: str, endpoint: str, **options: object) -> Store:
    if engine == "s3fs-given":
        config = {"retries": {"total_max_attempts": 1}, "max_pool_connections": THREADS}
        return open_store(
            "s3://bucket/run",
            filesystem=fsspec.filesystem(
                "s3", endpoint_url=endpoint, config_kwargs=config, skip_instance_cache=True, **options
            ),
        )
    config = {"user_agent_extra": "x", "max_pool_connections": THREADS}  # obstore does not take the first
    elsewhere = {"config_kwargs": config} if engine == "s3fs" else {}
    return open_store("s3://bucket/run", {"endpoint_url": endpoint, **elsewhere, **options})


USES = {
    "read": lambda store: store.read("key"),
    "read_range": lambda store: store.read_range("key", 0, 3),
    "size": lambda store: store.size("key"),
    "list": lambda store: list(store.list()),
    "create": lambda store: store.put("key", [b"abc"], "create"),
    "overwrite": lambda store: store.put("key", [b"abc"], "overwrite"),
    "replace": lambda store: store.put("key", [b"abc"], Version('"e"')),
    "delete": lambda store: store.delete(["key"]),
    "remove": lambda store: store.remove("key", Version('"e"')),
    "require": lambda store: store.require_container(),
}


def method_of(use: str) -> str:
    named = {"create": "PUT", "overwrite": "PUT", "replace": "PUT", "delete": "POST", "remove": "DELETE"}
    return named.get(use, "HEAD" if use in ("size", "require") else "GET")


@pytest.mark.parametrize("use", USES)
def test_what_was_refused_is_sent_once_more_with_new_credentials(opened: Opener, use: str) -> None:
    service = Service()
    with opened(service) as store:
        store.put("before", [b"1"], "create")
        service.renew()
        before = len(service.accepted)
        assert USES[use](store) != {"key": None}
        assert [asked.method for asked in service.accepted[before:]] == [method_of(use)]
        assert sum(asked.method == method_of(use) for asked in service.refused) <= 2
        assert service.fetched == 2
        USES[use](store)
        assert service.fetched == 2


@pytest.mark.parametrize(
    ("status", "code"), [(400, "ExpiredToken"), (401, "ExpiredTokenException"), (403, "InvalidAccessKeyId")]
)
def test_whatever_the_status_the_word_is_understood(opened: Opener, status: int, code: str) -> None:
    service = Service(status, code)
    with opened(service) as store:
        service.handed_out = "old-token"
        with pytest.raises(errors.StoreError, match=f"{code}.*fetched anew") as caught:
            store.put("key", [b"1"], "create")
        assert not caught.value.transient
        assert service.fetched == 2
        service.renew()
        store.put("key", [b"1"], "create")
        store.size("key")


@pytest.mark.parametrize("use", USES)
def test_a_second_refusal_is_final_and_says_that_it_is_the_second(opened: Opener, use: str) -> None:
    service = Service()
    with opened(service) as store:
        store.put("before", [b"1"], "create")
        service.expire()
        if use == "delete":
            failure = store.delete(["key"])["key"]
        else:
            with pytest.raises(errors.StoreError) as caught:
                USES[use](store)
            failure = caught.value
        assert "ExpiredToken" in str(failure)
        assert "fetched anew after a first refusal" in str(failure)
        assert not failure.transient
        assert service.fetched == 2
        assert sum(asked.method == "PUT" for asked in service.refused) == 2 * (method_of(use) == "PUT")


@pytest.mark.parametrize("engine", ["obstore", "s3fs", "s3fs-given"])
def test_however_many_threads_are_refused_at_once_one_fetches(opened: Opener) -> None:
    service = Service()
    together = threading.Barrier(THREADS)
    with opened(service) as store:
        store.put("before", [b"1"], "create")
        assert service.fetched == 1
        service.renew()
        service.gate = lambda asked: together.wait(60) if asked.method == "PUT" else None
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda number: store.put(f"key-{number}", [b"1"], "create"), range(THREADS)))
        puts = {asked.path for asked in service.accepted if asked.method == "PUT"}
        assert {f"/bucket/run/key-{number}" for number in range(THREADS)} <= puts
        assert sum(asked.method == "PUT" for asked in service.refused) == THREADS
        assert service.fetched == 2


def test_threads_that_begin_together_fetch_once(opened: Opener) -> None:
    service = Service()
    second = threading.Barrier(2)

    def gate(asked: Asked) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # the second fetch does not come
            second.wait(0.5)

    service.gate = gate
    with opened(service) as store, ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda use: use(store), (THREADS // 2) * [USES["size"], USES["create"]]))
        assert service.fetched == 1


def test_a_rewritten_credentials_file_is_read_again(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(token: str) -> None:
        file.write_text(f"[default]\naws_access_key_id=K\naws_secret_access_key=S\naws_session_token={token}\n")

    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    service = Service()
    write("first-token")
    with answering(service) as server, store_of(engine, server.endpoint) as store:
        store.put("key", [b"1"], "create")
        service.renew()
        write("second-token")
        store.put("key", [b"1"], "overwrite")


@pytest.mark.parametrize("given", [{"key": "K", "secret": "S", "token": "T"}, {"anon": True}], ids=["key", "anon"])
def test_credentials_that_were_handed_in_are_refused_at_once(engine: str, given: dict[str, object]) -> None:
    service = Service()
    with answering(service) as server, store_of(engine, server.endpoint, **given) as store:
        with pytest.raises(errors.StoreError, match="ExpiredToken") as caught:
            store.put("key", [b"1"], "create")
        assert "anew" not in str(caught.value)
        assert sum(asked.method == "PUT" for asked in service.refused) == 1


def test_a_filesystem_of_the_user_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    with answering(service) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.endpoint}/credentials")
        filesystem = fsspec.filesystem("s3", endpoint_url=server.endpoint, skip_instance_cache=True)
        with open_store("s3://bucket/run", filesystem=filesystem) as store:
            store.put("key", [b"1"], "create")
            before = {name: id(value) for name, value in vars(filesystem).items()}
            service.renew()
            store.put("key", [b"1"], "create")
            assert {name: id(value) for name, value in vars(filesystem).items()} == before


def test_a_session_of_the_user_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiobotocore.session import AioSession

    service = Service()
    with answering(service) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.endpoint}/credentials")
        with store_of("s3fs-given", server.endpoint, session=AioSession()) as store:
            store.put("key", [b"1"], "create")
            service.renew()
            with pytest.raises(errors.StoreError, match="ExpiredToken") as caught:
                store.put("key", [b"1"], "create")
            assert "anew" not in str(caught.value)
            assert len(service.refused) == 1


def test_a_permission_that_is_missing_is_no_end_of_credentials(opened: Opener) -> None:
    service = Service(403, "AccessDenied")
    with opened(service) as store:
        service.valid = "another-token"
        with pytest.raises(errors.StoreError, match="AccessDenied"):
            store.put("key", [b"1"], "create")
        assert service.fetched == 1
        assert sum(asked.method == "PUT" for asked in service.refused) == 1


def test_a_source_that_fails_is_named(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    with opened(service) as store:
        store.put("key", [b"1"], "create")
        service.expire()
        monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        with pytest.raises(errors.StoreError, match="credentials"):
            store.put("key", [b"1"], "create")


@pytest.mark.parametrize("engine", ["obstore", "s3fs", "s3fs-given"])
def test_it_is_seen_and_no_token_is(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    caplog.set_level("INFO")
    events: list[progress.Event] = []
    with opened(service) as store, progress.listen(events.append):
        store.put("key", [b"1"], "create")
        service.renew()
        store.put("key", [b"1"], "create")
        assert ["Repeated"] == [type(event).__name__ for event in events]
        assert "fetched anew" in caplog.text
        service.expire()
        with pytest.raises(errors.StoreError) as caught:
            store.put("key", [b"1"], "create")
    said = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(events)
    assert not [word for word in (SECRET, "first-token", "second-token") if word in said]
