"""What the manager promises beyond TensorFlow's: safety, clear refusals, and saves that cost nothing when they fail."""

import dataclasses
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, read_all
from support.servers import free_port

import ckpt_remote
from ckpt_remote import ConflictError, CorruptError, NotFoundError, StoreError, UnknownOutcomeError, UnsupportedError
from ckpt_remote.progress import Entered, Failed, FellBack, Moved, Restored, Saved, listen


@pytest.fixture
def memory_place():
    return Place.in_memory()


@pytest.fixture
def value():
    return tf.Variable(np.arange(4.0))


def make(place, value, max_to_keep=2, **arguments):
    return place.manager(tf.train.Checkpoint(value=value), max_to_keep=max_to_keep, **arguments)


def test_it_is_a_checkpoint_manager_of_tensorflow(memory_place, value):
    checkpoint = tf.train.Checkpoint(value=value)
    manager = ckpt_remote.CheckpointManager(checkpoint, memory_place.url, max_to_keep=1)

    assert isinstance(manager, tf.train.CheckpointManager)
    assert (memory_place.url, checkpoint, None) == (
        manager.directory,
        manager.checkpoint,
        manager.checkpoint_interval,
    )
    assert (None, []) == (manager.latest_checkpoint, manager.checkpoints)


def test_every_public_member_of_tensorflows_manager_is_ours():
    """The base constructor is not run, so an inherited member would find no state."""
    public = {name for name in vars(tf.train.CheckpointManager) if not name.startswith("_")}

    assert set() == public - set(vars(ckpt_remote.CheckpointManager))


def test_a_claim_fences_every_manager_that_has_read_an_older_state(place, value):
    older, newer = make(place, value), make(place, value)
    newer.claim()
    claimed = read_all(place)
    newer.claim()
    assert claimed == read_all(place), "the second claim has nothing to write"
    for use in (older.save, older.claim):
        with pytest.raises(ConflictError):
            use()
    assert claimed == read_all(place)
    assert f"{place.url}/ckpt-1" == newer.save()


def test_restoring_claims_nothing(memory_place, value):
    trainer, evaluator = make(memory_place, value), make(memory_place, value)
    trainer.save()
    before = read_all(memory_place)
    evaluator.restore_or_initialize()
    evaluator.restore()

    assert before == read_all(memory_place)
    assert f"{memory_place.url}/ckpt-2" == trainer.save()


def test_a_directory_that_is_claimed_and_still_empty_is_a_fresh_start_also_for_tensorflow(tmp_path, value):
    place = Place(str(tmp_path / "run"))
    make(place, value).claim()

    assert tf.train.latest_checkpoint(place.url) is None
    assert make(place, value).restore_or_initialize() is None
    assert f"{place.url}/ckpt-1" == make(place, value).save()


def test_what_retention_retires_is_gone_from_the_store(place, value):
    manager = make(place, value)
    for _ in range(4):
        manager.save()

    assert {"checkpoint", "ckpt-3", "ckpt-4"} == {key.partition(".")[0] for key in read_all(place)}


def test_ckpt_1_is_retired_without_touching_ckpt_10(memory_place, value):
    manager = make(memory_place, value, max_to_keep=2)
    for number in (1, 10, 11):
        manager.save(checkpoint_number=number)

    assert {"checkpoint", "ckpt-10", "ckpt-11"} == {key.partition(".")[0] for key in read_all(memory_place)}


def test_objects_of_others_in_the_directory_are_left_alone(memory_place, value):
    store = memory_place.store()
    others = ["notes.txt", "ckpt-1.txt", "ckpt-1.data-00000-of-00009", "ckpt-1-export/saved_model.pb"]
    for key in others:
        store.put(key, [b"mine"], "create")
    manager = make(memory_place, value, max_to_keep=1)
    for _ in range(3):
        manager.save()

    assert {b"mine"} == {read_all(memory_place)[key] for key in others}


def test_a_directory_that_is_the_beginning_of_anothers_name_is_kept_apart(value):
    place, other = Place.in_memory(), None
    other = Place(f"{place.url}-2")
    make(other, value).save()
    manager = make(place, value, max_to_keep=1)
    manager.save()
    manager.save()

    assert {"checkpoint", "ckpt-1"} == {key.partition(".")[0] for key in read_all(other)}


