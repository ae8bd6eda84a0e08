"""Everything that a checkpoint can hold goes to a store and comes back, with TensorFlow as the judge."""

import errno
import gc
import tempfile
import time
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, download, read_all, upload

from ckpt_remote import CorruptError, NotFoundError, StoreError, UnsupportedError
from ckpt_remote.bundle import Entry, Header, Index, encode_index
from ckpt_remote.origin import SEAL_SIZE


@pytest.fixture
def memory_place():
    return Place.in_memory()


@pytest.fixture(autouse=True)
def staging(tmp_path, monkeypatch):
    """Local copies go where the test can see them."""
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("ckpt_remote.checkpoint.memory_directory", lambda size: None)
    return folder


def copies(staging):
    return [path.name for path in staging.rglob("*.index")]


def test_every_kind_of_state_comes_back(memory_place):
    def make(seed):
        dataset = tf.data.Dataset.range(100).shuffle(20, seed=1).batch(3)
        dense = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.float32, default_value=-1.0, empty_key=-1, deleted_key=-2
        )
        mutable = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        return {
            "float": tf.Variable(np.full((3, 4), seed, np.float32)),
            "scalar": tf.Variable(seed, dtype=tf.int64),
            "bfloat16": tf.Variable(np.full(5, seed), dtype=tf.bfloat16),
            "complex": tf.Variable([complex(seed, 1)]),
            "bool": tf.Variable([seed > 1, False]),
            "empty": tf.Variable(np.zeros((0, 3), np.float32)),
            "text": tf.Variable([f"text {seed}", "", "ü"]),
            "iterator": iter(dataset),
            "generator": tf.random.Generator.from_seed(seed),
            "dense": dense,
            "mutable": mutable,
        }

    saved = make(1)
    next(saved["iterator"])
    saved["dense"].insert(tf.constant([1, 2], tf.int64), tf.constant([1.0, 2.0]))
    saved["mutable"].insert(["a"], [7])
    memory_place.manager(tf.train.Checkpoint(**saved)).save()
    restored = make(2)
    memory_place.manager(tf.train.Checkpoint(**restored)).restore().assert_consumed()

    for name in ("float", "scalar", "bfloat16", "complex", "bool", "empty", "text"):
        assert saved[name].numpy().tolist() == restored[name].numpy().tolist(), name
    assert next(saved["iterator"]).numpy().tolist() == next(restored["iterator"]).numpy().tolist()
    assert saved["generator"].normal([3]).numpy().tolist() == restored["generator"].normal([3]).numpy().tolist()
    assert [1.0, 2.0, -1.0] == restored["dense"].lookup(tf.constant([1, 2, 3], tf.int64)).numpy().tolist()
    assert [7, -1] == restored["mutable"].lookup(tf.constant(["a", "b"])).numpy().tolist()


def make_model():
    model = keras.Sequential(
        [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def train(model, steps=2):
    for _ in range(steps):
        model.train_on_batch(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32))
    return model


def weights(model):
    return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]


def same(one, other):
    return len(one) == len(other) and all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_a_keras_model_and_its_optimizer_come_back(memory_place):
    model = train(make_model())
    memory_place.manager(tf.train.Checkpoint(model=model)).save()
    other = train(make_model(), steps=1)
    memory_place.manager(tf.train.Checkpoint(model=other)).restore().assert_consumed()

    assert same(weights(model), weights(other))


def test_what_is_created_after_restore_is_restored_then_and_the_copy_goes_when_nothing_needs_it(memory_place, staging):
    model = train(make_model())
    memory_place.manager(tf.train.Checkpoint(model=model)).save()
    other = make_model()  # has no variables yet, and its optimizer neither
    manager = memory_place.manager(tf.train.Checkpoint(model=other))
    status = manager.restore()
    gc.collect()
    assert ["ckpt-1.index"] == copies(staging)

    other.build((None, 3))
    other.optimizer.build(other.trainable_variables)
    status.assert_existing_objects_matched()
    assert same(weights(model), weights(other))

    del status, manager, other
    keras.backend.clear_session()
    gc.collect()
    assert [] == copies(staging)


