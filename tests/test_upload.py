"""Shards go up in parallel, are never overwritten, and leave nothing behind when a save fails."""

import threading

import numpy as np
import pytest
from support.places import Place, read_all

from ckpt_remote.bundle import BundleReader, Header, Index, decode_index, encode_index
from ckpt_remote.errors import ConflictError, StoreError
from ckpt_remote.plan import Tensor, plan_shards
from ckpt_remote.store import Policy, Retry
from ckpt_remote.upload import index_entries, upload_data, upload_shards

FLOAT = 1
RETRY = Retry(Policy(attempts=3), sleep=lambda seconds: None)


class Scripted:
    """A store whose puts do what a script says first: "lose" writes and loses the answer, "fail" does not write."""

    def __init__(self, store, script):
        self._store, self._script, self._lock = store, list(script), threading.Lock()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, key, buffers, mode):
        with self._lock:
            step = self._script.pop(0) if self._script else "pass"
        if step == "fail":
            raise StoreError(f"no answer for {key}", transient=True)
        if step == "refuse":
            raise StoreError(f"refused {key}")
        version = self._store.put(key, buffers, mode)
        if step == "lose":
            raise StoreError(f"lost the answer for {key}", transient=True)
        return version


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
    count, checksums = upload_data(store, "ckpt-1", shards, retry=RETRY)
    index = decode_index(encode_index(Index(Header(num_shards=count), index_entries(shards, checksums))))
    reader = BundleReader(
        index,
        lambda shard, start, size: store.read_range(f"ckpt-1.data-{shard:05d}-of-{count:05d}", start, size),
    )

    assert [f"t{n}" for n in range(6)] == reader.names()
    assert all(value.tobytes() == reader.get_tensor(f"t{n}").tobytes() for n, value in enumerate(values))


@pytest.mark.parametrize("script", [["lose"], ["fail"], ["fail", "lose"], ["lose", "fail"]])
def test_a_lost_answer_is_recognised_as_our_own_write(script):
    place = Place.in_memory()
    shards = plan_shards(tensors(1)[1], 10**6)
    upload_shards(Scripted(place.store(), script), names, shards, retry=RETRY)

    assert [names(0)] == list(read_all(place))


def test_an_object_of_somebody_else_is_a_conflict_even_after_a_lost_answer():
    place = Place.in_memory()
    place.store().put(names(0), [b"somebody else's"], "create")
    with pytest.raises(ConflictError):
        upload_shards(Scripted(place.store(), ["fail"]), names, plan_shards(tensors(1)[1], 10**6), retry=RETRY)

    assert {names(0): b"somebody else's"} == read_all(place)


def test_equal_bytes_that_were_there_before_are_not_taken_for_ours():
    """They may belong to an attempt that is still alive, and deletes them when it fails."""
    place, shards = Place.in_memory(), plan_shards(tensors(1)[1], 10**6)
    upload_shards(place.store(), names, shards, retry=RETRY)

    with pytest.raises(ConflictError):
        upload_shards(place.store(), names, shards, retry=RETRY)


def test_a_failure_withdraws_what_was_provably_created_and_nothing_else():
    place = Place.in_memory()
    place.store().put(names(98), [b"somebody else's"], "create")
    with pytest.raises(StoreError, match="refused"):
        upload_shards(
            Scripted(place.store(), ["pass", "pass", "refuse"]),
            names,
            plan_shards(tensors()[1], 120),
            retry=RETRY,
            streams=1,
        )

    assert {names(98)} == read_all(place).keys()


def test_what_may_have_landed_is_not_deleted():
    place = Place.in_memory()
    with pytest.raises(StoreError, match="refused"):
        upload_shards(
            Scripted(place.store(), ["lose", "refuse"]), names, plan_shards(tensors(1)[1], 10**6), retry=RETRY
        )

    assert {names(0)} == read_all(place).keys()


def test_an_occupied_name_makes_another_count_and_leaves_no_other_object():
    place = Place.in_memory()
    store = place.store()
    for key in ("ckpt-1.data-00002-of-00006", "ckpt-1.data-00000-of-00009", "ckpt-11.data-00000-of-00070"):
        store.put(key, [b"an earlier attempt's"], "create")
    count, _ = upload_data(store, "ckpt-1", plan_shards(tensors()[1], 120), retry=RETRY)

    assert 10 == count
    assert 3 == sum(data == b"an earlier attempt's" for data in read_all(place).values())
    assert 9 == len(read_all(place))


def test_two_values_for_one_key_are_refused():
    _, (one, *_) = tensors()
    shards = plan_shards([one, one], 10**6)
    with pytest.raises(ValueError, match="two values for 't0'"):
        index_entries(shards, [(1, 2)])
