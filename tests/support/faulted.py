"""A training whose requests go wrong where a plan says so, over the real manager.

    Training({7: Fault.LATE_SAVE, 12: Fault.CRASH}, Genuine(), objects, attempts=1).run()

The directory holds an older checkpoint, by an earlier manager, and somebody else's. A manager saves, saves the same
number again, and saves; then, or when it has crashed, new managers restore and save until one could do so undisturbed.
The request of each number in the plan suffers the fault. After every change of the store, after every save and at the
end the promises are checked; `BrokenPromiseError` says which was broken.
"""

import enum
import functools
import itertools
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import ckpt_remote
from ckpt_remote.bundle import decode_index, index_name, is_intact, shard_name, tensor_key
from ckpt_remote.commit import STATE
from ckpt_remote.errors import CorruptError, NotFoundError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Delete, Put, Remove
from ckpt_remote.state import decode_state
from ckpt_remote.store import ObjectInfo, Store
from support.bundles import open_bundle
from support.schedules import BrokenPromiseError, Model
from support.watched import Asked, repeated

__all__ = ["URL", "Exposed", "Fault", "Genuine", "ModelStore", "Quick", "Training", "known_index", "known_state"]

URL = "s3://bucket/run"
OLDER = 0.0
COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
VALUE = "value/.ATTRIBUTES/VARIABLE_VALUE"
_FIRST = struct.Struct("<d")


class Crash(BaseException):
    """The process ends."""


class Fault(enum.Enum):
    """What befalls a request."""

    DENIED = "refused for good"
    SILENT = "never arrived, no answer"
    LOST = "landed, no answer"
    LATE_SAVE = "no answer, lands at the end of the next save"
    LATE_START = "no answer, lands before the next manager starts"
    CRASH = "never arrived, and the process ends"
    CRASH_LANDED = "landed, and the process ends"
    CRASH_LATE = "the process ends, lands at the end of the next save"


@dataclass(frozen=True, slots=True)
class Exposed:
    """A request that can suffer a fault.

    Attributes:
        writes: Whether it may change something.
        save: How many saves had ended before it.
    """

    writes: bool
    save: int


class ModelStore(Store):
    """The model of a store, as the library sees it."""

    url = URL
    engine = "a model"

    def __init__(self, model):
        self.model = model

    def read(self, key):
        if key not in self.model.objects:
            raise NotFoundError(f"there is no {key}")
        return self.model.objects[key]

    def read_range(self, key, start, length):
        data = self.read(key).data
        if len(data) < start + length:
            raise CorruptError(f"{key} is short")
        return data[start : start + length]

    def size(self, key):
        return len(self.read(key).data)

    def put(self, key, buffers, mode):
        return self.model.perform(Put(key, tuple(buffers), mode))

    def list(self, prefix=""):
        return (ObjectInfo(k, len(o.data)) for k, o in sorted(self.model.objects.items()) if k.startswith(prefix))

    def delete(self, keys):
        return self.model.perform(Delete(tuple(keys)))

    def remove(self, key, version):
        return self.model.perform(Remove(key, version))

    def require_container(self):
        pass


class Number:
    """Stands in for an integer variable."""

    def __init__(self):
        self.value = 0

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value = int(value)
        return self

    def assign_add(self, value):
        return self.assign(self.value + value)

    def assign_sub(self, value):
        return self.assign(self.value - value)


class Genuine:
    """What is trained is TensorFlow's: a variable, a checkpoint, a counter."""

    def __init__(self):
        self._variable = tf.Variable(np.zeros(64))
        self.checkpoint = tf.train.Checkpoint(value=self._variable)
        self.checkpoint.save_counter.assign(0)  # it comes to be at its first use
        self.step = tf.Variable(0)

    @property
    def value(self):
        return float(self._variable[0])

    @value.setter
    def value(self, value):
        self._variable.assign(np.full(64, value))


class Quick:
    """What is trained stands in for TensorFlow's, and is saved as TensorFlow saved another value once.

    Nine tenths of a run would be TensorFlow's own work otherwise.
    """

    def __init__(self, snapshot):
        self._snapshot = snapshot
        self.checkpoint = self
        self.save_counter = Number()
        self.step = Number()
        self.value = OLDER

    def capture(self, checkpoint, name, options):
        """In place of `ckpt_remote.tap.capture`."""
        values = {VALUE: np.full(64, self.value), COUNTER: np.int64(self.save_counter.value).reshape(1)}
        tensors = (
            replace(tensor, data=values[tensor.key].view(np.uint8), crc32c=None) if tensor.key in values else tensor
            for tensor in self._snapshot.groups[0]
        )
        return replace(self._snapshot, groups=(tuple(tensors),))

    def restore(self, prefix, options=None):
        """From the local copy, as TensorFlow would."""
        bundle = open_bundle(Path(prefix))
        self.value = float(bundle.get_tensor(VALUE)[0])
        self.save_counter.assign(bundle.get_tensor(COUNTER))
        return self

    def assert_consumed(self):
        """As TensorFlow's load status: everything was."""