def test_a_restore_that_consumed_everything_leaves_no_copy(memory_place, staging):
    value = tf.Variable(1.0)
    manager = memory_place.manager(tf.train.Checkpoint(value=value))
    manager.save()
    status = manager.restore()

    assert [] == copies(staging)
    status.assert_consumed()


def test_an_evaluator_that_restores_a_part_again_and_again_keeps_one_copy_at_most(memory_place, staging):
    part, whole = tf.Variable([1.0]), tf.Variable([2.0])
    trainer = memory_place.manager(tf.train.Checkpoint(part=part, whole=whole), max_to_keep=2)
    trainer.save()
    evaluator = memory_place.manager(tf.train.Checkpoint(part=tf.Variable([0.0])))
    for _ in range(4):
        evaluator.restore().expect_partial()
        trainer.save()

    assert 1 == len(copies(staging))


def test_memory_that_others_have_filled_in_the_meantime_sends_the_copy_to_disk(memory_place, staging, monkeypatch):
    value = tf.Variable([1.0])
    manager = memory_place.manager(tf.train.Checkpoint(value=value))
    manager.save()
    full = staging / "memory"
    full.mkdir()
    monkeypatch.setattr("ckpt_remote.checkpoint.memory_directory", lambda size: full)

    def allocate(local, size):
        if full in local.parents:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ckpt_remote.copy._allocate", allocate)
    manager.restore().assert_consumed()
    monkeypatch.setattr("ckpt_remote.copy._allocate", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StoreError, match="TMPDIR"):
        manager.restore()


@pytest.mark.parametrize("size", [2**41, 2**62])
def test_an_index_that_promises_more_than_is_there_costs_nothing(size, memory_place):
    manager = memory_place.manager(tf.train.Checkpoint(value=tf.Variable([1.0])))
    manager.save()
    entry = Entry(4, (size,), size=size)
    index = encode_index(Index(Header(num_shards=1), {b"value/.ATTRIBUTES/VARIABLE_VALUE": entry}))
    memory_place.store().put("ckpt-1.index", [index], "overwrite")
    started = time.perf_counter()
    with pytest.raises(CorruptError, match=r"data-00000-of-00001"):
        manager.restore()

    assert time.perf_counter() - started < 10.0


def test_a_restore_that_fails_leaves_no_copy_and_assigns_nothing(memory_place, staging):
    value = tf.Variable(np.arange(100.0))
    manager = memory_place.manager(tf.train.Checkpoint(value=value))
    manager.save()
    store = memory_place.store()
    data = bytearray(store.read("ckpt-1.data-00000-of-00001").data)
    data[-SEAL_SIZE - 9] ^= 1
    store.put("ckpt-1.data-00000-of-00001", [bytes(data)], "overwrite")
    value.assign_add(tf.ones(100, tf.float64))

    with pytest.raises(CorruptError, match=r"ckpt-1\.data-00000-of-00001 is damaged: 'value/"):
        manager.restore()
    assert 1.0 == value.numpy()[0]
    assert [] == copies(staging)


def test_a_damaged_seal_is_no_damage_to_the_values_before_it(memory_place):
    value = tf.Variable(np.arange(100.0))
    manager = memory_place.manager(tf.train.Checkpoint(value=value))
    manager.save()
    store = memory_place.store()
    data = store.read("ckpt-1.data-00000-of-00001").data
    for changed in (data[:-1] + bytes([data[-1] ^ 1]), data[:-SEAL_SIZE]):
        store.put("ckpt-1.data-00000-of-00001", [changed], "overwrite")
        value.assign(np.zeros(100))
        manager.restore().assert_consumed()
        assert np.arange(100.0).tolist() == value.numpy().tolist()


def test_a_missing_shard_is_damage_and_a_missing_checkpoint_is_not_found(memory_place):
    manager = memory_place.manager(tf.train.Checkpoint(value=tf.Variable(1.0)))
    path = manager.save()
    memory_place.store().delete(["ckpt-1.data-00000-of-00001"])

    with pytest.raises(CorruptError, match=r"ckpt-1\.data-00000-of-00001 is missing"):
        manager.restore(path)
    with pytest.raises(NotFoundError, match="ckpt-9"):
        manager.restore(f"{memory_place.url}/ckpt-9")


