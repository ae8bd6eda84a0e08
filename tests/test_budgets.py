"""What a save asks of a store: how many requests, which, and how many when the store refuses.

A save in the steady state makes these small requests beside one put for each of its data objects. None is a listing.

    put ckpt-4.index         the index, created
    put checkpoint           the state, replaced if it is the one we wrote
    remove ckpt-1.index      the index of the checkpoint that was retired, if it is the one we wrote
    delete ckpt-1.data-…     its data objects, in one request where the store has batches
"""

import contextlib
import dataclasses
import threading
import time
from collections import Counter

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from support.gcs import gcs
from support.places import Place
from support.proxy import Pass, Refuse, proxy
from support.watched import repeated

from ckpt_remote import StoreError, UnknownOutcomeError
from ckpt_remote.store import Policy, open_store

PARTS = 3


def make(place, **arguments):
    """A manager, and its save, which makes a data object for each part."""
    parts = [tf.Variable(np.zeros(1000)) for _ in range(PARTS)]
    manager = place.manager(tf.train.Checkpoint(parts=parts), **{"max_to_keep": 1, **arguments})
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=8500)

    def save():
        return manager.save(options=tf.train.CheckpointOptions(experimental_sharding_callback=policy))

    return manager, save


class Desk:
    """Sees every request, and turns away those of one kind."""

    def __init__(self):
        self.log = []
        self.refused = None

    def __call__(self, asked, perform):
        self.log.append(asked)
        if kind(asked) == self.refused:
            error = StoreError(f"503: {asked}", transient=True)
            if asked.verb == "delete":
                return dict.fromkeys(asked.keys, error)
            raise error
        return perform()


def kind(asked):
    """What is asked, without numbers: "put data", "remove index"."""
    key = asked.keys[0] if asked.keys else ""
    names = {"checkpoint": "state", "_ckpt_remote/": "control"}
    for part in ("probe", "data", "index"):
        if part in key:
            return f"{asked.verb} {part}"
    return f"{asked.verb} {names.get(key, 'names')}"


@pytest.fixture
def desk(monkeypatch):
    """Where every request of the managers of this test comes past."""
    desk = Desk()
    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: repeated(open_store(*arguments), desk))
    return desk


@pytest.fixture
def _no_pauses(monkeypatch):
    monkeypatch.setattr(Policy, "longest_pause", lambda self, failures: 0.0)


def test_a_save_in_the_steady_state_is_its_data_the_index_the_state_and_the_deletes(desk):
    _, save = make(Place.in_memory())
    save()
    for _ in range(3):
        desk.log.clear()
        save()

        assert ["put data"] * PARTS == [kind(asked) for asked in desk.log[:PARTS]]
        assert ["put index", "put state", "remove index", "delete data"] == [kind(asked) for asked in desk.log[PARTS:]]


def test_the_first_save_in_a_fresh_directory_lists_nothing_and_writes_the_state_twice(desk):
    _, save = make(Place.in_memory())
    desk.log.clear()
    save()
    counts = Counter(kind(asked) for asked in desk.log)

    assert 0 == sum(asked.verb == "list" for asked in desk.log)
    assert (2, 1, PARTS) == (counts["put state"], counts["put index"], counts["put data"])
    assert 8 == sum(count for what, count in counts.items() if "probe" in what)


def test_a_save_of_a_listed_number_writes_the_state_once_more_for_the_intention(desk):
    manager, save = make(Place.in_memory())
    save()
    desk.log.clear()
    manager.save(checkpoint_number=1)

    assert 2 == sum(kind(asked) == "put state" for asked in desk.log)
    assert 0 == sum(asked.verb == "list" for asked in desk.log)


KINDS = ["read state", "put state", "put probe", "read probe", "remove probe", "put data", "read index", "put index",
         "remove index", "delete data", "list names", "list control", "read_range data"]  # fmt: skip


