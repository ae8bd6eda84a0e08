"""Every engine on every server keeps the promises of the interface."""

import functools
import uuid
from pathlib import Path

import fsspec
import pytest
from store.conformance import Directory, Outside, StoreConformance
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


@functools.cache
def _s3fs(server: S3Server) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **server.storage_options, skip_instance_cache=True)


@functools.cache
def _bucket(server: S3Server) -> str:
    return server.new_bucket()


class TestMemory(StoreConformance):
    @pytest.fixture
    def directory(self) -> Directory:
        root = f"/test-{uuid.uuid4().hex}"
        return Directory(lambda: open_store(f"memory:/{root}/run"), _Memory(root))


class TestLocal(StoreConformance):
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Directory:
        return Directory(lambda: open_store(tmp_path / "run"), _Disk(tmp_path))


class S3Conformance(StoreConformance):
    """What only buckets can get wrong."""

    @pytest.fixture
    def directory(self, server: S3Server) -> Directory:
        bucket, root = _bucket(server), f"{uuid.uuid4().hex}/"
        return Directory(lambda: self.open(f"s3://{bucket}/{root}run", server), _Bucket(server, bucket, root))

    def test_directory_markers_and_unspeakable_keys_are_left_out(self, store: Store, outside: Outside) -> None:
        for name in ("run/", "run/sub/", "run/a//b", "run/../c", "run/./d", "run/e"):
            outside.write(name, b"")
        assert [info.key for info in store.list()] == ["e"]

    def test_a_missing_bucket_is_named_by_every_request(self, directory: Directory, server: S3Server) -> None:
        url = f"s3://no-such-bucket-{uuid.uuid4().hex}/run"
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

    def test_replacing_in_a_missing_bucket_is_not_found(self, store: Store, server: S3Server) -> None:
        version = store.put("key", [b""], "create")
        url = f"s3://no-such-bucket-{uuid.uuid4().hex}/run"
        with self.open(url, server) as elsewhere, pytest.raises(errors.NotFoundError, match="bucket"):
            elsewhere.put("key", [b""], version)

    def test_the_bucket_itself_can_be_the_directory(self, directory: Directory, server: S3Server) -> None:
        bucket = server.new_bucket()
        with self.open(f"s3://{bucket}", server) as store:
            store.put("a/b", [b"1"], "create")
            assert f"s3://{bucket}/a/b" == store.url_of("a/b")
            assert [(info.key, info.size) for info in store.list()] == [("a/b", 1)]
            assert store.read("a/b").data == b"1"
        assert {"a/b"} == _Bucket(server, bucket).names()

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


class TestS3fsOnMoto(S3fsConformance):
    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto
