"""`restore(existing_only=True)` fetches what there are objects for, and TensorFlow finds that and nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, read_all
from support.watched import Watched

from ckpt_remote import CorruptError
from ckpt_remote.bundle import decode_index
from ckpt_remote.checkpoint import restore

MEBIBYTE = 2**20


class Meter:
    """Counts the bytes of data that are read from a place."""

    def __init__(self, place):
        self.bytes = 0
        self.store = Watched(place.store(), self._look)

    def _look(self, asked, perform):
        answer = perform()
        if asked.verb == "read_range":
            self.bytes += len(memoryview(answer).cast("B"))
        return answer

    def restore(self, checkpoint, path="ckpt-1", **named):
        return restore(checkpoint, self.store, path, None, **named)


def trained():
    """A model and its optimizer, whose variables are all nonzero."""
    model = keras.Sequential([keras.Input((600,)), keras.layers.Dense(700), keras.layers.Dense(500)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    for number, variable in enumerate((*model.variables, *optimizer.variables)):
        variable.assign(np.full(variable.shape, number + 1))
    return model, optimizer


@pytest.fixture
def place():
    """Where the model and its optimizer are saved."""
    place = Place.in_memory()
    model, optimizer = trained()
    place.manager(tf.train.Checkpoint(model=model, optimizer=optimizer, step=tf.Variable(7))).save()
    return place


def values(trackable):
    return [np.asarray(variable).tolist() for variable in trackable.variables]


def fresh():
    model, optimizer = trained()
    for variable in (*model.variables, *optimizer.variables):
        variable.assign(np.zeros(variable.shape))
    return model, optimizer


def test_a_model_without_its_optimizer_is_a_third_of_the_bytes(place):
    model, _ = fresh()
    everything, part = Meter(place), Meter(place)
    everything.restore(tf.train.Checkpoint(model=model))
    model, _ = fresh()
    part.restore(tf.train.Checkpoint(model=model), existing_only=True).assert_consumed()

    assert values(trained()[0]) == values(model)
    assert part.bytes < 0.36 * everything.bytes


def test_what_is_created_later_begins_with_its_initial_values(place):
    model, optimizer = fresh()
    checkpoint = tf.train.Checkpoint(model=model)
    place.manager(checkpoint).restore(existing_only=True)
    checkpoint.step = tf.Variable(3)
    checkpoint.optimizer = optimizer

    assert 3 == int(checkpoint.step)
    assert values(fresh()[1]) == values(optimizer)
    place.manager(checkpoint).restore().assert_consumed()
    assert 7 == int(checkpoint.step)
    assert values(trained()[1]) == values(optimizer)


def test_without_it_what_is_created_later_is_restored_then(place):
    checkpoint = tf.train.Checkpoint(model=fresh()[0])
    place.manager(checkpoint).restore()
    checkpoint.step = tf.Variable(3)

    assert 7 == int(checkpoint.step)


def test_a_model_that_is_not_built_yet_gets_nothing(place):
    model = keras.Sequential([keras.layers.Dense(700), keras.layers.Dense(500)])
    meter = Meter(place)
    meter.restore(tf.train.Checkpoint(model=model), existing_only=True)
    model.build((None, 600))

    assert 0.0 == float(model.variables[1][0])  # a bias begins with zeros
    assert meter.bytes < MEBIBYTE


def test_the_slots_of_the_variables_that_there_are_come_with_their_optimizer(tmp_path):
    def make(names):
        variables = {name: tf.Variable(np.full(9, 1.0, np.float32)) for name in names}
        momentum = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
        return variables, momentum, tf.train.Checkpoint(momentum=momentum, **variables)

    place = Place.in_memory()
    variables, momentum, checkpoint = make("ab")
    momentum.apply_gradients([(tf.fill(9, 2.0), it) for it in variables.values()])
    place.manager(checkpoint).save()
    present, again, checkpoint = make("a")
    place.manager(checkpoint).restore(existing_only=True).assert_existing_objects_matched()
    checkpoint.b = tf.Variable(np.full(9, 5.0, np.float32))
    again.apply_gradients([(tf.fill(9, 0.0), it) for it in (present["a"], checkpoint.b)])

    assert [2.0 * 0.9] * 9 == pytest.approx(again.get_slot(present["a"], "momentum").numpy().tolist())
    assert [0.0] * 9 == again.get_slot(checkpoint.b, "momentum").numpy().tolist()
    assert [5.0] * 9 == checkpoint.b.numpy().tolist()


def test_objects_with_strings_and_iterators_come_back_among_others():
    def make(**others):
        return tf.train.Checkpoint(
            words=tf.Variable(["", "ü"]), batches=iter(tf.data.Dataset.range(100).shuffle(9, seed=1)), **others
        )

    place = Place.in_memory()
    saved = make(large=tf.Variable(tf.zeros(MEBIBYTE)))
    saved.words.assign(["some", "words"])
    next(saved.batches)
    place.manager(saved).save()
    meter, restored = Meter(place), make()
    meter.restore(restored, existing_only=True).assert_existing_objects_matched()

    assert [b"some", b"words"] == restored.words.numpy().tolist()
    assert int(next(saved.batches)) == int(next(restored.batches))
    assert meter.bytes < MEBIBYTE


def test_partitioned_variables_come_back_among_others():
    class Table(tf.Module):
        """Ten rows, saved as two slices."""

        def __init__(self, value):
            super().__init__()
            self.value = tf.Variable(tf.fill((10, 3), value))

        def _serialize_to_tensors(self):
            return {"rows": {"10 3 0,4:-": self.value[:4], "10 3 4,6:-": self.value[4:]}}

        def _restore_from_tensors(self, tensors):
            self.restored = tf.nest.map_structure(np.asarray, tensors)

    place = Place.in_memory()
    place.manager(tf.train.Checkpoint(table=Table(2.0), large=tf.Variable(tf.zeros(MEBIBYTE)))).save()
    meter, table, expected = Meter(place), Table(0.0), Table(0.0)
    meter.restore(tf.train.Checkpoint(table=table), existing_only=True).assert_existing_objects_matched()
    Meter(place).restore(tf.train.Checkpoint(table=expected))

    assert str(expected.restored) == str(table.restored)
    assert 2.0 == tf.nest.flatten(table.restored)[0].max()
    assert meter.bytes < MEBIBYTE


def test_damage_to_what_nobody_wants_does_no_harm_and_to_what_somebody_wants_is_told(place):
    index = decode_index(read_all(place)["ckpt-1.index"])
    (key,) = (key for key in read_all(place) if ".data-" in key)

    def damage(name):
        entry = next(entry for path, entry in index.entries.items() if name in path)
        data = bytearray(place.store().read(key).data)
        data[entry.offset] ^= 1
        place.store().put(key, [bytes(data)], "overwrite")

    damage(b"optimizer/_variables/5")
    model, _ = fresh()
    Meter(place).restore(tf.train.Checkpoint(model=model), existing_only=True)
    assert values(trained()[0]) == values(model)
    damage(b"optimizer/_trainable_variables/0")  # the shortest path to the model's first variable
    with pytest.raises(CorruptError, match="_trainable_variables/0/"):
        Meter(place).restore(tf.train.Checkpoint(model=fresh()[0]), existing_only=True)
    damage(b"_CHECKPOINTABLE_OBJECT_GRAPH")
    with pytest.raises(CorruptError, match=r"data-00000-of-00001 is damaged: '_CHECKPOINTABLE_OBJECT_GRAPH'"):
        Meter(place).restore(tf.train.Checkpoint(model=fresh()[0]), existing_only=True)


def test_of_a_name_based_checkpoint_all_is_fetched(tmp_path):
    place = Place.in_memory()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        one, other = (
            tf.compat.v1.get_variable("one", initializer=1.0),
            tf.compat.v1.get_variable("other", initializer=2.0),
        )
        session.run(tf.compat.v1.global_variables_initializer())
        prefix = tf.compat.v1.train.Saver([one, other]).save(session, str(tmp_path / "ckpt-1"))
    for file in tmp_path.glob("ckpt-1.*"):
        place.store().put(file.name, [file.read_bytes()], "create")
    found = tf.Variable(0.0, name="one")
    checkpoint = tf.train.Checkpoint(found=found)
    Meter(place).restore(checkpoint, path=prefix.rpartition("/")[2], existing_only=True).run_restore_ops()

    assert 1.0 == float(found)
