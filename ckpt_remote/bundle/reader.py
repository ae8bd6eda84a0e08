"""Reads tensors out of a bundle, given its index and a way to read its data files.

Promises: an array returned holds the bytes that were saved. Every byte passed its checksum, and every element
of a sliced tensor came from exactly one slice; otherwise `CorruptError`, and nothing is returned.

Does no I/O and keeps nothing: the caller's `read` fetches, caches and retries. An index that claims more bytes than
there are is found out at the first that is missing, not by running out of memory.
"""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_remote.buffers import Buffer
from ckpt_remote.bundle.dtypes import RESOURCE, STRING, VARIANT, find_dtype
from ckpt_remote.bundle.index import Index
from ckpt_remote.bundle.messages import Entry
from ckpt_remote.bundle.ordered import is_slice_key, slice_key, tensor_key, tensor_name
from ckpt_remote.bundle.slices import Tiling
from ckpt_remote.bundle.strings import decode_strings
from ckpt_remote.bundle.verify import check_bytes
from ckpt_remote.bundle.wire import reading
from ckpt_remote.errors import CorruptError, NotFoundError, UnsupportedError

__all__ = ["BundleReader"]

_NUMPY_MAX_RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


class BundleReader:
    """The tensors of one bundle, by name.

    Args:
        index: The bundle's index.
        read: Called with shard, offset and size, returns that many bytes of that data file. What it raises
            goes to the caller of the reader.
        path: What to call the bundle in errors.
    """

    def __init__(self, index: Index, read: Callable[[int, int, int], Buffer], *, path: str = "") -> None:
        self._entries = index.entries
        self._read = read
        self._path = path

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted. A sliced tensor is one tensor."""
        return sorted(tensor_name(key) for key in self._entries if not is_slice_key(key))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the tensor's shape; of a sliced one, the full shape.

        Raises:
            NotFoundError: The bundle has no such tensor.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> int:
        """Return TensorFlow's number for the tensor's data type.

        Raises:
            NotFoundError: The bundle has no such tensor.
        """
        return self._entry(name).dtype

    def extents(self, name: str) -> tuple[tuple[int, int, int], ...]:
        """Return shard, offset and size of each piece that `get_tensor` reads, in its order, to fetch ahead.

        Raises:
            NotFoundError: The bundle has no such tensor.
            CorruptError: The bundle lacks a slice of it.
        """
        entry = self._entry(name)
        with reading(self._path, f"tensor {name!r}"):
            pieces = self._slices(name, entry) if entry.slices else [entry]
        return tuple((piece.shard, piece.offset, piece.size) for piece in pieces if piece.size)

    def get_tensor(self, name: str) -> npt.NDArray[Any]:
        """Return the tensor as a writable array of its own memory; a string tensor as an array of `bytes`.

        Raises:
            NotFoundError: The bundle has no such tensor.
            CorruptError: Bytes are missing or do not match their checksum, or slices overlap or leave a gap.
            UnsupportedError: The tensor holds resources or variants, which only TensorFlow can load, or has a
                type or rank that the installed NumPy and ml_dtypes do not know.
            MemoryError: The tensor is larger than memory.
        """
        entry = self._entry(name)
        with reading(self._path, f"tensor {name!r}"):
            dtype = _numpy_type(entry)
            if not entry.slices:
                return self._load(entry, dtype)
            return self._assemble(entry, self._slices(name, entry), dtype)

    def _entry(self, name: str) -> Entry:
        key = tensor_key(name)
        entry = None if is_slice_key(key) else self._entries.get(key)
        if entry is None:
            raise NotFoundError(
                f"{self._path or 'bundle'}: no tensor {name!r} among its {len(self._entries)} entries",
                path=self._path or None,
            )
        return entry

    def _slices(self, name: str, entry: Entry) -> list[Entry]:
        """Return the entries of a tensor's slices, in its order."""
        pieces = []
        for part in entry.slices:
            piece = self._entries.get(slice_key(name, part))
            if piece is None:
                raise CorruptError(f"its slice {part} is not in the index")
            if piece.dtype != entry.dtype or piece.shape != part.shape(entry.shape):
                raise CorruptError(
                    f"its slice {part} has type {piece.dtype} and shape {piece.shape}, unlike the tensor"
                )
            pieces.append(piece)
        if sum(math.prod(piece.shape) for piece in pieces) != math.prod(entry.shape):
            raise CorruptError("its slices overlap or leave a gap")
        return pieces

    def _assemble(self, entry: Entry, pieces: list[Entry], dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
        bounds = [part.bounds(entry.shape) for part in entry.slices]
        arrays = (self._load(piece, dtype) for piece in pieces)
        first = next(arrays)  # before memory is set aside for what may not exist
        tiling = Tiling(bounds)
        tensor = np.empty(entry.shape, dtype)
        for where, values in zip(bounds, chain([first], arrays), strict=True):
            if not tiling.take(where):
                raise CorruptError("its slices overlap")
            tensor[where] = values
        return tensor

    def _load(self, entry: Entry, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
        """Return what is stored under one entry, checked."""
        data = self._read(entry.shard, entry.offset, entry.size) if entry.size else b""
        if entry.dtype == STRING:
            values = decode_strings(data, math.prod(entry.shape), entry.crc32c)
            strings = np.empty(len(values), dtype)
            strings[:] = values
            return strings.reshape(entry.shape)
        check_bytes(entry, data)
        tensor = np.empty(entry.shape, dtype)
        tensor.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return tensor


def _numpy_type(entry: Entry) -> "np.dtype[Any]":
    dtype = find_dtype(entry.dtype)
    if dtype.number in (RESOURCE, VARIANT):
        raise UnsupportedError(f"it holds a {dtype.name}, which only TensorFlow can load; restore it with TensorFlow")
    if dtype.numpy is None:
        raise UnsupportedError(f"the installed ml_dtypes has no {dtype.name}; upgrade it")
    if len(entry.shape) > _NUMPY_MAX_RANK:
        raise UnsupportedError(
            f"its rank {len(entry.shape)} is over NumPy's {_NUMPY_MAX_RANK}; restore it with TensorFlow"
        )
    return dtype.numpy
