"""What a worker of `support.mirrored` does: train, save and restore, under `MultiWorkerMirroredStrategy`.

    begin(arguments)            makes this process's `Training`
    perform(job, *arguments)    calls one of its methods, and says what came of it and how long it took

Promises: every worker trains on data of its own, so that what is not mirrored or added up differs between them.
"""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

import ckpt_remote
from ckpt_remote import manager
from ckpt_remote.store import open_store
from support.watched import Asked, repeated

__all__ = [
    "SHAPES", "Answer", "Done", "Failed", "KerasNet", "Moment", "Net", "Training", "begin", "perform",
]  # fmt: skip

# Nobody asks the network on which cloud this is, and nobody else's proxy carries what workers say to each other.
_NO_CLOUD = {"AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true", "GCE_METADATA_IP": "127.0.0.1:1"}


@dataclass(frozen=True, slots=True)
class Done:
    """What a job returned, and how many seconds it took."""

    value: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """What it raised: the name of the error's class, and what it said."""

    kind: str
    message: str
    seconds: float


Answer: TypeAlias = Done | Failed


@dataclass(frozen=True, slots=True)
class Moment:
    """A request of a worker's, at which something happens to it.

    Attributes:
        verb: The store's method.
        key: What the key begins or ends with.
        error: What the store raises then; None if the worker stands still there for good.
    """

    verb: str
    key: str
    error: Exception | None = None

    def is_now(self, asked: Asked) -> bool:
        """Whether that is the request."""
        return asked.verb == self.verb and any(key.startswith(self.key) or key.endswith(self.key) for key in asked.keys)


SHAPES = ((256, 2048), (2048, 512), (512, 16), (16, 1))


class Net(tf.Module):
    """A few layers, and two sums that each worker keeps by itself until somebody reads them."""

    def __init__(self) -> None:
        super().__init__()
        chance = np.random.default_rng(5)
        self.layers = [tf.Variable(chance.normal(size=shape) / shape[0], dtype=tf.float32) for shape in SHAPES]
        self.half = tf.Variable(tf.zeros([77, 3], tf.float16), trainable=False)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.seen = _on_read(tf.zeros([]), tf.VariableAggregation.SUM)
        self.mean = _on_read(tf.zeros([3]), tf.VariableAggregation.MEAN)

    def learn(self, x: tf.Tensor) -> tf.Tensor:
        """One step of one worker."""
        with tf.GradientTape() as tape:
            y = x
            for layer in self.layers:
                y = tf.matmul(y, layer)
            loss = tf.reduce_mean(tf.square(y - 1.0))
        gradients = tf.distribute.get_replica_context().all_reduce("mean", tape.gradient(loss, self.layers))
        for layer, gradient in zip(self.layers, gradients, strict=True):
            layer.assign_sub(0.1 * gradient)
        self.half.assign_add(tf.ones_like(self.half))
        self.step.assign_add(1)
        self.seen.assign_add(tf.cast(tf.shape(x)[0], tf.float32))
        self.mean.assign(tf.reduce_mean(x) * tf.constant([1.0, 2.0, 3.0]))
        return loss


