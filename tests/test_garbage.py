"""What dead attempts leave is found and deleted, and nothing else ever is."""

import contextlib
import itertools
import threading
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, read_all, upload

from ckpt_remote import ConflictError, StoreError
from ckpt_remote.bundle import Entry, Header, Index, encode_index, index_name, shard_name
from ckpt_remote.commit import STATE, describe
from ckpt_remote.flow import run
from ckpt_remote.garbage import find_garbage
from ckpt_remote.origin import new_attempt, new_term
from ckpt_remote.probe import PROBES
from ckpt_remote.progress import Collected, listen
from ckpt_remote.state import Retired, decode_state
from ckpt_remote.store import Retry, open_store

TERM, SERIAL = new_term(), 5
DEAD = new_attempt(TERM, SERIAL - 1)
OVER = new_attempt(TERM, SERIAL)  # of the owner that asks, who has no attempt under way
ALIVE = new_attempt(TERM, SERIAL + 1)
STRANGER = new_attempt(new_term(), 1)


class Litter:
    """A directory with things lying about."""

    def __init__(self):
        self.place = Place.in_memory()
        self.store = self.place.store()

    def data(self, path, by, *, shards=(0,), of=1, sealed_for=None):
        """Data objects of an attempt; with nobody's seal if it is None."""
        for shard in shards:
            key = shard_name(path, shard, of)
            seal = b"" if by is None else by.seal(sealed_for or key)
            self.store.put(key, [b"values" * 20, seal], "create")

    def index(self, path, by, *, used=1, of=1, files=(), sealed_for=None):
        """An index by an attempt; as TensorFlow writes it if that is None."""
        key = index_name(path)
        entries = {b"t%d" % shard: Entry(4, (4,), shard=shard, size=4) for shard in range(used)}
        write_id = "" if by is None else by.write_id(sealed_for or key)
        index = Index(Header(num_shards=of, write_id=write_id, files=files), entries)
        self.store.put(key, [encode_index(index)], "create")

    def checkpoint(self, path, by, *, used=1, of=1, files=()):
        self.data(path, by, shards=range(used), of=of)
        self.index(path, by, used=used, of=of, files=files)
        for suffix in files:
            self.store.put(f"{path}{suffix}", [b"words"], "create")

    def probe(self, name, by, *, sealed_for=None):
        key = f"{PROBES}{name}"
        self.store.put(key, [b"note", b"" if by is None else by.seal(sealed_for or key)], "create")
        return key

    def find(self, *listed, prefixes=("",)):
        before = read_all(self.place)
        flow = find_garbage(prefixes, term=TERM, serial=SERIAL, newest=SERIAL, listed=listed, url=self.place.url)
        found = run(flow, self.store, Retry())
        assert before == read_all(self.place), "it deletes nothing itself"
        return found


@pytest.fixture
def litter():
    return Litter()


@pytest.mark.parametrize("by", [DEAD, OVER], ids=["of an earlier owner", "of ours that is over"])
def test_data_without_an_index_of_an_attempt_that_is_over_is_garbage(litter, by):
    litter.data("ckpt-7", by, shards=(0, 1, 2), of=3)
    litter.data("deep/ckpt-8", by, shards=(1, 4), of=70001)

    assert {
        Retired(path="ckpt-7", write_id=None, used=3, of=3),
        Retired(path="deep/ckpt-8", write_id=None, first=1, used=5, of=70001),
    } == set(litter.find().checkpoints)


@pytest.mark.parametrize("by", [DEAD, OVER], ids=["of an earlier owner", "of ours that is over"])
def test_a_checkpoint_that_no_state_lists_is_garbage_with_its_side_files(litter, by):
    litter.checkpoint("ckpt-7", by, used=2, of=2, files=("-Saver", "-Saver.note"))
    write_id = by.write_id("ckpt-7.index")

    assert (
        Retired(path="ckpt-7", write_id=write_id, used=2, of=2, files=("ckpt-7-Saver", "ckpt-7-Saver.note")),
    ) == litter.find().checkpoints


