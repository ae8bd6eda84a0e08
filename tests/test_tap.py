"""What we rely on in TensorFlow during a save. When one of these fails, TensorFlow has changed: read `tap` again."""

import numpy as np
import pytest
import tensorflow as tf

from ckpt_remote.bundle import Extent, TensorSlice, find_dtype
from ckpt_remote.tap import Tap, capture


def taken(checkpoint, options=None):
    snapshot = capture(checkpoint, "ckpt-1", options)
    return {tensor.key: tensor for group in snapshot.groups for tensor in group}


def value_key(name):
    return f"{name}/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_sharding_callback_may_keep_tensors_to_itself(tmp_path):
    tap = Tap()
    checkpoint = tf.train.Checkpoint(number=tf.Variable([1.0, 2.0]), text=tf.Variable("text"))
    checkpoint.write(str(tmp_path / "x"), options=tf.train.CheckpointOptions(experimental_sharding_callback=tap))

    assert [value_key("number")] == [tensor.key for group in tap.groups for tensor in group]
    assert {value_key("text"), "_CHECKPOINTABLE_OBJECT_GRAPH"} == dict(
        tf.train.list_variables(str(tmp_path / "x"))
    ).keys()


@tf.function
def _update_in_function(variable, update):
    update(variable)


@tf.function(jit_compile=True)
def _update_in_xla(variable, update):
    update(variable)


UPDATES = {
    "assign": lambda v: v.assign(tf.zeros_like(v)),
    "assign_add": lambda v: v.assign_add(tf.ones_like(v)),
    "scatter": lambda v: v.scatter_update(tf.IndexedSlices(tf.zeros([1, 4]), tf.constant([0]))),
    "scatter_nd": lambda v: v.scatter_nd_add([[1, 1]], [5.0]),
    "slice": lambda v: v[1:3].assign(tf.zeros([2, 4])),
    "sparse optimizer": lambda v: tf.raw_ops.ResourceSparseApplyAdagradV2(
        var=v.handle,
        accum=tf.Variable(tf.ones_like(v)).handle,
        lr=1.0,
        epsilon=1e-7,
        grad=tf.ones([1, 4]),
        indices=[2],
    ),
    "dense optimizer": lambda v: tf.raw_ops.ResourceApplyGradientDescent(
        var=v.handle, alpha=1.0, delta=tf.ones_like(v)
    ),
}


@pytest.mark.parametrize(
    ("update", "how"),
    [
        (update, how)
        for update in UPDATES
        for how in ("eager", "function", "xla")
        # The sparse optimizer's accumulator is made in the update, and the update by coordinates has no XLA kernel.
        if how == "eager" or update not in ("sparse optimizer", "scatter_nd")
    ],
)
def test_a_snapshot_keeps_its_values_whatever_training_does_afterwards(update, how):
    variable = tf.Variable(np.arange(32, dtype=np.float32).reshape(8, 4))
    UPDATES[update](variable)  # once before, so that TensorFlow has chosen how it accesses this variable
    before = variable.numpy()
    snapshot = taken(tf.train.Checkpoint(v=variable))
    apply = {"eager": lambda v, u: u(v), "function": _update_in_function, "xla": _update_in_xla}[how]
    for _ in range(3):
        apply(variable, UPDATES[update])
        variable.assign_add(2 * tf.ones_like(variable))

    assert not np.array_equal(before, variable.numpy())
    assert before.tobytes() == bytes(snapshot[value_key("v")].data)


def test_a_variables_bytes_are_its_own_memory_not_a_copy():
    variable = tf.Variable(np.zeros(1000, np.float32))
    address = np.asarray(variable.value()).ctypes.data

    assert address == taken(tf.train.Checkpoint(v=variable))[value_key("v")].data.ctypes.data


def test_a_lookup_tables_contents_are_copied_because_they_alias_the_live_table():
    table = tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.float32, default_value=-1.0, empty_key=-1, deleted_key=-2
    )
    table.insert(tf.constant([1, 2], tf.int64), tf.constant([1.0, 2.0]))
    snapshot = taken(tf.train.Checkpoint(table=table))
    before = bytes(snapshot["table/.ATTRIBUTES/table-values"].data)
    table.insert(tf.constant([1, 2], tf.int64), tf.constant([7.0, 7.0]))

    assert before == bytes(snapshot["table/.ATTRIBUTES/table-values"].data)
    assert before != bytes(taken(tf.train.Checkpoint(table=table))["table/.ATTRIBUTES/table-values"].data)


