"""Every engine on every server keeps the promises of the interface."""

import abc
import functools
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from store.conformance import ODD_KEYS, Directory, Outside, StoreConformance
from support.azurite import Azurite
from support.engines import google_obstore
from support.gcs import GCSServer
from support.servers import S3Server

from ckpt_remote import errors
from ckpt_remote.store import Store, open_store


class _Bucket(Outside):
    def __init__(self, server: S3Server, bucket: str, root: str = "") -> None:
        self._client = server.client()
        self._bucket = bucket
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._root + name, Body=data)

    def read(self, name: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=self._root + name)["Body"].read()

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._root + name)

    def names(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._root)
        return {entry["Key"].removeprefix(self._root) for page in pages for entry in page.get("Contents", ())}


class _Disk(Outside):
    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def remove(self, name: str) -> None:
        (self._root / name).unlink()

    def names(self) -> set[str]:
        return {path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file()}


class _Memory(Outside):
    def __init__(self, root: str) -> None:
        self._filesystem = fsspec.filesystem("memory")
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        self._filesystem.pipe_file(f"{self._root}/{name}", data)

    def read(self, name: str) -> bytes:
        return self._filesystem.cat_file(f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        self._filesystem.rm_file(f"{self._root}/{name}")

    def names(self) -> set[str]:
        return {path.removeprefix(f"{self._root}/") for path in self._filesystem.find(self._root)}


class _GoogleBucket(Outside):
    def __init__(self, server: GCSServer, bucket: str, root: str = "") -> None:
        self._server = server
        self._bucket = bucket
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        self._server.put(self._bucket, self._root + name, data)

    def read(self, name: str) -> bytes:
        return self._server.read(self._bucket, self._root + name)

    def remove(self, name: str) -> None:
        self._server.remove(self._bucket, self._root + name)

    def names(self) -> set[str]:
        names = self._server.objects(self._bucket)
        return {name.removeprefix(self._root) for name in names if name.startswith(self._root)}


class _Container(Outside):
    def __init__(self, server: Azurite, container: str, root: str = "") -> None:
        self._server = server
        self._container = container
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        self._server.put(self._container, self._root + name, data)

    def read(self, name: str) -> bytes:
        return self._server.read(self._container, self._root + name)

    def remove(self, name: str) -> None:
        self._server.remove(self._container, self._root + name)

    def names(self) -> set[str]:
        return {name.removeprefix(self._root) for name in self._server.names(self._container, self._root)}


@functools.cache
def _s3fs(server: S3Server) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **server.storage_options, skip_instance_cache=True)


@functools.cache
def _bucket(endpoint: str, new: Callable[[], str]) -> str:
    """One bucket for each server: they are not as free as directories."""
    return new()


class TestMemory(StoreConformance):
    @pytest.fixture
    def directory(self) -> Directory:
        root = f"/test-{uuid.uuid4().hex}"
        return Directory(lambda: open_store(f"memory:/{root}/run"), _Memory(root))


class TestLocal(StoreConformance):
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Directory:
        return Directory(lambda: open_store(tmp_path / "run"), _Disk(tmp_path))


class BucketConformance(StoreConformance):
    """What only buckets can get wrong."""

    scheme: ClassVar[str]

    @staticmethod
    @abc.abstractmethod
    def open(url: str, server: Any) -> Store: ...

    @staticmethod
    @abc.abstractmethod
    def look(server: Any, bucket: str, root: str = "") -> Outside: ...

    @pytest.fixture
    def directory(self, server: Any) -> Directory:
        bucket, root = _bucket(server.endpoint, server.new_bucket), f"{uuid.uuid4().hex}/"
        return Directory(
            lambda: self.open(f"{self.scheme}://{bucket}/{root}run", server), self.look(server, bucket, root)
        )

    def test_directory_markers_and_unspeakable_keys_are_left_out(self, store: Store, outside: Outside) -> None:
        for name in ("run/", "run/sub/", "run/a//b", "run/../c", "run/./d", "run/e"):
            outside.write(name, b"")
        assert [info.key for info in store.list()] == ["e"]

    def test_a_missing_bucket_is_named_by_every_request(self, directory: Directory, server: Any) -> None:
        url = f"{self.scheme}://no-such-bucket-{uuid.uuid4().hex}/run"
        with self.open(url, server) as store:
            for use in (
                store.require_container,
                lambda: list(store.list()),
                lambda: store.put("key", [b""], "create"),
                lambda: store.put("key", [b""], "overwrite"),
            ):
                with pytest.raises(errors.NotFoundError, match=r"bucket") as caught:
                    use()
                assert url.split("/")[2] in str(caught.value)
            with pytest.raises(errors.NotFoundError):
                store.read("key")
            assert {"key"} == set(store.delete(["key"]))

    def test_replacing_in_a_missing_bucket_is_not_found(self, store: Store, server: Any) -> None:
        version = store.put("key", [b""], "create")
        url = f"{self.scheme}://no-such-bucket-{uuid.uuid4().hex}/run"
        with self.open(url, server) as elsewhere, pytest.raises(errors.NotFoundError, match="bucket"):
            elsewhere.put("key", [b""], version)

    def test_the_bucket_itself_can_be_the_directory(self, directory: Directory, server: Any) -> None:
        bucket = server.new_bucket()
        with self.open(f"{self.scheme}://{bucket}", server) as store:
            store.put("a/b", [b"1"], "create")
            assert f"{self.scheme}://{bucket}/a/b" == store.url_of("a/b")
            assert [(info.key, info.size) for info in store.list()] == [("a/b", 1)]
            assert store.read("a/b").data == b"1"
        assert {"a/b"} == self.look(server, bucket).names()