def test_an_index_whose_data_is_gone_already_is_garbage_too(litter):
    litter.index("ckpt-7", DEAD, used=2, of=2)

    assert ["ckpt-7"] == [retired.path for retired in litter.find().checkpoints]


def test_dead_data_among_foreign_ones_under_one_count_are_garbage_without_those(litter):
    """As where a worker's share collided with what somebody had left, and another worker's did not."""
    litter.data("ckpt-7", DEAD, shards=(0, 2, 4, 5), of=8)
    litter.data("ckpt-7", None, shards=(1, 3), of=8)

    runs = [(retired.first, retired.used) for retired in litter.find().checkpoints]
    assert [(0, 1), (2, 3), (4, 6)] == runs


def test_dead_data_that_no_index_uses_are_garbage_without_those_that_a_foreign_one_does(litter):
    litter.data("ckpt-7", DEAD, shards=(0, 1, 2), of=3)
    litter.index("ckpt-7", None, used=2, of=3)

    assert [(2, 3)] == [(retired.first, retired.used) for retired in litter.find().checkpoints]


def test_data_of_two_dead_attempts_at_one_number_are_told_apart(litter):
    litter.data("ckpt-7", DEAD, of=1)
    litter.data("ckpt-7", OVER, shards=(0, 1), of=10001)

    assert {1: 1, 10001: 2} == {retired.of: retired.used for retired in litter.find().checkpoints}


def test_of_a_dead_checkpoint_and_dead_data_beside_it_both_go(litter):
    litter.checkpoint("ckpt-7", DEAD)
    litter.data("ckpt-7", OVER, of=10001)

    assert {(1, DEAD.write_id("ckpt-7.index")), (10001, None)} == {
        (retired.of, retired.write_id) for retired in litter.find().checkpoints
    }


def leave(make):
    return pytest.param(make, id=make.__name__)


def foreign_data_without_an_index(litter):
    litter.data("ckpt-7", None)


def a_foreign_checkpoint(litter):
    litter.checkpoint("ckpt-7", None, used=2, of=2)


def a_foreign_index_without_data(litter):
    litter.index("ckpt-7", None)


def data_of_another_history(litter):
    litter.data("ckpt-7", STRANGER)


def a_checkpoint_of_another_history(litter):
    litter.checkpoint("ckpt-7", STRANGER)


def data_of_a_newer_owner(litter):
    litter.data("ckpt-7", ALIVE)


def a_checkpoint_of_a_newer_owner(litter):
    litter.checkpoint("ckpt-7", ALIVE)


def a_copy_of_our_own_under_another_name(litter):
    litter.data("best", DEAD, sealed_for="ckpt-7.data-00000-of-00001")
    litter.index("best", DEAD, sealed_for="ckpt-7.index")


def a_copy_of_our_own_in_a_folder(litter):
    litter.data("backup/ckpt-7", DEAD, sealed_for="ckpt-7.data-00000-of-00001")
    litter.index("backup/ckpt-7", DEAD, sealed_for="ckpt-7.index")


def a_copy_of_our_own_data_without_the_index(litter):
    litter.data("best", DEAD, sealed_for="ckpt-7.data-00000-of-00001")


def dead_data_that_a_foreign_index_uses(litter):
    litter.data("ckpt-7", DEAD)
    litter.index("ckpt-7", None)


def dead_data_that_a_newer_owners_index_uses(litter):
    litter.data("ckpt-7", DEAD)
    litter.index("ckpt-7", ALIVE)


def dead_data_beside_an_index_that_cannot_be_read(litter):
    litter.data("ckpt-7", DEAD)
    litter.store.put("ckpt-7.index", [b"garbage"], "create")


