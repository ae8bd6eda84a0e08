"""The promises of `ckpt_remote.store.interface`, checked on any store.

Subclass `StoreConformance`, and give it `directory` (a fresh `Directory`). What happens behind the library's
back goes through `Directory.outside`, which knows nothing of the library.
"""

import abc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from ckpt_remote import errors
from ckpt_remote.store import Object, ObjectInfo, PutMode, Store, Version

__all__ = ["ODD_KEYS", "Directory", "Outside", "StoreConformance", "increments"]


class Outside(abc.ABC):
    """The same store, seen by somebody else. Names are relative to the parent of the directory under test."""

    @abc.abstractmethod
    def write(self, name: str, data: bytes) -> None: ...

    @abc.abstractmethod
    def read(self, name: str) -> bytes: ...

    @abc.abstractmethod
    def remove(self, name: str) -> None: ...

    @abc.abstractmethod
    def names(self) -> set[str]: ...


@dataclass(frozen=True, slots=True)
class Directory:
    """A store's directory `run`, how to open it once more, and a view from outside."""

    open: Callable[[], Store]
    outside: Outside


ODD_KEYS = [
    "with space",
    "ünïcode-日本",
    "hash#1",
    "question?x=1",
    "percent%20and%2Fmore",
    "lone%",
    "plus+and&and=",
    "star*[ab]?",
    "quote'\"and`",
    "back\\slash",
    "colon:semi;comma,at@",
    "tilde~and.dot.",
    ".hidden",
    "a/deeper/one",
    "<angle>{brace}|^",
]
NO_KEYS = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a\0b", "a\nb", "\x7f"]


def increments(store: Store, count: int) -> None:
    """Add one to the number in `counter`, `count` times, as those who compare and swap do."""
    for _ in range(count):
        while True:
            current = store.read("counter")
            try:
                store.put("counter", [b"%d" % (int(current.data) + 1)], current.version)
            except errors.ConflictError:
                continue
            break


