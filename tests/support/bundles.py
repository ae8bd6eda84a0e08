"""Bundles on a disk, so that TensorFlow can write what we read and read what we write."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from ckpt_remote.bundle import DTYPES, BundleReader, DType, decode_index, index_name, shard_name

__all__ = [
    "NUMERIC",
    "open_bundle",
    "read_shards",
    "same_bits",
    "tensorflow_tensor",
    "tensorflow_write",
    "write_files",
]

NUMERIC = [
    dtype
    for dtype in DTYPES.values()
    if dtype.itemsize is not None and dtype.numpy is not None and dtype.number in types_pb2.DataType.values()
]
"""Every data type that the installed TensorFlow and ml_dtypes have, and whose elements have one size."""


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tensorflow_tensor(values: np.ndarray, dtype: DType) -> tf.Tensor:
    """Return `values` as TensorFlow's `dtype`, quantised types by their bits."""
    tensor = tf.constant(values)
    wanted = tf.as_dtype(dtype.number)
    return tensor if tensor.dtype == wanted else tf.bitcast(tensor, wanted)


def tensorflow_write(prefix: Path, tensors: Iterable[tuple[str, str, tf.Tensor]]) -> None:
    """Let TensorFlow write a bundle of (name, shape and slice, tensor)."""
    names, slices, values = zip(*tensors, strict=True)
    tf.raw_ops.SaveV2(
        prefix=os.fspath(prefix),
        tensor_names=list(names),
        shape_and_slices=list(slices),
        tensors=list(values),
    )


def read_shards(prefix: Path, count: int) -> Callable[[int, int, int], bytes]:
    def read(shard: int, offset: int, size: int) -> bytes:
        with Path(shard_name(os.fspath(prefix), shard, count)).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return read


def open_bundle(prefix: Path) -> BundleReader:
    index = decode_index(Path(index_name(os.fspath(prefix))).read_bytes())
    return BundleReader(index, read_shards(prefix, index.header.num_shards))


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit, NaNs and signs of zero included."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
