"""The tests' own servers: they answer, keep to this machine, and never outlive who started them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from support import servers
from support.radosgw import unquoted_etags

START = """
import sys
from support import servers
with getattr(servers, sys.argv[1])() as server:
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("kind", ["ministack", "moto", "rclone", "gcp_storage_emulator"])
def test_a_server_ends_when_its_starter_is_killed(kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", START, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline().rpartition(b":")[2])
        assert _is_open(port)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        deadline = time.monotonic() + 30
        while _is_open(port):
            assert time.monotonic() < deadline, "the server outlives its starter"
            time.sleep(0.02)  # the pace of the poll


def test_rclone_accepts_conditions_and_ignores_them() -> None:
    with servers.rclone() as server:
        client, where = server.client(), {"Bucket": server.new_bucket(), "Key": "key"}
        for conditions in ({"IfNoneMatch": "*"}, {"IfNoneMatch": "*"}, {"IfMatch": '"0123"'}):
            client.put_object(**where, Body=str(conditions).encode(), **conditions)
            assert client.get_object(**where)["Body"].read() == str(conditions).encode()


def test_gcp_storage_emulator_accepts_conditions_and_ignores_them() -> None:
    with servers.gcp_storage_emulator() as server:
        url = f"{server.endpoint}/upload/storage/v1/b/{server.new_bucket()}/o?uploadType=media&name=key"
        for condition in ("ifGenerationMatch=0", "ifGenerationMatch=0", "ifGenerationMatch=1"):
            request = urllib.request.Request(f"{url}&{condition}", condition.encode())  # noqa: S310 - loopback
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - loopback
                assert json.load(response)["size"] == str(len(condition))


def test_the_gateway_wants_etags_without_quotes_and_deletes_whatever_the_condition(ministack: servers.S3Server) -> None:
    with unquoted_etags(ministack) as server:
        client, where = server.client(), {"Bucket": ministack.new_bucket(), "Key": "key"}
        etag = client.put_object(**where, Body=b"old", IfNoneMatch="*")["ETag"]
        for condition in ({"IfMatch": etag}, {"IfMatch": "0123"}, {"IfNoneMatch": "*"}):
            with pytest.raises(ClientError, match="PreconditionFailed"):
                client.put_object(**where, Body=b"no", **condition)
        client.put_object(**where, Body=b"new", IfMatch=etag.strip('"'))
        assert ministack.client().get_object(**where)["Body"].read() == b"new"
        client.delete_object(**where, IfMatch=etag)
        with pytest.raises(ClientError, match="404"):
            ministack.client().head_object(**where)


def test_a_missing_environment_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPT_REMOTE_SERVERS", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match="make servers"), servers.moto():
        pass


def test_a_server_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the reason >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CKPT_REMOTE_SERVERS", str(broken))
    with pytest.raises(RuntimeError, match="the reason"), servers.ministack():
        pass
