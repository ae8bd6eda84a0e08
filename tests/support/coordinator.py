"""What a coordinator does in a test: a small model that lives on parameter servers is trained, saved and restored.

The functions at the end are called in the process of a chief (see `cluster`); the state between calls is `_job`.
"""

import contextlib
import gc
import os
import signal
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import ckpt_remote
from ckpt_remote import pull, staging
from ckpt_remote.pull import Holding, local_device
from ckpt_remote.spool import Spool

ROWS, COLUMNS = 12, 4
_job = None


class Job:
    """A model: a table in shards, some small variables, and optimizers.

    Args:
        strategy: Where it lives; this process by default.
        slots: Whether to have an optimizer with slots for each shard. TensorFlow saves these as they are, so such a
            model cannot be restored onto another number of shards.
    """

    def __init__(self, strategy=None, *, slots=False):
        self.strategy = strategy
        with strategy.scope() if strategy else contextlib.nullcontext():
            self.table = tf.Variable(tf.zeros([ROWS, COLUMNS]), name="table")
            self.dense = tf.Variable(tf.ones([COLUMNS]), name="dense")
            self.half = tf.Variable(tf.ones([3], tf.bfloat16), name="half")
            self.text = tf.Variable("text", name="text")
            self.loose = tf.Variable([1.0, 2.0], shape=[None], name="loose")
            self.slotted = tf.compat.v1.train.AdagradOptimizer(0.1)
            self.sharded = keras.optimizers.Adagrad(0.1)
            self.sharded.build(self.trained)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.lookup = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
        self.lookup.insert(tf.constant([1, 2], tf.int64), tf.constant([10.0, 20.0]))
        self.checkpoint = tf.train.Checkpoint(
            table=self.table,
            dense=self.dense,
            half=self.half,
            text=self.text,
            loose=self.loose,
            slotted=self.slotted,
            step=self.step,
            lookup=self.lookup,
            **({"sharded": self.sharded} if slots else {}),
        )

    @property
    def trained(self):
        return [*getattr(self.table, "variables", [self.table]), self.dense]

    def train(self, steps):
        """Trains on the workers."""

        @tf.function(autograph=False)
        def step():
            def replica():
                with tf.GradientTape(persistent=True) as tape:
                    found = tf.nn.embedding_lookup(self.table, [1, ROWS - 2])
                    loss = tf.reduce_sum((found - 1.0) ** 2 * self.dense)
                gradients = tape.gradient(loss, self.trained)
                self.slotted.apply_gradients([(gradients[-1], self.dense)])
                self.sharded.apply_gradients(zip(gradients, self.trained, strict=True))

            self.strategy.run(replica)

        coordinator = tf.distribute.coordinator.ClusterCoordinator(self.strategy)
        for _ in range(steps):
            coordinator.schedule(step)
        coordinator.join()
        self.step.assign_add(steps)

    def values(self):
        """What the model holds, whatever its shards."""
        slot = self.slotted.get_slot(self.dense, "accumulator")
        return {
            "table": tf.convert_to_tensor(self.table).numpy().tolist(),
            "dense": self.dense.numpy().tolist(),
            "half": self.half.numpy().astype(np.float32).tolist(),
            "text": self.text.numpy(),
            "loose": self.loose.numpy().tolist(),
            "slot": None if slot is None else slot.numpy().tolist(),
            "step": int(self.step),
            "lookup": self.lookup.lookup(tf.constant([1, 2], tf.int64)).numpy().tolist(),
        }


def connect(shards):
    """Joins the cluster, with at most so many shards of a variable."""
    # What a machine of its own has in memory, other tasks do not see either.
    staging._SHARED_MEMORY = Path(tempfile.gettempdir())
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(min_shard_bytes=64, max_shards=shards)
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def begin(shards, slots):
    """Makes the model."""
    global _job  # noqa: PLW0603 - a process has one
    _job = Job(connect(shards), slots=slots)