class Training:
    """One run.

    Args:
        plan: Which requests suffer what.
        trained: What is saved: `Genuine` or `Quick`.
        before: The objects that are there.
        attempts: How often the manager may try a request.
        generations: Whether versions never repeat, as Google's, or are digests, as S3's.

    Attributes:
        exposed: The requests that could suffer a fault.
        requests: How many there were in all.
        outcomes: What became of the saves.
    """

    def __init__(self, plan, trained, before, *, attempts, generations=False):
        self.exposed = []
        self.requests = 0
        self.outcomes = Counter()
        self._plan = plan
        self._trained = trained
        self._checkpoint = trained.checkpoint
        self._attempts = attempts
        self._model = Model(generations, dict(before))
        self._foreign = {key: found for key, found in before.items() if key.startswith(("foreign", "ckpt-2."))}
        self._late = []
        self._saves = self._fired = self._landed = 0
        self._is_due_again = False
        self._is_exposed = True
        self._step = trained.step
        self._step.assign(0)
        self._values = itertools.count(1)
        self._acknowledged = OLDER
        self._possible = set()

    @property
    def store(self):
        """What `open_store` is to return."""
        return repeated(ModelStore(self._model), self._hand, attempts=self._attempts)

    def run(self):
        try:
            self._train()
            self._is_exposed = False
        except Crash:
            self.outcomes["crash"] += 1
        while not self._resume():
            self._is_exposed = False
        self._check_nothing_is_left()
        return self

    # What happens

    def _manager(self):
        return ckpt_remote.CheckpointManager(self._checkpoint, URL, 1, step_counter=self._step, checkpoint_interval=10)

    def _train(self):
        self._checkpoint.save_counter.assign(1)
        try:
            manager = self._manager()
        except StoreError:
            self.outcomes["no start"] += 1
            return
        self._save(manager)
        again = int(self._checkpoint.save_counter.numpy()) + (not self.outcomes["saved"])
        self._save(manager, again)
        self._save(manager)

    def _resume(self):
        """A new process restores and saves; returns whether it could do so undisturbed, and nothing is under way."""
        self._land(lambda late: late.at_start)
        before = self._fired, self._landed
        try:
            manager = self._manager()
            self._check_restored(manager.restore_or_initialize())
            self._is_due_again = False  # to TensorFlow the step of a restart is the one of the last save
            self._save(manager)
        except Crash:
            self.outcomes["crash"] += 1
            return False
        except StoreError:
            self.outcomes["no start"] += 1
            return False
        return before == (self._fired, self._landed) and not self._late

    def _save(self, manager, number=None):
        value = float(next(self._values))
        self._trained.value = value
        self._possible.add(value)
        before = int(self._checkpoint.save_counter.numpy())
        if not self._is_due_again:
            self._step.assign_add(10)
        try:
            path = manager.save(number)
        except UnknownOutcomeError:
            outcome = "unknown"
        except StoreError:
            outcome = "failed"
            self._possible.remove(value)
        else:
            outcome = "saved"
            self._check_saved(manager, path, value)
            self._acknowledged = value
            self._possible.clear()
        self.outcomes[outcome] += 1
        self._is_due_again = outcome == "failed"
        after = int(self._checkpoint.save_counter.numpy())
        if after != before + (outcome != "failed"):
            raise BrokenPromiseError(f"a save {outcome}, and the counter went from {before} to {after}")
        if outcome == "failed" and value in self._listed_values():
            raise BrokenPromiseError("a save failed, and is listed")
        self._end_of_save()

    def _end_of_save(self):
        self._saves += 1
        for late in self._late:
            late.saves -= 1
        self._land(lambda late: not late.at_start and late.saves <= 0)

    def _land(self, is_due):
        due = [late for late in self._late if is_due(late)]
        self._late = [late for late in self._late if late not in due]
        self._landed += len(due)
        for late in due:
            try:
                self._perform(late.asked, late.perform)
            except ckpt_remote.ConflictError:
                self.outcomes["refused late"] += 1

    # What befalls

    def _hand(self, asked, perform):
        self.requests += 1
        fault = None
        if self._is_exposed:
            fault = self._plan.get(len(self.exposed))
            self.exposed.append(Exposed(asked.writes, self._saves))
        if fault is None:
            return self._perform(asked, perform)
        self._fired += 1
        if fault in (Fault.LOST, Fault.CRASH_LANDED):
            self._land_now(asked, perform)
        elif fault in (Fault.LATE_SAVE, Fault.LATE_START, Fault.CRASH_LATE):
            saves = 1 if fault is Fault.CRASH_LATE else 2
            self._late.append(_Late(asked, perform, fault is Fault.LATE_START, saves))
        if fault in (Fault.CRASH, Fault.CRASH_LANDED, Fault.CRASH_LATE):
            raise Crash
        error = StoreError(f"{asked}: {fault.value}", transient=fault is not Fault.DENIED)
        if asked.verb == "delete":
            return dict.fromkeys(asked.keys, error)
        raise error

    def _land_now(self, asked, perform):
        try:
            self._perform(asked, perform)
        except ckpt_remote.ConflictError:
            self.outcomes["refused late"] += 1

    def _perform(self, asked, perform):
        if not asked.writes:
            return perform()
        before = dict(self._model.objects)
        answer = perform()
        if before != self._model.objects:
            self._check(asked)
        return answer

    # What must hold

    def _check(self, asked):
        objects = self._model.objects
        if any(objects.get(key) is not found for key, found in self._foreign.items()):
            raise BrokenPromiseError(f"{asked} touched somebody else's checkpoint")
        if STATE not in objects:
            raise BrokenPromiseError(f"{asked} deleted the state")
        for path in _listed(objects[STATE].data):
            if self._value(path) is None:
                raise BrokenPromiseError(f"{path} is listed and not whole, after {asked}")

    def _value(self, path):
        """The value in a checkpoint; None if it is not whole."""
        objects = self._model.objects
        found = objects.get(index_name(path))
        if found is None:
            return None
        parts = (objects.get(shard) for *_, shard in _layout(path, found.data))
        return _value(path, found.data, *(None if part is None else part.data for part in parts))

    def _listed_values(self):
        return {self._value(path) for path in _listed(self._model.objects[STATE].data)}

    def _check_saved(self, manager, path, value):
        latest = _listed(self._model.objects[STATE].data)[0]
        if path != f"{URL}/{latest}" or self._value(latest) != value:
            raise BrokenPromiseError(f"{path} was acknowledged with {value}, and {latest} is there")
        requests = self.requests
        if manager.save() is not None or self.requests != requests:
            raise BrokenPromiseError("a save at the same step was due again")

    def _check_restored(self, path):
        value = self._trained.value
        if value not in {self._acknowledged, *self._possible}:
            raise BrokenPromiseError(f"{path} restored {value}, and {self._acknowledged} was acknowledged last")
        if value != self._acknowledged:  # so it has landed; what was under way before it cannot any more
            self._acknowledged = value
            self._possible = {possible for possible in self._possible if possible > value}

    def _check_nothing_is_left(self):
        used = {STATE, *self._foreign}
        for path in _listed(self._model.objects[STATE].data):
            layout = _layout(path, self._model.objects[index_name(path)].data)
            used |= {index_name(path), *(shard for *_, shard in layout)}
        if left := sorted(self._model.objects.keys() - used):
            raise BrokenPromiseError(f"nobody needs {left}, and it is still there")