def dead_and_a_newer_owners_data_under_one_count(litter):
    litter.data("ckpt-7", DEAD, shards=(0,), of=2)
    litter.data("ckpt-7", ALIVE, shards=(1,), of=2)


def data_whose_seal_is_damaged(litter):
    litter.store.put("ckpt-7.data-00000-of-00001", [b"values", bytes(48)], "create")


def data_that_are_shorter_than_a_seal(litter):
    litter.store.put("ckpt-7.data-00000-of-00001", [b""], "create")
    litter.store.put("ckpt-8.data-00000-of-00001", [DEAD.seal("ckpt-8.data-00000-of-00001")[1:]], "create")


def side_files_without_an_index(litter):
    litter.store.put("ckpt-7-Saver.note", [b"words", DEAD.seal("ckpt-7-Saver.note")], "create")


def what_is_no_checkpoint_at_all(litter):
    for key in (
        "notes.txt",
        "ckpt-7",
        "ckpt-7.data",
        "ckpt-7.data-0-of-1",
        "logs/events.out",
        STATE,
        "ckpt-7.index.bak",
    ):
        litter.store.put(key, [b"words", DEAD.seal(key)], "create")


@pytest.mark.parametrize(
    "make",
    [
        leave(foreign_data_without_an_index), leave(a_foreign_checkpoint), leave(a_foreign_index_without_data),
        leave(data_of_another_history), leave(a_checkpoint_of_another_history),

        leave(a_copy_of_our_own_under_another_name), leave(a_copy_of_our_own_in_a_folder),
        leave(a_copy_of_our_own_data_without_the_index),
        leave(dead_data_that_a_foreign_index_uses),
        leave(dead_data_beside_an_index_that_cannot_be_read),
        leave(data_whose_seal_is_damaged), leave(data_that_are_shorter_than_a_seal),
        leave(side_files_without_an_index), leave(what_is_no_checkpoint_at_all),
    ],
)  # fmt: skip
def test_what_could_belong_to_somebody_is_none(litter, make):
    make(litter)
    litter.data("ckpt-99", DEAD)

    assert ["ckpt-99"] == [retired.path for retired in litter.find().checkpoints]


@pytest.mark.parametrize(
    "make",
    [
        leave(data_of_a_newer_owner), leave(a_checkpoint_of_a_newer_owner),
        leave(dead_data_that_a_newer_owners_index_uses), leave(dead_and_a_newer_owners_data_under_one_count),
    ],
)  # fmt: skip
def test_beside_what_builds_on_a_later_state_nobody_can_tell_what_is_dead(litter, make):
    """Either the one who asks is fenced, or somebody has put an older state back."""
    make(litter)
    litter.data("ckpt-99", DEAD)
    found = litter.find()

    assert found.is_from_later
    assert () == found.checkpoints == found.control


@pytest.mark.parametrize("by", [DEAD, OVER, ALIVE, STRANGER, None], ids=str)
def test_what_the_state_lists_or_preserves_is_none_whoever_wrote_it(litter, by):
    litter.checkpoint("ckpt-7", by, used=2, of=2)

    assert () == litter.find("ckpt-7").checkpoints


@pytest.mark.parametrize("by", [DEAD, None], ids=["ours", "stock"])
def test_dead_data_beside_a_listed_checkpoint_is_garbage_and_the_checkpoint_is_not(litter, by):
    """An attempt to save its number again was killed."""
    litter.checkpoint("ckpt-7", by, used=2, of=2)
    litter.data("ckpt-7", DEAD, shards=(0, 1), of=70001)
    litter.data("ckpt-7", STRANGER, of=70002)

    assert (Retired(path="ckpt-7", write_id=None, used=2, of=70001),) == litter.find("ckpt-7").checkpoints


