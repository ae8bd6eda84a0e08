"""Several managers save one checkpoint, each on a thread of its own, and TensorFlow reads it as if one had.

The protocol under faults is in test_crews.py, and processes are in test_clusters.py.
"""

import contextlib
import dataclasses
import itertools
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import Place, download, read_all
from support.watched import repeated

from ckpt_remote import (
    CheckpointError,
    ConflictError,
    CorruptError,
    IncompleteError,
    StoreError,
    UnsupportedError,
    crew,
)
from ckpt_remote.ballot import decode_plan
from ckpt_remote.directory import Directory
from ckpt_remote.origin import SEAL_SIZE
from ckpt_remote.probe import CONTROL, PLAN
from ckpt_remote.progress import Entered, Moved, Saved, listen
from ckpt_remote.store import open_store
from ckpt_remote.tap import capture
from ckpt_remote.workers import Workers

PATIENCE = 60.0  # seconds until a test that hangs is told so
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@pytest.fixture(autouse=True)
def _brisk(monkeypatch):
    """Nobody looks less often than every 20 ms."""
    monkeypatch.setattr("ckpt_remote.patience._FIRST_PAUSE", 0.005)
    monkeypatch.setattr("ckpt_remote.patience._LONGEST_PAUSE", 0.02)


@pytest.fixture(params=["memory", "ministack"])
def where(request):
    """A fresh directory: of this process, or on a server."""
    if request.param == "memory":
        return Place.in_memory()
    server = request.getfixturevalue("ministack")
    return Place(f"s3://{server.new_bucket()}/run", server.storage_options)


class Team:
    """Workers that save together.

    Args:
        place: Where.
        checkpoints: What each of them saves.
    """

    def __init__(self, place, checkpoints, *, timeout=PATIENCE, job="job", **options):
        self.place, self.checkpoints = place, checkpoints
        self.managers = [
            place.manager(it, workers=Workers(rank, len(checkpoints), timeout=timeout, job=job), **options)
            for rank, it in enumerate(checkpoints)
        ]

    def save(self, *numbers):
        """Everybody saves; what each of them returns or raises."""
        numbers = numbers or (None,) * len(self.managers)
        return together(
            *(partial(each.save, checkpoint_number=number) for each, number in zip(self.managers, numbers, strict=True))
        )

    def close(self):
        for manager in self.managers:
            manager.close()


