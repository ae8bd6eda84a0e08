"""Values that other tasks hold, as parameter servers do, brought to this process a few megabytes at a time.

    Holding(tensors)     within TensorFlow's traced save: all that one task has becomes one element of a queue there
    pull(holdings)       afterwards: piece by piece, several at a time, into files that are read as memory

A queue takes tensors as they are, without copying a byte, and a variable copies its buffer on the next write while
somebody holds it. So the values of one task are those of one moment, however long it takes to bring them here.

Promises: memory here grows by the pieces in flight, whatever the size of the values; on the other tasks, by what
training changes meanwhile, until the `Holding` goes.

What TensorFlow promises of that moment: each variable, and each shard of a sharded one, is read between two updates.
Nothing stops the workers meanwhile, so one variable may have seen updates that another has not; whoever minds waits for
the workers before saving (`ClusterCoordinator.join`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest

import numpy as np
import tensorflow as tf

from ckpt_remote.parallel import run_all
from ckpt_remote.spool import Spool

__all__ = ["Holding", "local_device", "pull"]

# Bytes. Larger ones travel no faster, and each is in memory about three times: received, decoded, being written.
_PIECE = 2 * 2**20
# How many pieces are in flight: one travels from a task while another is written, but never more than so many in all.
_STREAMS_PER_TASK = 2
_STREAMS = 8
# What every TensorFlow since 2.16 can join and cut. Others, of four and eight bits, travel alone and whole.
_DIVISIBLE = frozenset(
    {
        *(tf.bool, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.int8, tf.int16, tf.int32, tf.int64),
        *(tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128),
    }
)


class Holding:
    """Keeps the values of tensors of one task there, from within the function that computes them, until pulled.

    Args:
        tensors: Symbolic tensors of fixed size and of known shapes, at least one.

    Attributes:
        views: The bytes of each tensor, in the order given: zeros, until `pull` has returned.

    Raises:
        StoreError: There is no room for the values in the temporary directory.
    """

    def __init__(self, tensors: Sequence[tf.Tensor]) -> None:
        task = tf.DeviceSpec.from_string(tensors[0].device)
        self._device = task.replace(device_type="CPU", device_index=0).to_string()
        packs = list(_packs(tensors))
        self._sizes = [sum(_size(tensors[number]) for number in pack) for pack in packs]
        self._spool = Spool(sum(self._sizes))
        views, offset = {}, 0
        for number in chain.from_iterable(packs):
            views[number] = self._spool.view(offset, _size(tensors[number]))
            offset += _size(tensors[number])
        self.views = [views[number] for number in range(len(tensors))]
        with tf.init_scope(), tf.device(self._device):
            self._queue = tf.queue.FIFOQueue(1, [tensors[pack[0]].dtype for pack in packs])
        with tf.device(self._device):
            flat = [tf.reshape(tensor, [-1]) for tensor in tensors]
            self._queue.enqueue([_join([flat[number] for number in pack]) for pack in packs])

    def pieces(self) -> Iterator[Callable[[], None]]:
        """What to do, in any order, to have the values here."""
        with tf.device(self._device):
            values = self._queue.dequeue()
        offset = 0
        for value, size in zip(values if isinstance(values, list) else [values], self._sizes, strict=True):
            step = _PIECE if value.dtype in _DIVISIBLE else max(size, 1)
            for start in range(0, size, step):
                yield partial(self._bring, value, start, min(step, size - start), offset + start)
            offset += size

    def _bring(self, value: tf.Tensor, start: int, size: int, offset: int) -> None:
        if value.dtype in _DIVISIBLE:
            item_size = value.dtype.size
            with tf.device(self._device):
                value = tf.slice(value, [start // item_size], [size // item_size])
        with tf.device(local_device()):
            self._spool.write(offset, np.asarray(tf.identity(value)).view(np.uint8))


def pull(holdings: Sequence[Holding]) -> None:
    """Brings all values here.

    Raises:
        tf.errors.OpError: A task does not answer.
        StoreError: The temporary directory failed.
    """
    # From all tasks in turn, so that their connections share the work.
    turns = zip_longest(*(holding.pieces() for holding in holdings))
    pieces = [piece for turn in turns for piece in turn if piece is not None]
    run_all(pieces, threads=min(_STREAMS_PER_TASK * len(holdings), _STREAMS), name="ckpt_remote-pull")


def local_device() -> str:
    """This process's CPU, as the cluster knows it: the only device of which it is certain that it sees our files."""
    with tf.device(None), tf.device("CPU:0"):
        name: str = tf.identity(0).device
    return name


def _packs(tensors: Sequence[tf.Tensor]) -> Iterator[list[int]]:
    """Which tensors, by number, travel as one: small ones of a type share a piece, a large one is several."""
    open_packs: dict[tf.DType, list[int]] = {}
    filled: dict[tf.DType, int] = {}
    for number, tensor in enumerate(tensors):
        size = _size(tensor)
        if size > _PIECE // 2 or tensor.dtype not in _DIVISIBLE:
            yield [number]
            continue
        if filled.get(tensor.dtype, 0) + size > _PIECE:
            yield open_packs.pop(tensor.dtype)
            filled[tensor.dtype] = 0
        open_packs.setdefault(tensor.dtype, []).append(number)
        filled[tensor.dtype] = filled.get(tensor.dtype, 0) + size
    yield from open_packs.values()


def _join(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, 0)


def _size(tensor: tf.Tensor) -> int:
    return int(tensor.shape.num_elements()) * int(tensor.dtype.size)
