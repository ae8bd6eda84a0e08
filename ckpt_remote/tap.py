"""Take a checkpoint's tensors out of TensorFlow's hands, in memory, during its own save.

    capture(checkpoint, name, options)
    ├── checkpoint.write(<private folder>/name)         TensorFlow's own save, with everything that it does
    │   └── Tap, a tf.train.experimental.ShardingCallback
    │       ├── numeric tensors: kept, as views of their own memory
    │       ├── those of other tasks, as parameter servers: held there
    │       └── strings, variants, the object graph: handed back, and written by TensorFlow, a few KB
    └── pull       what is held elsewhere, into files that are read as memory
    then the native bundle and any side files of registered savers are read back from the folder

In graph mode there is no tap: TensorFlow writes everything to the folder, and it is read back the same way.

Promises: what comes out is exactly what TensorFlow would have written; the values are those at the time of the call,
whatever training does afterwards; the folder is gone when this returns (what it held stays mapped until released).

What it relies on, pinned by canary tests: a callback may keep tensors to itself; in eager mode the tensor of a
variable is an immutable snapshot, because a variable copies its buffer on the next write while somebody holds it.
The contents of other resources may alias live memory (those of `DenseHashTable` do), so they are copied.
With several tasks TensorFlow calls the callback while it traces a function, so the tensors are symbolic: see `pull`.
"""

import contextlib
import mmap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckpt_remote.buffers import Buffer
from ckpt_remote.bundle import (
    decode_index,
    decode_slice_key,
    find_dtype,
    index_name,
    is_slice_key,
    parse_shape_and_slice,
    shard_name,
    tensor_key,
    tensor_name,
)
from ckpt_remote.errors import IncompleteError, UnsupportedError
from ckpt_remote.plan import Tensor
from ckpt_remote.pull import Holding, local_device, pull
from ckpt_remote.staging import Folder

__all__ = ["Snapshot", "capture"]

# The attribute under which TensorFlow saves the value of every kind of tf.Variable (trackable/constants.py).
_VARIABLE_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """Everything that one checkpoint consists of, in memory.

    Attributes:
        groups: The tensors; each group goes into shards of its own. One group, unless the user's own sharding
            callback made more.
        whole_groups: Whether each group is to be exactly one shard.
        files: Side files of registered savers: what to append to the prefix, and the content.
    """

    groups: tuple[tuple[Tensor, ...], ...]
    whole_groups: bool
    files: tuple[tuple[str, Buffer], ...]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for group in self.groups for tensor in group)


class Tap(tf.train.experimental.ShardingCallback):
    """Keeps the numeric tensors and leaves the rest to TensorFlow.

    Args:
        policy: Decides which tensors share a shard; TensorFlow's default, one for all, unless the user has another.
    """

    def __init__(self, policy: Any | None = None) -> None:
        self.groups: list[tuple[Tensor, ...]] = []
        self.holdings: list[Holding] = []
        self._policy = policy or tf.train.experimental.ShardByTaskPolicy()

    @property
    def description(self) -> str:
        """What TensorFlow's metrics call this."""
        return "Keep numeric tensors in memory, to be streamed to an object store."

    def __call__(self, shardable_tensors: Sequence[Any]) -> Sequence[Any]:
        """Called by TensorFlow once for each task; returns the shards that TensorFlow is to write itself."""
        shards = self._policy(shardable_tensors)
        mirrored = {it.checkpoint_key for it in shardable_tensors if _is_mirrored(it.trackable)}
        held = self._hold(
            tensor
            for shard in shards
            for tensors in shard.values()
            for tensor in tensors.values()
            if tf.is_symbolic_tensor(tensor) and _is_ours(tensor)
        )
        return [left for shard in shards if (left := self._keep(shard, held, mirrored))]

    def _hold(self, symbolic: Iterable[tf.Tensor]) -> Iterator[memoryview]:
        """The bytes of tensors that have no values yet, to be pulled when the save has run."""
        tensors = list(symbolic)
        if not tensors:
            return iter(())
        self.holdings.append(Holding(tensors))
        return iter(self.holdings[-1].views)

    def _keep(
        self, shard: Mapping[str, Mapping[Any, Any]], held: Iterator[memoryview], mirrored: Container[str]
    ) -> dict[str, dict[Any, Any]]:
        kept: list[Tensor] = []
        left: dict[str, dict[Any, Any]] = {}
        for key, tensors in shard.items():
            for spec, tensor in tensors.items():
                if not _is_ours(tensor):
                    left.setdefault(key, {})[spec] = tensor
                    continue
                data = next(held) if tf.is_symbolic_tensor(tensor) else _memory_of(key, tensor)
                kept.append(_tensor(key, str(spec).strip(), tensor, data, mirrored=key in mirrored))
        self.groups.append(tuple(kept))
        return left


def _is_mirrored(trackable: Any) -> bool:
    """Whether a strategy keeps copies of a variable on several workers; Keras has such a one inside its own."""
    distributed = tf.distribute.DistributedValues
    return isinstance(trackable, distributed) or isinstance(getattr(trackable, "value", None), distributed)


