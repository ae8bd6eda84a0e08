"""Shards go up in parallel, are never overwritten, and leave nothing behind when a save fails."""

import threading
from unittest import mock

import numpy as np
import pytest
from support.places import Place, read_all

from ckpt_remote.bundle import BundleReader, Header, Index, decode_index, encode_index
from ckpt_remote.errors import ConflictError, NotFoundError, StoreError
from ckpt_remote.origin import SEAL_SIZE, new_attempt, new_term, read_seal
from ckpt_remote.plan import Tensor, plan_shards
from ckpt_remote.progress import listen
from ckpt_remote.store import Policy, Retry
from ckpt_remote.upload import Uploaded, index_entries, upload_data, upload_shards

FLOAT = 1
RETRY = Retry(Policy(attempts=3), sleep=lambda seconds: None)
OURS = new_attempt(new_term(), 1)


class Scripted:
    """A store whose puts do what a script says first.

    "lose" writes and loses the answer, "fail" does not write, "refuse" fails for good, "echo" writes and reports the
    conflict with ourselves that a client sees which sends a request twice.
    """

    def __init__(self, store, *script):
        self._store, self._script, self._lock = store, list(script), threading.Lock()
        self.deletions = []
        self.before_refusal = lambda: None

    def __getattr__(self, name):
        return getattr(self._store, name)

    @property
    def single(self):
        return self

    def put(self, key, buffers, mode):
        with self._lock:
            step = self._script.pop(0) if self._script else "pass"
        if step == "fail":
            raise StoreError(f"no answer for {key}", transient=True)
        if step == "refuse":
            self.before_refusal()
            raise StoreError(f"refused {key}")
        version = self._store.put(key, buffers, mode)
        if step == "lose":
            raise StoreError(f"lost the answer for {key}", transient=True)
        if step == "echo":
            raise ConflictError(f"there is something at {key}")
        return version

    def remove(self, key, version):
        self.deletions.append(key)
        return self._store.remove(key, version)


def put_all(store, shards, *, attempt=OURS, **arguments):
    return upload_shards(store, names, shards, attempt=attempt, retry=RETRY, **arguments)


def tensors(count=6, rows=10):
    values = np.random.default_rng(0).normal(size=(count, rows, 3)).astype(np.float32)
    return values, [
        Tensor(key=f"t{n}", dtype=FLOAT, shape=(rows, 3), data=value.reshape(-1).view(np.uint8))
        for n, value in enumerate(values)
    ]


def names(shard):
    return f"ckpt-1.data-{shard:05d}-of-00099"


@pytest.mark.parametrize("limit", [50, 120, 10**6])
def test_what_is_uploaded_is_read_back_as_one_bundle(limit):
    values, planned = tensors()
    store = Place.in_memory().store()
    shards = plan_shards(planned, limit)
    count, uploaded = upload_data(store, "ckpt-1", shards, attempt=OURS, counts=[77777], retry=RETRY)
    index = decode_index(encode_index(Index(Header(num_shards=count), index_entries(shards, uploaded.checksums))))
    reader = BundleReader(
        index,
        lambda shard, start, size: store.read_range(f"ckpt-1.data-{shard:05d}-of-{count:05d}", start, size),
    )

    assert 77777 == count
    assert [f"t{n}" for n in range(6)] == reader.names()
    assert all(value.tobytes() == reader.get_tensor(f"t{n}").tobytes() for n, value in enumerate(values))


def test_every_object_ends_with_the_attempts_seal_behind_the_last_byte_of_a_tensor():
    place, (values, planned) = Place.in_memory(), tensors()
    put_all(place.store(), plan_shards(planned, 120))

    for number, (key, data) in enumerate(sorted(read_all(place).items())):
        assert (values[number].tobytes(), OURS) == (data[:-SEAL_SIZE], read_seal(data[-SEAL_SIZE:], key))


@pytest.mark.parametrize(
    "script",
    [["lose"], ["fail"], ["echo"], ["fail", "lose"], ["lose", "fail"], ["fail", "echo"], ["fail", "fail"]],
    ids="-".join,
)
def test_a_lost_answer_or_an_echo_is_recognised_as_our_own_write(script):
    place = Place.in_memory()
    put_all(Scripted(place.store(), *script), plan_shards(tensors(1)[1], 10**6))

    assert [names(0)] == list(read_all(place))


@pytest.mark.parametrize("script", [[], ["fail"], ["fail", "fail"]], ids=["", "fail", "fail-fail"])
@pytest.mark.parametrize("content", [b"somebody else's", b"", b"x" * 168], ids=["short", "empty", "as long"])
def test_an_object_of_somebody_else_is_a_conflict_even_after_a_lost_answer(content, script):
    place = Place.in_memory()
    place.store().put(names(0), [content], "create")
    with pytest.raises(ConflictError):
        put_all(Scripted(place.store(), *script), plan_shards(tensors(1)[1], 10**6))

    assert {names(0): content} == read_all(place)


