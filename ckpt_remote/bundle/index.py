"""The index of a bundle: its header, an entry for every tensor and slice; and the names of the files.

Promises: an `Index` from `decode_index` makes sense in itself: each entry lies in a shard that exists and has
the size that its type and shape demand, each slice lies inside its tensor. `encode_index` writes no other.
Reading takes time and memory linear in the size of the file, however it was crafted.

Whether the data files hold what the entries say is for `reader` to check.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ckpt_remote.buffers import Buffer
from ckpt_remote.bundle.dtypes import DTYPES, STRING
from ckpt_remote.bundle.messages import (
    Entry,
    Header,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
)
from ckpt_remote.bundle.ordered import decode_slice_key, is_slice_key
from ckpt_remote.bundle.table import read_table, write_table
from ckpt_remote.bundle.wire import INT64_MAX, MAX_RANK, reading
from ckpt_remote.errors import CorruptError

__all__ = [
    "MAX_SHARDS",
    "Index",
    "decode_index",
    "encode_index",
    "index_name",
    "parse_shard_name",
    "shard_name",
]

MAX_SHARDS = 99_999
"""The number of shards has five digits in the names of their files."""

_HEADER_KEY = b""
_UINT32_MAX = 2**32 - 1
_LENGTHS_CHECKSUM = 4  # bytes of it in a string tensor
_SHARD_NAME = re.compile(r"(.*)\.data-([0-9]{5})-of-([0-9]{5})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Index:
    """What a bundle holds, and where.

    Attributes:
        header: The number of shards, and the write id.
        entries: By key, in any order: `tensor_key(name)` for a tensor, `slice_key(name, part)` for a slice.
    """

    header: Header
    entries: Mapping[bytes, Entry]


def encode_index(index: Index) -> bytes:
    """Return the content of the index file: for the same index always the same, and what TensorFlow writes.

    Raises:
        ValueError: The index does not make sense. The message names the entry and what is wrong with it.
    """
    _check_num_shards(index.header.num_shards)
    return write_table(_encode_items(index))


def decode_index(data: Buffer, *, path: str = "") -> Index:
    """Return the index in `data`.

    Args:
        data: The whole content of the index file.
        path: What to call the file in errors.

    Raises:
        CorruptError: `data` is no index, or it is damaged, or it does not make sense.
        UnsupportedError: The bundle is big-endian, or of a later format.
    """
    items = read_table(data, path=path)
    key, value = next(items, (b"", b""))
    with reading(path, "header"):
        if key != _HEADER_KEY:
            raise CorruptError("there is none")
        header = decode_header(value)
        try:
            _check_num_shards(header.num_shards)
        except ValueError as error:
            raise CorruptError(str(error)) from error
    rest = list(items)
    with reading(path):
        return Index(header, _decode_items(rest, header.num_shards))


def index_name(prefix: str) -> str:
    """Return the name of the index file of the bundle `prefix`."""
    return f"{prefix}.index"


def shard_name(prefix: str, shard: int, count: int) -> str:
    """Return the name of the data file `shard` of the `count` that belong to the bundle `prefix`.

    Raises:
        ValueError: There is no such shard, or `count` exceeds 99,999.
    """
    if not 0 <= shard < count <= MAX_SHARDS:
        raise ValueError(f"no shard {shard} of {count} can be named; shards run from 0, to {MAX_SHARDS} of them")
    return f"{prefix}.data-{shard:05d}-of-{count:05d}"


def parse_shard_name(name: str) -> tuple[str, int, int] | None:
    """Return the prefix, shard and count that `shard_name` made `name` of, or None if it did not."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None:
        return None
    prefix, shard, count = match[1], int(match[2]), int(match[3])
    return (prefix, shard, count) if shard < count else None


def _encode_items(index: Index) -> Iterator[tuple[bytes, bytes]]:
    yield _HEADER_KEY, encode_header(index.header)
    num_shards = index.header.num_shards
    for key in sorted(index.entries):
        entry = index.entries[key]
        try:
            _check_sense(key, entry, num_shards)
            value = encode_entry(entry)
        except ValueError as error:
            raise ValueError(f"entry {key!r}: {error}") from error
        yield key, value


def _decode_items(items: Iterable[tuple[bytes, bytes]], num_shards: int) -> dict[bytes, Entry]:
    entries: dict[bytes, Entry] = {}
    for key, value in items:
        try:
            entry = decode_entry(value)
            _check_sense(key, entry, num_shards)
        except ValueError as error:  # as CorruptError is
            raise CorruptError(f"entry {key!r}: {error}") from error
        entries[key] = entry
    return entries


def _check_num_shards(num_shards: int) -> None:
    if not 0 <= num_shards <= MAX_SHARDS:
        raise ValueError(f"it counts {num_shards} shards, not 0 to {MAX_SHARDS}")


def _check_sense(key: bytes, entry: Entry, num_shards: int) -> None:
    """Raise `ValueError` unless the entry makes sense."""
    if not key:
        raise ValueError("the empty key is the header's")
    if is_slice_key(key):
        decode_slice_key(key)
        if entry.slices:
            raise ValueError("a slice has slices itself")
    if entry.dtype <= 0:
        raise ValueError(f"it has no data type ({entry.dtype})")
    if entry.slices:
        _check_elements(entry.shape, 1)
        for part in entry.slices:
            part.bounds(entry.shape)
    else:
        _check_place(entry, num_shards)
        _check_size(entry)


def _check_place(entry: Entry, num_shards: int) -> None:
    if not 0 <= entry.shard < num_shards:
        raise ValueError(f"it lies in shard {entry.shard} of {num_shards}")
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > INT64_MAX:
        raise ValueError(f"it has {entry.size} bytes from {entry.offset} on, which no file can hold")
    if not 0 <= entry.crc32c <= _UINT32_MAX:
        raise ValueError(f"its checksum {entry.crc32c} is not of 32 bits")


def _check_size(entry: Entry) -> None:
    dtype = DTYPES.get(entry.dtype)
    itemsize = None if dtype is None else dtype.itemsize
    elements = _check_elements(entry.shape, itemsize or 1)
    if itemsize is not None and entry.size != elements * itemsize:
        raise ValueError(
            f"it has {entry.size} bytes, where its type and shape {entry.shape} take {elements * itemsize}"
        )
    if entry.dtype == STRING and entry.size < elements + _LENGTHS_CHECKSUM:
        raise ValueError(f"it has {entry.size} bytes, too few for {elements} strings")


def _check_elements(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the number of elements, if the shape is one that TensorFlow and NumPy can have."""
    if len(shape) > MAX_RANK:
        raise ValueError(f"its rank is {len(shape)}, over {MAX_RANK}")
    if shape and min(shape) < 0:
        raise ValueError(f"its shape {shape} has a negative dimension")
    elements = math.prod(shape)
    # NumPy multiplies the other dimensions of an empty array, too.
    largest = elements or math.prod(filter(None, shape))
    if largest * itemsize > INT64_MAX:
        raise ValueError(f"its shape {shape} has more elements than can be counted")
    return elements