@dataclass(eq=False)
class _Late:
    """A request that is still under way: until the next manager starts, or so many saves have ended."""

    asked: Asked
    perform: Callable[[], Any]
    at_start: bool
    saves: int


# The same bytes say the same: half of a run would be spent on decoding what has been decoded before.
@functools.lru_cache(64)
def known_index(data):
    """As `decode_index`."""
    return decode_index(data)


@functools.lru_cache(64)
def known_state(data):
    """As `decode_state`; all paths are relative here."""
    return decode_state(data, path=STATE, directories=())


@functools.lru_cache(64)
def _listed(state):
    """The checkpoints in a state, the newest first."""
    decoded = known_state(state)
    listed = (decoded.latest, *(entry.path for entry in decoded.entries), *decoded.record.preserved)
    return tuple(dict.fromkeys(path for path in listed if path))


@functools.lru_cache(64)
def _layout(path, index):
    decoded = known_index(index)
    count = decoded.header.num_shards
    return tuple((key, entry, shard_name(path, entry.shard, count)) for key, entry in sorted(decoded.entries.items()))


@functools.lru_cache(64)
def _value(path, index, *parts):
    value = None
    for (key, entry, _), part in zip(_layout(path, index), parts, strict=True):
        content = b"" if part is None else part[entry.offset : entry.offset + entry.size]
        if not is_intact(entry, content):
            return None
        if key == tensor_key(VALUE):
            (value,) = _FIRST.unpack_from(content)
    return value
