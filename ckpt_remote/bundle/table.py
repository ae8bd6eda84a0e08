"""The table of sorted keys and values that an index is stored in: leveldb's format, as TensorFlow has it.

Blocks and a footer (table_builder.cc, block_builder.cc and format.cc in TensorFlow's core/lib/io)::

    data block ...  metaindex block  index block  footer
    block:   entries; restart offsets, their number (uint32 each); type (1 byte), masked crc32c (uint32)
    entry:   varints shared, unshared, size; the key less the bytes it shares with the one before; the value
    index:   for each data block, a key from its last to before the next one's first; its handle
    handle:  varints offset, size
    footer:  handles of metaindex and index, padded to 40 bytes; magic number (8 bytes)

Promises: `write_table` writes the bytes that TensorFlow writes for the same items. `read_table` accepts what
TensorFlow has ever written, snappy blocks included, and refuses the rest with `CorruptError`; time and memory
are linear in the size of what it is given, whatever that is.
"""

from collections.abc import Iterable, Iterator

import cramjam

from ckpt_remote.buffers import Buffer
from ckpt_remote.bundle.crc32c import crc32c, mask
from ckpt_remote.bundle.wire import CONTINUES, encode_varint, read_varint, reading
from ckpt_remote.errors import CorruptError, UnsupportedError

__all__ = ["read_table", "write_table"]

_BLOCK_SIZE = 256 * 1024
_RESTART_INTERVAL = 16
_UNCOMPRESSED, _SNAPPY = 0, 1
_TRAILER = 5
_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")

# Three bytes of snappy make 64 at most. A block that claims more is refused before memory is set aside for
# it.
_SNAPPY_RATIO = 22
# With every sixteenth key stored whole, keys are at most sixteen times as long as what is stored of them.
_KEY_RATIO = _RESTART_INTERVAL