@pytest.mark.parametrize("damage", [None, b"garbage"], ids=["missing", "damaged"])
def test_nothing_of_a_listed_checkpoint_whose_index_is_not_whole_is_garbage(litter, damage):
    """Nobody can tell which of the data were its own, and they may be all that can be repaired."""
    litter.data("ckpt-7", DEAD)
    litter.data("ckpt-7", OVER, of=70001)
    if damage:
        litter.store.put("ckpt-7.index", [damage], "create")

    assert () == litter.find("ckpt-7").checkpoints


def test_a_damaged_index_is_said_and_hides_no_garbage_elsewhere(litter, caplog):
    dead_data_beside_an_index_that_cannot_be_read(litter)
    litter.data("ckpt-8", DEAD)

    assert ["ckpt-8"] == [retired.path for retired in litter.find().checkpoints]
    assert "ckpt-7 is left, as its index is damaged" in caplog.text


@pytest.mark.parametrize(
    ("by", "over"),
    [(DEAD, True), (STRANGER, True), (OVER, False), (ALIVE, False), (None, False)],
    ids=["an older owner's", "another history's", "of who has read this state", "a newer owner's", "nobody's"],
)
def test_a_probe_is_over_when_its_author_has_read_an_older_state(litter, by, over):
    key = litter.probe("1", by)

    assert ((key,) if over else ()) == litter.find().control


def test_what_workers_told_each_other_is_over_with_their_save(litter):
    for key, by in {
        "_ckpt_remote/plan": DEAD,
        "_ckpt_remote/abc/join-1": DEAD,
        "_ckpt_remote/def/part-1": ALIVE,
    }.items():
        litter.store.put(key, [b"...", by.seal(key)], "create")

    assert ("_ckpt_remote/abc/join-1", "_ckpt_remote/plan") == litter.find().control


def test_a_probe_under_another_name_or_elsewhere_is_not_ours(litter):
    litter.probe("copy", DEAD, sealed_for=f"{PROBES}1")
    litter.store.put("_ckpt_remote/other", [DEAD.seal("_ckpt_remote/another")], "create")
    litter.store.put("probe-1", [DEAD.seal("probe-1")], "create")

    assert () == litter.find().control


def test_only_what_begins_as_it_is_told_is_looked_at(litter):
    for path in ("ckpt-1", "ckpt-10", "other-1"):
        litter.data(path, DEAD)
    litter.probe("1", DEAD)
    found = litter.find(prefixes=("ckpt-1.", "_ckpt_remote/"))

    assert ["ckpt-1"] == [retired.path for retired in found.checkpoints]
    assert {"ckpt-1.data-00000-of-00001", f"{PROBES}1"} == found.present


def test_an_empty_directory_has_none(litter):
    found = litter.find()

    assert ((), (), frozenset()) == (found.checkpoints, found.control, found.present)


# What follows is the whole library at work.


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """A store whose process is killed at its write of a given number, before or after that has landed."""

    def __init__(self, store, at, *, landed):
        self._store, self._left, self._landed, self._lock = store, at, landed, threading.Lock()

    def __getattr__(self, name):
        if self._left < 0:
            raise Killed
        return getattr(self._store, name)

    @property
    def single(self):
        return self

    def put(self, key, buffers, mode):
        return self._write(self._store.put, key, buffers, mode)

    def remove(self, key, version):
        return self._write(self._store.remove, key, version)

    def delete(self, keys):
        return self._write(self._store.delete, keys)

    def _write(self, send, *arguments):
        with self._lock:
            self._left -= 1
            left = self._left
        if left < 0 and not (left == -1 and self._landed):
            raise Killed
        answer = send(*arguments)
        if left < 0:
            raise Killed
        return answer


FOREIGN = {
    "notes.txt": b"words",
    "ckpt-77.data-00000-of-00001": b"somebody's" * 20,
    "other/ckpt-3.index": b"somebody's",
    "ckpt-2-export/saved_model.pb": b"somebody's",
}