def test_a_mirrored_model_is_restored_into_a_plain_one_and_back(memory_place):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        mirrored = tf.Variable([1.0, 2.0])
        summed = tf.Variable(
            3.0, synchronization=tf.VariableSynchronization.ON_READ, aggregation=tf.VariableAggregation.SUM
        )
        memory_place.manager(tf.train.Checkpoint(a=mirrored, b=summed)).save()
    a, b = tf.Variable([0.0, 0.0]), tf.Variable(0.0)
    memory_place.manager(tf.train.Checkpoint(a=a, b=b)).restore().assert_consumed()
    mirrored.assign([0.0, 0.0])
    memory_place.manager(tf.train.Checkpoint(a=mirrored, b=summed)).restore().assert_consumed()

    assert ([1.0, 2.0], 3.0) == (a.numpy().tolist(), b.numpy())
    assert [1.0, 2.0] == mirrored.numpy().tolist()


def test_large_tensors_become_slices_that_tensorflow_restores_as_one(memory_place, tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_remote.checkpoint.shard_size", lambda total: 1000)
    values = np.random.default_rng(0).normal(size=(7, 13, 5))
    memory_place.manager(
        tf.train.Checkpoint(big=tf.Variable(values), half=tf.Variable(values.astype(np.float16)))
    ).save()
    folder = download(memory_place, tmp_path / "copy")
    big, half = tf.Variable(np.zeros_like(values)), tf.Variable(np.zeros(values.shape, np.float16))
    path = tf.train.latest_checkpoint(folder)
    tf.train.Checkpoint(big=big, half=half).read(path).expect_partial().assert_existing_objects_matched()

    assert 5 <= len(list(Path(folder).glob("*.data-*")))
    assert values.tobytes() == big.numpy().tobytes()
    assert values.astype(np.float16).tobytes() == half.numpy().tobytes()
    assert [7, 13, 5] == dict(tf.train.list_variables(path))["big/.ATTRIBUTES/VARIABLE_VALUE"]


def test_a_plain_copy_of_the_bucket_is_a_plain_tensorflow_checkpoint(place, tmp_path):
    model = train(make_model())
    place.manager(tf.train.Checkpoint(model=model), max_to_keep=2).save()
    folder = download(place, tmp_path / "copy")
    other = train(make_model(), steps=1)
    tf.train.Checkpoint(model=other).restore(tf.train.latest_checkpoint(folder)).assert_consumed()

    assert same(weights(model), weights(other))


def test_a_plain_tensorflow_checkpoint_copied_into_the_bucket_is_restored(place, tmp_path):
    model = train(make_model())
    stock = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), str(tmp_path / "stock"), max_to_keep=2)
    stock.save()
    stock.save()
    upload(tmp_path / "stock", place)
    other = train(make_model(), steps=1)
    manager = place.manager(tf.train.Checkpoint(model=other), max_to_keep=2)

    assert [f"{place.url}/ckpt-1", f"{place.url}/ckpt-2"] == manager.checkpoints
    manager.restore().assert_consumed()
    assert same(weights(model), weights(other))
    assert f"{place.url}/ckpt-3" == manager.save()
    assert [f"{place.url}/ckpt-2", f"{place.url}/ckpt-3"] == manager.checkpoints


class _Noted(tf.train.experimental.PythonState):
    def __init__(self, text):
        self.text = text

    def serialize(self):
        return self.text

    def deserialize(self, value):
        self.text = value.decode() if isinstance(value, bytes) else value


def test_python_state_comes_back(memory_place):
    memory_place.manager(tf.train.Checkpoint(note=_Noted("kept"))).save()
    note = _Noted("")
    memory_place.manager(tf.train.Checkpoint(note=note)).restore().assert_consumed()

    assert "kept" == note.text


def test_a_checkpoint_without_tensors_is_saved_and_restored(memory_place):
    manager = memory_place.manager(tf.train.Checkpoint())
    manager.save()

    manager.restore().assert_consumed()


