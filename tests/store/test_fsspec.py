"""Other filesystems do what fsspec can do safely, and refuse the rest."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from ckpt_remote import errors
from ckpt_remote.store import ObjectInfo, PutMode, Store, Version, open_store


@pytest.fixture
def filesystem(tmp_path: Path) -> fsspec.AbstractFileSystem:
    return DirFileSystem(str(tmp_path), LocalFileSystem())


@pytest.fixture
def store(filesystem: fsspec.AbstractFileSystem) -> Iterator[Store]:
    with open_store("run", filesystem=filesystem) as store:
        yield store


def test_it_writes_reads_lists_and_deletes(store: Store, tmp_path: Path) -> None:
    version = store.put("a/key", [b"01234", b"56789"], "overwrite")
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "key").write_bytes(b"")
    assert (tmp_path / "run/a/key").read_bytes() == b"0123456789"
    assert store.read("a/key").data == b"0123456789"
    assert store.read("a/key").version == version
    assert store.read_range("a/key", 2, 3) == b"234"
    assert store.size("a/key") == 10
    assert [ObjectInfo("a/key", 10)] == list(store.list())
    assert [ObjectInfo("a/key", 10)] == list(store.list("a/k"))
    assert [] == list(store.list("b"))
    assert {} == store.delete(["a/key", "never-there"])
    assert [] == list(store.list())


@pytest.mark.parametrize("mode", ["create", Version("1")])
def test_a_conditional_put_is_refused_before_anything_is_written(store: Store, tmp_path: Path, mode: PutMode) -> None:
    with pytest.raises(
        errors.UnsupportedError, match=r"DirFileSystem has no conditional requests.*Save to an object store"
    ):
        store.put("key", [b"1"], mode)
    assert [] == list(tmp_path.rglob("*"))


def test_nothing_there_is_not_found(store: Store) -> None:
    for use in (store.read, store.size, lambda key: store.read_range(key, 0, 1)):
        with pytest.raises(errors.NotFoundError, match="run/key"):
            use("key")


def test_a_short_object_is_corrupt(store: Store) -> None:
    store.put("key", [b"0123"], "overwrite")
    with pytest.raises(errors.CorruptError, match="ends after 4 bytes"):
        store.read_range("key", 2, 3)


def test_the_engine_names_the_filesystem(store: Store) -> None:
    assert store.engine == "fsspec DirFileSystem (a filesystem was given)"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PermissionError("no"), errors.StoreError),
        (TimeoutError("late"), errors.StoreError),
        (NotImplementedError("never"), errors.UnsupportedError),
        (OSError("odd"), errors.StoreError),
    ],
)
def test_failures_are_the_librarys_own(
    store: Store,
    filesystem: fsspec.AbstractFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise raised

    store._inner.put("key", [b"1"], "overwrite")
    for method in ("cat_file", "rm_file", "pipe_file"):
        monkeypatch.setattr(filesystem, method, fail)
    inner = store._inner
    for use in (lambda: inner.read("key"), lambda: inner.put("key", [b"1"], "overwrite")):
        with pytest.raises(expected, match="run/key") as caught:
            use()
        assert caught.value.__cause__ is raised
    assert isinstance(inner.delete(["key"])["key"], expected)


class Remembering(LocalFileSystem):
    """Believes its first listing of a directory for ever, as most remote filesystems do by default."""

    def ls(self, path, detail=False, **kwargs):  # noqa: FBT002 - fsspec's signature
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **kwargs)
        found = self.dircache[path]
        return found if detail else [entry["name"] for entry in found]

    def invalidate_cache(self, path=None):
        self.dircache.clear()


def test_a_listing_cache_is_never_believed(tmp_path: Path) -> None:
    with open_store(tmp_path, filesystem=Remembering(skip_instance_cache=True)) as store:
        assert store.engine == "fsspec Remembering (a filesystem was given)"
        assert [] == list(store.list())
        (tmp_path / "key").write_bytes(b"1")
        assert ["key"] == [info.key for info in store.list()]
