"""Checks the stored bytes of a tensor against its entry, whatever its type.

Promises: accepted is what TensorFlow's own reader accepts. Three kinds of checksum occur (tensor_bundle.cc):
of the bytes themselves; of strings, see `strings`; and of variants, which only TensorFlow can decode, but
anyone can check.
"""

import math

from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.bundle.crc32c import crc32c, mask
from ckpt_remote.bundle.dtypes import STRING, VARIANT
from ckpt_remote.bundle.messages import Entry
from ckpt_remote.bundle.strings import decode_strings
from ckpt_remote.bundle.wire import read_varint
from ckpt_remote.errors import CorruptError

__all__ = ["check_bytes", "is_intact"]

_CHECKSUM = 4  # bytes of it after each variant
_MAX_VARINT = 10


def is_intact(entry: Entry, data: Buffer) -> bool:
    """Return whether `data` are the bytes that were stored under `entry`, which has no slices."""
    try:
        check_bytes(entry, data)
    except CorruptError:
        return False
    return True


def check_bytes(entry: Entry, data: Buffer) -> None:
    """Return if `data` are the bytes that were stored under `entry`, which has no slices.

    Raises:
        CorruptError: They are not. The message tells place and cause; the caller knows tensor and file.
    """
    size = byte_view(data).nbytes
    place = f"its {entry.size} bytes from {entry.offset} on in shard {entry.shard}"
    if size != entry.size:
        raise CorruptError(f"of {place}, {size} are there")
    if entry.dtype == STRING:
        decode_strings(data, math.prod(entry.shape), entry.crc32c)
        return
    crc = _checksum_variants(data, math.prod(entry.shape)) if entry.dtype == VARIANT else crc32c(data)
    if mask(crc) != entry.crc32c:
        raise CorruptError(f"{place} do not match their checksum")


def _checksum_variants(data: Buffer, count: int) -> int:
    """Return the checksum of variants: each a length as varint, a message, and the masked checksum so far.

    It covers the lengths as uint64, the messages, and the checksums between (WriteVariantTensor).
    """
    view = byte_view(data)
    crc = position = 0
    for number in range(count):
        try:
            length, width = read_varint(bytes(view[position : position + _MAX_VARINT]), 0)
        except IndexError as error:
            raise CorruptError(f"its {len(view)} bytes end before variant {number} of {count}") from error
        position += width
        end = position + length
        crc = crc32c(view[position:end], crc32c(length.to_bytes(8, "little"), crc))
        stored = view[end : end + _CHECKSUM]
        if stored != mask(crc).to_bytes(_CHECKSUM, "little"):
            raise CorruptError(f"its variant {number} does not match its checksum")
        crc = crc32c(stored, crc)
        position = end + _CHECKSUM
    if position != len(view):
        raise CorruptError(f"its {count} variants take {position} bytes, not {len(view)}")
    return crc
