"""The keys of an index: a tensor's name in UTF-8, and for a slice its name and extents in ordered code.

Ordered code (core/lib/strings/ordered_code.cc) keeps the order of what it encodes. EncodeTensorNameSlice in
core/util/saved_tensor_slice_util.cc composes a slice's key: zero, name, rank, then start and length of each
extent, -1 for the length of a full one. The leading zero is a NUL byte, which tells these keys from names.

Promises: `decode_slice_key` accepts exactly what `slice_key` makes, and refuses the rest with `CorruptError`.
Names that are not UTF-8 survive a round trip (`surrogateescape`), as file names do in Python.
"""

import re

from ckpt_remote.bundle.slices import FULL, Extent, TensorSlice
from ckpt_remote.bundle.wire import INT64_MAX
from ckpt_remote.errors import CorruptError

__all__ = ["decode_slice_key", "is_slice_key", "slice_key", "tensor_key", "tensor_name"]

_ESCAPES = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}
_UNESCAPES = {pair: byte for byte, pair in _ESCAPES.items()}
_SEPARATOR = b"\x00\x01"
_SPECIAL = re.compile(rb"[\x00\xff]")
_PAIR = re.compile(rb"[\x00\xff].", re.DOTALL)

_UNSIGNED_BYTES = 8
_SIGN = 0x80


def tensor_key(name: str) -> bytes:
    """Return the key of the tensor `name`."""
    return name.encode("utf-8", "surrogateescape")


def tensor_name(key: bytes) -> str:
    """Return the name of the tensor under `key`."""
    return key.decode("utf-8", "surrogateescape")


def is_slice_key(key: bytes) -> bool:
    """Return whether `key` is of a slice, not of a tensor."""
    return key[:1] == b"\x00"


def slice_key(name: str, part: TensorSlice) -> bytes:
    """Return the key of the slice `part` of the tensor `name`."""
    pieces = [b"\x00", _SPECIAL.sub(lambda byte: _ESCAPES[byte[0]], tensor_key(name)), _SEPARATOR]
    pieces.append(_encode_unsigned(len(part.extents)))
    for extent in part.extents:
        pieces.append(_encode_signed(extent.start))
        pieces.append(_encode_signed(-1 if extent.length is None else extent.length))
    return b"".join(pieces)


def decode_slice_key(key: bytes) -> tuple[str, TensorSlice]:
    """Return the name and the slice that `key` was made of.

    Raises:
        CorruptError: `slice_key` makes no such key.
    """
    try:
        name, position = _decode_string(key, 1)
        rank, position = _decode_unsigned(key, position)
        extents = []
        for _ in range(rank):
            start, position = _decode_signed(key, position)
            length, position = _decode_signed(key, position)
            if (start, length) != (0, -1) and not (0 <= start <= INT64_MAX and 0 <= length <= INT64_MAX):
                raise CorruptError(f"slice key {key!r} has an extent from {start} of length {length}")
            extents.append(FULL if length < 0 else Extent(start, length))
    except IndexError as error:
        raise CorruptError(f"slice key {key!r} ends too early") from error
    part = TensorSlice(tuple(extents))
    if slice_key(name, part) != key:
        raise CorruptError(f"slice key {key!r} is not in canonical form")
    return name, part


def _decode_string(key: bytes, begin: int) -> tuple[str, int]:
    pieces, position = [], begin
    for pair in _PAIR.finditer(key, begin):
        pieces.append(key[position : pair.start()])
        position = pair.end()
        if pair[0] == _SEPARATOR:
            return tensor_name(b"".join(pieces)), position
        if pair[0] not in _UNESCAPES:
            raise CorruptError(f"slice key {key!r} holds an undefined escape")
        pieces.append(_UNESCAPES[pair[0]])
    raise IndexError


def _encode_unsigned(value: int) -> bytes:
    """Return a byte that counts bytes, then those, most significant first."""
    payload = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(payload)]) + payload


def _decode_unsigned(key: bytes, position: int) -> tuple[int, int]:
    count = key[position]
    end = position + 1 + count
    if count > _UNSIGNED_BYTES or end > len(key):
        raise IndexError
    return int.from_bytes(key[position + 1 : end], "big"), end


def _encode_signed(value: int) -> bytes:
    """Return two's complement in as few bytes as leave room for one leading bit each.

    The leading bits, one for each byte, repeat the sign bit inverted against two's complement: ones for a
    number that is not negative. That makes the encodings compare as the numbers do, and says how long they
    are.
    """
    size = (~value if value < 0 else value).bit_length() // 7 + 1
    leading = (1 << size) - 1 << 7 * size
    return (int.from_bytes(value.to_bytes(size, "big", signed=True), "big") ^ leading).to_bytes(size, "big")


def _decode_signed(key: bytes, position: int) -> tuple[int, int]:
    negative = key[position] < _SIGN
    head = int.from_bytes(key[position : position + 2].ljust(2, b"\x00"), "big")
    if negative:
        head ^= 0xFFFF
    size = 16 - (head ^ 0xFFFF).bit_length()  # the leading ones
    end = position + size
    if end > len(key):
        raise IndexError
    leading = (1 << size) - 1 << 7 * size
    value = int.from_bytes(key[position:end], "big") ^ leading
    return value - (1 << 8 * size) if negative else value, end