def test_an_object_of_somebody_else_is_told_at_once():
    """Whoever tries the next name waits for every one of them."""
    place, events = Place.in_memory(), []
    place.store().put(names(0), [b"somebody else's"], "create")
    store = Scripted(place.store(), "pass", "pass")
    with listen(events.append), pytest.raises(ConflictError):
        put_all(store, plan_shards(tensors(1)[1], 10**6))

    assert ([], ["pass"]) == (events, store._script)


@pytest.mark.parametrize("script", [[], ["fail"]], ids=["", "fail"])
def test_equal_bytes_of_another_attempt_are_not_taken_for_ours(script):
    """It may be still alive, and deletes them when it fails."""
    place, shards = Place.in_memory(), plan_shards(tensors(1)[1], 10**6)
    put_all(place.store(), shards, attempt=new_attempt(OURS.term, OURS.serial))
    before = read_all(place)

    with pytest.raises(ConflictError):
        put_all(Scripted(place.store(), *script), shards)
    assert before == read_all(place)


def test_a_store_that_keeps_failing_is_asked_as_often_as_the_policy_says():
    store = Scripted(Place.in_memory().store(), *["fail"] * 9)
    with pytest.raises(StoreError, match="no answer"):
        put_all(store, plan_shards(tensors(1)[1], 10**6))

    assert 9 - 3 == len(store._script)


def test_a_failure_withdraws_what_was_provably_created_and_nothing_else():
    place = Place.in_memory()
    place.store().put(names(98), [b"somebody else's"], "create")
    store = Scripted(place.store(), "pass", "pass", "refuse")
    with pytest.raises(StoreError, match="refused"):
        put_all(store, plan_shards(tensors()[1], 120), streams=1)

    assert {names(98)} == read_all(place).keys()
    assert [names(0), names(1)] == sorted(store.deletions)


def test_a_withdrawal_spares_what_another_has_overwritten_since():
    """As a stock manager does, which knows no conditions."""
    place = Place.in_memory()
    store = Scripted(place.store(), "pass", "refuse")
    shards = plan_shards(tensors()[1], 120)
    store.before_refusal = lambda: place.store().put(names(0), [b"another's"], "overwrite")
    with pytest.raises(StoreError, match="refused"):
        put_all(store, shards, streams=1)

    assert {names(0): b"another's"} == read_all(place)


def test_what_may_have_landed_is_not_deleted():
    place = Place.in_memory()
    with pytest.raises(StoreError, match="refused"):
        put_all(Scripted(Lossy(place.store()), "lose", "refuse"), plan_shards(tensors(1)[1], 10**6))

    assert {names(0)} == read_all(place).keys()


class Lossy:
    """What was written cannot be read back yet, as where a request lands late."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def read_range(self, key, start, length):
        raise NotFoundError(f"there is no {key} yet")


def test_a_withdrawal_that_fails_does_not_hide_what_went_wrong_first(caplog):
    place = Place.in_memory()
    store = Scripted(place.store(), "pass", "refuse")
    store.remove = mock.Mock(side_effect=StoreError("cannot delete"))
    with pytest.raises(StoreError, match="refused"):
        put_all(store, plan_shards(tensors()[1], 120), streams=1)

    assert f"{names(0)} was written for a save that failed, and could not be deleted: cannot delete" in caplog.text


def test_an_occupied_name_makes_another_count_and_leaves_no_other_object():
    place = Place.in_memory()
    store = place.store()
    others = ("ckpt-1.data-00002-of-00006", "ckpt-1.data-00000-of-00009", "ckpt-11.data-00000-of-00070")
    for key in others:
        store.put(key, [b"an earlier attempt's"], "create")
    shards = plan_shards(tensors()[1], 120)
    count, _ = upload_data(store, "ckpt-1", shards, attempt=OURS, counts=[6, 9, 12], retry=RETRY)

    assert 12 == count
    assert [b"an earlier attempt's"] * 3 == [read_all(place)[key] for key in others]
    assert 9 == len(read_all(place))


def test_names_that_are_all_occupied_are_a_conflict():
    place = Place.in_memory()
    shards = plan_shards(tensors(1)[1], 10**6)
    for count in (1, 2):
        place.store().put(f"ckpt-1.data-00000-of-{count:05d}", [b"taken"], "create")
    with pytest.raises(ConflictError, match=r"of-00002"):
        upload_data(place.store(), "ckpt-1", shards, attempt=OURS, counts=[1, 2], retry=RETRY)

    assert {b"taken"} == set(read_all(place).values())


def test_a_checkpoint_without_tensors_takes_no_object():
    place = Place.in_memory()

    nothing = Uploaded(checksums=(), created={})
    assert (1, nothing) == upload_data(place.store(), "ckpt-1", [], attempt=OURS, counts=[1], retry=RETRY)
    assert {} == read_all(place)


def test_two_values_for_one_key_are_refused():
    _, (one, *_) = tensors()
    shards = plan_shards([one, one], 10**6)
    with pytest.raises(ValueError, match="two values for 't0'"):
        index_entries(shards, [(1, 2)])