def test_leftovers_of_an_attempt_that_died_are_neither_overwritten_nor_in_the_way(place, value):
    store = place.store()
    store.put("ckpt-1.data-00000-of-00001", [b"half of somebody's data"], "create")
    manager = make(place, value)
    manager.save()
    value.assign(np.zeros(4))
    manager.restore().assert_consumed()

    assert b"half of somebody's data" == store.read("ckpt-1.data-00000-of-00001").data
    assert [0.0, 1.0, 2.0, 3.0] == value.numpy().tolist()


def test_saving_a_number_again_replaces_it_and_removes_the_old_data(place, value):
    manager = make(place, value)
    manager.save(checkpoint_number=7)
    value.assign_add(np.ones(4))
    manager.save(checkpoint_number=7)
    value.assign(np.zeros(4))
    manager.restore().assert_consumed()

    assert [1.0, 2.0, 3.0, 4.0] == value.numpy().tolist()
    assert 3 == len(read_all(place))


def test_a_second_writer_gets_a_conflict_and_touches_nothing(place, value):
    first, second = make(place, value), make(place, value)
    first.save()
    value.assign_add(np.ones(4))
    before = read_all(place)
    with pytest.raises(ConflictError, match="another writer"):
        second.save(checkpoint_number=5)

    after = read_all(place)
    assert before["checkpoint"] == after["checkpoint"]
    assert before.items() <= after.items()
    assert f"{place.url}/ckpt-2" == first.save()


def test_the_loser_of_a_race_replaces_nothing_of_the_winners(place):
    winners, losers = tf.Variable([1.0]), tf.Variable([-1.0])
    winner, loser = make(place, winners), make(place, losers)
    winner.save()
    loser = make(place, losers)
    loser.checkpoint.save_counter.assign(1)
    winners.assign([2.0])
    winner.save()
    before = read_all(place)
    with pytest.raises(ConflictError):
        loser.save()

    assert before == read_all(place)
    winner.restore()
    assert [2.0] == winners.numpy().tolist()


def test_a_failed_save_of_a_number_again_leaves_the_old_one_in_place(memory_place, value, refusing):
    manager = make(memory_place, value)
    manager.save(checkpoint_number=5)
    before = read_all(memory_place)
    value.assign_add(np.ones(4))
    refusing[0].refusing = "checkpoint"
    for _ in range(3):
        with pytest.raises(StoreError):
            manager.save(checkpoint_number=5)

    after = read_all(memory_place)
    assert before.keys() == after.keys()
    assert before["checkpoint"] == after["checkpoint"]
    value.assign(np.zeros(4))
    manager.restore().assert_consumed()
    assert [0.0, 1.0, 2.0, 3.0] == value.numpy().tolist()


@pytest.mark.parametrize("name", ["mon\u00a0modèle", "a\u200db", "a b", "ckpt*?", "a["])
def test_any_name_that_can_be_saved_can_be_read_again(name, memory_place, value):
    make(memory_place, value, checkpoint_name=name).save()

    manager = make(memory_place, value, checkpoint_name=name)
    assert f"{memory_place.url}/{name}-1" == manager.latest_checkpoint
    manager.restore().assert_consumed()


@pytest.mark.parametrize("name", ["m[1]", "a\\b"])
def test_a_name_that_tensorflow_can_write_and_not_find_again_is_refused(name, memory_place, value, tmp_path):
    checkpoint = tf.train.Checkpoint(value=value)
    with pytest.raises(tf.errors.NotFoundError):
        checkpoint.read(checkpoint.write(str(tmp_path / f"{name}-1")))
    with pytest.raises(ValueError, match="wildcards"):
        make(memory_place, value, checkpoint_name=name)


