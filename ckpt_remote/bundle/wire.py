"""What every part of the format is made of: varints, the fields of messages, and errors that say where they happened.

Promises: a varint of more than 64 bits is a `CorruptError`, found after ten bytes at most. Reading past the
end is an `IndexError`, as for any sequence: the decoders catch it once, outside their loops.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_remote.errors import CorruptError, UnsupportedError

__all__ = [
    "BYTES",
    "CONTINUES",
    "FIXED32",
    "FIXED64",
    "INT64_MAX",
    "MAX_RANK",
    "VARINT",
    "encode_chunk",
    "encode_number",
    "encode_varint",
    "make_tag",
    "read_varint",
    "reading",
]

INT64_MAX = 2**63 - 1
"""TensorFlow keeps dimensions, offsets and sizes in signed 64 bits."""

MAX_RANK = 254
"""TensorShape::MaxDimensions() in core/framework/tensor_shape.h."""

CONTINUES = 0x80
"""A varint's byte with this bit is followed by another. Decoders look before they call `read_varint`."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: how long a field is. Its tag is its number, then three bits of wire type."""

_PAYLOAD = 0x7F
_UINT64_MAX = 2**64 - 1
_LAST_SHIFT = 63
_TAGS: dict[int, bytes] = {}  # as they are written
_ONE_BYTE = tuple(bytes([value]) for value in range(CONTINUES))


def encode_varint(value: int) -> bytes:
    """Return `value` as varint64, as protobuf and leveldb have it: seven bits a byte, the lowest first.

    Raises:
        ValueError: `value` is negative, or has more than 64 bits.
    """
    if 0 <= value < CONTINUES:
        return _ONE_BYTE[value]
    if not 0 <= value <= _UINT64_MAX:
        raise ValueError(f"{value} is not between 0 and 2**64-1")
    groups = bytearray()
    while value >= CONTINUES:
        groups.append(value & _PAYLOAD | CONTINUES)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def make_tag(number: int, wire_type: int) -> int:
    """Return the tag of a field, which the encoders then know: messages have few fields, and an index a million."""
    tag = number << 3 | wire_type
    _TAGS[tag] = encode_varint(tag)
    return tag


def encode_number(tag: int, value: int) -> bytes:
    """Return the field of a number, also if that is zero, which protobuf omits.

    Raises:
        ValueError: `value` is negative, or has more than 64 bits.
    """
    return _TAGS[tag] + encode_varint(value)


def encode_chunk(tag: int, value: bytes) -> bytes:
    """Return the field of a text, or of a message in a message."""
    return _TAGS[tag] + encode_varint(len(value)) + value


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position`, and the position behind it.

    Raises:
        CorruptError: It has more than 64 bits.
        IndexError: The data end inside it.
    """
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & _PAYLOAD) << shift
        if byte < CONTINUES:
            break
        shift += 7
        if shift > _LAST_SHIFT:
            break
    if value > _UINT64_MAX or shift > _LAST_SHIFT:
        raise CorruptError(f"the varint before byte {position} has more than 64 bits")
    return value, position


@contextmanager
def reading(path: str, part: str = "") -> Iterator[None]:
    """Complete the message of a `CorruptError` or `UnsupportedError` that is raised inside.

    Args:
        path: The file that is read; may be empty.
        part: What of it is read.
    """
    where = ": ".join(filter(None, (path or "bundle", part)))
    try:
        yield
    except CorruptError as error:
        raise CorruptError(f"{where}: {error}; fall back to an older checkpoint", path=path or None) from error
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}: {error}", path=path or None) from error