class S3Conformance(BucketConformance):
    scheme = "s3"

    @staticmethod
    def look(server: S3Server, bucket: str, root: str = "") -> Outside:
        return _Bucket(server, bucket, root)

    def test_a_put_is_one_object_not_a_multipart_upload(
        self, store: Store, directory: Directory, outside: Outside
    ) -> None:
        store.put("key", [b"x" * 6_000_000, b"y" * 6_000_000], "overwrite")
        assert "-" not in store.read("key").version.token  # S3 marks multipart ETags with a dash


class ObstoreConformance(S3Conformance):
    @staticmethod
    def open(url: str, server: S3Server) -> Store:
        return open_store(url, server.storage_options)

    def test_obstore_is_the_default(self, store: Store) -> None:
        assert store.engine == "obstore (default for s3://)"


class S3fsConformance(S3Conformance):
    @staticmethod
    def open(url: str, server: S3Server) -> Store:
        return open_store(url, filesystem=_s3fs(server))

    def test_s3fs_runs_because_it_was_given(self, store: Store) -> None:
        assert store.engine == "fsspec S3FileSystem (a filesystem was given)"


class TestObstoreOnMinistack(ObstoreConformance):
    @pytest.fixture
    def server(self, ministack: S3Server) -> S3Server:
        return ministack

    def test_more_objects_than_a_page_are_listed_and_deleted(
        self, store: Store, directory: Directory, outside: Outside
    ) -> None:
        keys = {f"key-{number:04}" for number in range(1003)}
        for key in keys:
            outside.write(f"run/{key}", b"")
        assert keys == {info.key for info in store.list()}
        assert store.delete(sorted(keys)) == {}
        assert list(store.list()) == []


class TestS3fsOnMinistack(S3fsConformance):
    @pytest.fixture
    def server(self, ministack: S3Server) -> S3Server:
        return ministack


class TestObstoreOnMoto(ObstoreConformance):
    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto

    @pytest.mark.skip(reason="moto looks at the ETag, then writes, in two steps: its threads lose updates")
    def test_no_increment_of_a_shared_counter_is_lost(self) -> None:  # type: ignore[override]
        """Left to the servers that do both at once."""


class TestS3fsOnMoto(S3fsConformance):
    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto

    @pytest.mark.skip(reason="moto looks at the ETag, then writes, in two steps: its threads lose updates")
    def test_no_increment_of_a_shared_counter_is_lost(self) -> None:  # type: ignore[override]
        """Left to the servers that do both at once."""


class GoogleConformance(BucketConformance):
    scheme = "gs"

    @pytest.fixture
    def server(self, gcs_server: GCSServer, _unhurried: None) -> GCSServer:
        return gcs_server

    @staticmethod
    def look(server: GCSServer, bucket: str, root: str = "") -> Outside:
        return _GoogleBucket(server, bucket, root)

    def test_more_objects_than_a_page_are_listed_and_deleted(
        self, store: Store, directory: Directory, outside: Outside
    ) -> None:
        keys = {f"key-{number:04}" for number in range(1003)}
        for key in keys:
            outside.write(f"run/{key}", b"")
        assert keys == {info.key for info in store.list()}
        assert store.delete(sorted(keys)) == {}
        assert list(store.list()) == []

    def test_equal_bytes_do_not_bring_a_version_back(self, store: Store) -> None:
        first = store.put("key", [b"same"], "create")
        second = store.put("key", [b"same"], first)
        assert first != second
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"other"], first)


class TestObstoreOnGoogle(GoogleConformance):
    @staticmethod
    def open(url: str, server: GCSServer) -> Store:
        return google_obstore(url, server.endpoint)


class TestGcsfsOnGoogle(GoogleConformance):
    @staticmethod
    def open(url: str, server: GCSServer) -> Store:
        return open_store(url, server.storage_options)

    def test_a_custom_endpoint_is_left_to_gcsfs(self, store: Store) -> None:
        assert store.engine == "fsspec GCSFileSystem (obstore does not take endpoint_url, token='anon')"


class TestAzure(BucketConformance):
    scheme = "abfs"

    @pytest.fixture
    def server(self, azurite: Azurite) -> Azurite:
        return azurite

    @staticmethod
    def open(url: str, server: Azurite) -> Store:
        return open_store(url, server.storage_options)

    @staticmethod
    def look(server: Azurite, bucket: str, root: str = "") -> Outside:
        return _Container(server, bucket, root)

    def test_directory_markers_and_unspeakable_keys_are_left_out(self, store: Store, outside: Outside) -> None:
        """obstore fails on them: said, not hidden."""
        outside.write("run/e", b"")
        outside.write("run/a//b", b"")
        with pytest.raises(errors.StoreError, match="segment") as caught:
            list(store.list())
        assert not caught.value.transient

    @pytest.mark.parametrize("key", [key for key in ODD_KEYS if "\\" not in key])
    def test_a_key_is_taken_literally(self, store: Store, outside: Outside, key: str) -> None:
        super().test_a_key_is_taken_literally(store, outside, key)

    def test_a_backslash_would_become_a_slash_and_is_refused(self, store: Store, outside: Outside) -> None:
        for use in (lambda: store.put("a\\b", [b""], "create"), lambda: store.read("a\\b"), lambda: store.size("a\\b")):
            with pytest.raises(ValueError, match="is no object key"):
                use()
        assert set() == outside.names()

    def test_many_objects_are_listed_and_deleted(self, store: Store, directory: Directory, outside: Outside) -> None:
        for number in range(30):
            store.put(f"key-{number:04}", [b""], "create")
        assert {f"key-{number:04}" for number in range(30)} == {info.key for info in store.list()}
        assert store.delete([info.key for info in store.list()]) == {}
        assert list(store.list()) == []