@pytest.mark.parametrize("name", ["../ckpt", "a//b", "a\nb"])
def test_a_name_that_no_object_can_have_is_refused_at_once(name, memory_place, value):
    with pytest.raises(ValueError, match="no object key"):
        make(memory_place, value, checkpoint_name=name)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_to_keep": 2.5}, "2.5"),
        ({"filesystem": "s3"}, "filesystem"),
        ({"storage_options": 3}, "storage_options"),
        ({"directory": b"s3://b/run"}, "text"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(arguments, complaint, value):
    with pytest.raises(TypeError, match=complaint):
        ckpt_remote.CheckpointManager(
            tf.train.Checkpoint(value=value), **{"directory": "memory://x/y", "max_to_keep": 1, **arguments}
        )


@pytest.mark.parametrize("number", [7.9, "7", None.__class__])
def test_a_number_that_is_no_integer_is_refused_and_costs_nothing(number, memory_place, value):
    manager = make(memory_place, value)
    with pytest.raises(TypeError, match="integers"):
        manager.save(checkpoint_number=number)

    assert 0 == int(manager.checkpoint.save_counter)


def test_a_url_that_pathlib_has_spoilt_does_not_become_a_local_folder(value):
    with pytest.raises(ValueError, match="pathlib"):
        ckpt_remote.CheckpointManager(tf.train.Checkpoint(value=value), Path("s3://bucket/run"), 1)


def after_loading(manager, act):
    """Does something once, between a manager's look at the state and what it makes of it."""
    load = manager._known.load

    def then():
        changed = yield from load()
        manager._known.load = load
        act()
        return changed

    manager._known.load = then


def test_an_evaluator_that_is_overtaken_by_retention_takes_the_newer_checkpoint(memory_place, value):
    trainer, copy = make(memory_place, value, max_to_keep=1), tf.Variable(np.zeros(4))
    trainer.save()
    evaluator = make(memory_place, copy)

    def overtake():
        value.assign_add(np.ones(4))
        trainer.save()

    after_loading(evaluator, overtake)

    assert f"{memory_place.url}/ckpt-2" == evaluator.restore_or_initialize()
    assert value.numpy().tolist() == copy.numpy().tolist()


def test_an_interruption_of_deleting_does_not_take_the_save_back(memory_place, value, monkeypatch):
    manager = make(memory_place, value, max_to_keep=1)
    manager.save()
    with monkeypatch.context() as patch:
        patch.setattr(manager._store.single, "delete", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            manager.save()

    assert 2 == int(manager.checkpoint.save_counter)
    assert f"{memory_place.url}/ckpt-3" == manager.save()
    assert {"checkpoint", "ckpt-3"} == {key.partition(".")[0] for key in read_all(memory_place)}


def test_a_writer_that_restores_the_newest_goes_on_from_there(memory_place, value):
    first, second = make(memory_place, value), make(memory_place, value)
    first.save()

    assert f"{memory_place.url}/ckpt-1" == second.restore_or_initialize() == second.latest_checkpoint
    assert f"{memory_place.url}/ckpt-2" == second.save()


def test_preserved_checkpoints_survive_a_restart(memory_place, value):
    arguments = {"max_to_keep": 1, "keep_checkpoint_every_n_hours": 1}
    with mock.patch("time.time", return_value=1e9):
        manager = make(memory_place, value, **arguments)
    for number in range(4):
        with mock.patch("time.time", return_value=1e9 + 1800.0 * (number + 1)):
            manager.save()

    kept = [f"{memory_place.url}/ckpt-2"]
    assert kept == manager.preserved_checkpoints == make(memory_place, value, **arguments).preserved_checkpoints
    assert {"checkpoint", "ckpt-2", "ckpt-4"} == {key.partition(".")[0] for key in read_all(memory_place)}


class _Refusing:
    """A store whose puts fail while `refusing` holds a part of their key."""

    def __init__(self, store):
        self._store, self.refusing, self.puts = store, "", []

    def __getattr__(self, name):
        return getattr(self._store, name)

    @property
    def single(self):
        return self

    def put(self, key, buffers, mode):
        if self.refusing and self.refusing in key:
            raise StoreError(f"cannot write {key}: refused by the test")
        self.puts.append(key)
        return self._store.put(key, buffers, mode)


@pytest.fixture
def refusing(monkeypatch):
    stores = []

    def open_store(*arguments):
        from ckpt_remote.store import open_store

        stores.append(_Refusing(open_store(*arguments)))
        return stores[-1]

    monkeypatch.setattr("ckpt_remote.manager.open_store", open_store)
    return stores


@pytest.mark.parametrize("stage", [".data-", ".index", "checkpoint"])
def test_a_failed_save_costs_nothing(stage, memory_place, value, refusing):
    step = tf.Variable(10)
    manager = make(memory_place, value, step_counter=step, checkpoint_interval=10)
    manager.save()
    before, counter = read_all(memory_place), int(manager.checkpoint.save_counter)
    step.assign(20)
    refusing[0].refusing = stage
    with pytest.raises(StoreError, match="refused by the test"):
        manager.save()

    assert before["checkpoint"] == read_all(memory_place)["checkpoint"]
    assert (counter, before.keys()) == (
        int(manager.checkpoint.save_counter),
        read_all(memory_place).keys() & before.keys(),
    )
    assert [f"{memory_place.url}/ckpt-1"] == manager.checkpoints
    refusing[0].refusing = ""
    assert f"{memory_place.url}/ckpt-2" == manager.save(), "the interval had not passed for the failed save either"
    assert manager.save() is None


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, StoreError("no answer", transient=True)], ids=["Ctrl-C", "silence"]
)
def test_after_a_save_of_unknown_outcome_the_next_one_finds_out(error, landed, memory_place, value):
    manager = make(memory_place, value, max_to_keep=5)
    manager.save()
    store = manager._store.single
    put, read = store.put, store.read
    manager._retry = dataclasses.replace(manager._retry, sleep=lambda seconds: None)

    def cut_off(key, buffers, mode):
        if key != "checkpoint":
            return put(key, buffers, mode)
        if landed and read("checkpoint").data != buffers[0]:
            put(key, buffers, mode)
        store.read = lambda key: (_ for _ in ()).throw(StoreError("no answer", transient=True))
        raise error

    store.put = cut_off
    with pytest.raises((KeyboardInterrupt, UnknownOutcomeError)):
        manager.save()
    assert 2 == int(manager.checkpoint.save_counter), "it may have landed, so its number is used"
    store.put, store.read = put, read

    assert f"{memory_place.url}/ckpt-3" == manager.save()
    expected = ["ckpt-1", "ckpt-2", "ckpt-3"] if landed else ["ckpt-1", "ckpt-3"]
    assert [f"{memory_place.url}/{name}" for name in expected] == manager.checkpoints


