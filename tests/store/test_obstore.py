"""What is particular to obstore: forks, interrupts, timeouts, memory, renewed credentials."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from obstore.exceptions import GenericError
from support.answering import Answer, Asked, answering
from support.servers import S3Server

from ckpt_remote import errors
from ckpt_remote.store import aws, open_store

KEYS = {"key": "TESTACCESSKEY0001", "secret": "very-secret-0001"}
DONE = Answer(200, b"", {"ETag": '"e"', "Last-Modified": "Sun, 22 Nov 2026 15:00:00 GMT"})

IN_A_FORK = """
import json, os, sys, warnings
import fsspec
from ckpt_remote import errors
from ckpt_remote.store import open_store

url, options = sys.argv[1], json.loads(sys.argv[2])
store = open_store(url, options)
store.put("key", [b"1"], "create")
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about is what is tested
if os.fork() == 0:
    again = open_store(url, options)
    put = lambda key: store.put(key, [b"2"], "overwrite")
    for use in (store.read, store.size, lambda key: list(store.list()), put, again.read):
        try:
            use("key")
        except errors.UnsupportedError as error:
            print("spawn" in str(error), flush=True)
    filesystem = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    print(open_store(url, filesystem=filesystem).read("key").data, flush=True)
    os._exit(0)
os.wait()
print(store.read("key").data)
"""
PEAK = """
import json, sys
import numpy as np
from ckpt_remote.store import open_store

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

store = open_store(sys.argv[1], json.loads(sys.argv[2]))
parts = [np.ones(16 << 20, np.uint8) for _ in range(8)]
store.put("small", [b"1"], "create")
before = peak()
store.put("created", parts, "create")
store.put("overwritten", parts, "overwrite")
print(peak() - before)
"""


def run(script: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def arguments(ministack: S3Server) -> tuple[str, str]:

    return f"s3://{ministack.new_bucket()}/run", json.dumps(ministack.storage_options)


def test_a_forked_process_is_told_to_spawn_or_to_use_s3fs_instead_of_hanging(arguments: tuple[str, str]) -> None:
    assert ["True"] * 5 + ["b'1'", "b'1'"] == run(IN_A_FORK, *arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_put_copies_nothing(arguments: tuple[str, str]) -> None:
    assert int(run(PEAK, *arguments)[0]) < 16 << 20  # of 128 MiB, twice


def waiting() -> list[threading.Thread]:
    """The threads in which requests of the main thread wait for their answers."""
    return [thread for thread in threading.enumerate() if thread.name == "ckpt_remote-store"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("use", ["read", "read_range", "put"])
def test_control_c_ends_the_wait_for_an_answer_that_does_not_come(use: str) -> None:
    over, main = threading.Event(), threading.main_thread().ident

    def answer(asked: Asked) -> Answer:
        if asked.method in ("GET", "PUT") and not over.is_set():
            signal.pthread_kill(main, signal.SIGINT)  # as the terminal does
            over.wait()
        return DONE

    with answering(answer) as server, open_store("s3://bucket/run", {**KEYS, "endpoint_url": server.endpoint}) as store:
        arguments = {"read": ("key",), "read_range": ("key", 0, 1), "put": ("key", [b"1"], "create")}[use]
        try:
            with pytest.raises(KeyboardInterrupt):
                getattr(store, use)(*arguments)
            assert waiting(), "it waited for the end"
        finally:
            over.set()
            for thread in waiting():
                thread.join()


def test_other_threads_need_no_thread_of_their_own_to_wait() -> None:
    threads = []

    def answer(asked: Asked) -> Answer:
        threads.extend(waiting())
        return DONE

    with answering(answer) as server, open_store("s3://bucket/run", {**KEYS, "endpoint_url": server.endpoint}) as store:
        worker = threading.Thread(target=store.put, args=("key", [b"1"], "create"))
        worker.start()
        worker.join()
        assert not threads
        store.put("key", [b"1"], "overwrite")
        assert threads


def test_a_request_may_take_longer_the_more_it_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: dict[int, float] = {}
    opened: list[float] = []
    real = aws.Account.open

    def record(account: aws.Account, seconds: float, silence: float | None) -> object:
        opened.append(seconds)
        return real(account, seconds, silence)

    monkeypatch.setattr(aws.Account, "open", record)
    with (
        answering(lambda _: DONE) as server,
        open_store("s3://bucket/run", {**KEYS, "endpoint_url": server.endpoint}) as store,
    ):
        for mebibytes in (0, 1, 16, 100, 16):
            store.put("key", [np.zeros(mebibytes << 20, np.uint8)], "overwrite")
            allowed[mebibytes] = opened[-1]
    assert all(allowed[mebibytes] >= 20 + 16 * mebibytes for mebibytes in (0, 1, 16, 100))
    assert allowed[0] <= 30
    assert len(opened) == 4  # one client for each size class


@dataclass
class Renewed:
    """botocore's credentials, as they are while they change."""

    access_key: str = "FIRSTKEY"
    secret_key: str = "secret"
    token: str = "token"

    def get_frozen_credentials(self) -> "Renewed":
        return self