@pytest.mark.parametrize("refused", KINDS)
def test_what_a_store_refuses_for_good_is_asked_six_times_at_most(refused, desk, capsys):
    """Over a manager's life: made, restored, its first save, and a look at what another seems to have left."""
    place = Place.in_memory()
    _, save = make(place)
    save()
    store = place.store()
    for key in [info.key for info in store.list("ckpt-1.data")]:  # as a save that was killed leaves it
        store.put(key.replace("ckpt-1.", "ckpt-2."), [store.read(key).data], "create")
    desk.log.clear()
    desk.refused = refused
    with contextlib.suppress(StoreError, UnknownOutcomeError):
        manager, save = make(place)
        manager.restore_or_initialize()
        save()
    asked = Counter(asked.keys for asked in desk.log if kind(asked) == refused)
    with capsys.disabled():
        print(f"\n503 to every {refused!r}: {max(asked.values())} of each, {len(desk.log)} requests in all")

    assert 1 <= max(asked.values()) <= 6
    assert len(desk.log) <= 80
    desk.refused = None
    manager, save = make(place)
    manager.restore_or_initialize()
    assert save() == manager.latest_checkpoint


LISTING = {"list-type", "prefix"}


def described(passage):
    """A request over HTTP: its method, what it is about, and whether it lists."""
    path, _, query = passage.arrival.path.partition("?")
    names = {part.partition("=")[0] for part in query.split("&")}
    return passage.arrival.method, path.rpartition("/")[2], bool(LISTING & names) or path.endswith("/o")


@pytest.mark.parametrize("engine", ["obstore", "s3fs"])
def test_over_http_a_save_in_the_steady_state_makes_as_few_requests(engine, ministack):
    with proxy(ministack.endpoint) as between:
        options = dataclasses.replace(ministack, endpoint=between.endpoint).storage_options
        filesystem = fsspec.filesystem("s3", **options, skip_instance_cache=True) if engine == "s3fs" else None
        place = Place(f"s3://{ministack.new_bucket()}/run", None if filesystem else options, filesystem)
        _, save = make(place)
        save()
        save()
        before = len(between.log)
        save()
        requests = [described(passage) for passage in between.log[before:]]

    writes = Counter(name.partition("-0")[0] for method, name, _ in requests if method == "PUT")
    assert {"ckpt-3.data": PARTS, "ckpt-3.index": 1, "checkpoint": 1} == writes
    assert not any(lists for *_, lists in requests)
    assert len(requests) <= PARTS + 4 + 1, requests


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("part", [".data-00001", ".index", "/checkpoint"])
def test_over_http_a_permanent_503_is_met_six_times_at_most(part, ministack):
    refusing = threading.Event()

    def plan(arrival):
        return Refuse(503) if refusing.is_set() and arrival.method == "PUT" and part in arrival.path else Pass()

    with proxy(ministack.endpoint, plan) as between:
        options = dataclasses.replace(ministack, endpoint=between.endpoint).storage_options
        _, save = make(Place(f"s3://{ministack.new_bucket()}/run", options))
        save()
        before = len(between.log)
        refusing.set()
        with pytest.raises((StoreError, UnknownOutcomeError)):
            save()
        refused = [passage for passage in between.log[before:] if passage.verdict != Pass()]
        refusing.clear()
        save()

    assert 2 <= len(refused) <= 6


@pytest.mark.slow
def test_twenty_quick_saves_pass_where_an_object_may_be_written_once_a_second(capsys):
    start = time.monotonic()
    with gcs(writes_per_second=1.0) as server:
        place = Place(f"gs://{server.new_bucket()}/run", server.storage_options)
        manager, save = make(place, max_to_keep=3)
        saved = [save() for _ in range(20)]
        limited = sum(logged.status == 429 for logged in server.log)
    with capsys.disabled():
        print(f"\n20 saves in {time.monotonic() - start:.1f} s, {limited} answers of 429")

    assert [f"{place.url}/ckpt-{number}" for number in range(1, 21)] == saved
    assert saved[-3:] == manager.checkpoints
    assert limited <= 20