class KerasNet(tf.Module):
    """A Keras model, its optimizer, and a metric.

    Args:
        normalize: Whether it has a layer that keeps moving averages, which Keras updates on each worker by itself.
    """

    def __init__(self, *, normalize: bool = False) -> None:
        super().__init__()
        import keras  # after TensorFlow knows its strategy

        between = [keras.layers.BatchNormalization()] if normalize else []
        layers = [keras.Input(SHAPES[0][:1]), keras.layers.Dense(64, "relu"), *between, keras.layers.Dense(1)]
        self.model = keras.Sequential(layers)
        self.adam = keras.optimizers.Adam()
        self.adam.build(self.model.trainable_variables)
        self._metric = keras.metrics.Mean()
        self.metric = list(self._metric.variables)  # a metric of Keras 3 is no object that TensorFlow saves

    @property
    def step(self) -> Any:
        """How many steps there have been."""
        return self.adam.iterations

    def learn(self, x: tf.Tensor) -> tf.Tensor:
        """One step of one worker."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.model(x, training=True) - 1.0))
        variables = self.model.trainable_variables
        self.adam.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        self._metric.update_state(loss)
        return loss


class Training:
    """One worker's training.

    Args:
        model: Makes the model, in the strategy's scope.
        own: Whether each worker has a variable and an iterator of its own, too.
    """

    def __init__(self, *, model: Callable[[], Any] = Net, own: bool = False) -> None:
        self._manager: Any = None
        self._moment: Moment | None = None
        self._call = ""
        manager.open_store = lambda *arguments: repeated(open_store(*arguments), self._hand)
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        self._rank = self._strategy.cluster_resolver.task_id
        with self._strategy.scope():
            self._net = model()
        self._plain = tf.Variable([1.0, 2.0])  # no strategy looks after this one
        parts = {"net": self._net, "plain": self._plain}
        if own:
            self._part = tf.Variable(tf.zeros([40 + self._rank]))
            self._batches = iter(tf.data.Dataset.range(1000 * self._rank, 1000 * self._rank + 1000))
            parts |= {f"part_{self._rank}": self._part, f"batches_{self._rank}": self._batches}
        self._checkpoint = tf.train.Checkpoint(**parts)
        self._learn = tf.function(self._net.learn)

    def open(self, url: str, options: Mapping[str, Any] | None, timeout: float = 60.0) -> tuple[str | None, int]:
        """Makes a manager and resumes: returns what was restored, and the step."""
        if self._manager is not None:
            self._manager.close()
        workers = dataclasses.replace(ckpt_remote.Workers.from_environment(), timeout=timeout)
        self._manager = ckpt_remote.CheckpointManager(
            self._checkpoint, url, 2, storage_options=options, workers=workers
        )
        return self._manager.restore_or_initialize(), self.train(0)

    def train(self, steps: int) -> int:
        """Trains, each worker on data of its own; returns the step."""
        for _ in range(steps):
            self._step()
        return int(self._net.step.numpy())

    def save(self, moment: Moment | None = None, call: str = "") -> str | None:
        """Saves.

        Args:
            moment: When something happens to this worker.
            call: The named pipe through which it says so.
        """
        self._moment, self._call = moment, call
        try:
            path: str | None = self._manager.save()
        finally:
            self._moment = None
        return path

    def save_by_step(self) -> str | None:
        """Saves under the number of the step, which is a mirrored variable."""
        path: str | None = self._manager.save(self._net.step)
        return path

    def write(self, folder: str) -> str:
        """Saves as plain TensorFlow does under this strategy: each worker into a folder of its own."""
        path: str = self._checkpoint.write(os.path.join(folder, str(self._rank), "ckpt"))  # noqa: PTH118
        return path

    def listed(self) -> list[str]:
        """The checkpoints."""
        checkpoints: list[str] = self._manager.checkpoints
        return checkpoints

    def drift(self, amount: float) -> None:
        """Changes what no strategy looks after."""
        self._plain.assign([1.0, 2.0 + amount])

    def advance(self, batches: int) -> None:
        """Takes so many of its own batches, and notes the last."""
        for _ in range(batches):
            self._part.assign(tf.fill(self._part.shape, tf.cast(next(self._batches), tf.float32)))

    def own(self) -> tuple[list[float], int]:
        """What its own variable holds, and its next batch."""
        return np.unique(self._part.numpy()).tolist(), int(next(self._batches))

    def train_until_preempted(self, call: str) -> None:
        """Trains until a worker is told to end; then all save, and exit with status 42.

        Args:
            call: The named pipe through which this worker says that it has begun.
        """
        preemption = tf.distribute.experimental.PreemptionCheckpointHandler(
            self._strategy.cluster_resolver,
            self._manager,
            termination_config=tf.distribute.experimental.TerminationConfig(
                exit_fn=lambda: sys.exit(42),
                save_fn=lambda: self._manager.save(self._net.step, check_interval=False),
            ),
        )
        Path(call).write_text("here")
        while True:
            preemption.run(self._step)

    def _step(self) -> None:
        x = tf.fill([4 + self._rank, SHAPES[0][0]], 0.1 * (1.0 + self._rank))
        self._strategy.run(self._learn, args=(x,))

    def _hand(self, asked: Asked, perform: Callable[[], Any]) -> Any:
        moment = self._moment
        if moment is not None and moment.is_now(asked):
            if moment.error is None:
                _stand_still(self._call)
            raise moment.error
        return perform()


_TRAINING: list[Training] = []


def begin(arguments: Mapping[str, Any]) -> None:
    """Makes the training of this process."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(_NO_CLOUD)
    _TRAINING.append(Training(**arguments))


def perform(job: str, *arguments: Any) -> Answer:
    """Does one job."""
    start = time.monotonic()
    try:
        value = getattr(_TRAINING[0], job)(*arguments)
    except Exception as error:  # noqa: BLE001 - the test judges it
        return Failed(type(error).__name__, str(error), time.monotonic() - start)
    return Done(value, time.monotonic() - start)


def _stand_still(call: str) -> None:
    Path(call).write_text("here")
    threading.Event().wait()


def _on_read(value: tf.Tensor, aggregation: tf.VariableAggregation) -> tf.Variable:
    read = tf.VariableSynchronization.ON_READ
    return tf.Variable(value, synchronization=read, aggregation=aggregation, trainable=False)