class StoreConformance:
    """What every store must do."""

    @pytest.fixture
    def store(self, directory: Directory) -> Iterator[Store]:
        with directory.open() as store:
            yield store

    @pytest.fixture
    def outside(self, directory: Directory) -> Outside:
        return directory.outside

    # Bytes go in and come out

    def test_what_is_put_is_read(self, store: Store) -> None:
        store.put("key", [b"body"], "create")
        assert store.read("key").data == b"body"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("key", [b""], "create")
        assert store.read("key").data == b""
        assert store.size("key") == 0

    def test_no_buffers_make_an_empty_object(self, store: Store) -> None:
        store.put("key", [], "overwrite")
        assert store.read("key").data == b""

    def test_buffers_of_every_kind_are_concatenated(self, store: Store, outside: Outside) -> None:
        numbers = np.arange(5, dtype=np.uint8)
        frozen = np.frombuffer(b"frozen", np.uint8)
        store.put(
            "key",
            [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", numbers[:0], numbers, frozen],
            "create",
        )
        assert b"abc" + bytes(range(5)) + b"frozen" == outside.read("run/key")

    @pytest.mark.parametrize("mode", ["create", "overwrite"])
    def test_big_objects_come_back_whole(self, store: Store, mode: PutMode) -> None:
        data = np.random.default_rng(7).integers(0, 256, 12_000_007, np.uint8)
        store.put("key", [data[:5_000_000], data[5_000_000:]], mode)
        assert data.tobytes() == store.read("key").data
        assert data[5_999_999:-1].tobytes() == bytes(store.read_range("key", 5_999_999, 6_000_007))

    def test_a_condition_holds_for_big_objects_too(self, store: Store) -> None:
        big = b"x" * 12_000_000
        old = store.put("key", [big], "create")
        store.put("key", [b"y"], "overwrite")
        for mode in ("create", old):
            with pytest.raises(errors.ConflictError):
                store.put("key", [big], mode)
        assert store.read("key").data == b"y"

    def test_read_returns_bytes_and_a_version(self, store: Store) -> None:
        store.put("key", [b"body"], "create")
        found = store.read("key")
        assert isinstance(found, Object)
        assert bytes is type(found.data)
        assert isinstance(found.version, Version)

    def test_a_directory_of_the_directory_needs_no_making(self, store: Store, outside: Outside) -> None:
        store.put("a/b/c", [b"1"], "create")
        assert outside.read("run/a/b/c") == b"1"

    def test_others_see_what_was_put(self, store: Store, outside: Outside) -> None:
        store.put("key", [b"body"], "create")
        assert outside.read("run/key") == b"body"
        assert {"run/key"} == outside.names()

    def test_what_others_put_is_seen_at_once(self, store: Store, outside: Outside) -> None:
        store.put("key", [b"mine"], "create")
        assert store.read("key").data == b"mine"
        assert [ObjectInfo("key", 4)] == list(store.list())
        outside.write("run/key", b"theirs")
        outside.write("run/other", b"")
        assert store.read("key").data == b"theirs"
        assert store.size("key") == 6
        assert {"key", "other"} == {info.key for info in store.list()}

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_a_key_is_taken_literally(self, store: Store, outside: Outside, key: str) -> None:
        version = store.put(key, [b"1"], "create")
        assert {f"run/{key}"} == outside.names()
        assert Object(b"1", version) == store.read(key)
        assert bytes(store.read_range(key, 0, 1)) == b"1"
        assert store.size(key) == 1
        assert [ObjectInfo(key, 1)] == list(store.list())
        assert [ObjectInfo(key, 1)] == list(store.list(key))
        assert store.delete([key]) == {}
        assert set() == outside.names()

    @pytest.mark.parametrize("key", NO_KEYS)
    def test_what_is_no_key_is_refused_everywhere(self, store: Store, outside: Outside, key: str) -> None:
        outside.write("victim", b"1")
        for use in (
            lambda: store.read(key),
            lambda: store.read_range(key, 0, 1),
            lambda: store.size(key),
            lambda: store.put(key, [b""], "overwrite"),
            lambda: store.delete([key]),
            lambda: store.url_of(key),
        ):
            with pytest.raises(ValueError, match="is no object key"):
                use()
        assert {"victim"} == outside.names()

    # Ranges

    @pytest.mark.parametrize(("start", "length"), [(0, 10), (0, 1), (9, 1), (3, 4), (0, 0), (5, 0), (10, 0)])
    def test_a_range_is_exact(self, store: Store, start: int, length: int) -> None:
        store.put("key", [b"0123456789"], "create")
        assert b"0123456789"[start : start + length] == bytes(store.read_range("key", start, length))

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (11, 1), (5000, 5), (11, 0)])
    def test_a_range_beyond_the_end_is_corruption(self, store: Store, start: int, length: int) -> None:
        store.put("key", [b"0123456789"], "create")
        with pytest.raises(errors.CorruptError, match="ends after 10 bytes") as caught:
            store.read_range("key", start, length)
        assert store.url_of("key") == caught.value.path

    def test_a_range_of_an_empty_object_is_corruption(self, store: Store) -> None:
        store.put("key", [], "create")
        with pytest.raises(errors.CorruptError, match="ends after 0 bytes"):
            store.read_range("key", 0, 1)

    @pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1), (-3, 2)])
    def test_a_negative_range_is_a_mistake(self, store: Store, start: int, length: int) -> None:
        store.put("key", [b"0123456789"], "create")
        with pytest.raises(ValueError, match="range"):
            store.read_range("key", start, length)

    # Nothing there

    @pytest.mark.parametrize("length", [0, 1])
    def test_a_range_of_nothing_is_not_found(self, store: Store, length: int) -> None:
        with pytest.raises(errors.NotFoundError):
            store.read_range("key", 0, length)

    def test_reading_nothing_is_not_found_and_names_it(self, store: Store) -> None:
        with pytest.raises(FileNotFoundError, match="run/key") as caught:
            store.read("key")
        assert isinstance(caught.value, errors.NotFoundError)
        assert store.url_of("key") == caught.value.path

    def test_the_size_of_nothing_is_not_found(self, store: Store) -> None:
        with pytest.raises(errors.NotFoundError):
            store.size("key")

    def test_a_directory_is_no_object(self, store: Store) -> None:
        store.put("a/b", [b"1"], "create")
        for use in (store.read, store.size):
            with pytest.raises(errors.NotFoundError):
                use("a")

    def test_an_existing_container_is_accepted(self, store: Store) -> None:
        store.require_container()

    # Versions and conditions

    def test_a_put_returns_the_version_that_is_read(self, store: Store) -> None:
        for mode in ("create", "overwrite"):
            assert store.put("key", [mode.encode()], mode) == store.read("key").version

    def test_a_version_stays_while_nobody_writes(self, store: Store, directory: Directory) -> None:
        version = store.put("key", [b"1"], "create")
        assert version == store.read("key").version
        with directory.open() as again:
            assert version == again.read("key").version

    def test_every_change_makes_a_new_version(self, store: Store) -> None:
        versions = [store.put("key", [b"%d" % number], "overwrite") for number in range(20)]
        assert len(set(versions)) == 20

    def test_a_change_by_others_makes_a_new_version(self, store: Store, outside: Outside) -> None:
        version = store.put("key", [b"1"], "create")
        outside.write("run/key", b"2")
        assert version != store.read("key").version

    def test_create_keeps_what_is_there(self, store: Store) -> None:
        version = store.put("key", [b"first"], "create")
        with pytest.raises(errors.ConflictError, match="run/key") as caught:
            store.put("key", [b"second"], "create")
        assert store.url_of("key") == caught.value.path
        assert Object(b"first", version) == store.read("key")

    def test_create_keeps_what_others_put(self, store: Store, outside: Outside) -> None:
        outside.write("run/key", b"theirs")
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"mine"], "create")
        assert outside.read("run/key") == b"theirs"

    def test_create_works_again_after_a_delete(self, store: Store) -> None:
        store.put("key", [b"1"], "create")
        store.delete(["key"])
        store.put("key", [b"2"], "create")
        assert store.read("key").data == b"2"

    def test_overwrite_replaces_whatever_is_there(self, store: Store, outside: Outside) -> None:
        outside.write("run/key", b"theirs, and longer")
        store.put("key", [b"mine"], "overwrite")
        assert outside.read("run/key") == b"mine"

    def test_a_replacement_of_the_current_version_succeeds(self, store: Store) -> None:
        version = store.put("key", [b"1"], "create")
        for number in range(5):
            version = store.put("key", [b"next %d" % number], version)
        assert Object(b"next 4", version) == store.read("key")

    def test_a_version_that_was_read_can_be_replaced(self, store: Store, outside: Outside) -> None:
        outside.write("run/key", b"theirs")
        store.put("key", [b"mine"], store.read("key").version)
        assert outside.read("run/key") == b"mine"

    def test_a_replacement_of_an_old_version_is_a_conflict(self, store: Store) -> None:
        old = store.put("key", [b"1"], "create")
        store.put("key", [b"2"], old)
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"3"], old)
        assert store.read("key").data == b"2"

    def test_a_replacement_over_a_change_by_others_is_a_conflict(self, store: Store, outside: Outside) -> None:
        version = store.put("key", [b"1"], "create")
        outside.write("run/key", b"2")
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"3"], version)
        assert outside.read("run/key") == b"2"

    def test_a_replacement_of_what_is_gone_is_a_conflict(self, store: Store, outside: Outside) -> None:
        version = store.put("key", [b"1"], "create")
        outside.remove("run/key")
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"2"], version)
        assert set() == outside.names()

    def test_the_version_of_another_object_replaces_nothing(self, store: Store) -> None:
        store.put("key", [b"1"], "create")
        other = store.put("other", [b"2"], "create")
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"3"], other)

    def test_of_eight_creators_one_wins(self, directory: Directory) -> None:
        start = threading.Barrier(8)

        def create(number: int) -> bool:
            with directory.open() as store:
                start.wait()
                try:
                    store.put("key", [b"%d" % number], "create")
                except errors.ConflictError:
                    return False
                return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        with directory.open() as store:
            assert b"%d" % won.index(True) == store.read("key").data

    def test_no_increment_of_a_shared_counter_is_lost(self, directory: Directory, store: Store) -> None:
        store.put("counter", [b"0"], "create")

        def count() -> None:
            with directory.open() as mine:
                increments(mine, 12)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(count) for _ in range(4)]:
                done.result()
        assert store.read("counter").data == b"48"

    def test_readers_see_the_old_object_or_the_new_one(self, directory: Directory, store: Store) -> None:
        bodies = [bytes([number]) * 300_000 for number in range(2)]
        store.put("key", [bodies[0]], "create")
        done = threading.Event()

        def write() -> None:
            with directory.open() as mine:
                for number in range(30):
                    mine.put("key", [bodies[number % 2]], "overwrite")
            done.set()

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            while not (writer.done() or done.is_set()):
                assert store.read("key").data in bodies
            writer.result()

    def test_several_threads_share_a_store(self, store: Store) -> None:
        def round_trip(number: int) -> bytes:
            store.put(f"key-{number}", [b"%d" % number], "create")
            return store.read(f"key-{number}").data

        with ThreadPoolExecutor(8) as pool:
            assert [b"%d" % number for number in range(24)] == list(pool.map(round_trip, range(24)))

    # Listing

    def test_a_fresh_directory_lists_empty(self, store: Store) -> None:
        assert list(store.list()) == []

    def test_a_listing_tells_keys_and_sizes_at_every_depth(self, store: Store) -> None:
        for key in ("a", "b/c", "b/d/e"):
            store.put(key, [key.encode()], "create")
        assert {ObjectInfo("a", 1), ObjectInfo("b/c", 3), ObjectInfo("b/d/e", 5)} == set(store.list())

    def test_a_prefix_is_text(self, store: Store) -> None:
        for key in ("ckpt-1.index", "ckpt-10.index", "ckpt-1/x", "other"):
            store.put(key, [], "create")
        assert {"ckpt-1.index", "ckpt-10.index", "ckpt-1/x"} == {info.key for info in store.list("ckpt-1")}
        assert {"ckpt-1.index"} == {info.key for info in store.list("ckpt-1.")}
        assert {"ckpt-1/x"} == {info.key for info in store.list("ckpt-1/")}
        assert list(store.list("ckpt-2")) == []
        assert list(store.list("no/such")) == []

    def test_siblings_are_not_listed(self, store: Store, outside: Outside) -> None:
        for name in ("run2/key", "run-old/key", "ru/key", "key", "other"):
            outside.write(name, b"")
        store.put("key", [b""], "create")
        assert [ObjectInfo("key", 0)] == list(store.list())

    # Deleting

    def test_a_delete_removes_exactly_its_keys(self, store: Store, outside: Outside) -> None:
        for name in ("run/ckpt-1", "run/ckpt-10", "run/ckpt-1.index", "run/ckpt-1.x/y", "run2/ckpt-1"):
            outside.write(name, b"")
        assert store.delete(["ckpt-1"]) == {}
        assert {"run/ckpt-10", "run/ckpt-1.index", "run/ckpt-1.x/y", "run2/ckpt-1"} == outside.names()

    def test_a_delete_takes_several_keys(self, store: Store, outside: Outside) -> None:
        for key in ("a", "b", "c/d", "e"):
            store.put(key, [], "create")
        assert store.delete(["a", "b", "c/d"]) == {}
        assert {"run/e"} == outside.names()

    def test_a_delete_knows_no_patterns(self, store: Store, outside: Outside) -> None:
        for key in ("a", "b", "ab"):
            store.put(key, [], "create")
        assert store.delete(["*", "?", "[ab]", "a*", "**"]) == {}
        assert {"run/a", "run/b", "run/ab"} == outside.names()

    def test_deleting_what_is_gone_is_a_success(self, store: Store) -> None:
        store.put("a", [], "create")
        assert store.delete(["a", "never-there", "no/such/folder/key"]) == {}
        assert store.delete(["a"]) == {}

    def test_deleting_nothing_does_nothing(self, store: Store, outside: Outside) -> None:
        store.put("a", [], "create")
        assert store.delete([]) == {}
        assert {"run/a"} == outside.names()

    def test_a_mistaken_key_keeps_the_others(self, store: Store, outside: Outside) -> None:
        store.put("a", [], "create")
        with pytest.raises(ValueError, match="is no object key"):
            store.delete(["a", "../b"])
        assert {"run/a"} == outside.names()

    def test_exactly_one_version_is_removed(self, store: Store, outside: Outside) -> None:
        old = store.put("key", [b"1"], "create")
        new = store.put("key", [b"2"], old)
        with pytest.raises(errors.ConflictError, match="run/key"):
            store.remove("key", old)
        assert outside.read("run/key") == b"2"
        store.remove("key", new)
        assert set() == outside.names()

    def test_removing_what_is_gone_is_a_success(self, store: Store, outside: Outside) -> None:
        version = store.put("a", [], "create")
        store.remove("a", version)
        store.remove("a", version)
        store.remove("no/such/folder/key", version)
        assert set() == outside.names()

    def test_what_is_no_key_cannot_be_removed(self, store: Store) -> None:
        version = store.put("a", [], "create")
        with pytest.raises(ValueError, match="is no object key"):
            store.remove("../a", version)

    # Names

    def test_urls_join_directory_and_key(self, store: Store) -> None:
        assert f"{store.url}/a/b" == store.url_of("a/b")
        assert store.url.endswith("/run")

    def test_the_engine_says_what_runs_and_why(self, store: Store) -> None:
        assert store.engine.startswith(("obstore (", "fsspec "))
        assert store.engine in repr(store)