def test_threads_that_save_with_one_manager_take_turns(memory_place, value):
    manager = make(memory_place, value, max_to_keep=None)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: manager.save(), range(16)))

    assert 16 == len(set(paths))
    assert sorted(paths) == sorted(manager.checkpoints) == sorted(make(memory_place, value).checkpoints)


def test_what_a_failed_upload_had_created_is_withdrawn(memory_place, refusing, monkeypatch):
    monkeypatch.setattr("ckpt_remote.checkpoint.shard_size", lambda total: 100)
    manager = make(memory_place, tf.Variable(np.arange(100.0)))
    refusing[0].refusing = "data-00003"
    with pytest.raises(StoreError):
        manager.save()

    assert 3 <= sum(".data-" in key for key in refusing[0].puts)
    assert {"checkpoint"} == read_all(memory_place).keys()
    assert [] == make(memory_place, tf.Variable(0.0)).checkpoints


def test_one_state_write_a_save_and_few_requests_beside_the_shards(memory_place, value, refusing):
    manager = make(memory_place, value, max_to_keep=1)
    manager.save()
    manager.save()
    refusing[0].puts.clear()
    manager.save()

    assert ["ckpt-3.data-00000-of-00001", "ckpt-3.index", "checkpoint"] == refusing[0].puts


def test_a_deletion_that_fails_is_logged_and_done_by_the_next_manager(memory_place, value, caplog):
    manager = make(memory_place, value, max_to_keep=1)
    manager.save()
    with mock.patch.object(
        manager._store.single, "delete", lambda keys: dict.fromkeys(keys, StoreError("cannot delete it now"))
    ):
        manager.save()

    assert {"checkpoint", "ckpt-1", "ckpt-2"} == {key.partition(".")[0] for key in read_all(memory_place)}
    assert "ckpt-1.index" not in read_all(memory_place), "the index goes first"
    assert any("ckpt-1.data-00000-of-00001 could not be deleted" in record.message for record in caplog.records)
    following = make(memory_place, value, max_to_keep=5)
    following.restore_or_initialize()
    following.save()
    assert {"checkpoint", "ckpt-2", "ckpt-3"} == {key.partition(".")[0] for key in read_all(memory_place)}