def together(*calls):
    """What calls return or raise that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as threads:
        outcomes = [threads.submit(call) for call in calls]
        errors = [outcome.exception(PATIENCE) for outcome in outcomes]
        return [outcome.result() if error is None else error for outcome, error in zip(outcomes, errors, strict=True)]


def kinds(outcomes):
    return [type(outcome) for outcome in outcomes]


def same(count, **extra):
    """What each of some workers has where all have the same."""
    return [tf.train.Checkpoint(v=tf.Variable(tf.range(600.0)), **extra) for _ in range(count)]


def values_of(place, path):
    """Every tensor of a checkpoint, as plain TensorFlow reads it from a plain copy; not the object graph."""
    with tempfile.TemporaryDirectory() as folder:
        reader = tf.train.load_checkpoint(f"{download(place, Path(folder))}/{Path(path).name}")
        names = sorted(set(reader.get_variable_to_shape_map()) - {GRAPH})
        return {
            name: (reader.get_variable_to_dtype_map()[name], np.asarray(reader.get_tensor(name)).tolist())
            for name in names
        }


class Rows(tf.Module):
    """Some rows of a table, which saves them as the slices of one tensor that they are."""

    def __init__(self, table, bounds):
        super().__init__()
        self.table, self.bounds = table, bounds

    def _serialize_to_tensors(self):
        rows, columns = self.table.shape
        return {
            "rows": {
                f"{rows} {columns} {start},{stop - start}:-": tf.constant(self.table[start:stop])
                for start, stop in self.bounds
            }
        }


DTYPES = [tf.float32, tf.float16, tf.bfloat16, tf.int64, tf.uint8, tf.bool, tf.complex64, tf.string]


@st.composite
def models(draw):
    """What each of some workers has, and what one worker would have who had all of it.

    Variables that all have, variables of one or a few, and tables of which each has some rows.
    """
    size = draw(st.integers(2, 4))
    crew, whole = [{} for _ in range(size)], {}
    for number in range(draw(st.integers(0, 5))):
        name, dtype = f"v{number}", draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 40), max_size=3))
        values = np.random.default_rng(number).integers(0, 2, shape)
        value = tf.strings.as_string(values) if dtype is tf.string else tf.cast(values, dtype)
        owners = draw(st.just(frozenset(range(size))) | st.frozensets(st.integers(0, size - 1), min_size=1))
        for one in (whole, *(crew[rank] for rank in owners)):
            one[name] = tf.Variable(value)
    for number in range(draw(st.integers(0, 2))):
        table = np.random.default_rng(number).normal(size=(draw(st.integers(size, 50)), 3))
        inner = draw(st.sets(st.integers(1, len(table) - 1), min_size=size - 1, max_size=size - 1))
        bounds = list(itertools.pairwise([0, *sorted(inner), len(table)]))
        whole[f"table{number}"] = Rows(table, bounds)
        for rank in range(size):
            crew[rank][f"table{number}"] = Rows(table, [bounds[rank]])
    return [tf.train.Checkpoint(**one) for one in crew], tf.train.Checkpoint(**whole)


@settings(max_examples=15, deadline=None)
@given(model=models())
def test_what_many_save_is_what_one_would_have_saved(model):
    crew, whole = model
    many, one = Place.in_memory(), Place.in_memory()
    team = Team(many, crew)
    outcomes = [team.save(), team.save()]
    manager = one.manager(whole)

    assert [[f"{many.url}/ckpt-{n}"] * len(crew) for n in (1, 2)] == outcomes
    assert values_of(one, manager.save()) == values_of(many, outcomes[0][0])
    assert values_of(one, manager.save()) == values_of(many, outcomes[1][0])


def test_each_worker_says_what_it_does_phase_by_phase(where):
    team, heard = Team(where, same(3)), []
    with listen(heard.append):
        team.save()
    phases = Counter(event.phase for event in heard if isinstance(event, Entered))

    assert {"take": 3, "write": 3, "wait": 3, "publish": 1} == phases
    assert sum(it.size for it in heard if isinstance(it, Entered)) == sum(
        it.size for it in heard if isinstance(it, Moved)
    )
    assert 3 == sum(isinstance(event, Saved) for event in heard)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_worker_returns_the_path_and_sees_the_checkpoint(where, size):
    team = Team(where, same(size), max_to_keep=2)
    for number in (1, 2, 3):
        assert [f"{where.url}/ckpt-{number}"] * size == team.save()

    expected = [f"{where.url}/ckpt-{number}" for number in (2, 3)]
    assert [expected] * size == [manager.checkpoints for manager in team.managers]
    assert [expected[-1]] * size == [manager.latest_checkpoint for manager in team.managers]
    assert [3] * size == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]


def test_each_byte_is_written_once_by_a_worker_of_its_own(where):
    Team(where, same(4)).save()
    sizes = [len(data) - SEAL_SIZE for key, data in read_all(where).items() if ".data-" in key]

    assert 4 == len(sizes)
    assert 600 * 4 <= sum(sizes) < 600 * 4 + 1500  # and the object graph


def test_what_many_have_saved_stock_tensorflow_restores_by_its_objects(where, tmp_path):
    team = Team(where, [tf.train.Checkpoint(v=tf.Variable([1.0]), **{f"own_{n}": tf.Variable(n)}) for n in range(3)])
    assert [f"{where.url}/ckpt-1"] * 3 == team.save()
    path = f"{download(where, tmp_path)}/ckpt-1"
    everything = {f"own_{n}": tf.Variable(-1) for n in range(3)}
    tf.train.Checkpoint(v=(v := tf.Variable([0.0])), **everything).restore(path).assert_consumed()

    assert [[1.0], 0, 1, 2] == [v.numpy().tolist(), *(int(own) for own in everything.values())]


def test_each_worker_goes_on_with_its_own_iterator(where):
    def make(rank):
        iterator = iter(tf.data.Dataset.range(100 * rank, 100 * rank + 50).shuffle(9, seed=rank))
        return tf.train.Checkpoint(v=tf.Variable(1.0), **{f"iterator_{rank}": iterator}), iterator

    crew = [make(rank) for rank in range(3)]
    for rank, (_, iterator) in enumerate(crew):
        for _ in range(4 + rank):
            next(iterator)
    assert [f"{where.url}/ckpt-1"] * 3 == Team(where, [checkpoint for checkpoint, _ in crew]).save()
    expected = [[int(next(iterator)) for _ in range(8)] for _, iterator in crew]

    again = [make(rank) for rank in range(3)]
    for checkpoint, _ in again:
        where.manager(checkpoint).restore().expect_partial()
    assert expected == [[int(next(iterator)) for _ in range(8)] for _, iterator in again]


def test_workers_may_have_more_and_less_from_save_to_save():
    place = Place.in_memory()
    team = Team(place, same(3))
    plain = set(values_of(place, team.save()[0]))
    team.checkpoints[1].extra = tf.Variable([5.0] * 9)
    more = values_of(place, team.save()[0])
    for checkpoint in team.checkpoints:
        checkpoint.late = tf.Variable("late")
    most = values_of(place, team.save()[0])

    extra, late = "extra/.ATTRIBUTES/VARIABLE_VALUE", "late/.ATTRIBUTES/VARIABLE_VALUE"
    assert plain | {extra} == set(more)
    assert plain | {extra, late} == set(most)
    assert ([5.0] * 9, b"late") == (most[extra][1], most[late][1])


@pytest.mark.parametrize("who", [[0, 1, 2], [1]], ids=["that all have", "of one worker"])
def test_strings_that_grow_take_more_shards(who):
    """As the state of an iterator with a shuffle buffer does."""
    crew = same(3)
    for rank in who:
        crew[rank].words = tf.Variable("short")
    team = Team(Place.in_memory(), crew)
    team.save()
    for rank in who:
        crew[rank].words.assign("x" * (9 * 2**20))

    assert [f"{team.place.url}/ckpt-2"] * 3 == team.save()


def test_an_early_worker_waits_for_the_leader_and_the_leader_for_a_late_one(where):
    team = Team(where, same(3))
    store, early = where.store(), threading.Event()

    def lead():
        assert early.wait(PATIENCE)
        return team.managers[0].save()

    def follow_early():
        early.set()
        return team.managers[1].save()

    def follow_late():
        while PLAN not in {info.key for info in store.list(CONTROL)}:
            early.wait(0.01)
        return team.managers[2].save()

    assert [f"{where.url}/ckpt-1"] * 3 == together(lead, follow_early, follow_late)


def without_the_last(team):
    """A save to which all come but one, who comes when the others have given up."""
    absent = together(*(manager.save for manager in team.managers[:-1]))
    return absent, together(team.managers[-1].save)


def test_a_worker_that_does_not_come_in_time_fails_this_save_and_the_next_one_passes():
    team = Team(Place.in_memory(), same(3), timeout=1.0)
    absent, late = without_the_last(team)

    assert [IncompleteError] * 2 == kinds(absent)
    assert all("worker 2 of 3 has not come in time" in str(error) for error in absent)
    assert issubclass(*kinds(late), CheckpointError)
    assert [0] * 3 == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]
    assert [f"{team.place.url}/ckpt-1"] * 3 == team.save()


def test_who_comes_too_late_for_the_first_save_learns_that_it_was_given_up():
    _, late = without_the_last(Team(Place.in_memory(), same(2), timeout=0.5))

    assert [IncompleteError] == kinds(late)


def test_a_leader_that_does_not_come_is_told_by_the_others():
    team = Team(Place.in_memory(), same(3), timeout=0.3)
    outcomes = together(*(manager.save for manager in team.managers[1:]))

    assert [IncompleteError] * 2 == kinds(outcomes)
    assert all("worker 0, has not begun" in str(error) for error in outcomes)
    assert {} == read_all(team.place)


def assert_nothing_came_of_it(team, outcomes, kind, *texts):
    """All raise the same, nothing is visible, and the next save passes; after `close` nothing else is there."""
    assert [kind] * len(outcomes) == kinds(outcomes)
    assert all(text in str(error) for error in outcomes for text in texts)
    assert [None] * len(outcomes) == [manager.latest_checkpoint for manager in team.managers]
    assert [0] * len(outcomes) == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]
    assert not [key for key in read_all(team.place) if key.endswith(".index")]


def assert_only_the_checkpoint_is_there(place, number, shards):
    counts = Counter(key.split("-0")[0] for key in read_all(place))

    assert {"checkpoint": 1, f"ckpt-{number}.index": 1, f"ckpt-{number}.data": shards} == dict(counts)


def test_different_contents_under_one_name_are_an_error_that_names_both_workers(where):
    team = Team(where, same(3))
    team.checkpoints[2].v.assign_add(tf.one_hot(599, 600))
    key = "'v/.ATTRIBUTES/VARIABLE_VALUE'"
    assert_nothing_came_of_it(team, team.save(), ValueError, "workers 0 and 2", key)
    team.checkpoints[2].v.assign(team.checkpoints[0].v)

    assert [f"{where.url}/ckpt-1"] * 3 == team.save()
    team.close()
    assert_only_the_checkpoint_is_there(where, 1, 3)


@pytest.mark.parametrize("own", [False, True], ids=["alike", "each with something of its own"])
def test_of_mirrored_variables_that_drift_apart_the_leaders_copies_are_saved(own, where, monkeypatch):
    """As TensorFlow does, under whose strategies the chief saves."""
    monkeypatch.setattr("ckpt_remote.tap._is_mirrored", lambda it: isinstance(it, tf.Variable) and it.shape == (4,))
    key, attempts = "average/.ATTRIBUTES/VARIABLE_VALUE", set()

    def count(asked, perform):
        if asked.verb == "put" and "/join-" in asked.keys[0]:  # not all need to come to each
            attempts.add(asked.keys[0].rpartition("/")[0])
        return perform()

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), count))
    crew = same(3)
    for rank, checkpoint in enumerate(crew):
        checkpoint.average = tf.Variable([float(rank)] * 4)
        if own:
            setattr(checkpoint, f"own_{rank}", tf.Variable(rank))
    team = Team(where, crew)
    for number in (1, 2):
        assert [f"{where.url}/ckpt-{number}"] * 3 == team.save()
        assert [0.0] * 4 == values_of(where, f"ckpt-{number}")[key][1]
    team.close()
    shards = sorted(key for key in read_all(where) if ".data-" in key)

    assert 2 * (4 if own else 3) == len(shards)  # what was written before they had drifted is gone
    assert len(attempts) == (4 if own else 2) + 1  # what was learnt at the first save holds for the second


def test_different_shapes_under_one_name_are_an_error_that_names_both_workers():
    team = Team(Place.in_memory(), same(3))
    team.checkpoints[1].own = tf.Variable([1.0])
    team.checkpoints[2].own = tf.Variable([1.0, 2.0])

    assert_nothing_came_of_it(team, team.save(), ValueError, "Workers 1 and 2", "'own/.ATTRIBUTES/VARIABLE_VALUE'")


def overlapping(rank):
    return Rows(np.arange(12.0).reshape(6, 2) + rank, [[0, 4], [2, 6]][rank : rank + 1])


def whole_or_rows(rank):
    table = np.arange(12.0).reshape(6, 2)
    return Rows(table, [[0, 3]]) if rank else Rows(table, [[0, 6]])


@pytest.mark.parametrize(
    ("make", "text"), [(overlapping, "that overlap"), (whole_or_rows, "in parts 0 and 1 (parts are workers")]
)
def test_parts_of_one_tensor_that_contradict_each_other_are_an_error(make, text):
    team = Team(Place.in_memory(), [tf.train.Checkpoint(t=make(rank)) for rank in range(2)])

    assert_nothing_came_of_it(team, team.save(), ValueError, text)


def test_a_shard_that_is_gone_when_its_worker_votes_is_an_error_that_names_it(monkeypatch):
    place = Place.in_memory()
    shard = "ckpt-1.data-00001-of-00003"

    def lose(asked, perform):
        if asked.verb == "put" and asked.keys[0].endswith("/part-1"):
            place.store().delete([shard])
        return perform()

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), lose))
    team = Team(place, same(3))

    assert_nothing_came_of_it(team, team.save(), IncompleteError, f"{shard} is not there as worker 1 wrote it")


def test_what_is_read_many_times_does_not_grow_with_the_number_of_variables(monkeypatch):
    """The plan: each worker looks at it again and again. Who writes what is read once, in a save."""
    plans, layouts = [], Counter()

    def weigh(asked, perform):
        answer = perform()
        if asked.verb == "read" and asked.keys == (PLAN,):
            plans.append(len(answer.data))
        if asked.verb == "read" and asked.keys[0].endswith("/layout"):
            layouts[asked.keys[0]] += 1
        return answer

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), weigh))
    crew = same(3)
    for rank, checkpoint in enumerate(crew):
        checkpoint.own = tf.train.Checkpoint(**{f"own_{rank}_{number}": tf.Variable(0) for number in range(200)})
    team = Team(Place.in_memory(), crew)
    for number in (1, 2):
        assert [f"{team.place.url}/ckpt-{number}"] * 3 == team.save()

    assert max(plans) < 3000
    assert [2, 2] == list(layouts.values())


def test_numbers_that_differ_are_an_error_that_names_both(where):
    team = Team(where, same(3))
    outcomes = team.save(7, 7, 8)
    assert_nothing_came_of_it(team, outcomes, ValueError, "ckpt-8 is saved here while the leader saves ckpt-7")

    assert [f"{where.url}/ckpt-7"] * 3 == team.save(7, 7, 7)
    team.close()
    assert_only_the_checkpoint_is_there(where, 7, 3)


def test_after_a_save_that_failed_the_word_of_it_stays_until_somebody_saves(where):
    team = Team(where, same(3))
    team.save(1, 2, 3)
    team.close()
    assert PLAN in read_all(where)
    assert not [key for key in read_all(where) if not key.startswith(CONTROL) and key != "checkpoint"]
    team = Team(where, same(2), job="next")
    team.save()
    team.close()

    assert_only_the_checkpoint_is_there(where, 1, 2)


def test_a_leader_that_leaves_after_a_failure_tells_the_others_before(where, monkeypatch):
    """As an error does that ends the program through a `with` block."""
    monkeypatch.setattr("ckpt_remote.patience._FIRST_PAUSE", 0.5)
    monkeypatch.setattr("ckpt_remote.patience._LONGEST_PAUSE", 0.5)

    def refuse(asked, perform):
        if asked.verb == "put" and asked.keys[0].endswith("ckpt-2.index"):
            raise StoreError("403", transient=False)
        return perform()

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), refuse))
    team = Team(where, same(3))
    team.save()

    def lead():
        with team.managers[0] as manager:
            manager.save()

    outcomes = together(lead, *(manager.save for manager in team.managers[1:]))
    assert [StoreError] * 3 == kinds(outcomes)


@pytest.mark.parametrize("what", ["state", PLAN])
def test_one_bad_read_on_a_worker_that_has_voted_costs_nothing(what, where, monkeypatch):
    """As of a proxy that wants a password; what this worker wrote is a part of the checkpoint by then."""
    key, voted, garbled = "checkpoint" if what == "state" else PLAN, set(), []

    def garble(asked, perform):
        if asked.verb == "put" and asked.keys[0].endswith("/part-1"):
            voted.add(threading.current_thread())
        if asked.verb == "read" and asked.keys == (key,) and threading.current_thread() in voted and not garbled:
            garbled.append(answer := perform())
            return dataclasses.replace(answer, data=b"<html>login</html>")
        return perform()

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), garble))
    team = Team(where, same(3))

    assert [f"{where.url}/ckpt-1"] * 3 == team.save()
    assert 1 == len(garbled)
    assert values_of(where, "ckpt-1")


def test_a_save_that_is_visible_is_no_error_because_the_state_cannot_be_read_after_it(where, monkeypatch):
    follow = crew.follow

    def lose(self):
        raise StoreError("403", transient=False)

    def follow_and_lose(member, save):
        path = yield from follow(member, save)
        monkeypatch.setattr(crew.Crew, "refresh", lose)
        return path

    monkeypatch.setattr(crew, "follow", follow_and_lose)
    team = Team(where, same(2))

    assert [f"{where.url}/ckpt-1"] * 2 == team.save()
    assert [1, 1] == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("who", [0, 1])
def test_after_a_save_that_one_worker_left_out_the_next_passes(who, times):
    team = Team(Place.in_memory(), same(3), timeout=1.0)
    team.save()
    for _ in range(times):
        outcomes = together(*(manager.save for rank, manager in enumerate(team.managers) if rank != who))
        assert [IncompleteError] * 2 == kinds(outcomes)

    assert [f"{team.place.url}/ckpt-2"] * 3 == team.save()
    assert [f"{team.place.url}/ckpt-3"] * 3 == team.save()


@pytest.mark.parametrize("who", [0, 1])
def test_after_a_save_that_one_worker_made_alone_the_next_passes(who):
    team = Team(Place.in_memory(), same(3), timeout=1.0)
    team.save()
    assert [IncompleteError] == kinds(together(team.managers[who].save))

    assert [f"{team.place.url}/ckpt-2"] * 3 == team.save()
    assert [f"{team.place.url}/ckpt-3"] * 3 == team.save()


@pytest.mark.parametrize("kind", [IncompleteError, StoreError])
def test_a_plan_tells_why_the_save_before_failed(kind, monkeypatch):
    """For who has yet to learn it when the leader tries again at once; where it could not claim, nobody has."""
    team = Team(Place.in_memory(), same(2), timeout=0.5)
    if kind is StoreError:
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "claim", refuse)
            assert [StoreError] == kinds(together(team.managers[0].save))
    else:
        assert [IncompleteError] == kinds(together(team.managers[0].save))
    assert [IncompleteError] == kinds(together(team.managers[0].save))

    shown = decode_plan(team.place.store().read(PLAN).data, path=PLAN)
    assert kind.__name__ == shown.last.kind


def refuse(*_):
    raise StoreError("403", transient=False)
    yield


@pytest.mark.parametrize("skipping", [0, 1], ids=["the leader", "another worker"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_with_numbers_a_save_that_one_worker_leaves_out_is_the_only_one_that_is_lost(skipping, asynchronous):
    """Nothing else holds them together."""
    team = Team(Place.in_memory(), same(2), asynchronous=asynchronous)

    def train(rank):
        for number in (10, 20, 30, 40):
            if (rank, number) != (skipping, 20):
                with contextlib.suppress(IncompleteError):
                    team.managers[rank].save(number)
        with contextlib.suppress(IncompleteError):
            team.managers[rank].sync()

    together(*(partial(train, rank) for rank in range(2)))

    listed = {path.rpartition("-")[2] for manager in team.managers for path in manager.checkpoints}
    assert {"10", "30", "40"} == listed


@pytest.mark.parametrize("failing", [0, 1], ids=["the leader", "another worker"])
def test_a_request_that_is_refused_before_there_is_a_plan_is_told_to_all(failing, monkeypatch):
    refused, ranks = [], itertools.count()

    def open_for_one(*arguments):
        rank = next(ranks)

        def refuse_once(asked, perform):
            if rank == failing and refused == ["next"]:
                refused[:] = [asked]
                raise StoreError("403", transient=False)
            return perform()

        return repeated(open_store(*arguments), refuse_once)

    monkeypatch.setattr("ckpt_remote.manager.open_store", open_for_one)
    team = Team(Place.in_memory(), same(2))
    refused.append("next")
    outcomes = team.save()

    assert [StoreError] * 2 == kinds(outcomes)
    assert f"Worker {failing}: 403" == str(outcomes[1 - failing])
    assert [f"{team.place.url}/ckpt-1"] * 2 == team.save()


def test_save_counters_at_odds_are_brought_together(where):
    """As after a failure of which not all have learnt."""
    team = Team(where, same(3))
    team.checkpoints[1].save_counter.assign(5)
    team.checkpoints[2].save_counter.assign_sub(1)

    assert [f"{where.url}/ckpt-1"] * 3 == team.save()
    assert [f"{where.url}/ckpt-70"] * 3 == team.save(70, 70, 70)
    assert [2] * 3 == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]
    team.checkpoints[1].save_counter.assign(5)
    assert [ValueError] * 3 == kinds(team.save(7, 8, 9))
    assert [2] * 3 == [int(checkpoint.save_counter) for checkpoint in team.checkpoints]


def test_save_counters_at_odds_are_brought_together_in_graph_mode(tmp_path):
    """There the counter's bytes come with a checksum, from TensorFlow's own files."""
    place = Place(str(tmp_path / "run"))

    def work(rank):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            checkpoint = tf.train.Checkpoint(a=tf.Variable(tf.range(600.0)))
            manager = place.manager(checkpoint, workers=Workers(rank, 2, timeout=PATIENCE, job="job"))
            counter = checkpoint.save_counter
            session.run(tf.compat.v1.global_variables_initializer())
            session.run(counter.assign(5 if rank == 0 else 9))
            return [manager.save(), manager.save(), int(session.run(counter))]

    paths = [f"{place.url}/ckpt-6", f"{place.url}/ckpt-7"]
    assert [[*paths, 7]] * 2 == together(*(partial(work, rank) for rank in range(2)))
    assert 7 == tf.train.load_variable(paths[1], "save_counter/.ATTRIBUTES/VARIABLE_VALUE")


@pytest.mark.parametrize("how", ["refused", "damaged"])
def test_a_worker_that_cannot_learn_what_to_write_says_so_to_all(how, monkeypatch):
    broken = []

    def spoil(asked, perform):
        if asked.verb == "read" and asked.keys[0].endswith("/layout") and not broken:
            broken.append(asked.keys[0])
            if how == "refused":
                raise StoreError("403", transient=False)
            return dataclasses.replace(perform(), data=b"nonsense" * 20)
        return perform()

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), spoil))
    crew = same(3)
    for rank, checkpoint in enumerate(crew):
        setattr(checkpoint, f"own_{rank}", tf.Variable(rank))
    team = Team(Place.in_memory(), crew)
    begun = time.monotonic()
    outcomes = team.save()

    assert_nothing_came_of_it(team, outcomes, StoreError if how == "refused" else CorruptError)
    assert time.monotonic() - begun < PATIENCE / 2
    assert [f"{team.place.url}/ckpt-1"] * 3 == team.save()


def test_a_manager_that_is_made_after_the_first_save_has_begun_is_in_the_next(where):
    crew = same(2)
    leader = where.manager(crew[0], workers=Workers(0, 2, timeout=2.0, job="job"))

    def come_late():
        while PLAN not in {info.key for info in where.store().list(CONTROL)}:
            time.sleep(0.01)
        return where.manager(crew[1], workers=Workers(1, 2, timeout=2.0, job="job"))

    failed, late = together(leader.save, come_late)
    assert isinstance(failed, IncompleteError)

    assert [f"{where.url}/ckpt-1"] * 2 == together(leader.save, late.save)


@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("how", ["number", "callback"])
def test_bad_input_of_one_worker_is_an_error_of_all_and_the_next_save_passes(who, how):
    team = Team(Place.in_memory(), same(3))
    team.save()
    callback = tf.train.experimental.MaxShardSizePolicy(max_shard_size=100)
    bad = {
        "number": {"checkpoint_number": "seven"},
        "callback": {"options": tf.train.CheckpointOptions(experimental_sharding_callback=callback)},
    }[how]
    outcomes = together(
        *(partial(manager.save, **(bad if rank == who else {})) for rank, manager in enumerate(team.managers))
    )

    assert [TypeError if how == "number" else UnsupportedError] * 3 == kinds(outcomes)
    assert [f"{team.place.url}/ckpt-2"] * 3 == team.save()


def test_a_job_that_is_overtaken_by_another_fails_on_all_workers_and_touches_nothing(where):
    old = Team(where, same(3), job="old")
    old.save()
    new = Team(where, same(2), job="new")
    expected = new.save()
    before = read_all(where)

    assert [ConflictError] * 3 == kinds(old.save())
    old.close()
    assert before.items() <= read_all(where).items()
    new.managers[0].collect_garbage(dry_run=False)
    assert before.keys() == read_all(where).keys()
    assert [f"{where.url}/ckpt-1"] * 2 == expected


def test_of_two_jobs_that_begin_at_once_one_saves_and_no_worker_of_the_other_believes_that_it_did():
    place = Place.in_memory()
    jobs = [Team(place, same(2), job=f"job {n}", timeout=2.0) for n in range(2)]
    outcomes = together(*(manager.save for job in jobs for manager in job.managers))
    told = [isinstance(outcome, str) for outcome in outcomes]

    assert told[0] == told[1]
    assert told[2] == told[3]
    assert not (told[0] and told[2])
    assert {ConflictError, IncompleteError} >= {type(outcome) for outcome in outcomes if not isinstance(outcome, str)}


def test_a_job_of_another_size_goes_on_from_what_is_there(where):
    Team(where, same(4)).save()
    team = Team(where, same(2))
    for manager in team.managers:
        manager.restore()

    assert [f"{where.url}/ckpt-2"] * 2 == team.save()
    assert values_of(where, "ckpt-1").keys() == values_of(where, "ckpt-2").keys()


def test_over_many_saves_retention_leaves_what_is_listed_and_nothing_else(where):
    team = Team(where, same(3), max_to_keep=2)
    for _ in range(7):
        team.save()
    team.close()
    counts = Counter(key.split(".data-")[0] for key in read_all(where))

    assert {"checkpoint": 1, "ckpt-6": 3, "ckpt-6.index": 1, "ckpt-7": 3, "ckpt-7.index": 1} == dict(counts)


class Desk:
    """Sees every request of one manager.

    Attributes:
        asked: What, and how often.
        read: Bytes that came back.
    """

    def __init__(self):
        self.asked, self.read, self._lock = Counter(), 0, threading.Lock()

    def __call__(self, asked, perform):
        answer = perform()
        with self._lock:
            self.asked.update((asked.verb, key) for key in asked.keys)
            self.read += len(answer.data) if asked.verb == "read" else len(answer) if asked.verb == "read_range" else 0
        return answer


def requests_of_the_leader(monkeypatch, size):
    """What it asks in a save in the steady state, each only once, however long it waited; and the bytes it reads."""
    desks = []

    def watched(*arguments):
        desks.append(Desk())
        return repeated(open_store(*arguments), desks[-1])

    monkeypatch.setattr("ckpt_remote.manager.open_store", watched)
    crew = [tf.train.Checkpoint(v=tf.Variable(tf.zeros(300_000))) for _ in range(size)]
    team = Team(Place.in_memory(), crew, max_to_keep=1)
    team.save()
    team.save()
    desks[0].asked.clear()
    desks[0].read = 0
    assert [f"{team.place.url}/ckpt-3"] * size == team.save()
    return set(desks[0].asked), desks[0].read


def test_the_leaders_requests_grow_by_a_few_with_each_worker_and_copy_nothing(monkeypatch):
    few, some, many = (requests_of_the_leader(monkeypatch, size) for size in (2, 4, 8))

    assert len(many[0]) - len(some[0]) == 2 * (len(some[0]) - len(few[0]))
    assert len(many[0]) - len(some[0]) <= 4 * 6
    assert many[1] < 300_000 * 4 / 50
    assert 1 == sum(verb == "put" and ".data-" in key for verb, key in many[0])
    assert not any(verb == "list" for verb, _ in many[0])


def test_a_worker_alone_needs_no_plan():
    team = Team(Place.in_memory(), same(1))
    team.save()

    assert not [key for key in read_all(team.place) if key.startswith(CONTROL)]


def test_managers_of_one_process_that_are_told_the_same_rank_are_told_so():
    place, crew = Place.in_memory(), same(3)
    workers = [Workers(rank, 3, timeout=1.0) for rank in (0, 1, 1)]
    managers = [place.manager(it, workers=each) for it, each in zip(crew, workers, strict=True)]
    outcomes = together(*(manager.save for manager in managers))

    assert ConflictError in kinds(outcomes)
    assert all(isinstance(outcome, ConflictError | IncompleteError) for outcome in outcomes)
    assert any("Two processes act as worker 1" in str(outcome) for outcome in outcomes)


def test_directories_that_differ_are_told_by_the_time_that_passes():
    crew = same(2)
    workers = [Workers(rank, 2, timeout=0.3) for rank in range(2)]
    managers = [
        Place(f"memory://{uuid.uuid4().hex}/run").manager(it, workers=each)
        for it, each in zip(crew, workers, strict=True)
    ]

    assert [IncompleteError] * 2 == kinds(together(*(manager.save for manager in managers)))


@pytest.mark.parametrize("failing", [0, 1], ids=["the leader", "another worker"])
def test_a_checkpoint_that_one_worker_cannot_take_is_told_to_all_and_the_next_save_passes(failing, monkeypatch):
    place = Place.in_memory()
    team = Team(place, same(2))
    team.save()
    unfit = team.checkpoints[failing]

    def failing_capture(checkpoint, name, options):
        if checkpoint is unfit:
            raise ValueError("cannot be taken")
        return capture(checkpoint, name, options)

    with monkeypatch.context() as patch:
        patch.setattr("ckpt_remote.saving.capture", failing_capture)
        outcomes = team.save()
    assert [ValueError] * 2 == kinds(outcomes)
    assert f"Worker {failing}: cannot be taken" == str(outcomes[1 - failing])

    assert [f"{place.url}/ckpt-2"] * 2 == team.save()
