"""CRC-32C, the checksum of the format, in hardware.

Promises: buffers are read in place, whatever their kind, and the interpreter lock is released for the large
ones, so that many threads check at once. The PyPI package `crc32c` does both; `google-crc32c` does neither
(1.9 holds the lock and refuses `bytearray` and `memoryview`).
"""

import crc32c as _hardware

from ckpt_remote.buffers import Buffer, byte_view

__all__ = ["crc32c", "mask", "unmask"]

_UINT32 = 0xFFFFFFFF
_MASK_DELTA = 0xA282EAD8


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32C of `data`, continuing from `value`, the checksum of what came before."""
    return _hardware.crc32c(byte_view(data), value)


def mask(crc: int) -> int:
    """Return `crc` as it is stored: rotated and shifted, so that checksums of checksums stay strong.

    leveldb's, in TensorFlow's core/lib/hash/crc32c.h.
    """
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _UINT32


def unmask(masked: int) -> int:
    """Return the checksum that was stored as `masked`."""
    rotated = (masked - _MASK_DELTA) & _UINT32
    return (rotated >> 17 | rotated << 15) & _UINT32