def begin_large(shards, size):
    """Makes a model of one variable instead, of so many bytes, once what a first save costs in any case is spent."""
    global _job  # noqa: PLW0603 - a process has one
    with connect(shards).scope():
        small = tf.Variable(tf.zeros([64, 4]), name="small")
        large = tf.Variable(lambda: tf.zeros([size // 4096, 1024]), name="large")
    _job = Large(small)
    save("memory://first/run")
    _job = Large(large)


class Large:
    """A model of one variable."""

    def __init__(self, variable):
        self.variable = variable
        self.checkpoint = tf.train.Checkpoint(large=variable)

    def fill(self, value):
        for shard in self.variable.variables:
            with tf.device(shard.device):
                shard.assign(tf.fill(shard.shape, value))


def train(steps):
    _job.train(steps)


def fill(value):
    _job.fill(value)


def values():
    return _job.values()


def save(url, policy=None):
    with ckpt_remote.CheckpointManager(_job.checkpoint, url, None) as manager:
        return manager.save(options=tf.train.CheckpointOptions(experimental_sharding_callback=policy))


class OneEach(tf.train.experimental.ShardingCallback):
    """A shard for each tensor and slice."""

    description = "one each"

    def __call__(self, shardable_tensors):
        return [{it.checkpoint_key: {it.slice_spec: it.tensor}} for it in shardable_tensors]


def save_one_each(url):
    return save(url, OneEach())


def save_native():
    """As TensorFlow itself does, into a folder of this process, whose path elsewhere is returned."""
    device = tf.train.CheckpointOptions(experimental_io_device=local_device())
    _job.checkpoint.write("native/ckpt-1", device)
    return os.path.realpath("native")


def save_while(event, url):
    """Saves while something happens: once the first values have arrived, and before the others do."""
    write = Spool.write

    def written(spool, offset, data):
        Spool.write = write
        event()
        write(spool, offset, data)

    pull._STREAMS = 1
    Spool.write = written
    try:
        return save(url)
    finally:
        assert Spool.write is write, "nothing has arrived"


def save_while_a_server_dies(url, pid):
    return save_while(lambda: _kill(pid), url)


def save_after_a_server_died(url, pid):
    _kill(pid)
    return save(url)


def save_while_dying(url):
    return save_while(lambda: os.kill(os.getpid(), signal.SIGKILL), url)


def save_while_workers_write(url):
    return save_while(lambda: train(3), url)


def save_while_overwritten(url):
    return save_while(overwrite, url)


def overwrite():
    """Writes to variables in the ways that training does."""
    for variable in _job.trained:
        with tf.device(variable.device):
            variable.assign_add(tf.ones_like(variable))
            variable.scatter_update(tf.IndexedSlices(tf.fill([1, *variable.shape[1:]], 7.0), tf.constant([0])))


def _kill(pid):
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        while True:  # the process that forked us all takes its status at once
            os.kill(pid, 0)


def restore(url):
    with ckpt_remote.CheckpointManager(_job.checkpoint, url, None) as manager:
        manager.restore().assert_existing_objects_matched()


def holdings():
    """How many are left, once what only refers to itself is gone."""
    gc.collect()
    return sum(isinstance(found, Holding) for found in gc.get_objects())


def files():
    """What is left in the temporary directory, but for what marks it as this process's, and TensorFlow's own code."""
    found = (path.name for path in Path(tempfile.gettempdir()).rglob("*") if path.is_file())
    return [name for name in found if name != "owner.lock" and not name.startswith("__autograph_generated_file")]


def look():
    """How tensors come to a sharding callback: key, slice's spec, whether symbolic, and the job of its device."""
    found = []

    class Look(OneEach):
        def __call__(self, shardable_tensors):
            for it in shardable_tensors:
                job = tf.DeviceSpec.from_string(it.tensor.device).job
                found.append((it.checkpoint_key, it.slice_spec, tf.is_symbolic_tensor(it.tensor), job))
            return super().__call__(shardable_tensors)

    options = tf.train.CheckpointOptions(experimental_io_device=local_device(), experimental_sharding_callback=Look())
    _job.checkpoint.write("native/look", options)
    return found