def test_write_callbacks_run_with_the_remote_path_after_the_state_is_written(memory_place, value):
    seen = []
    options = tf.train.CheckpointOptions(
        experimental_write_callbacks=[
            lambda path: seen.append((path, "checkpoint" in read_all(memory_place))),
            lambda: seen.append("called"),
        ]
    )
    path = make(memory_place, value).save(options=options)

    assert [(path, True), "called"] == seen
    assert 2 == len(options.experimental_write_callbacks)


def test_init_fn_is_called_only_when_there_is_nothing_to_restore(memory_place, value):
    calls = []
    manager = make(memory_place, value, init_fn=lambda: calls.append("init"))

    assert manager.restore_or_initialize() is None
    manager.save()
    assert (
        f"{memory_place.url}/ckpt-1"
        == make(memory_place, value, init_fn=lambda: calls.append("init")).restore_or_initialize()
    )
    assert ["init"] == calls


def test_restoring_without_any_checkpoint_is_tensorflows_restore_of_none(memory_place, value):
    status = make(memory_place, value).restore()

    assert type(status) is type(tf.train.Checkpoint(value=value).restore(None))


def test_a_checkpoint_elsewhere_can_be_restored_by_its_url(memory_place, value):
    path = make(memory_place, value).save()
    other = tf.Variable(np.zeros(4))
    make(Place.in_memory(), other).restore(path).assert_consumed()

    assert value.numpy().tolist() == other.numpy().tolist()


def test_a_checkpoint_name_may_lead_into_a_folder(place, value):
    manager = make(place, value, checkpoint_name="deep/er", max_to_keep=1)
    manager.save()
    path = manager.save()

    assert f"{place.url}/deep/er-2" == path == make(place, value).restore_or_initialize()
    assert {"checkpoint", "deep/er-2"} == {key.partition(".")[0] for key in read_all(place)}


def test_a_path_object_and_a_trailing_slash_are_taken(tmp_path, value):
    checkpoint = tf.train.Checkpoint(value=value)
    path = ckpt_remote.CheckpointManager(checkpoint, Path(tmp_path / "run"), 1).save()
    assert str(tmp_path / "run" / "ckpt-1") == path
    assert path == ckpt_remote.CheckpointManager(checkpoint, f"{tmp_path}/run/", 1).latest_checkpoint


def test_a_manager_is_a_context_manager(memory_place, value):
    with make(memory_place, value) as manager:
        manager.save()
        manager.sync()


@pytest.mark.parametrize(
    "state",
    [b"", b"\x00\x01", b'model_checkpoint_path: "../victim"\n', b'model_checkpoint_path: "/etc/ckpt-1"\n',
     b'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "../../victim"\n'
     b"all_model_checkpoint_timestamps: 9e9\n"],
)  # fmt: skip
def test_a_state_that_cannot_be_trusted_is_an_error_and_nothing_is_touched(state, place, value):
    victim = Place(place.url.rpartition("/")[0] + "/victim", place.storage_options, place.filesystem)
    make(victim, value).save()
    before = read_all(victim)
    place.store().put("checkpoint", [state], "create")

    with pytest.raises(CorruptError, match="checkpoint"):
        make(place, value, max_to_keep=1)
    assert (state, before) == (place.store().read("checkpoint").data, read_all(victim))


def test_a_damaged_state_is_never_taken_for_a_fresh_start(memory_place, value):
    manager = make(memory_place, value, init_fn=lambda: pytest.fail("init_fn was called"))
    manager.save()
    memory_place.store().put("checkpoint", [b"garbage"], "overwrite")

    with pytest.raises(CorruptError):
        manager.restore_or_initialize()


def data_of(store, path):
    """The key of a checkpoint's only data object."""
    (info,) = store.list(f"{path}.data-")
    return info.key


def flip(store, key, position):
    data = bytearray(store.read(key).data)
    data[position] ^= 1
    store.put(key, [bytes(data)], "overwrite")


def cut(store, key, length):
    store.put(key, [store.read(key).data[:length]], "overwrite")


