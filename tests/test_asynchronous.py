"""Saves that go on behind training: what was taken is what is saved, and what goes wrong is told."""

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, read_all
from support.watched import repeated

from ckpt_remote import IncompleteError, NotFoundError, StoreError, Workers
from ckpt_remote.progress import Saved, listen
from ckpt_remote.store import open_store

PATIENCE = 60.0


class Gate:
    """Lets writes of data pass, holds them up, or refuses them."""

    def __init__(self):
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.refuses = False

    def shut(self):
        self.reached.clear()
        self.open.clear()

    def hand(self, asked, perform):
        if asked.verb == "put" and ".data-" in asked.keys[0]:
            self.reached.set()
            assert self.open.wait(PATIENCE)
            if self.refuses:
                raise StoreError("refused by the test", transient=False)
        return perform()


@pytest.fixture
def gate(monkeypatch):
    found = Gate()
    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *given: repeated(open_store(*given), found.hand))
    return found


@pytest.fixture
def memory_place():
    return Place.in_memory()


def make(place, value, **arguments):
    arguments = {"max_to_keep": 3, "asynchronous": True, **arguments}
    return place.manager(tf.train.Checkpoint(value=value), **arguments)


def over(manager):
    """Waits until no save is under way, and asks for no failure."""
    manager.collect_garbage()


def restored(place, value, path=None):
    """What a new process finds."""
    fresh = tf.Variable(tf.zeros_like(value))
    place.manager(tf.train.Checkpoint(value=fresh), max_to_keep=3).restore(path)
    return fresh.numpy().tolist()


def test_a_save_returns_when_the_values_are_taken_and_sync_when_they_are_saved(place, gate):
    value = tf.Variable([1.0, 2.0])
    manager = make(place, value)
    gate.shut()

    assert f"{place.url}/ckpt-1" == manager.save()
    assert gate.reached.wait(PATIENCE)
    assert (None, []) == (manager.latest_checkpoint, manager.checkpoints)
    value.assign([3.0, 4.0])
    gate.open.set()
    manager.sync()
    assert f"{place.url}/ckpt-1" == manager.latest_checkpoint
    assert [1.0, 2.0] == restored(place, value)
    manager.close()


def test_what_is_saved_is_what_was_there_whatever_training_does_meanwhile(memory_place, gate):
    """Assigned, added to, written in places, by an optimizer, in tables that hand out their own memory."""
    dense, sparse, places = (tf.Variable(tf.range(20_000.0)) for _ in range(3))
    table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, 0.0, empty_key=-1, deleted_key=-2)
    table.insert(tf.range(500, dtype=tf.int64), tf.range(500.0))
    embedding = keras.layers.Embedding(1000, 16)
    embedding.build()
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(embedding.trainable_variables)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(embedding(tf.range(100)))
        optimizer.apply_gradients(zip(tape.gradient(loss, embedding.variables), embedding.variables, strict=True))
        dense.assign_add(tf.ones_like(dense))
        sparse.scatter_nd_update([[3], [9000]], [-1.0, -2.0])
        places[5:9].assign([-1.0] * 4)

    train()
    parts = {"dense": dense, "sparse": sparse, "places": places, "table": table}
    checkpoint = tf.train.Checkpoint(**parts, embedding=embedding, optimizer=optimizer)
    manager = memory_place.manager(checkpoint, max_to_keep=1, asynchronous=True)
    variables = [dense, sparse, places, *embedding.variables, *optimizer.variables]
    before = [variable.numpy().copy() for variable in variables]
    listed = sorted(np.concatenate([it.numpy().reshape(-1, 1) for it in table.export()], axis=1).tolist())
    gate.shut()
    manager.save()
    for _ in range(3):
        train()
    dense.assign(tf.zeros_like(dense))
    table.insert(tf.range(500, dtype=tf.int64), -tf.range(500.0))
    gate.open.set()
    manager.sync()
    assert any(not np.array_equal(variable, was) for variable, was in zip(variables, before, strict=True))

    manager.restore().assert_consumed()
    for variable, was in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), was)
    assert listed == sorted(np.concatenate([it.numpy().reshape(-1, 1) for it in table.export()], axis=1).tolist())


