"""Nothing is published of which a byte is missing, is somebody else's, or differs between two workers that have it."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import Place, read_all

from ckpt_remote.ballot import Part, Plan
from ckpt_remote.bundle import (
    OBJECT_GRAPH,
    STRING,
    BundleReader,
    Extent,
    TensorSlice,
    crc32c,
    encode_index,
    encode_strings,
    merge,
    shard_name,
)
from ckpt_remote.flow import Ends, run
from ckpt_remote.layout import assign, comparable, manifest_of
from ckpt_remote.origin import SEAL_SIZE, new_attempt, new_term
from ckpt_remote.plan import Tensor
from ckpt_remote.store import Policy, Retry
from ckpt_remote.tally import compare, graph_of, index_of, pack, verify
from ckpt_remote.upload import upload_shards
from ckpt_remote.verdicts import AbandonedError

FLOAT, INT8 = 1, 6
TERM = new_term()
RETRY = Retry(Policy(attempts=1))
ROWS = [TensorSlice((Extent(start, 2), Extent())) for start in (0, 2, 4)]


def tensor(key, values=(), *, part=None, shape=None, mirrored=False):
    array = np.asarray(values, np.float32)
    data = array.reshape(-1).view(np.uint8)
    return Tensor(key=key, dtype=FLOAT, shape=shape or array.shape, data=data, part=part, mirrored=mirrored)


def common(count=4, size=50):
    chance = np.random.default_rng(5)
    return [tensor(f"t{n}", chance.normal(size=(size, 2))) for n in range(count)]


class Crew:
    """Workers that have written their shares.

    Args:
        had: What each of them has.
    """

    def __init__(self, had):
        self.place = Place.in_memory()
        self.store, self.had = self.place.store(), had
        self.manifests = [manifest_of(tensors) for tensors in had]
        self.layout = assign(self.manifests)
        self.by = [new_attempt(TERM, 1) for _ in had]
        counts = self.layout.counts(self.manifests)
        self.plan = Plan(
            status="open", session="", job="", ordinal=1, size=len(had), attempt=self.by[0], path="ckpt-1", since="",
            of=sum(counts), first=tuple(accumulate(counts, initial=0)),
        )  # fmt: skip
        self.indexes = [self._write(rank) for rank in range(len(had))]
        self.votes = {
            rank: (Part(index=encode_index(self.indexes[rank]), checksums=self.checksums(rank)), self.by[rank])
            for rank in range(1, len(had))
        }

    def _write(self, rank):
        shards = self.layout.share(rank, self.had[rank])
        names = [self.name(rank, number) for number in range(len(shards))]
        written = upload_shards(self.store, names.__getitem__, shards, attempt=self.by[rank], retry=RETRY)
        return index_of(shards, written.checksums)

    def name(self, rank, number=0):
        return shard_name(self.plan.path, self.plan.first[rank] + number, self.plan.of)

    def checksums(self, rank):
        return pack([crc32c(it.data) for it in comparable(self.had[rank])])

    def verify(self):
        run(verify(self.plan, self.votes, "s3://b/r"), self.store, RETRY)

    def compare(self):
        return compare(self.manifests, self.checksums(0), self.votes, url="s3://b/r")


def failure_of(check):
    with pytest.raises(AbandonedError) as raised:
        check()
    return raised.value.failure


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_shares_that_are_there_pass_and_one_request_tells(workers):
    crew = Crew([common()] * workers)
    crew.verify()
    crew.compare()
    asked = next(verify(crew.plan, crew.votes, "s3://b/r"))
    others = sorted(crew.name(rank) for rank in range(1, workers))

    assert (Ends, SEAL_SIZE, others) == (type(asked), asked.length, sorted(info.key for info in asked.objects))


def test_where_the_others_have_nothing_nothing_is_asked():
    crew = Crew([common(), [], []])
    with pytest.raises(StopIteration):
        next(verify(crew.plan, crew.votes, "s3://b/r"))


def test_a_share_of_nothing_but_empty_tensors_is_an_object_all_the_same():
    crew = Crew([[], [tensor("none", np.zeros((0, 3)))]])
    crew.verify()
    crew.store.delete([crew.name(1)])

    assert "IncompleteError" == failure_of(crew.verify).kind


def gone(data, crew):
    return None


def one_byte_short(data, crew):
    return data[:-1]


def one_byte_missing_in_the_middle(data, crew):
    return data[:9] + data[10:]


def without_its_seal(data, crew):
    return data[:-SEAL_SIZE] + bytes(SEAL_SIZE)


def of_another_attempt_of_that_worker(data, crew):
    return data[:-SEAL_SIZE] + new_attempt(TERM, 1).seal(crew.name(2))


def of_another_worker(data, crew):
    return data[:-SEAL_SIZE] + crew.by[1].seal(crew.name(2))


def moved_from_another_name(data, crew):
    return data[:-SEAL_SIZE] + crew.by[2].seal(crew.name(1))


@pytest.mark.parametrize(
    "now",
    [
        gone,
        one_byte_short,
        one_byte_missing_in_the_middle,
        without_its_seal,
        of_another_attempt_of_that_worker,
        of_another_worker,
        moved_from_another_name,
    ],
)
def test_a_shard_that_is_not_as_its_worker_wrote_it_is_told_by_name(now):
    crew = Crew([common()] * 3)
    key = crew.name(2)
    data = now(read_all(crew.place)[key], crew)
    crew.store.delete([key])
    if data is not None:
        crew.store.put(key, [data], "create")
    failure = failure_of(crew.verify)

    assert ("IncompleteError", False) == (failure.kind, failure.keep)
    assert f"{key} is not there as worker 2 wrote it" in failure.message
    assert "s3://b/r/ckpt-1" in failure.message


def test_the_leaders_own_shards_are_not_asked_about():
    crew = Crew([common()] * 2)
    crew.store.delete([crew.name(0)])

    crew.verify()


def changed(tensors, key, *, by=1.0):
    return [
        replace(it, data=(it.data.view(np.float32) + np.float32(by)).view(np.uint8)) if it.key == key else it
        for it in tensors
    ]


def mirrored(tensors):
    return [replace(it, mirrored=True) for it in tensors]


@pytest.mark.parametrize("who", [1, 2, 3])
def test_what_differs_between_two_workers_is_an_error_that_names_it_and_both(who):
    had = [common() for _ in range(4)]
    had[who] = changed(had[who], "t2")
    failure = failure_of(Crew(had).compare)

    assert "ValueError" == failure.kind
    assert f"workers 0 and {who} have different values under one name, 't2'" in failure.message


def test_if_the_leader_does_not_have_it_the_two_that_have_it_are_named():
    extra = [tensor("a", [1.0, 2.0]), tensor("z", [3.0])]
    crew = Crew([common(), common(), [*common(), *extra], [*common(), *changed(extra, "z")]])

    assert "workers 2 and 3 have different values under one name, 'z'" in failure_of(crew.compare).message


def test_what_each_has_for_itself_is_compared_with_nothing():
    Crew([[*common(), tensor(f"own {rank}", [rank])] for rank in range(3)]).compare()


def test_mirrored_variables_that_drift_apart_are_named_and_no_error():
    had = [mirrored(common()), mirrored(common()), mirrored(changed(changed(common(), "t1"), "t3"))]

    assert {("t1", ""), ("t3", "")} == Crew(had).compare()


def test_among_mirrored_variables_that_drift_a_plain_one_that_differs_is_an_error():
    had = [[*mirrored(common(2)), tensor("plain", [rank])] for rank in (0.0, 1.0)]
    had[1] = [*mirrored(changed(common(2), "t0")), had[1][-1]]

    assert "'plain'" in failure_of(Crew(had).compare).message


def test_nothing_is_named_where_nothing_differs():
    assert set() == Crew([mirrored(common())] * 3).compare()
    assert set() == Crew([[*common(), tensor(f"own {rank}", [rank])] for rank in range(3)]).compare()


def rows(number, values, **named):
    return tensor("t", values, part=ROWS[number], shape=(6, 2), **named)


def test_slices_of_one_tensor_differ_as_they_may():
    crew = Crew([[rows(rank, [[rank, 0], [0, rank]])] for rank in range(3)])

    crew.verify()
    crew.compare()


def test_one_slice_in_two_versions_is_an_error():
    had = [[rows(0, np.zeros((2, 2))), rows(1, np.full((2, 2), rank))] for rank in (4, 5)]

    assert "workers 0 and 1 have different values under one name, 't'" in failure_of(Crew(had).compare).message


def test_one_slice_equal_on_two_workers_is_written_once():
    crew = Crew([[rows(0, np.zeros((2, 2)))], [rows(0, np.zeros((2, 2))), rows(1, np.ones((2, 2)))]])
    crew.compare()
    written = sum(len(data) - SEAL_SIZE for data in read_all(crew.place).values())

    assert 2 * 2 * 2 * 4 == written


@settings(max_examples=30, deadline=None)
@given(workers=st.integers(1, 4), sizes=st.lists(st.integers(0, 90), max_size=5), own=st.booleans())
def test_the_indexes_of_all_shares_are_one_bundle_of_everything(workers, sizes, own):
    chance = np.random.default_rng(len(sizes))
    everybodys = [tensor(f"t{n}", chance.normal(size=size)) for n, size in enumerate(sizes)]
    crew = Crew([[*everybodys, *([tensor(f"own {rank}", [rank] * 3)] if own else [])] for rank in range(workers)])
    merged = merge(crew.indexes)
    reader = BundleReader(
        merged,
        lambda shard, start, size: crew.store.read_range(shard_name("ckpt-1", shard, crew.plan.of), start, size),
    )

    assert crew.plan.of == merged.header.num_shards
    assert {it.key: bytes(it.data) for tensors in crew.had for it in tensors} == {
        name: reader.get_tensor(name).tobytes() for name in reader.names()
    }


def test_the_object_graph_is_as_tensorflow_wrote_it(tmp_path):
    tf.train.Checkpoint(a=tf.Variable(1.0)).write(str(tmp_path / "ckpt"))
    graph = tf.train.load_checkpoint(str(tmp_path / "ckpt")).get_tensor(OBJECT_GRAPH)
    data, checksum = encode_strings([graph])
    it = Tensor(key=OBJECT_GRAPH, dtype=STRING, shape=(), data=data, crc32c=checksum)

    assert graph == graph_of([*common(1), it])


def test_a_checkpoint_by_names_has_no_object_graph():
    assert b"" == graph_of(common())


@given(checksums=st.lists(st.integers(0, 2**32 - 1)))
def test_checksums_are_four_bytes_each_the_least_first(checksums):
    assert checksums == list(np.frombuffer(pack(checksums), "<u4"))
