"""Processes on one host that restore the same checkpoint fetch it once, and keep one copy of it."""

import contextlib
import dataclasses
import hashlib
import re
import threading
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from support.neighbours import Neighbourhood, restore_job
from support.places import Place
from support.proxy import Pass, proxy

from ckpt_remote.origin import SEAL_SIZE

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c", "d")
SIZE = 2**22  # float32s in each, so 64 MB in all


def values(seed, size=SIZE):
    return {name: np.random.default_rng([seed, *name.encode()]).random(size, np.float32) for name in NAMES}


def save(place, arrays):
    variables = {name: tf.Variable(array) for name, array in arrays.items()}
    with place.manager(tf.train.Checkpoint(**variables), max_to_keep=1) as manager:
        return manager.save()


def digests(arrays, names=NAMES):
    return {name: hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in names}


@contextlib.contextmanager
def workers(hood, count, url, options, *, names=NAMES, later=()):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(hood.process(restore_job, url, options, names, later)) for _ in range(count)]
        for process in processes:
            process.expect("ready")
        for process in processes:
            process.tell("go")
        yield processes


def outcome(process):
    word, what = process.says()
    return process.says() if word == "waiting" else (word, what)


def data_ranges(log):
    """How often each range of each data object was asked for."""
    return Counter(
        (passage.arrival.path, passage.arrival.headers.get("range"))
        for passage in log
        if passage.arrival.method == "GET" and ".data-" in passage.arrival.path
    )


def bytes_of(ranges):
    bounds = (re.fullmatch(r"bytes=(\d+)-(\d+)", text) for _, text in ranges.elements())
    return sum(int(last) - int(first) + 1 for first, last in (bound.groups() for bound in bounds))


def through(between, ministack):
    return dataclasses.replace(ministack, endpoint=between.endpoint).storage_options


@pytest.fixture
def hood(tmp_path):
    with Neighbourhood.founded(tmp_path) as hood:
        yield hood


@pytest.fixture
def s3_place(ministack):
    return Place(f"s3://{ministack.new_bucket()}/run", ministack.storage_options)


def test_four_workers_restore_the_same_values_and_each_byte_is_fetched_once(hood, ministack, s3_place):
    arrays = values(1)
    path = save(s3_place, arrays)
    # As long as not all is restored, they keep the copy, so none of them is too late for it.
    names = NAMES[:3]
    with proxy(ministack.endpoint) as between:
        with workers(hood, 4, path, through(between, ministack), names=names, later=("d",)) as processes:
            assert [("has", digests(arrays, names))] * 4 == [outcome(process) for process in processes]
            ranges = data_ranges(between.log)
            assert [hood.memory] == [place for place in (hood.memory, hood.temporary) if any(place.iterdir())]
            assert 1 == len(hood.left())
            for process in processes:
                process.tell("later")
                assert digests(arrays, ("d",)) == process.expect("later")
                assert 0 == process.end()
        assert ranges == data_ranges(between.log), "nothing is fetched later"

    assert {1} == set(ranges.values())
    assert 4 * SIZE * len(NAMES) <= bytes_of(ranges) <= 4 * SIZE * len(NAMES) + 2**16
    assert [] == hood.left()


def test_workers_that_do_not_start_together_fetch_once_too(hood, ministack, s3_place):
    arrays = values(1, size=1000)
    path = save(s3_place, arrays)
    patient = Neighbourhood(hood.temporary, hood.memory, grace=3600.0)
    with proxy(ministack.endpoint) as between, contextlib.ExitStack() as stack:
        for _ in range(3):
            (process,) = stack.enter_context(workers(patient, 1, path, through(between, ministack)))
            assert ("has", digests(arrays)) == outcome(process), "all of it, so it lets go"
        ranges = data_ranges(between.log)

    assert {1} == set(ranges.values())


def test_when_the_one_that_fetches_is_killed_the_others_finish(hood, ministack, s3_place):
    arrays = values(2)
    path = save(s3_place, arrays)
    begun, go_on = threading.Event(), threading.Event()
    seen = Counter()

    def plan(arrival):
        """The first process's third request for data is held up, until it is dead."""
        seen[".data-" in arrival.path] += 1
        if seen[True] == 3 and not begun.is_set():
            begun.set()
            go_on.wait(60.0)
        return Pass()

    with (
        proxy(ministack.endpoint, plan) as between,
        workers(hood, 1, path, through(between, ministack)) as (first,),
    ):
        assert begun.wait(60.0)
        half = hood.left()
        with workers(hood, 3, path, ministack.storage_options) as others:
            for process in others:
                process.expect("waiting")
            first.kill()
            go_on.set()
            assert [("has", digests(arrays))] * 3 == [process.says() for process in others]
            for process in others:
                assert 0 == process.end()

    assert half, "it was killed in the middle"
    assert [] == hood.left()


def test_every_worker_is_told_of_a_damaged_checkpoint_and_no_copy_is_left(hood, ministack, s3_place):
    path = save(s3_place, values(3, size=1000))
    store = s3_place.store()
    (key,) = (info.key for info in store.list() if ".data-" in info.key)
    data = bytearray(store.read(key).data)
    data[-SEAL_SIZE - 9] ^= 1
    store.put(key, [bytes(data)], "overwrite")
    with workers(hood, 4, path, ministack.storage_options) as processes:
        for process in processes:
            word, (error, message) = outcome(process)
            assert ("failed", "CorruptError") == (word, error)
            assert key in message

        assert [] == hood.left()


def test_another_checkpoint_under_the_same_number_is_another_one(hood, ministack, s3_place):
    """One that holds the old one has its values to the end; one that comes later gets the new ones."""
    old, new = values(4, size=1000), values(5, size=1000)
    path = save(s3_place, old)
    with workers(hood, 1, path, ministack.storage_options, names=("a",), later=NAMES[1:]) as (early,):
        assert ("has", digests(old, ("a",))) == outcome(early)
        store = s3_place.store()
        store.delete([info.key for info in store.list()])
        assert path == save(s3_place, new)
        with workers(hood, 1, path, ministack.storage_options) as (late,):
            assert ("has", digests(new)) == outcome(late)
        early.tell("later")

        assert digests(old, NAMES[1:]) == early.expect("later")