def litter_with_foreign_files(place):
    """Foreign files, and copies of our own newest checkpoint under another name."""
    store = place.store()
    copies = {key.replace("ckpt-2", "best"): data for key, data in read_all(place).items() if key.startswith("ckpt-2.")}
    assert len(copies) > 1
    for key, data in (FOREIGN | copies).items():
        store.put(key, [data], "create")
    return FOREIGN | copies


def explained(place):
    """The state, and all that the checkpoints consist of which it lists or preserves."""
    store = place.store()
    state = decode_state(store.read(STATE).data, path=place.url, directories=(place.url,))
    keys = {STATE}
    for path in {*(entry.path for entry in state.entries), *(state.record.preserved if state.record else ())}:
        found, _ = run(describe(path, url=place.url), store, Retry())
        keys |= {found.index, *found.data}
    return keys


def manager_of(place, value, **arguments):
    return place.manager(tf.train.Checkpoint(value=value), max_to_keep=2, **arguments)


def begin(place):
    """An earlier owner has saved two checkpoints, and there are foreign files."""
    value = tf.Variable(np.arange(60.0))
    manager = manager_of(place, value)
    manager.save()
    manager.save()
    return value, litter_with_foreign_files(place)


def save_until_killed(place, value, at, *, landed, number, monkeypatch):
    """Whether it was killed: else it had fewer writes than that."""
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_remote.manager.open_store", lambda *given: Dying(open_store(*given), at, landed=landed))
        manager = manager_of(place, value)
        try:
            manager.restore_or_initialize()
            manager.save(checkpoint_number=number)
        except Killed:
            return True
    return False


@pytest.fixture
def _small_shards(monkeypatch):
    """Several data objects a checkpoint."""
    monkeypatch.setattr("ckpt_remote.checkpoint.shard_size", lambda total: 300)


def kill_at_each_write(place, monkeypatch, *, landed=True, number=None):
    """A directory for each write of a save: the probe's, the state's, the data's, the index's and the deletions.

    Yields each with the values, the foreign files in it, and which write the save was killed at.
    """
    for at in itertools.count():
        here = Place(f"{place.url}/{at}", place.storage_options, place.filesystem)
        value, foreign = begin(here)
        killed = save_until_killed(here, value, at, landed=landed, number=number, monkeypatch=monkeypatch)
        yield here, value, foreign, f"killed at write {at}"
        if not killed:
            break
    assert at > 10


def assert_clean_after_the_next_save(here, value, foreign, where):
    manager = manager_of(here, value)
    manager.restore_or_initialize()
    manager.save()

    left = read_all(here)
    assert explained(here) == left.keys() - foreign.keys(), where
    assert foreign.items() <= left.items()


def assert_collected_as_foretold(here, value, foreign, where):
    before, events = read_all(here), []
    manager = manager_of(here, value)
    found = manager.collect_garbage()
    assert before == read_all(here), "a dry run changes nothing"
    with listen(events.append):
        gone = manager.collect_garbage(dry_run=False)

    left = read_all(here)
    deleted = sorted(before.keys() - left.keys())
    assert found == gone == [f"{here.url}/{key}" for key in deleted], where
    assert explained(here) == left.keys() - foreign.keys(), where
    assert foreign.items() <= left.items()
    assert [Collected(keys=tuple(deleted))] * bool(deleted) == [it for it in events if isinstance(it, Collected)]
    assert [] == manager.collect_garbage(dry_run=False) == manager.collect_garbage()


NUMBERS = pytest.mark.parametrize("number", [None, 2], ids=["a new number", "a listed number again"])
LANDED = pytest.mark.parametrize("landed", [False, True], ids=["before the write", "after the write"])


@pytest.mark.usefixtures("_small_shards")
@NUMBERS
@LANDED
def test_whatever_a_killed_save_leaves_is_gone_after_the_next_owners_first_save(number, landed, monkeypatch):
    for case in kill_at_each_write(Place.in_memory(), monkeypatch, landed=landed, number=number):
        assert_clean_after_the_next_save(*case)