def test_a_save_in_graph_mode_is_restored_eagerly_and_back(memory_place):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session, session.as_default():
        variable = tf.compat.v1.get_variable("v", initializer=[1.0, 2.0])
        session.run(tf.compat.v1.global_variables_initializer())
        manager = memory_place.manager(tf.train.Checkpoint(v=variable))
        assert f"{memory_place.url}/ckpt-1" == manager.save()
        assert f"{memory_place.url}/ckpt-2" == manager.save()
        session.run(variable.assign([0.0, 0.0]))
        manager.restore().assert_consumed().run_restore_ops()
        assert [1.0, 2.0] == session.run(variable).tolist()
    value = tf.Variable([0.0, 0.0])
    memory_place.manager(tf.train.Checkpoint(v=value)).restore().assert_consumed()

    assert [1.0, 2.0] == value.numpy().tolist()


class _Own(tf.__internal__.tracking.AutoTrackable):
    """Has a saver of its own, which writes a shard and, beside it, a file that TensorFlow knows nothing of."""

    def __init__(self, number, note):
        self.number, self.note = number, note

    @staticmethod
    def save(trackables, file_prefix):
        (name, own), *_ = trackables.items()
        tf.raw_ops.SaveV2(
            prefix=file_prefix, tensor_names=[name], shape_and_slices=[""], tensors=[tf.constant(own.number)]
        )
        Path(f"{file_prefix.numpy().decode()}.note").write_text(own.note)
        return file_prefix

    @staticmethod
    def restore(trackables, merged_prefix):
        (name, own), *_ = trackables.items()
        prefix = merged_prefix.numpy().decode()
        (number,) = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[name], shape_and_slices=[""], dtypes=[tf.int32])
        own.number, own.note = int(number), Path(f"{prefix}-Tests.Own.note").read_text()


class _Stray(tf.__internal__.tracking.AutoTrackable):
    """Its saver writes a file whose name does not begin with the prefix."""


@pytest.fixture(scope="module")
def _registered():
    from tensorflow.python.saved_model import registration  # there is no public way to register one

    registration.register_checkpoint_saver(
        package="Tests",
        name="Own",
        predicate=lambda trackable: isinstance(trackable, _Own),
        save_fn=_Own.save,
        restore_fn=_Own.restore,
    )

    def stray(trackables, file_prefix):
        Path(file_prefix.numpy().decode()).with_name("vocabulary.txt").write_text("words")
        return _Own.save({name: _Own(1, "") for name in trackables}, file_prefix)

    registration.register_checkpoint_saver(
        package="Tests",
        name="Stray",
        predicate=lambda trackable: isinstance(trackable, _Stray),
        save_fn=stray,
        restore_fn=_Own.restore,
    )


@pytest.mark.usefixtures("_registered")
def test_a_registered_savers_file_that_nobody_could_attribute_is_refused_before_anything_is_uploaded(memory_place):
    manager = memory_place.manager(tf.train.Checkpoint(stray=_Stray()))
    with pytest.raises(UnsupportedError, match=r"vocabulary\.txt"):
        manager.save()

    assert {} == read_all(memory_place)


@pytest.mark.usefixtures("_registered")
def test_a_registered_savers_shards_and_side_files_come_back_and_are_deleted_with_the_checkpoint(place):
    own, value = _Own(7, "kept"), tf.Variable(1.0)
    manager = place.manager(tf.train.Checkpoint(own=own, value=value), max_to_keep=1)
    manager.save()
    assert b"kept" == place.store().read("ckpt-1-Tests.Own.note").data

    other = _Own(0, "")
    place.manager(tf.train.Checkpoint(own=other, value=tf.Variable(0.0))).restore().assert_consumed()
    assert (7, "kept") == (other.number, other.note)
    manager.save()
    assert {"ckpt-2", "ckpt-2-Tests", "checkpoint"} == {key.partition(".")[0] for key in read_all(place)}


@pytest.mark.usefixtures("_registered")
def test_stock_tensorflow_restores_a_registered_savers_state_from_a_plain_copy(memory_place, tmp_path):
    memory_place.manager(tf.train.Checkpoint(own=_Own(7, "kept"))).save()
    own = _Own(0, "")
    path = tf.train.latest_checkpoint(download(memory_place, tmp_path / "copy"))
    tf.train.Checkpoint(own=own).restore(path).assert_consumed()

    assert (7, "kept") == (own.number, own.note)
