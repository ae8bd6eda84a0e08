"""Servers for tests, each a process on a free loopback port: S3's ministack and moto, and two that ignore conditions.

Promises: a server that is handed out answers; it ends with the `with` block, and with the test process
however that ends; nothing but 127.0.0.1 is bound. The servers live in a virtual environment of their own
(`make servers`), so that their pins never decide the library's versions. It does not fall back to anything
when that environment is missing.
"""

import contextlib
import functools
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

__all__ = ["GCSEmulator", "S3Server", "free_port", "gcp_storage_emulator", "ministack", "moto", "rclone"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_READY_SECONDS = 60.0
_PORT_ATTEMPTS = 3
_KEY = "TESTACCESSKEY0001"  # two letters are too few for rclone
_SECRET = "testsecretkey0001testsecretkey0001"


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 server on this machine, and how to reach it."""

    name: str
    endpoint: str
    key: str = _KEY
    secret: str = _SECRET
    region: str = "us-east-1"

    @property
    def storage_options(self) -> dict[str, Any]:
        """fsspec's options for this server."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": self.region},
        }

    def client(self) -> Any:
        """A plain boto3 client, to look behind the library's back; shared, and never closed by a test."""
        return _client(self)

    def new_bucket(self) -> str:
        """A fresh, empty bucket; the server's memory goes with the server, so nobody removes it."""
        bucket = f"test-{uuid.uuid4().hex}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


@dataclass(frozen=True, slots=True)
class GCSEmulator:
    """A Google Cloud Storage emulator on this machine, and how to reach it."""

    name: str
    endpoint: str

    @property
    def storage_options(self) -> dict[str, Any]:
        """gcsfs's options for this server."""
        return {"token": "anon", "endpoint_url": self.endpoint}

    def new_bucket(self) -> str:
        """A fresh, empty bucket."""
        bucket = f"test-{uuid.uuid4().hex}"
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.endpoint}/storage/v1/b?project=test",
            json.dumps({"name": bucket}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_READY_SECONDS) as response:  # noqa: S310 - loopback
            response.read()
        return bucket


@functools.cache
def _client(server: S3Server) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name=server.region,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def ministack() -> Iterator[S3Server]:
    """The main S3 server: it honours every condition and checks checksums."""
    variables = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": "{port}", "SERVICES": "s3"}
    with _serve("ministack", ["ministack"], variables) as endpoint:
        yield S3Server("ministack", endpoint)


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """The second opinion: another reading of the same API, without checksums."""
    with _serve("moto", ["moto.server", "-H", "127.0.0.1", "-p", "{port}"]) as endpoint:
        yield S3Server("moto", endpoint)


@contextlib.contextmanager
def rclone() -> Iterator[S3Server]:
    """A negative control: it accepts conditions on writes and ignores them."""
    program = str(_python().with_name("rclone"))
    command = [program, "serve", "s3", "--config", "{folder}/rclone.conf", "--cache-dir", "{folder}"]
    command += ["--addr", "127.0.0.1:{port}", "--auth-key", f"{_KEY},{_SECRET}", ":memory:"]
    with _serve("rclone", command) as endpoint:
        yield S3Server("rclone", endpoint)


@contextlib.contextmanager
def gcp_storage_emulator() -> Iterator[GCSEmulator]:
    """A negative control for Google's API: it accepts generations as conditions and ignores them."""
    command = ["gcp_storage_emulator", "-d", "{folder}/data", "start", "-H", "127.0.0.1"]
    command += ["--port", "{port}", "--in-memory", "-q"]
    with _serve("gcp-storage-emulator", command) as endpoint:
        yield GCSEmulator("gcp-storage-emulator", endpoint)


@contextlib.contextmanager
def _serve(name: str, command: list[str], variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server until the block ends; `{port}` and `{folder}` in its command and variables are filled in."""
    with tempfile.TemporaryDirectory(prefix=f"ckpt_remote-{name}-") as folder:
        process, port = _start(name, command, variables or {}, Path(folder))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _start(
    name: str, command: list[str], variables: Mapping[str, str], folder: Path
) -> tuple["subprocess.Popen[bytes]", int]:
    log = folder / "log.txt"
    for _ in range(_PORT_ATTEMPTS):  # another process may take the port between our look and the server's bind
        port = free_port()
        filled = [part.format(port=port, folder=folder) for part in command]
        environment = {key: value.format(port=port, folder=folder) for key, value in variables.items()}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [_python(), str(Path(__file__).with_name("serve.py")), *filled],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_plain_environment(), **environment, "TMPDIR": str(folder)},
                cwd=folder,
            )
        if _answers(process, port):
            return process, port
        _end(process)
    raise RuntimeError(f"{name} did not start. Its log:\n{log.read_text(errors='replace')}")


def _plain_environment() -> dict[str, str]:
    """Ours, without what a user's shell may say to the clouds' clients or to Python."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PYTHON", "COVERAGE", "RCLONE_"))}


def _python() -> Path:
    configured = os.environ.get("CKPT_REMOTE_SERVERS")
    python = Path(configured) if configured else _REPOSITORY / ".venv-servers" / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"There is no {python}: run `make servers`, or point CKPT_REMOTE_SERVERS at its python.")
    return python


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_READY_SECONDS)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)  # the pace of the poll; the condition is the answer
        else:
            return process.poll() is None
        finally:
            connection.close()
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