def write_table(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the table of `items`.

    Args:
        items: Keys and values, in strictly increasing order of the keys.

    Raises:
        ValueError: The keys are not in that order.
    """
    table = bytearray()
    index = _BlockBuilder(restart_interval=1)
    block = _BlockBuilder(_RESTART_INTERVAL)
    last: bytes | None = None
    handle: bytes | None = None  # of a finished block, which awaits the next key for its own in the index
    for key, value in items:
        if last is not None:
            if key <= last:
                raise ValueError(f"key {key!r} does not come after {last!r}")
            if block.size and len(key) + len(value) >= 2 * _BLOCK_SIZE:
                handle = _append_block(table, block)
            if handle is not None:
                index.add(_shortest_separator(last, key), handle)
                handle = None
        block.add(key, value)
        last = key
        if block.final_size >= _BLOCK_SIZE:
            handle = _append_block(table, block)
    if block.size:
        handle = _append_block(table, block)
    metaindex_handle = _append_block(table, _BlockBuilder(_RESTART_INTERVAL))
    if last is not None and handle is not None:
        index.add(_short_successor(last), handle)
    handles = metaindex_handle + _append_block(table, index)
    return bytes(table + handles.ljust(_FOOTER - len(_MAGIC), b"\x00") + _MAGIC)


def read_table(data: Buffer, *, path: str = "") -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, the keys strictly increasing.

    Every block is checked before its first item is yielded, so items come before a fault in a later block is
    found.

    Args:
        data: The whole table.
        path: What to call it in errors.

    Raises:
        CorruptError: `data` is no table, or a damaged one.
        UnsupportedError: A block is compressed in a way that TensorFlow did not know in 2026.
    """
    with reading(path):
        yield from _read_blocks(bytes(data))


class _BlockBuilder:
    """Collects the entries of one block."""

    __slots__ = ("_entries", "_last", "_restart_interval", "_restarts", "_since_restart", "size")

    def __init__(self, restart_interval: int) -> None:
        self._restart_interval = restart_interval
        self.reset()

    def reset(self) -> None:
        self._entries: list[bytes] = []
        self._restarts = [0]
        self._since_restart = 0
        self._last = b""
        self.size = 0

    @property
    def final_size(self) -> int:
        return self.size + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        if self._since_restart < self._restart_interval:
            shared = _shared_length(self._last, key)
            self._since_restart += 1
        else:
            shared = 0
            self._restarts.append(self.size)
            self._since_restart = 1
        lengths = encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        entry = b"".join((lengths, key[shared:], value))
        self._entries.append(entry)
        self._last = key
        self.size += len(entry)

    def content(self) -> bytes:
        tail = [number.to_bytes(4, "little") for number in (*self._restarts, len(self._restarts))]
        return b"".join(self._entries + tail)


def _append_block(table: bytearray, block: _BlockBuilder) -> bytes:
    """Move the content of `block` to the end of `table`, and return its handle."""
    content = block.content()
    block.reset()
    handle = encode_varint(len(table)) + encode_varint(len(content))
    content += bytes([_UNCOMPRESSED])
    table += content
    table += mask(crc32c(content)).to_bytes(4, "little")
    return handle


def _shared_length(left: bytes, right: bytes) -> int:
    """Return how many leading bytes two keys share."""
    length = min(len(left), len(right))
    difference = int.from_bytes(left[:length], "big") ^ int.from_bytes(right[:length], "big")
    return length - (difference.bit_length() + 7) // 8


def _shortest_separator(last: bytes, following: bytes) -> bytes:
    """Return a short key that is at least `last` and less than `following`, where that is easy."""
    shared = _shared_length(last, following)
    if shared < min(len(last), len(following)) and last[shared] + 1 < following[shared]:
        return last[:shared] + bytes([last[shared] + 1])
    return last


def _short_successor(last: bytes) -> bytes:
    """Return a short key that is at least `last`, where there is one."""
    for position, byte in enumerate(last):
        if byte < 0xFF:  # noqa: PLR2004  the largest byte has no successor
            return last[:position] + bytes([byte + 1])
    return last


def _read_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    metaindex_handle, index_handle = _read_footer(data)
    _read_block(data, *metaindex_handle)
    bound: bytes | None = None  # all further keys are greater
    end = 0
    for separator, handle in _read_entries(_read_block(data, *index_handle)):
        (offset, size), length = _read_handle(handle, 0)
        # Blocks one after the other, as they are written: none is read twice, or time would not be linear.
        if length != len(handle) or offset < end:
            raise CorruptError(f"the index block's handle of the block at byte {offset} is not valid")
        end = offset + size + _TRAILER
        for key, value in _read_entries(_read_block(data, offset, size)):
            if bound is not None and key <= bound:
                raise CorruptError(f"in the block at byte {offset}, key {key!r} does not come after {bound!r}")
            bound = key
            yield key, value
        if bound is not None and bound > separator:
            raise CorruptError(f"the block at byte {offset} holds keys that its index entry excludes")
        bound = separator


def _read_footer(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    if len(data) < _FOOTER or data[-len(_MAGIC) :] != _MAGIC:
        raise CorruptError(f"its {len(data)} bytes do not end in a table's footer: it is truncated, or no bundle index")
    handles = data[-_FOOTER : -len(_MAGIC)]
    metaindex_handle, position = _read_handle(handles, 0)
    index_handle, _ = _read_handle(handles, position)
    if handles != b"".join(map(encode_varint, (*metaindex_handle, *index_handle))).ljust(len(handles), b"\0"):
        raise CorruptError("its footer is damaged: it holds other bytes than the two handles and zeros behind them")
    return metaindex_handle, index_handle


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    try:
        offset, position = read_varint(data, position)
        size, position = read_varint(data, position)
    except IndexError as error:
        raise CorruptError("a block's handle ends too early") from error
    return (offset, size), position


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """Return the content of the block at `offset`, checked and decompressed."""
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise CorruptError(f"the block at byte {offset} reaches behind the last block's end")
    end = offset + size
    if mask(crc32c(memoryview(data)[offset : end + 1])) != int.from_bytes(data[end + 1 : end + _TRAILER], "little"):
        raise CorruptError(f"the block at byte {offset} ({size} bytes) does not match its checksum")
    content, compression = data[offset:end], data[end]
    if compression == _UNCOMPRESSED:
        return content
    if compression == _SNAPPY:
        return _decompress(content, offset)
    raise UnsupportedError(f"the block at byte {offset} has compression type {compression}; upgrade ckpt_remote")


def _decompress(content: bytes, offset: int) -> bytes:
    try:
        claimed, _ = read_varint(content, 0)
    except IndexError as error:
        raise CorruptError(f"the compressed block at byte {offset} is empty") from error
    if claimed > _SNAPPY_RATIO * len(content):
        raise CorruptError(f"the block at byte {offset} claims to hold {claimed} bytes in {len(content)}")
    try:
        return bytes(cramjam.snappy.decompress_raw(content))
    except cramjam.DecompressionError as error:
        raise CorruptError(f"the block at byte {offset} does not decompress") from error


def _read_entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """Return the keys and values of a block's content."""
    items: list[tuple[bytes, bytes]] = []
    key = b""
    position = 0
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    budget = _KEY_RATIO * len(block)
    try:
        while position < end:
            shared, unshared, size = block[position], block[position + 1], block[position + 2]
            position += 3
            if shared | unshared | size >= CONTINUES:
                shared, position = read_varint(block, position - 3)
                unshared, position = read_varint(block, position)
                size, position = read_varint(block, position)
            if shared > len(key):
                raise CorruptError(f"a block's key shares {shared} bytes with one of {len(key)}")
            middle = position + unshared
            key = key[:shared] + block[position:middle]
            budget -= len(key)
            if budget < 0:
                raise CorruptError("a block's keys are longer than any writer makes them")
            position = middle + size
            items.append((key, block[middle:position]))
    except IndexError:
        position = -1
    if position != end:
        raise CorruptError("a block's last entry is not whole")
    return items