def capture(checkpoint: tf.train.Checkpoint, name: str, options: tf.train.CheckpointOptions | None) -> Snapshot:
    """Takes everything that `checkpoint.write` would save.

    Args:
        checkpoint: Any `tf.train.Checkpoint`.
        name: The last segment of the prefix, as registered savers derive the names of their files from it.
        options: The user's. The sharding callback is honoured; asynchrony and write callbacks are the caller's
            business. The device for I/O matters in graph mode only: else it is this process, whose folder it is.

    Returns:
        The tensors and files, in memory; what other tasks hold, in a file without a name in the temporary directory.

    Raises:
        IncompleteError: A task that holds variables does not answer.
        StoreError: The temporary directory has no room for what other tasks hold.
        UnsupportedError: A registered saver wrote files under names of its own.
    """
    folder = Folder()
    try:
        prefix = folder.path / name
        policy = options.experimental_sharding_callback if options else None
        tap = Tap(policy) if tf.executing_eagerly() else None
        with _told_who_is_lost(name):
            checkpoint.write(
                str(prefix),
                options=tf.train.CheckpointOptions(
                    experimental_io_device=local_device() if tap else options and options.experimental_io_device,
                    experimental_sharding_callback=tap or policy,
                ),
            )
            if tap:
                pull(tap.holdings)
        native, files = _read_folder(prefix)
    finally:
        folder.remove()
    groups = [group for group in tap.groups if group] if tap else []
    if policy is None:
        groups = [tuple(chain.from_iterable(groups))]  # one of each task; what shares an object is ours to decide
    # TensorFlow's own few KB share the first shard, rather than cost a request of their own.
    return Snapshot(
        groups=((*native, *(groups[0] if groups else ())), *groups[1:]),
        whole_groups=policy is not None,
        files=files,
    )


@contextlib.contextmanager
def _told_who_is_lost(name: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise IncompleteError(
            f"Cannot save {name}: a task that holds variables, as a parameter server does, is gone or does not answer "
            f"({error.message}). Nothing was saved. Connect to the cluster again, restore and go on."
        ) from error


def _is_ours(tensor: tf.Tensor) -> bool:
    """Whether its bytes can be told without TensorFlow: what is traced must have a size by then."""
    return find_dtype(tensor.dtype.as_datatype_enum).itemsize is not None and tensor.shape.is_fully_defined()


def _memory_of(key: str, tensor: tf.Tensor) -> Buffer:
    # TensorFlow hands out scalars of ml_dtypes' types as such, and not as arrays.
    array = np.asarray(tensor) if tensor.shape.rank else np.asarray(tensor.numpy())
    data = array.reshape(-1).view(np.uint8)
    return data if key.endswith(_VARIABLE_VALUE) else data.copy()


def _tensor(key: str, spec: str, tensor: tf.Tensor, data: Buffer, *, mirrored: bool) -> Tensor:
    shape, part = parse_shape_and_slice(spec) if spec else (tuple(tensor.shape.as_list()), None)
    if part is not None and part.shape(shape) == shape:
        part = None  # all of it, in another spelling
    return Tensor(key=key, dtype=tensor.dtype.as_datatype_enum, shape=shape, part=part, data=data, mirrored=mirrored)


def _read_folder(prefix: Path) -> tuple[list[Tensor], tuple[tuple[str, Buffer], ...]]:
    """The bundle that TensorFlow wrote at `prefix`, and the files beside it."""
    path = prefix.parent / index_name(prefix.name)
    index = decode_index(path.read_bytes(), path=str(path))
    shards = [
        prefix.parent / shard_name(prefix.name, number, index.header.num_shards)
        for number in range(index.header.num_shards)
    ]
    contents = [_map(shard) for shard in shards]
    tensors = []
    for key, entry in index.entries.items():
        if entry.slices:
            continue  # says only which slices there are; they say it themselves
        name, part = decode_slice_key(key) if is_slice_key(key) else (tensor_name(key), None)
        shape = entry.shape if part is None else index.entries[tensor_key(name)].shape
        data = contents[entry.shard][entry.offset : entry.offset + entry.size]
        tensors.append(Tensor(key=name, dtype=entry.dtype, shape=shape, part=part, data=data, crc32c=entry.crc32c))
    files = sorted(file for file in prefix.parent.rglob("*") if file.is_file() and file not in {path, *shards})
    for file in files:
        if not str(file).startswith(str(prefix)):
            raise UnsupportedError(
                f"Cannot save {prefix.name}: a registered saver wrote {file.name!r}, whose name does not begin with "
                "the file prefix that it was given, so nobody could tell whose it is. Make it begin with the prefix."
            )
    return tensors, tuple((str(file)[len(str(prefix)) :], _map(file)) for file in files)


def _map(file: Path) -> memoryview:
    """The content of a file, paged in as needed, and readable after the file's name is gone."""
    with file.open("rb") as opened:
        if file.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
