"""Count saves and the steps between them, eagerly and in sessions.

Promises: `SaveCounter.rollback` undoes `advance`, and what `Interval.begin` returns undoes it, so that a failed save
leaves no trace; in graph mode no operation is added to the graph after the first use of each.
"""

import operator
from typing import Any

import tensorflow as tf

__all__ = ["Interval", "SaveCounter", "as_integer"]


def as_integer(value: Any) -> int:
    """The value of an integer, or of an integer variable or tensor, which in graph mode the default session reads.

    Raises:
        TypeError: It is no integer.
    """
    if isinstance(value, (tf.Tensor, tf.Variable)) and not tf.executing_eagerly():
        value = _session().run(value)
    elif hasattr(value, "numpy"):
        value = value.numpy()
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"Steps and checkpoints are numbered by integers, not by {value!r}.") from error


class Interval:
    """How often a checkpoint is due, as `tf.train.CheckpointManager` counts it.

    Args:
        steps: The least number of steps between two saves; None if each that is asked for is due.
        counter: The `tf.Variable` that counts them.
        last: The step of the last save; None if there was none.
    """

    def __init__(self, steps: int | None, counter: tf.Variable | None, last: int | None) -> None:
        self.steps = steps
        self.last = last
        self._counter = counter

    def is_over(self, *, check: bool) -> bool:
        """Whether it has passed; without `check`, whether any step has."""
        if self.steps is None or self.last is None:
            return True
        step = as_integer(self._counter)
        return step != self.last and not (check and step < self.last + self.steps)

    def begin(self) -> int | None:
        """Counts from this step, and returns which it has counted from."""
        before, self.last = self.last, None if self.steps is None else as_integer(self._counter)
        return before


class SaveCounter:
    """The `save_counter` of a checkpoint, as `tf.train.CheckpointManager` advances it.

    Args:
        checkpoint: Whose counter; it is created at the first use, so that it can still be restored.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._operations: tuple[Any, Any] | None = None

    def advance(self) -> int:
        """Adds one and returns the new value."""
        if tf.executing_eagerly():
            return int(self._checkpoint.save_counter.assign_add(1).numpy())
        add, _ = self._graph_operations()
        return int(_session().run(add))

    def adopt(self, value: int) -> None:
        """Takes over a value."""
        if tf.executing_eagerly():
            self._checkpoint.save_counter.assign(value)
        else:
            while (now := int(_session().run(self._checkpoint.save_counter))) != value:
                _session().run(self._graph_operations()[now > value])

    def rollback(self) -> None:
        """Takes one off again."""
        if tf.executing_eagerly():
            self._checkpoint.save_counter.assign_sub(1)
        else:
            _, subtract = self._graph_operations()
            _session().run(subtract)

    def _graph_operations(self) -> tuple[Any, Any]:
        if self._operations is None:
            with tf.variable_creator_scope(_initialized):
                counter = self._checkpoint.save_counter
            self._operations = counter.assign_add(1, read_value=True), counter.assign_sub(1, read_value=True)
        return self._operations


def _initialized(next_creator: Any, **kwargs: Any) -> Any:
    """A counter that comes to be after the user ran the initializers needs its own run."""
    variable = next_creator(**kwargs)
    _session().run(variable.initializer)
    return variable


def _session() -> Any:
    session = tf.compat.v1.get_default_session()
    if session is None:
        raise RuntimeError("In graph mode a default session is needed: use `with tf.compat.v1.Session():`.")
    return session
