"""The tests' own servers: they answer, keep to this machine, and never outlive who started them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import servers

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


@pytest.mark.parametrize("kind", ["ministack", "moto"])
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