def test_how_long_training_waited_is_told(memory_place, gate):
    events = []
    with listen(events.append):
        make(memory_place, tf.Variable(1.0), asynchronous=False).save()
        manager = make(memory_place, tf.Variable(1.0))
        gate.shut()
        manager.save()
        gate.open.set()
        manager.close()
    before, behind = (event for event in events if isinstance(event, Saved))

    assert before.stall == before.seconds
    assert behind.stall < behind.seconds


def test_the_next_save_waits_for_the_one_before(memory_place, gate):
    manager = make(memory_place, tf.Variable(1.0))
    gate.shut()
    manager.save()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(manager.save)
        assert gate.reached.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            following.result(0.2)
        gate.open.set()
        assert f"{memory_place.url}/ckpt-2" == following.result(PATIENCE)
    manager.sync()

    assert [f"{memory_place.url}/ckpt-{number}" for number in (1, 2)] == manager.checkpoints


def test_with_skip_a_save_is_left_out_while_one_is_under_way(memory_place, gate):
    manager = make(memory_place, tf.Variable(1.0), asynchronous="skip")
    gate.shut()
    manager.save()

    assert manager.save() is None
    assert 1 == int(manager.checkpoint.save_counter)
    gate.open.set()
    manager.sync()
    assert f"{memory_place.url}/ckpt-2" == manager.save()
    manager.sync()