@pytest.mark.usefixtures("_small_shards")
@NUMBERS
@LANDED
def test_collecting_lists_exactly_what_it_then_deletes_wherever_a_save_was_killed(number, landed, monkeypatch):
    for case in kill_at_each_write(Place.in_memory(), monkeypatch, landed=landed, number=number):
        assert_collected_as_foretold(*case)


@pytest.mark.usefixtures("_small_shards")
def test_so_it_is_on_every_store(place, monkeypatch):
    """The next save of every second directory, and collecting in the others."""
    checks = itertools.cycle([assert_clean_after_the_next_save, assert_collected_as_foretold])
    for check, case in zip(checks, kill_at_each_write(place, monkeypatch), strict=False):
        check(*case)


@pytest.mark.parametrize("begun", [False, True], ids=["fresh", "stock"])
def test_a_probe_that_a_killed_claim_left_where_nobody_has_claimed_anything_is_garbage_too(
    begun, tmp_path, monkeypatch
):
    place, value = Place.in_memory(), tf.Variable(np.arange(60.0))
    if begun:
        tf.train.CheckpointManager(tf.train.Checkpoint(value=value), str(tmp_path / "stock"), 2).save()
        upload(tmp_path / "stock", place)
    assert save_until_killed(place, value, 1, landed=True, number=None, monkeypatch=monkeypatch)
    (probe,) = (key for key in read_all(place) if key.startswith(PROBES))
    manager = manager_of(place, value)

    assert [f"{place.url}/{probe}"] == manager.collect_garbage() == manager.collect_garbage(dry_run=False)
    assert explained(place) == read_all(place).keys()


def test_a_probe_that_a_killed_claim_left_in_a_fresh_directory_is_gone_after_the_first_save(monkeypatch):
    place, value = Place.in_memory(), tf.Variable(np.arange(60.0))
    assert save_until_killed(place, value, 1, landed=True, number=None, monkeypatch=monkeypatch)
    assert any(key.startswith(PROBES) for key in read_all(place))
    manager_of(place, value).save()

    assert explained(place) == read_all(place).keys()


class Troubled:
    """A store that does something else first, or instead, at some requests."""

    def __init__(self, store):
        self._store, self.writes, self.refused, self.meanwhile = store, 0, lambda number, key: False, None

    def __getattr__(self, name):
        return getattr(self._store, name)

    @property
    def single(self):
        return self

    def put(self, key, buffers, mode):
        self._look("write", key)
        return self._store.put(key, buffers, mode)

    def remove(self, key, version):
        self._look("delete", key)
        return self._store.remove(key, version)

    def delete(self, keys):
        try:
            self._look("delete", keys[0])
        except StoreError as error:
            return dict.fromkeys(keys, error)
        return self._store.delete(keys)

    def list(self, prefix=""):
        self._look("list", prefix)
        return self._store.list(prefix)

    def _look(self, verb, key):
        meanwhile = self.meanwhile
        if meanwhile is not None and meanwhile[0] in key:
            self.meanwhile = None
            meanwhile[1]()
        number, self.writes = (None, self.writes) if verb == "list" else (self.writes, self.writes + 1)
        if self.refused(number, f"{verb} {key}"):
            raise StoreError(f"cannot {verb} {key}: refused by the test")


@pytest.fixture
def troubled(monkeypatch):
    """The stores of the managers that are made from now on."""
    stores = []

    def open_troubled(*given):
        stores.append(Troubled(open_store(*given)))
        return stores[-1]

    monkeypatch.setattr("ckpt_remote.manager.open_store", open_troubled)
    return stores


