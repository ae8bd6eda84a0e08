"""Writes whole bundles in memory: for tests, and tools that rewrite small ones.

Promises: TensorFlow restores what comes out, bit for bit. Not for large models: everything is copied. Those are
streamed (`upload`).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.bundle.crc32c import crc32c, mask
from ckpt_remote.bundle.dtypes import STRING, DType, dtype_from_numpy, find_dtype
from ckpt_remote.bundle.index import Index, encode_index, index_name, shard_name
from ckpt_remote.bundle.messages import Entry, Header
from ckpt_remote.bundle.ordered import slice_key, tensor_key
from ckpt_remote.bundle.slices import TensorSlice
from ckpt_remote.bundle.strings import encode_strings

__all__ = ["BundleWriter", "tensor_entry"]


def tensor_entry(
    dtype: int, shape: tuple[int, ...], shard: int, offset: int, data: Buffer, *, crc: int | None = None
) -> Entry:
    """Return the entry of a tensor or slice whose bytes, as they are stored, are `data`.

    Args:
        dtype: TensorFlow's number of the data type.
        shape: The shape of what is stored.
        shard: The data file it goes to.
        offset: Where in that file, in bytes.
        data: The bytes. They are read once, for the checksum, unless `crc` is given.
        crc: The masked checksum, for string and variant tensors, where it is not that of the bytes: see
            `encode_strings`.

    Raises:
        ValueError: Type and shape take another number of bytes, or the checksum of a string tensor is
            missing.
    """
    size = byte_view(data).nbytes
    itemsize = find_dtype(dtype).itemsize
    if itemsize is not None and size != math.prod(shape) * itemsize:
        raise ValueError(f"{size} bytes are not a tensor of type {find_dtype(dtype).name} and shape {shape}")
    if crc is None:
        if itemsize is None:
            raise ValueError(f"the checksum of a {find_dtype(dtype).name} tensor must be given")
        crc = mask(crc32c(data))
    return Entry(dtype, shape, shard, offset, size, crc)


class BundleWriter:
    """Collects tensors, and makes the files of a bundle of them.

    Each tensor goes to the shard that is shortest so far.

    Args:
        prefix: What the names of the files begin with.
        num_shards: How many data files to write.
        write_id: Goes into the header.
    """

    def __init__(self, prefix: str, num_shards: int = 1, write_id: str = "") -> None:
        self._prefix = prefix
        self._header = Header(num_shards, write_id)
        self._names = [shard_name(prefix, shard, num_shards) for shard in range(num_shards)]
        self._shards = [bytearray() for _ in range(num_shards)]
        self._entries: dict[bytes, Entry] = {}

    def add(self, name: str, array: npt.ArrayLike, dtype: int | None = None) -> None:
        """Add a whole tensor.

        Args:
            name: Its name.
            array: Its values; strings as `bytes`.
            dtype: TensorFlow's number of its data type, where NumPy's does not tell: for quantised types.

        Raises:
            TypeError: TensorFlow has no such data type, or a string is not `bytes`.
            ValueError: The name is taken.
        """
        values = np.asarray(array)
        self._store(tensor_key(name), values, _find_type(values, dtype))

    def add_slice(
        self,
        name: str,
        full_shape: tuple[int, ...],
        part: TensorSlice,
        array: npt.ArrayLike,
        dtype: int | None = None,
    ) -> None:
        """Add one slice of a tensor. The slices of a tensor must not overlap and, in the end, leave no gap.

        Args:
            name: The tensor's name.
            full_shape: The tensor's shape.
            part: Which part of it this is. If it is all of it, it is added whole, as TensorFlow does.
            array: The values of the slice.
            dtype: As for `add`.

        Raises:
            TypeError: As for `add`.
            ValueError: The slice was added already, or its shape, or what was said of the tensor before,
                disagrees.
        """
        values = np.asarray(array)
        if part.shape(full_shape) != values.shape:
            raise ValueError(f"{name!r}: slice {part} of {full_shape} has another shape than the array, {values.shape}")
        found = _find_type(values, dtype)
        if values.shape == full_shape:
            self._store(tensor_key(name), values, found)
            return
        known = self._entries.get(tensor_key(name), Entry(found.number, full_shape, slices=(part,)))
        if not known.slices or (known.dtype, known.shape) != (found.number, full_shape):
            raise ValueError(f"{name!r} was added before, with another type or shape, or whole")
        self._store(slice_key(name, part), values, found)
        slices = (*known.slices, part) if tensor_key(name) in self._entries else known.slices
        self._entries[tensor_key(name)] = Entry(found.number, full_shape, slices=slices)

    def finish(self) -> dict[str, bytes]:
        """Return the content of every file of the bundle, by name.

        Raises:
            ValueError: A name is empty or begins with a NUL byte, which only keys of slices do.
        """
        files = {name: bytes(shard) for name, shard in zip(self._names, self._shards, strict=True)}
        files[index_name(self._prefix)] = encode_index(Index(self._header, self._entries))
        return files

    def _store(self, key: bytes, values: npt.NDArray[Any], dtype: DType) -> None:
        if key in self._entries:
            raise ValueError(f"{key!r} was added before")
        data, crc = _encode(values, dtype)
        shard = min(range(len(self._shards)), key=lambda shard: len(self._shards[shard]))
        offset = len(self._shards[shard])
        self._entries[key] = tensor_entry(dtype.number, values.shape, shard, offset, data, crc=crc)
        self._shards[shard] += byte_view(data)


def _find_type(values: npt.NDArray[Any], number: int | None) -> DType:
    of_array = dtype_from_numpy(np.dtype(object) if values.dtype.kind == "S" else values.dtype)
    if number is None:
        return of_array
    wanted = find_dtype(number)
    if wanted.numpy != of_array.numpy:
        raise TypeError(f"an array of {values.dtype} is no {wanted.name} tensor")
    return wanted


def _encode(values: npt.NDArray[Any], dtype: DType) -> tuple[Buffer, int | None]:
    """Return the bytes that store `values`, and their checksum where it is not that of the bytes."""
    if dtype.number == STRING:
        strings = values.reshape(-1).tolist()
        for string in strings:
            if not isinstance(string, bytes):
                raise TypeError(f"a string tensor holds bytes, not {type(string).__name__}")
        return encode_strings(strings)
    ordered = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    return ordered.reshape(-1).view(np.uint8), None
