"""What only memory can get wrong: other users of the same file objects."""

import uuid

import fsspec
import pytest

from ckpt_remote import errors
from ckpt_remote.store import open_store


def test_an_append_by_others_makes_a_new_version() -> None:
    url = f"memory://test-{uuid.uuid4().hex}/run"
    with open_store(url) as store:
        version = store.put("key", [b"1"], "create")
        with fsspec.open(f"{url}/key", "ab") as file:
            file.write(b"2")
        assert store.read("key").data == b"12"
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"3"], version)


def test_equal_bytes_written_again_are_another_version() -> None:
    with open_store(f"memory://test-{uuid.uuid4().hex}/run") as store:
        assert len({store.put("key", [b"same"], "overwrite") for _ in range(100)}) == 100


def test_a_private_memory_is_its_own() -> None:
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store = {}
    url = f"memory://test-{uuid.uuid4().hex}/run"
    with open_store(url, filesystem=filesystem) as mine, open_store(url) as shared:
        mine.put("key", [b"1"], "create")
        assert [] == list(shared.list())
        assert mine.read("key").data == b"1"


def test_the_root_is_a_directory_too() -> None:
    key = f"test-{uuid.uuid4().hex}"
    with open_store("memory://") as store:
        store.put(key, [b"1"], "create")
        assert store.url_of(key) == f"memory://{key}"
        assert fsspec.filesystem("memory").cat_file(f"/{key}") == b"1"
        assert {} == store.delete([key])


def test_a_name_that_a_directory_has_cannot_be_written() -> None:
    with open_store(f"memory://test-{uuid.uuid4().hex}/run") as store:
        store.put("a", [b"1"], "create")
        with pytest.raises(errors.StoreError, match="its directory's"):
            store.put("a/b", [b"2"], "overwrite")