@pytest.mark.usefixtures("_small_shards")
@NUMBERS
def test_the_leftovers_of_a_save_that_failed_are_gone_after_the_same_managers_next(number, troubled):
    """At each write in turn; a deletion that fails does not fail the save."""
    failures = 0
    for at in itertools.count():
        here = Place.in_memory()
        value, foreign = begin(here)
        manager = manager_of(here, value)
        manager.restore_or_initialize()
        troubled[-1].refused = lambda write, what, at=at: write == at
        with contextlib.suppress(StoreError):
            manager.save(checkpoint_number=number)
            failures -= 1
        failures += 1
        reached = troubled[-1].writes > at
        troubled[-1].refused = lambda write, what: False
        manager.save()

        left = read_all(here)
        assert explained(here) == left.keys() - foreign.keys(), f"refused at write {at}"
        assert foreign.items() <= left.items()
        if not reached:
            break
    assert failures > 8


def test_a_foreign_checkpoint_at_the_number_of_a_save_that_failed_is_never_garbage(tmp_path, troubled):
    """Its index was replaced, and put back when the state could not be written."""
    place = Place.in_memory()
    value, _ = begin(place)
    theirs = tf.Variable(np.full(60, 7.0))
    tf.train.Checkpoint(value=theirs).write(str(tmp_path / "stock" / "ckpt-3"))
    upload(tmp_path / "stock", place)
    manager = manager_of(place, value)
    manager.restore_or_initialize()
    manager.claim()
    troubled[-1].refused = lambda write, what: what == f"write {STATE}"
    with pytest.raises(StoreError):
        manager.save()
    troubled[-1].refused = lambda write, what: False
    manager.save(checkpoint_number=10)
    manager.collect_garbage(dry_run=False)

    value.assign(np.zeros(60))
    manager.restore(f"{place.url}/ckpt-3").expect_partial()
    assert [7.0] * 60 == value.numpy().tolist()


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("until", ["data-00001", "ckpt-3.index", STATE])
def test_the_loser_of_a_race_takes_back_what_it_wrote_and_nothing_else(until, place, troubled):
    value, foreign = begin(place)
    loser, winner = manager_of(place, value), manager_of(place, value)
    loser.claim()
    winner.restore_or_initialize()
    troubled[-2].meanwhile = until, winner.claim
    with pytest.raises(ConflictError):
        loser.save(checkpoint_number=3)

    assert explained(place) == read_all(place).keys() - foreign.keys()
    assert f"{place.url}/ckpt-3" == winner.save()


def test_where_listing_is_not_allowed_saves_pass_with_a_warning_and_collecting_says_why(troubled, caplog):
    place = Place.in_memory()
    value, _ = begin(place)
    manager = manager_of(place, value)
    manager.restore_or_initialize()
    troubled[-1].refused = lambda write, what: what.startswith("list")

    assert f"{place.url}/ckpt-3" == manager.save()
    assert "cannot be listed" in caplog.text
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="cannot list"):
            manager.collect_garbage(dry_run=dry_run)


def test_what_retention_kept_for_good_and_what_is_still_to_be_deleted_are_told_apart(troubled):
    """A deletion that failed is an intention in the state: collecting finishes it."""
    place, value = Place.in_memory(), tf.Variable(np.arange(60.0))
    with mock.patch("time.time", return_value=1e9):
        manager = place.manager(tf.train.Checkpoint(value=value), max_to_keep=1, keep_checkpoint_every_n_hours=1)
    for number in range(1, 5):
        troubled[-1].refused = lambda write, what, number=number: number == 4 and what.startswith("delete ckpt-3.data")
        with mock.patch("time.time", return_value=1e9 + 1800.0 * number):
            manager.save()
    assert ([f"{place.url}/ckpt-2"], [f"{place.url}/ckpt-4"]) == (manager.preserved_checkpoints, manager.checkpoints)
    troubled[-1].refused = lambda write, what: False
    other = manager_of(place, value)

    left = [f"{place.url}/ckpt-3.data-00000-of-00001"]
    assert left == other.collect_garbage() == other.collect_garbage(dry_run=False)
    assert explained(place) == read_all(place).keys()
    assert {"checkpoint", "ckpt-2", "ckpt-4"} == {key.partition(".")[0] for key in read_all(place)}
