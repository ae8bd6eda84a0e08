"""Take a checkpoint's tensors out of TensorFlow's hands, in memory, during its own save.

    capture(checkpoint, name, options)
    └── checkpoint.write(<private folder>/name)         TensorFlow's own save, with everything that it does
        └── Tap, a tf.train.experimental.ShardingCallback
            ├── numeric tensors: kept, as views of their own memory
            └── strings, variants, the object graph: handed back, and written by TensorFlow, a few KB
    then the native bundle and any side files of registered savers are read back from the folder

In graph mode there is no tap: TensorFlow writes everything to the folder, and it is read back the same way.

Promises: what comes out is exactly what TensorFlow would have written; the values are those at the time of the call,
whatever training does afterwards; the folder is gone when this returns (what it held stays mapped until released).

What it relies on, pinned by canary tests: a callback may keep tensors to itself; in eager mode the tensor of a
variable is an immutable snapshot, because a variable copies its buffer on the next write while somebody holds it.
The contents of other resources may alias live memory (those of `DenseHashTable` do), so they are copied.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from ckpt_remote.errors import UnsupportedError
from ckpt_remote.plan import Tensor
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
        self._policy = policy or tf.train.experimental.ShardByTaskPolicy()

    @property
    def description(self) -> str:
        """What TensorFlow's metrics call this."""
        return "Keep numeric tensors in memory, to be streamed to an object store."

    def __call__(self, shardable_tensors: Sequence[Any]) -> Sequence[Any]:
        """Called by TensorFlow once for each task; returns the shards that TensorFlow is to write itself."""
        shards = self._policy(shardable_tensors)
        if not tf.executing_eagerly():  # several tasks: the tensors are symbolic, and only TensorFlow can write them
            return shards  # type: ignore[no-any-return]
        return [left for shard in shards if (left := self._keep(shard))]

    def _keep(self, shard: Mapping[str, Mapping[Any, Any]]) -> dict[str, dict[Any, Any]]:
        kept: list[Tensor] = []
        left: dict[str, dict[Any, Any]] = {}
        for key, tensors in shard.items():
            for spec, tensor in tensors.items():
                if find_dtype(tensor.dtype.as_datatype_enum).itemsize is None:
                    left.setdefault(key, {})[spec] = tensor
                else:
                    kept.append(_from_memory(key, str(spec).strip(), tensor))
        self.groups.append(tuple(kept))
        return left


def capture(checkpoint: tf.train.Checkpoint, name: str, options: tf.train.CheckpointOptions | None) -> Snapshot:
    """Takes everything that `checkpoint.write` would save.

    Args:
        checkpoint: Any `tf.train.Checkpoint`.
        name: The last segment of the prefix, as registered savers derive the names of their files from it.
        options: The user's. The sharding callback is honoured, the device for I/O passed on; asynchrony and write
            callbacks are the caller's business.

    Returns:
        The tensors and files, in memory.
    """
    folder = Folder()
    try:
        prefix = folder.path / name
        policy = options.experimental_sharding_callback if options else None
        tap = Tap(policy) if tf.executing_eagerly() else None
        checkpoint.write(
            str(prefix),
            options=tf.train.CheckpointOptions(
                experimental_io_device=options.experimental_io_device if options else None,
                experimental_sharding_callback=tap or policy,
            ),
        )
        native, files = _read_folder(prefix)
    finally:
        folder.remove()
    groups = [group for group in tap.groups if group] if tap else []
    # TensorFlow's own few KB share the first shard, rather than cost a request of their own.
    return Snapshot(
        groups=((*native, *(groups[0] if groups else ())), *groups[1:]),
        whole_groups=policy is not None,
        files=files,
    )


def _from_memory(key: str, spec: str, tensor: tf.Tensor) -> Tensor:
    # TensorFlow hands out scalars of ml_dtypes' types as such, and not as arrays.
    array = np.asarray(tensor) if tensor.shape.rank else np.asarray(tensor.numpy())
    data = array.reshape(-1).view(np.uint8)
    if not key.endswith(_VARIABLE_VALUE):
        data = data.copy()
    shape, part = parse_shape_and_slice(spec) if spec else (tuple(tensor.shape.as_list()), None)
    if part is not None and part.shape(shape) == shape:
        part = None  # all of it, in another spelling
    return Tensor(key=key, dtype=tensor.dtype.as_datatype_enum, shape=shape, part=part, data=data)


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
