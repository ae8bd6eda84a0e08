"""What every test may ask for: servers, places to save to; and what none may see: the user's own cloud."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, settings
from support import azurite as azurites
from support import servers
from support.gcs import GCSServer, gcs
from support.places import Place

from ckpt_remote.store import pace

pytest.register_assert_rewrite("store.conformance")

# How fast a shared machine draws an example is nobody's promise; what must be fast has a test of its own.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

_CLOUD = ("AWS_", "BOTO", "CLOUDSDK_", "FSSPEC_", "GCE_", "GCSFS_", "GCS_", "GOOGLE_", "AZURE_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.fixture(autouse=True)
def _no_cloud_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees an account, a profile, an instance role or a proxy of the machine it runs on."""
    for name in list(os.environ):
        if name.startswith(_CLOUD) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    nowhere = str(tmp_path / "no-such-folder")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{nowhere}/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{nowhere}/credentials")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("BOTO_CONFIG", f"{nowhere}/boto")
    monkeypatch.setenv("CLOUDSDK_CONFIG", nowhere)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr("fsspec.config.conf", {})


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C means what it means in a terminal, also where the tests were started with it switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def ministack() -> Iterator[servers.S3Server]:
    """The main S3 server."""
    with servers.ministack() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[servers.S3Server]:
    """The second opinion."""
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GCSServer]:
    """Google's two APIs, without its limit on writes of one object."""
    with gcs(writes_per_second=None) as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[azurites.Azurite]:
    """Azure's emulator, where it is installed."""
    if reason := azurites.missing():
        pytest.skip(reason)
    with azurites.azurite() as server:
        yield server


@pytest.fixture
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second between two writes of one object, where the server does not mind."""
    monkeypatch.setattr(pace.GOOGLE, "interval", 0.0)


def place_on(server: servers.S3Server, *, filesystem: fsspec.AbstractFileSystem | None = None) -> Place:
    """A directory in a bucket of its own."""
    url = f"s3://{server.new_bucket()}/run"
    return Place(url, None if filesystem else server.storage_options, filesystem)


@pytest.fixture(params=["memory", "local", "ministack", "ministack-s3fs", "moto", "gcs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh directory on each kind of store in turn."""
    kind = request.param
    if kind == "memory":
        return Place(f"memory://test-{uuid.uuid4().hex}/run")
    if kind == "local":
        return Place(str(tmp_path / "run"))
    if kind == "gcs":
        request.getfixturevalue("_unhurried")
        server = request.getfixturevalue("gcs_server")
        return Place(f"gs://{server.new_bucket()}/run", server.storage_options)
    server = request.getfixturevalue(kind.removesuffix("-s3fs"))
    if kind.endswith("-s3fs"):
        options = server.storage_options
        return place_on(server, filesystem=fsspec.filesystem("s3", **options, skip_instance_cache=True))
    return place_on(server)