NUMERIC = [tf.as_dtype(number) for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23, 24, 25, 29, 30)]


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_every_numeric_type_and_shape_is_taken_byte_for_byte(dtype, shape):
    values = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(dtype.as_numpy_dtype)
    tensor = taken(tf.train.Checkpoint(v=tf.Variable(values, dtype=dtype)))[value_key("v")]

    assert (dtype.as_datatype_enum, shape, values.tobytes()) == (
        tensor.dtype,
        tensor.shape,
        bytes(tensor.data),
    )


def test_the_types_that_we_slice_are_those_that_tensorflow_restores_from_slices(tmp_path):
    sliced = set()
    for dtype in NUMERIC:
        values = (np.arange(8).reshape(4, 2) % 2).astype(dtype.as_numpy_dtype)
        prefix = str(tmp_path / dtype.name)
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=["t", "t"],
            shape_and_slices=["4 2 0,2:-", "4 2 2,2:-"],
            tensors=[tf.constant(values[:2]), tf.constant(values[2:])],
        )
        try:
            (restored,) = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=["t"], shape_and_slices=[""], dtypes=[dtype])
        except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
            continue
        if np.asarray(restored).tobytes() == values.tobytes():
            sliced.add(dtype.name)

    assert {dtype.name for dtype in NUMERIC if find_dtype(dtype.as_datatype_enum).sliceable} <= sliced


def test_the_users_sharding_callback_decides_what_shares_a_shard():
    variable = tf.Variable(np.arange(64, dtype=np.float32).reshape(8, 8))
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=128)
    snapshot = capture(
        tf.train.Checkpoint(v=variable),
        "x",
        tf.train.CheckpointOptions(experimental_sharding_callback=policy),
    )
    parts = [t.part for group in snapshot.groups for t in group if t.key == value_key("v")]

    assert snapshot.whole_groups
    assert [128, 128] == [sum(t.size for t in group if t.key == value_key("v")) for group in snapshot.groups]
    assert {TensorSlice((Extent(row, 4), Extent(0, 8))) for row in (0, 4)} == set(parts)


def test_a_group_of_the_users_is_exactly_one_object():
    from support.places import Place, read_all

    place = Place.in_memory()
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=3_000_000)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    checkpoint = tf.train.Checkpoint(v=tf.Variable(tf.ones([2000, 2000])))
    place.manager(checkpoint).save(options=options)
    groups = capture(checkpoint, "ckpt-1", options).groups

    assert 2 < len(groups) == sum(".data-" in key for key in read_all(place))


def test_in_graph_mode_tensorflow_writes_everything_and_it_is_read_back():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("v", initializer=np.arange(6, dtype=np.float32).reshape(2, 3))
        session.run(variable.initializer)
        snapshot = taken(tf.train.Checkpoint(v=variable))

    assert np.arange(6, dtype=np.float32).tobytes() == bytes(snapshot[value_key("v")].data)


def test_the_folder_is_gone_and_what_it_held_still_readable(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    snapshot = taken(tf.train.Checkpoint(text=tf.Variable("text")))

    assert not list(tmp_path.rglob("*.index"))
    assert b"text" in bytes(snapshot[value_key("text")].data)


def test_a_full_slice_is_the_whole_tensor_in_another_spelling():
    class FullSlice(tf.train.experimental.ShardingCallback):
        description = "as a slice that covers everything"

        def __call__(self, shardable_tensors):
            return [
                {t.checkpoint_key: {"2 2 -:-" if t.dtype == tf.float32 else "": t.tensor}} for t in shardable_tensors
            ]

    options = tf.train.CheckpointOptions(experimental_sharding_callback=FullSlice())

    assert taken(tf.train.Checkpoint(v=tf.Variable(tf.ones([2, 2]))), options)[value_key("v")].part is None