def test_a_save_that_is_not_due_waits_for_nothing(memory_place, gate):
    step = tf.Variable(0)
    manager = make(memory_place, tf.Variable(1.0), step_counter=step, checkpoint_interval=10)
    gate.shut()
    manager.save()
    step.assign(9)

    assert manager.save() is None
    gate.open.set()
    manager.sync()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_what_others_raise_keeps_its_message_and_a_note_says_of_which_save_it_is(memory_place):
    manager = make(memory_place, tf.Variable(1.0))
    manager.save(options=tf.train.CheckpointOptions(experimental_write_callbacks=[lambda: 1 // 0]))
    with pytest.raises(ZeroDivisionError) as raised:
        manager.sync()

    assert "integer division or modulo by zero" == str(raised.value)
    [note] = raised.value.__notes__
    assert f"in the save of {memory_place.url}/ckpt-1 that an earlier call began" in note


@pytest.mark.parametrize("ask", ["save", "sync", "close", "leave"])
def test_what_goes_wrong_is_raised_once_by_whoever_asks_next_and_costs_nothing(ask, memory_place, gate, caplog):
    step = tf.Variable(10)
    manager = make(memory_place, tf.Variable(1.0), step_counter=step, checkpoint_interval=10)
    gate.refuses = True
    manager.save()
    over(manager)
    gate.refuses = False
    with pytest.raises(StoreError, match="refused by the test") as raised:
        manager.__exit__(None, None, None) if ask == "leave" else getattr(manager, ask)()

    assert "hand" == raised.traceback[-1].name
    assert str(raised.value).endswith(
        f" This went wrong behind training, in the save of {memory_place.url}/ckpt-1 that an earlier call began."
    )
    if ask != "save":
        assert 0 == int(manager.checkpoint.save_counter)
        assert {"checkpoint"} >= read_all(memory_place).keys()
    if ask == "sync":
        assert f"{memory_place.url}/ckpt-1" == manager.save(), "the interval had not passed for the failed save either"
    if ask in {"save", "sync"}:  # the one that raised has begun all the same
        manager.sync()
        assert [f"{memory_place.url}/ckpt-1"] == manager.checkpoints
        assert manager.save() is None
    gc.collect()
    assert not [record for record in caplog.records if memory_place.url in record.getMessage()]


def test_where_no_thread_can_be_had_nothing_is_saved_and_nobody_waits(memory_place, gate, monkeypatch):
    manager = make(memory_place, tf.Variable(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            manager.save()

    assert 0 == int(manager.checkpoint.save_counter)
    assert f"{memory_place.url}/ckpt-1" == manager.save()
    manager.sync()


def refuse(self):
    raise RuntimeError("can't start new thread")


def test_an_error_that_ends_the_program_does_not_hide_one_behind_it(memory_place, gate, caplog):
    gate.refuses = True

    def train():
        with make(memory_place, tf.Variable(1.0)) as manager:
            manager.save()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()
    assert "refused by the test" in caplog.text


def test_tensorflows_own_option_means_the_same(memory_place, gate):
    manager = make(memory_place, tf.Variable(1.0), asynchronous=False)
    told = []
    gate.shut()
    options = tf.train.CheckpointOptions(enable_async=True, experimental_write_callbacks=[told.append])

    assert f"{memory_place.url}/ckpt-1" == manager.save(options=options)
    assert (None, []) == (manager.latest_checkpoint, told)
    gate.open.set()
    manager.sync()
    assert [manager.latest_checkpoint] == told
    assert f"{memory_place.url}/ckpt-2" == manager.save() == manager.latest_checkpoint


def test_a_save_that_training_waits_for_raises_what_has_failed_before_it_when_it_has_passed(memory_place, gate):
    manager = make(memory_place, tf.Variable(1.0), asynchronous=False)
    gate.refuses = True
    manager.save(options=tf.train.CheckpointOptions(enable_async=True))
    over(manager)
    gate.refuses = False
    with pytest.raises(StoreError, match="refused by the test"):
        manager.save()

    assert f"{memory_place.url}/ckpt-1" == manager.latest_checkpoint
    assert f"{memory_place.url}/ckpt-2" == manager.save()


@pytest.mark.parametrize("use", ["save", "sync", "restore", "collect_garbage"])
def test_a_callback_that_would_wait_for_itself_is_refused_and_the_save_has_passed(use, memory_place):
    manager = make(memory_place, tf.Variable(1.0))
    options = tf.train.CheckpointOptions(experimental_write_callbacks=[lambda _: getattr(manager, use)()])
    path = manager.save(options=options)
    with pytest.raises(RuntimeError, match="it would wait for itself"):
        manager.sync()

    assert path == manager.latest_checkpoint


def test_a_save_that_a_daemon_thread_begins_is_finished_at_exit(tmp_path):
    begin = "import threading; t = threading.Thread(target=manager.save, daemon=True); t.start(); t.join()"
    url = str(tmp_path / "run")
    script = SCRIPT.replace("print(manager.save())", begin).format(then="")
    subprocess.run([sys.executable, "-c", script, url], check=True, capture_output=True, timeout=120)

    assert tf.train.latest_checkpoint(url) == f"{url}/ckpt-1"


def test_several_workers_leave_nothing_out(memory_place):
    with pytest.raises(ValueError, match="is for one worker"):
        make(memory_place, tf.Variable(1.0), asynchronous="skip", workers=Workers(0, 2))


@pytest.mark.parametrize("asynchronous", ["always", None, 3])
def test_an_option_that_means_nothing_is_refused(asynchronous, memory_place):
    with pytest.raises(ValueError, match="`asynchronous` is"):
        make(memory_place, tf.Variable(1.0), asynchronous=asynchronous)


@pytest.mark.parametrize("how", ["restore", "by name", "restore_or_initialize"])
def test_who_restores_finds_what_is_under_way(how, memory_place, gate):
    value = tf.Variable(1.0)
    manager = make(memory_place, value)
    gate.shut()
    path = manager.save()
    value.assign(2.0)
    with ThreadPoolExecutor(1) as pool:
        restore = {
            "restore": manager.restore,
            "by name": lambda: manager.restore(path),
            "restore_or_initialize": manager.restore_or_initialize,
        }[how]
        outcome = pool.submit(restore)
        gate.open.set()
        outcome.result(PATIENCE)

    assert 1.0 == value.numpy()


def test_a_checkpoint_that_failed_is_not_there(memory_place, gate):
    manager = make(memory_place, tf.Variable(1.0))
    gate.refuses = True
    path = manager.save()
    with pytest.raises(NotFoundError):
        manager.restore(path)
    with pytest.raises(StoreError):
        manager.sync()


@pytest.mark.parametrize("trouble", ["", "put .data-", "put .index", "put checkpoint", "put probe-"])
def test_the_memory_of_a_save_is_free_when_it_is_over(trouble, memory_place, monkeypatch):
    """Whatever went wrong on the way: memory does not wait for the garbage collector."""
    from ckpt_remote.tap import capture

    taken, failed = [], set()

    def fail_once(asked, perform):
        verb, _, part = trouble.partition(" ")
        if not failed and asked.verb == verb and part in asked.keys[0]:
            failed.add(trouble)
            raise StoreError("no answer", transient=True)
        return perform()

    def keep_track(*arguments):
        snapshot = capture(*arguments)
        taken.extend(weakref.ref(tensor.data) for group in snapshot.groups for tensor in group if tensor.size == 4000)
        return snapshot

    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *given: repeated(open_store(*given), fail_once))
    monkeypatch.setattr("ckpt_remote.saving.capture", keep_track)
    manager = make(memory_place, tf.Variable(tf.zeros(1000)))
    failed.clear()
    gc.disable()
    try:
        manager.save()
        manager.sync()
        assert 1 == len(taken)
        assert taken[0]() is None
    finally:
        gc.enable()
    assert bool(trouble) == bool(failed)


def test_several_workers_save_behind_training_together(memory_place, gate):
    values = [tf.Variable(tf.range(600.0)) for _ in range(3)]
    managers = [make(memory_place, value, workers=Workers(rank, 3, job="job")) for rank, value in enumerate(values)]
    for number in (1, 2):
        gate.shut()
        assert {f"{memory_place.url}/ckpt-{number}"} == {manager.save() for manager in managers}
        for value in values:
            value.assign_add(tf.ones(600))
        gate.open.set()
        for manager in managers:
            manager.sync()
    gate.refuses = True
    for manager in managers:
        manager.save()
    with ThreadPoolExecutor(3) as pool:
        errors = [asked.exception() for asked in [pool.submit(manager.sync) for manager in managers]]

    assert [StoreError] * 3 == [type(error) for error in errors]
    assert [2] * 3 == [int(manager.checkpoint.save_counter) for manager in managers]
    assert np.arange(1, 601).tolist() == restored(memory_place, values[0])


def test_a_failure_that_workers_learn_of_at_different_steps_does_not_set_them_apart(memory_place, gate):
    """Whoever knows first is not due earlier than the others."""
    steps = [tf.Variable(0) for _ in range(2)]
    values = [tf.Variable(0.0) for _ in range(2)]
    managers = [
        make(memory_place, value, workers=Workers(rank, 2, job="job"), step_counter=step, checkpoint_interval=10)
        for rank, (step, value) in enumerate(zip(steps, values, strict=True))
    ]
    raised = []
    for at in range(1, 60):
        gate.refuses = at == 11
        for step, value in zip(steps, values, strict=True):
            step.assign(at)
            value.assign(at)
        for rank, manager in enumerate(managers):
            try:
                manager.save()
            except StoreError:
                raised.append((rank, at))
        if at % 10 == 1 or at == 12:
            over(managers[at == 12])  # one of them learns of it a step before the other
            over(managers[0])
    for manager in managers:
        manager.sync()

    assert [(0, 21), (1, 21)] == raised
    assert [f"{memory_place.url}/ckpt-{number}" for number in (3, 4, 5)] == managers[1].checkpoints


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("verb", ["put", "read"])
def test_a_request_that_one_worker_is_refused_costs_one_save_and_sets_nobody_apart(
    who, verb, memory_place, monkeypatch
):
    """It goes on to its next save, while that of the others still waits for it, or it waits for theirs."""
    gates = [Refusing(verb), Refusing(verb)]
    opened = iter(gates)
    monkeypatch.setattr(
        "ckpt_remote.manager.open_store", lambda *given: repeated(open_store(*given), next(opened).hand)
    )
    checkpoints = [
        tf.train.Checkpoint(step=tf.Variable(0), **{f"own{rank}": tf.Variable(0)}) for rank in range(len(gates))
    ]
    managers = [
        memory_place.manager(
            checkpoint, max_to_keep=9, asynchronous=True, workers=Workers(rank, 2, job="job", timeout=PATIENCE)
        )
        for rank, checkpoint in enumerate(checkpoints)
    ]
    outcomes = []
    with ThreadPoolExecutor(2) as pool:

        def all_of(calls):
            return [asked.exception() for asked in [pool.submit(call) for call in calls]]

        for at in range(1, 7):
            if at == 3:
                assert [None, None] == all_of(manager.sync for manager in managers)
                gates[who].refuses = True
            for rank, checkpoint in enumerate(checkpoints):
                checkpoint.step.assign(at)
                getattr(checkpoint, f"own{rank}").assign(at)
            outcomes.append(all_of(manager.save for manager in managers))
            if at == 3:
                assert gates[who].refused.wait(PATIENCE)
        assert [None, None] == all_of(manager.sync for manager in managers)

    assert [[None] * 2] * 3 == outcomes[:3]
    assert [StoreError] * 2 == [type(error) for error in outcomes[3]]
    assert all("refused by the test" in str(error) for error in outcomes[3])
    assert [[None] * 2] * 2 == outcomes[4:]
    monkeypatch.undo()
    saved = [tf.train.Checkpoint(own0=tf.Variable(0), own1=tf.Variable(0)) for _ in managers[0].checkpoints]
    for checkpoint, url in zip(saved, managers[0].checkpoints, strict=True):
        memory_place.manager(checkpoint).restore(url)
    assert [(at, at) for at in (1, 2, 4, 5, 6)] == [(int(it.own0), int(it.own1)) for it in saved]


class Refusing:
    """Refuses one request, when it is told to."""

    def __init__(self, verb):
        self.verb, self.refuses, self.refused = verb, False, threading.Event()

    def hand(self, asked, perform):
        if self.refuses and asked.verb == self.verb:
            self.refuses = False
            self.refused.set()
            raise StoreError("refused by the test", transient=False)
        return perform()


def test_where_one_worker_can_have_no_thread_the_others_are_told(memory_place, gate, monkeypatch):
    managers = [
        make(memory_place, tf.Variable(1.0), workers=Workers(rank, 2, job="job", timeout=PATIENCE)) for rank in (0, 1)
    ]
    managers[1].save()
    start = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda it: refuse(it) if it.name.startswith("saving") else start(it))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            managers[0].save()
    with pytest.raises(IncompleteError, match="Worker 0: RuntimeError"):
        managers[1].sync()
    managers[1].save()

    assert f"{memory_place.url}/ckpt-1" == managers[0].save()
    for manager in managers:
        manager.sync()


SCRIPT = """
import sys, tensorflow as tf, ckpt_remote
value = tf.Variable(tf.range(200_000.0))
manager = ckpt_remote.CheckpointManager(tf.train.Checkpoint(value=value), sys.argv[1], 3, asynchronous=True)
print(manager.save())
{then}
"""


@pytest.mark.parametrize("then", ["value.assign(0 * value)", "raise RuntimeError('the end')", "sys.exit(3)"])
def test_a_process_that_ends_finishes_its_save(then, tmp_path):
    url = str(tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(then=then), url], capture_output=True, text=True, check=False, timeout=120
    )

    assert f"{url}/ckpt-1\n" == ended.stdout, ended.stderr
    assert tf.train.latest_checkpoint(url) == f"{url}/ckpt-1"
    assert tf.train.load_variable(url, "value/.ATTRIBUTES/VARIABLE_VALUE").tolist() == list(range(200_000))


def test_a_process_that_ends_says_that_its_save_has_failed(tmp_path):
    url = tmp_path / "run"
    spoil = f"import pathlib; pathlib.Path({str(url)!r}).mkdir(); pathlib.Path({str(url / 'checkpoint')!r}).mkdir()"
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("print(manager", f"{spoil}\nprint(manager").format(then=""), str(url)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert f"saving to {url} has failed, and nobody has asked how: " in ended.stderr