def test_credentials_are_asked_for_again_before_they_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Renewed()
    monkeypatch.setattr(aws, "_credentials", lambda *_: (found, "a test"))
    signed: list[str] = []
    renewed = threading.Event()

    def answer(asked: Asked) -> Answer:
        signed.append(asked.headers["authorization"].partition("Credential=")[2].partition("/")[0])
        if signed[-1] == "SECONDKEY":
            renewed.set()
        return DONE

    # What obstore holds may be that much older than botocore's answer; botocore renews ten minutes before the end.
    expiry = aws._Provider(found)()["expires_at"]
    assert expiry - aws.dt.datetime.now(aws.dt.timezone.utc) < aws.dt.timedelta(minutes=5 + 9)
    # As if a minute had passed: what obstore holds has less than five minutes left.
    monkeypatch.setattr(aws, "_TRUST", aws.dt.timedelta(seconds=299))
    with answering(answer) as server, open_store("s3://bucket/run", {**KEYS, "endpoint_url": server.endpoint}) as store:
        store.put("key", [b"1"], "overwrite")
        found.access_key = "SECONDKEY"
        until(lambda: store.put("key", [b"1"], "overwrite"), renewed.is_set)
    assert signed[0] == "FIRSTKEY"


def until(use: Callable[[], object], condition: Callable[[], bool]) -> None:
    """Use again and again; pytest's timeout is the deadline."""
    while not condition():
        use()


def test_a_bucket_on_aws_is_reached_in_its_own_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: the client that would ask is replaced, and the region that it learns is used."""
    asked: list[str] = []
    real = aws._client

    def pretend(parsed: object, session: object, region: str | None) -> object:
        client = real(parsed, session, region)

        def head_bucket(**parameters: str) -> dict[str, object]:
            asked.append(parameters["Bucket"])
            return {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": "eu-north-1"}}}

        monkeypatch.setattr(client, "head_bucket", head_bucket, raising=False)
        return client

    monkeypatch.setattr(aws, "_client", pretend)
    parsed = aws.options.parse_s3_options({**KEYS, "region": "us-west-2"})
    account = aws.connect(parsed, "bucket", aws.faults.Request("open", "s3://bucket"))
    assert asked == ["bucket"]
    assert account.client.meta.region_name == "eu-north-1"
    assert account.open(1.0).config["endpoint"] == "https://s3.eu-north-1.amazonaws.com"
    assert account.open(1.0).config["region"] == "eu-north-1"


def test_settings_that_obstore_refuses_are_told_without_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise GenericError("Unable to parse\nDebug source: very-secret-0001")

    monkeypatch.setattr(aws.Account, "open", refuse)
    with open_store("s3://bucket/run", {**KEYS, "endpoint_url": "http://127.0.0.1:1"}) as store:
        with pytest.raises(errors.StoreError, match="obstore refuses the settings") as caught:
            store.read("key")
        assert not caught.value.transient
        assert "very-secret" not in f"{caught.value} {caught.value.__cause__}"
