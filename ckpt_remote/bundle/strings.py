"""String tensors in a bundle (WriteStringTensor and ReadStringTensor in tensor_bundle.cc).

The lengths as varints, the masked checksum of the lengths, then the strings. Neither checksum is of the bytes
stored: the first covers the lengths as uint32 (uint64 above 4 GiB), the second continues it over the first,
masked, and the strings.

Promises: `decode_strings` returns what `encode_strings` was given, or raises `CorruptError`.
"""

from collections.abc import Iterable, Sequence

from ckpt_remote.buffers import Buffer
from ckpt_remote.bundle.crc32c import crc32c, mask
from ckpt_remote.bundle.wire import encode_varint, read_varint
from ckpt_remote.errors import CorruptError

__all__ = ["decode_strings", "encode_strings"]

_CHECKSUM = 4


def encode_strings(values: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the bytes that store `values`, and the masked checksum for their entry."""
    lengths = [len(value) for value in values]
    crc = _checksum_lengths(lengths)
    stored = mask(crc).to_bytes(_CHECKSUM, "little")
    strings = b"".join(values)
    crc = crc32c(strings, crc32c(stored, crc))
    return b"".join([*map(encode_varint, lengths), stored, strings]), mask(crc)


def decode_strings(data: Buffer, count: int, crc: int) -> list[bytes]:
    """Return the strings of a tensor.

    Args:
        data: All the bytes of the tensor.
        count: How many strings they hold.
        crc: The masked checksum in their entry.

    Raises:
        CorruptError: The bytes are not `count` strings, or fail a checksum.
    """
    content = bytes(data)
    lengths: list[int] = []
    position = 0
    try:
        for _ in range(count):
            length, position = read_varint(content, position)
            lengths.append(length)
    except IndexError as error:
        raise CorruptError(f"its {len(content)} bytes end before the lengths of its {count} strings") from error
    body = position + _CHECKSUM
    if body + sum(lengths) != len(content):
        raise CorruptError(f"its strings take {body + sum(lengths)} bytes with their lengths, not {len(content)}")
    stored = content[position:body]
    actual = _checksum_lengths(lengths)
    if mask(actual).to_bytes(_CHECKSUM, "little") != stored:
        raise CorruptError("the lengths of its strings do not match their checksum")
    if mask(crc32c(memoryview(content)[body:], crc32c(stored, actual))) != crc:
        raise CorruptError("its strings do not match their checksum")
    values = []
    for length in lengths:
        values.append(content[body : body + length])
        body += length
    return values


def _checksum_lengths(lengths: Iterable[int]) -> int:
    return crc32c(b"".join([length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths]))