DAMAGES = {
    "missing data object": lambda store, path: store.delete([data_of(store, path)]),
    "truncated data object": lambda store, path: cut(store, data_of(store, path), 20),
    "empty data object": lambda store, path: cut(store, data_of(store, path), 0),
    "flipped bit in data": lambda store, path: flip(store, data_of(store, path), 9),
    "flipped bit in the index": lambda store, path: flip(store, f"{path}.index", 9),
    "truncated index": lambda store, path: cut(store, f"{path}.index", 40),
    "empty index": lambda store, path: cut(store, f"{path}.index", 0),
    "missing index": lambda store, path: store.delete([f"{path}.index"]),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
usual_damages = pytest.mark.parametrize(
    "damage",
    [
        DAMAGES["missing data object"],
        DAMAGES["truncated data object"],
        DAMAGES["flipped bit in data"],
        DAMAGES["flipped bit in the index"],
        DAMAGES["missing index"],
    ],
    ids=["missing data object", "truncated data object", "flipped bit in data", "damaged index", "missing index"],
)


def save_numbers(place, value, count, **arguments):
    """Checkpoints whose values are their numbers."""
    manager = make(place, value, **arguments)
    for number in range(1, count + 1):
        value.assign(np.full(4, float(number)))
        manager.save()
    return manager


@usual_damages
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_that_names_both(damage, place, value, caplog):
    save_numbers(place, value, 3, max_to_keep=3)
    damage(place.store(), "ckpt-3")
    before, events = read_all(place), []
    value.assign(np.zeros(4))
    manager = make(place, value, init_fn=lambda: pytest.fail("init_fn was called"))
    with listen(events.append):
        assert f"{place.url}/ckpt-2" == manager.restore_or_initialize()

    assert ([2.0] * 4, 2) == (value.numpy().tolist(), int(manager.checkpoint.save_counter))
    assert before == read_all(place)
    ((damaged, tried_next),) = [(event.damaged, event.tried_next) for event in events if isinstance(event, FellBack)]
    assert (f"{place.url}/ckpt-3", f"{place.url}/ckpt-2") == (damaged, tried_next)
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert damaged in warning.message
    assert tried_next in warning.message


@damages
def test_the_save_after_a_fall_back_replaces_the_damaged_number_and_leaves_nothing_of_it(damage, memory_place, value):
    save_numbers(memory_place, value, 3, max_to_keep=3)
    damage(memory_place.store(), "ckpt-3")
    manager = make(memory_place, value, max_to_keep=3)
    manager.restore_or_initialize()
    value.assign(np.full(4, 33.0))

    assert f"{memory_place.url}/ckpt-3" == manager.save()
    value.assign(np.zeros(4))
    following = make(memory_place, value, max_to_keep=3)
    assert f"{memory_place.url}/ckpt-3" == following.restore_or_initialize()
    assert [33.0] * 4 == value.numpy().tolist()
    assert [f"{memory_place.url}/ckpt-{number}" for number in (1, 2, 3)] == manager.checkpoints == following.checkpoints
    following.save()
    names = [key.partition("-0")[0] for key in read_all(memory_place)]
    assert sorted(["checkpoint", *(f"ckpt-{n}.{what}" for n in (2, 3, 4) for what in ("index", "data"))]) == sorted(
        names
    )


@damages
def test_whoever_asks_for_the_damaged_one_is_told(damage, memory_place, value):
    manager = save_numbers(memory_place, value, 2)
    damage(memory_place.store(), "ckpt-2")
    value.assign(np.zeros(4))
    for restore in (manager.restore, lambda: manager.restore(f"{memory_place.url}/ckpt-2")):
        with pytest.raises(CorruptError, match=r"ckpt-2\."):
            restore()

    assert [0.0] * 4 == value.numpy().tolist()
    manager.restore(f"{memory_place.url}/ckpt-1").assert_consumed()


def test_what_retention_kept_for_good_is_the_last_resort_newest_first(memory_place, value):
    with mock.patch("time.time", return_value=1e9):
        manager = make(memory_place, value, max_to_keep=1, keep_checkpoint_every_n_hours=1)
    for number in range(1, 7):
        value.assign(np.full(4, float(number)))
        with mock.patch("time.time", return_value=1e9 + 1800.0 * number):
            manager.save()
    assert [f"{memory_place.url}/ckpt-{number}" for number in (2, 4)] == manager.preserved_checkpoints
    assert [f"{memory_place.url}/ckpt-6"] == manager.checkpoints
    store, reader = memory_place.store(), make(memory_place, value)

    for damaged, restored in ((6, 4), (4, 2)):
        DAMAGES["missing data object"](store, f"ckpt-{damaged}")
        assert f"{memory_place.url}/ckpt-{restored}" == reader.restore_or_initialize()
        assert [float(restored)] * 4 == value.numpy().tolist()


@damages
def test_where_no_checkpoint_is_whole_that_is_an_error_and_never_a_fresh_start(damage, memory_place, value):
    save_numbers(memory_place, value, 3)
    for path in ("ckpt-2", "ckpt-3"):
        damage(memory_place.store(), path)
    before, events = read_all(memory_place), []
    value.assign(np.zeros(4))
    manager = make(memory_place, value, init_fn=lambda: pytest.fail("init_fn was called"))
    with listen(events.append), pytest.raises(CorruptError, match=r"None of the 2 checkpoints .* is whole; .*ckpt-3"):
        manager.restore_or_initialize()

    assert ([0.0] * 4, before) == (value.numpy().tolist(), read_all(memory_place))
    assert [f"{memory_place.url}/ckpt-2", None] == [it.tried_next for it in events if isinstance(it, FellBack)]


def test_after_a_fall_back_the_interval_counts_from_the_step_that_was_restored(memory_place, value):
    def started():
        step = tf.Variable(0)
        checkpoint = tf.train.Checkpoint(value=value, step=step)
        return step, memory_place.manager(checkpoint, max_to_keep=5, step_counter=step, checkpoint_interval=10)

    step, manager = started()
    for at in (10, 20):
        step.assign(at)
        manager.save()
    DAMAGES["missing data object"](memory_place.store(), "ckpt-2")
    step, manager = started()
    step.assign(20)
    manager.restore_or_initialize()

    assert 10 == int(step)
    assert manager.save() is None
    step.assign(19)
    assert manager.save() is None
    step.assign(20)
    assert f"{memory_place.url}/ckpt-2" == manager.save()


def test_a_newer_checkpoint_that_appears_meanwhile_is_better_than_an_older_one(memory_place, value):
    trainer = save_numbers(memory_place, value, 2)
    copy, events = tf.Variable(np.zeros(4)), []
    evaluator = make(memory_place, copy)
    DAMAGES["missing data object"](memory_place.store(), "ckpt-2")

    def overtake():
        value.assign(np.full(4, 3.0))
        trainer.save()

    after_loading(evaluator, overtake)
    with listen(events.append):
        assert f"{memory_place.url}/ckpt-3" == evaluator.restore_or_initialize()
    assert [3.0] * 4 == copy.numpy().tolist()
    assert [] == [event for event in events if isinstance(event, FellBack)]


def test_a_store_that_fails_is_no_damage(memory_place, value, monkeypatch):
    """Else a network that is down would send the training back by a checkpoint."""
    manager = save_numbers(memory_place, value, 2)
    events = []
    monkeypatch.setattr(manager._store.single, "read_range", mock.Mock(side_effect=StoreError("no answer")))
    with listen(events.append), pytest.raises(StoreError, match="no answer"):
        manager.restore_or_initialize()

    assert [] == [event for event in events if isinstance(event, FellBack)]


def test_a_missing_bucket_is_named(ministack, value):
    place = Place("s3://no-such-bucket-here/run", ministack.storage_options)
    with pytest.raises(NotFoundError, match="no-such-bucket-here"):
        make(place, value)


def test_wrong_credentials_are_an_error_without_the_secret(value, ministack):
    """The servers check no signatures, so it is a profile that does not exist which is tried."""
    place = Place("s3://bucket/run", {"endpoint_url": ministack.endpoint, "profile": "no-such-profile"})
    with pytest.raises((StoreError, ValueError), match="no-such-profile"):
        make(place, value)


def test_an_unreachable_endpoint_is_an_error_within_seconds(value):
    options = {"key": "k" * 20, "secret": "very-secret", "endpoint_url": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(StoreError) as caught:
        make(Place("s3://bucket/run", options), value)

    assert "very-secret" not in str(caught.value)
    assert "s3://bucket/run" in str(caught.value)


def test_an_unknown_scheme_is_unsupported(value):
    with pytest.raises(UnsupportedError, match="nosuchscheme"):
        make(Place("nosuchscheme://bucket/run"), value)


def test_a_save_and_a_restore_say_what_they_do_phase_by_phase(place, value):
    manager, heard = make(place, value), []
    with listen(heard.append):
        manager.save()
        manager.restore()
    entered = {event.phase: event.size for event in heard if isinstance(event, Entered)}
    moved = Counter()
    for event in heard:
        if isinstance(event, Moved):
            moved[event.phase] += event.size

    assert ["take", "write", "publish", "fetch", "assign"] == list(entered)
    assert {phase: size for phase, size in entered.items() if size} == dict(moved)
    assert min(moved.values()) >= value.numpy().nbytes
    assert [Saved, Restored] == [type(event) for event in heard if not isinstance(event, Entered | Moved)]
    assert {manager._store.url_of("ckpt-1")} == {event.url for event in heard}


def test_what_fails_is_an_event_too(memory_place, value, monkeypatch):
    manager, heard = make(memory_place, value), []
    monkeypatch.setattr(manager._store.single, "put", mock.Mock(side_effect=StoreError("refused")))
    with listen(heard.append):
        with pytest.raises(StoreError):
            manager.save(checkpoint_number=70)
        with pytest.raises(NotFoundError):
            manager.restore(f"{memory_place.url}/ckpt-9")

    assert [
        (f"{memory_place.url}/ckpt-70", "save", "refused"),
        (f"{memory_place.url}/ckpt-9", "restore"),
    ] == [(it.url, it.action, it.error)[: 3 if it.action == "save" else 2] for it in heard if isinstance(it, Failed)]


def test_each_save_is_one_line_in_the_log(memory_place, value, caplog):
    caplog.set_level(logging.INFO, "ckpt_remote.saving")
    make(memory_place, value).save()

    assert 1 == sum(record.message.startswith(f"saved {memory_place.url}/ckpt-1") for record in caplog.records)


@pytest.mark.parametrize("prefix", ["", "/deep/er/run", "/a run #1?", "/läuft/100%", "/run/"])
def test_a_directory_may_be_a_bucket_or_have_any_name(prefix, ministack, value):
    place = Place(f"s3://{ministack.new_bucket()}{prefix}", ministack.storage_options)
    manager = make(place, value, max_to_keep=1)
    manager.save()
    path = manager.save()

    assert f"{place.url.rstrip('/')}/ckpt-2" == path == make(place, value).restore_or_initialize()
    assert 3 == len(read_all(place))


def test_an_interruption_after_the_save_has_landed_does_not_give_its_number_away_again(memory_place, value):
    manager = make(memory_place, value)

    def interrupt(event):
        raise SystemExit(3)

    with listen(interrupt), pytest.raises(SystemExit):
        manager.save()
    assert 1 == int(manager.checkpoint.save_counter)
    assert f"{memory_place.url}/ckpt-2" == manager.save()


def test_an_interruption_before_the_state_is_sent_costs_nothing(memory_place, value, refusing):
    step = tf.Variable(10)
    manager = make(memory_place, value, step_counter=step, checkpoint_interval=10)
    with (
        mock.patch.object(_Refusing, "put", mock.Mock(side_effect=KeyboardInterrupt)),
        pytest.raises(KeyboardInterrupt),
    ):
        manager.save()

    assert 0 == int(manager.checkpoint.save_counter)
    assert f"{memory_place.url}/ckpt-1" == manager.save()


def test_whatever_goes_wrong_while_deleting_the_save_has_passed(memory_place, value, refusing, caplog):
    manager = make(memory_place, value, max_to_keep=1)
    manager.save()
    with mock.patch.object(_Refusing, "delete", mock.Mock(side_effect=RuntimeError("foreign")), create=True):
        assert f"{memory_place.url}/ckpt-2" == manager.save()

    assert "will be tried again" in caplog.text
    manager.save()
    assert {"checkpoint", "ckpt-3"} == {key.partition(".")[0] for key in read_all(memory_place)}


def test_the_librarys_own_folder_takes_no_checkpoints(memory_place, value):
    with pytest.raises(ValueError, match="library's own"):
        make(memory_place, value, checkpoint_name="_ckpt_remote/probe")


def test_a_checkpoint_that_cannot_be_taken_leaves_the_counter_also_after_a_save(memory_place, value, monkeypatch):
    manager = make(memory_place, value)
    manager.save()
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_remote.saving.capture", mock.Mock(side_effect=ValueError("cannot be taken")))
        with pytest.raises(ValueError, match="cannot be taken"):
            manager.save()

    assert f"{memory_place.url}/ckpt-2" == manager.save()
