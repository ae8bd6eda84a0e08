"""The right engine is chosen, says why, and what cannot be meant is refused at once."""

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ckpt_remote import errors
from ckpt_remote.store import open_store


@pytest.mark.parametrize(
    ("url", "engine", "canonical"),
    [
        ("s3://b/run/", "obstore (default for s3://)", "s3://b/run"),
        ("s3a://b/run", "obstore (default for s3://)", "s3://b/run"),
        ("memory://a/run", "fsspec MemoryFileSystem (default for memory://)", "memory://a/run"),
        ("file:///data/run", "fsspec LocalFileSystem (default for file://)", "file:///data/run"),
        ("/data/run", "fsspec LocalFileSystem (default for file://)", "/data/run"),
        (Path("/data/run"), "fsspec LocalFileSystem (default for file://)", "/data/run"),
        ("s3://b--use1-az4--x-s3/run", "fsspec S3FileSystem (obstore does not", "s3://b--use1-az4--x-s3/run"),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/run",
            "fsspec S3FileSystem (obstore does not take access points)",
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/run",
        ),
    ],
)
def test_a_url_has_its_engine(url: str | Path, engine: str, canonical: str) -> None:
    with open_store(url) as store:
        assert store.engine.startswith(engine)
        assert store.url == canonical


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ckpt_remote")
    open_store("s3://b/run", {"key": "KEY", "secret": "very-secret"})
    assert caplog.messages == ["s3://b/run is served by obstore (default for s3://)"]


def test_own_certificates_for_https_are_left_to_s3fs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    assert "ca_bundle" in open_store("s3://b/run").engine
    assert "ca_bundle" in open_store("s3://b/run", {"endpoint_url": "https://store.test"}).engine
    assert open_store("s3://b/run", {"endpoint_url": "http://store.test"}).engine.startswith("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.test")
    assert open_store("s3://b/run").engine.startswith("obstore")


@pytest.mark.parametrize("url", ["nosuch://b/run", "simplecache::s3://b/run", "zip://x::s3://b/run.zip"])
def test_an_unknown_scheme_is_unsupported(url: str) -> None:
    with pytest.raises(errors.UnsupportedError):
        open_store(url)


def test_a_filesystem_and_options_contradict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        open_store(tmp_path, {"auto_mkdir": True}, LocalFileSystem())


@pytest.mark.parametrize("filesystem", [LocalFileSystem(), MemoryFileSystem()])
def test_a_filesystem_of_another_scheme_is_refused(filesystem: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(ValueError, match="not s3://"):
        open_store("s3://b/run", filesystem=filesystem)


def test_a_filesystem_takes_bare_paths(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "run"), filesystem=LocalFileSystem()) as store:
        store.put("key", [b"1"], "create")
    assert (tmp_path / "run/key").read_bytes() == b"1"
    s3 = fsspec.filesystem("s3", key="k", secret="s", skip_instance_cache=True)
    assert open_store("b/run", filesystem=s3).url == "s3://b/run"


@pytest.mark.parametrize("url", ["memory://a/run", "/data/run"])
def test_an_option_that_local_stores_do_not_know_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="no option 'endpoint_url'"):
        open_store(url, {"endpoint_url": "x"})


def test_options_that_local_stores_know_are_taken(tmp_path: Path) -> None:
    open_store(tmp_path, {"auto_mkdir": True})


def test_missing_credentials_are_named_at_the_first_request() -> None:
    with open_store("s3://b/run", {"endpoint_url": "http://127.0.0.1:1"}) as store:
        for use in (lambda: store.read("key"), store.require_container, lambda: store.put("key", [], "create")):
            with pytest.raises(errors.StoreError, match="credentials") as caught:
                use()
            assert not caught.value.transient


def test_a_profile_that_does_not_exist_is_named() -> None:
    with open_store("s3://b/run", {"profile": "nobody", "endpoint_url": "http://127.0.0.1:1"}) as store:
        with pytest.raises(errors.StoreError, match="nobody") as caught:
            store.read("key")
        assert not caught.value.transient


def test_half_a_key_is_refused() -> None:
    options = {"key": "KEY", "endpoint_url": "http://127.0.0.1:1"}
    with open_store("s3://b/run", options) as store, pytest.raises(errors.StoreError, match="Partial"):
        store.read("key")


def test_what_a_url_does_not_need_is_not_imported() -> None:
    script = (
        "import sys; from ckpt_remote.store import open_store; open_store('run'); open_store('memory://run');"
        "print({'boto3', 'botocore', 'aiohttp', 's3fs', 'obstore', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
