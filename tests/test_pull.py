"""Values held elsewhere, as far as one process can show it; tests/test_parameter_servers.py has the real clusters."""

import numpy as np
import pytest
import tensorflow as tf

from ckpt_remote import pull as module
from ckpt_remote.pull import Holding, local_device, pull

TYPES = [tf.as_dtype(number) for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23, 24, 25, 29, 30)]
SHAPES = [(), (0, 3), (5,), (64, 3), (2, 3), (1000,)]


def held(*values):
    """What a function holds of tensors or variables."""
    found = []

    @tf.function(autograph=False)
    def save():
        found.append(Holding([tf.identity(value) for value in values]))

    save()
    return found[0]


def pulled(*holdings):
    pull(holdings)
    return [[bytes(view) for view in holding.views] for holding in holdings]


@pytest.mark.parametrize("piece", [1, 64, 2 * 2**20], ids="{} bytes".format)
def test_every_type_and_shape_arrives_byte_for_byte(monkeypatch, piece):
    monkeypatch.setattr(module, "_PIECE", max(piece, 16))  # not less than an element
    arrays = [
        (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype.as_numpy_dtype)
        for shape in SHAPES
        for dtype in TYPES
    ]
    tensors = [tf.constant(array, dtype) for array, dtype in zip(arrays, TYPES * len(SHAPES), strict=True)]

    assert [[array.tobytes() for array in arrays]] == pulled(held(*tensors))


def test_small_tensors_of_a_type_travel_together_and_large_ones_in_pieces(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 400)
    floats, longs, large = tf.zeros([10]), tf.zeros([10], tf.int64), tf.zeros([1000])
    holding = held(*[floats, longs] * 10, large)

    assert 1 + 2 + 10 == len(list(holding.pieces()))  # 400 and 800 bytes that share pieces, and 4,000 that take ten


UPDATES = {
    "assign": lambda v: v.assign(tf.zeros_like(v)),
    "assign_add": lambda v: v.assign_add(tf.ones_like(v)),
    "scatter": lambda v: v.scatter_update(tf.IndexedSlices(tf.zeros([1, 4]), tf.constant([1]))),
    "slice": lambda v: v[1:3].assign(tf.zeros([2, 4])),
    "optimizer": lambda v: tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=1.0, delta=tf.ones_like(v)),
}


@pytest.mark.parametrize("update", UPDATES)
def test_values_are_those_at_the_time_of_holding(update):
    variable = tf.Variable(np.arange(1, 33, dtype=np.float32).reshape(8, 4))
    before = variable.numpy()
    holding = held(variable)
    UPDATES[update](variable)

    assert not np.array_equal(before, variable.numpy())
    assert [[before.tobytes()]] == pulled(holding)


def test_a_queue_holds_a_variables_own_memory_not_a_copy():
    """If this fails, TensorFlow has changed: a save costs the parameter servers as much memory again."""
    variable = tf.Variable(np.zeros(2**20, np.float32))
    queue = tf.queue.FIFOQueue(1, [tf.float32])

    @tf.function(autograph=False)
    def save():
        queue.enqueue([tf.reshape(variable, [-1])])

    save()

    assert np.asarray(variable.value()).ctypes.data == np.asarray(queue.dequeue()).ctypes.data


def test_several_tasks_are_pulled_at_once(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 16)
    first, second = np.arange(100.0), np.arange(7)
    found = pulled(held(tf.constant(first)), held(tf.constant(second), tf.constant(first)))

    assert [[first.tobytes()], [second.tobytes(), first.tobytes()]] == found


def test_the_local_device_is_the_local_one_whatever_the_scope():
    outside = local_device()
    with tf.device("/job:localhost/replica:0/task:0/device:CPU:0"):
        inside = local_device()

    assert "/job:localhost/replica:0/task:0/device:CPU:0" == outside == inside
