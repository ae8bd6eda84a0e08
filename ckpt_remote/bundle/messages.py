"""The two messages of the format, encoded by hand: the header, and the entry of a tensor.

Both are in tensor_bundle.proto. Promises: the bytes written are those of TensorFlow's protobuf for the same
content. What is read may be hostile: it is decoded in time and memory linear in its size, or refused with
`CorruptError`. Unknown fields are skipped.

By hand, because TensorFlow's protobuf ranges differ between its releases, and its message names cannot be
registered twice in one process. Decoding checks the form only; whether an entry makes sense is for `index` to
say.
"""

from dataclasses import dataclass
from functools import lru_cache

from ckpt_remote.bundle.slices import FULL, Extent, TensorSlice
from ckpt_remote.bundle.wire import (
    BYTES,
    CONTINUES,
    FIXED32,
    FIXED64,
    MAX_RANK,
    VARINT,
    encode_chunk,
    encode_number,
    encode_varint,
    make_tag,
    read_varint,
)
from ckpt_remote.errors import CorruptError, UnsupportedError

__all__ = [
    "Entry",
    "Extent",
    "Header",
    "TensorSlice",
    "decode_entry",
    "decode_header",
    "encode_entry",
    "encode_header",
]

_NUM_SHARDS = make_tag(1, VARINT)
_ENDIANNESS = make_tag(2, VARINT)
_VERSION = make_tag(3, BYTES)
_WRITE_ID = make_tag(0x636B70, BYTES)  # "ckp": far from any number that tensor_bundle.proto may ever use
_FILE = make_tag(0x636B71, BYTES)

_PRODUCER = make_tag(1, VARINT)
_MIN_CONSUMER = make_tag(2, VARINT)

_DTYPE = make_tag(1, VARINT)
_SHAPE = make_tag(2, BYTES)
_SHARD = make_tag(3, VARINT)
_OFFSET = make_tag(4, VARINT)
_SIZE = make_tag(5, VARINT)
_CRC32C = make_tag(6, FIXED32)
_SLICE = make_tag(7, BYTES)

_DIMENSION = make_tag(2, BYTES)
_DIMENSION_SIZE = make_tag(1, VARINT)
_UNKNOWN_RANK = make_tag(3, VARINT)

_EXTENT = make_tag(1, BYTES)
_START = make_tag(1, VARINT)
_LENGTH = make_tag(2, VARINT)

_CRC32C_BEGINS = encode_varint(_CRC32C)
_FORMAT = 1  # kTensorBundleVersion in tensor_bundle.cc: what every TensorFlow writes and accepts
_BIG = 1
_EVERYTHING = 2**64 - 1  # a length of -1 means the same as none
_MAX_WRITE_ID = 1024


@dataclass(frozen=True, slots=True)
class Header:
    """BundleHeaderProto, of a little-endian bundle.

    Attributes:
        num_shards: The number of data files, which is part of their names.
        write_id: Tells this write of an index from every other, at most 1 KiB. To TensorFlow an unknown
            field: it ignores it, and drops it where it merges bundles.
        files: Side files of the checkpoint: for each, what follows the prefix in its name. TensorFlow ignores
            them likewise.
    """

    num_shards: int
    write_id: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """BundleEntryProto: where a tensor lies, or a slice of one.

    Attributes:
        dtype: TensorFlow's number for the data type.
        shape: The shape of what is stored here; of the full tensor where `slices` is not empty.
        shard: The data file that holds the bytes.
        offset: Where in it they begin.
        size: How many they are.
        crc32c: Their checksum as stored: masked.
        slices: If any, the tensor is stored as these slices, each with an entry of its own under its
            `slice_key`, and this entry's shard, offset, size and checksum say nothing.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc32c: int = 0
    slices: tuple[TensorSlice, ...] = ()


def encode_header(header: Header) -> bytes:
    """Return the header as TensorFlow writes it, with the write id behind.

    Raises:
        ValueError: The write id is longer than 1 KiB, the number of shards negative, or a side file's name is
            no path below the checkpoint's directory.
    """
    for file in header.files:
        _check_file(file)
    write_id = header.write_id.encode()
    if len(write_id) > _MAX_WRITE_ID:
        raise ValueError(f"a write id has at most {_MAX_WRITE_ID} bytes, this one {len(write_id)}")
    version = encode_number(_PRODUCER, _FORMAT)
    return (
        encode_number(_NUM_SHARDS, header.num_shards)
        + encode_chunk(_VERSION, version)
        + (encode_chunk(_WRITE_ID, write_id) if write_id else b"")
        + b"".join(encode_chunk(_FILE, file.encode()) for file in header.files)
    )


def decode_header(data: bytes) -> Header:
    """Return the header in `data`.

    Raises:
        CorruptError: `data` is not a header.
        UnsupportedError: The bundle is big-endian, or of a later format that older readers must not read.
    """
    numbers, chunks = _decode(data)
    if numbers.get(_ENDIANNESS) == _BIG:
        raise UnsupportedError("the bundle is big-endian; save it again on a little-endian machine")
    write_id = b""
    files: list[bytes] = []
    for tag, chunk in chunks:
        if tag == _WRITE_ID:
            write_id = chunk
        elif tag == _FILE:
            files.append(chunk)
        elif tag == _VERSION:
            oldest = _decode(chunk)[0].get(_MIN_CONSUMER, 0)
            if oldest > _FORMAT:
                raise UnsupportedError(f"the bundle needs a reader of format {oldest} or later; upgrade ckpt_remote")
    if len(write_id) > _MAX_WRITE_ID:
        raise CorruptError(f"its write id has {len(write_id)} bytes")
    try:
        names = tuple([file.decode() for file in files])
        for name in names:
            _check_file(name)
        return Header(numbers.get(_NUM_SHARDS, 0), write_id.decode(), names)
    except UnicodeDecodeError as error:
        raise CorruptError("its write id or a side file's name is not UTF-8") from error
    except ValueError as error:
        raise CorruptError(str(error)) from error


def _check_file(file: str) -> None:
    if (
        not file
        or any(character < " " or character == "\x7f" for character in file)
        or {"", ".", ".."}.intersection(f"prefix{file}".split("/"))
    ):
        raise ValueError(f"its side file {file!r} is no path below the checkpoint's directory")


def encode_entry(entry: Entry) -> bytes:
    """Return the entry as TensorFlow writes it.

    Raises:
        ValueError: A number in it is negative or out of range.
    """
    # protobuf omits fields that are zero; a message is present even if empty.
    parts = [encode_number(_DTYPE, entry.dtype), encode_chunk(_SHAPE, _encode_shape(entry.shape))]
    if entry.shard:
        parts.append(encode_number(_SHARD, entry.shard))
    if entry.offset:
        parts.append(encode_number(_OFFSET, entry.offset))
    if entry.size:
        parts.append(encode_number(_SIZE, entry.size))
    if entry.crc32c:
        parts.append(_CRC32C_BEGINS + entry.crc32c.to_bytes(4, "little"))
    parts.extend(encode_chunk(_SLICE, _encode_slice(part)) for part in entry.slices)
    return b"".join(parts)


def decode_entry(data: bytes) -> Entry:
    """Return the entry in `data`.

    Raises:
        CorruptError: `data` is not an entry.
    """
    numbers, chunks = _decode(data)
    shape: tuple[int, ...] = ()
    slices: list[TensorSlice] = []
    for tag, chunk in chunks:
        if tag == _SHAPE:
            shape = _decode_shape(chunk)
        elif tag == _SLICE:
            slices.append(_decode_slice(chunk))
    number = numbers.get
    return Entry(
        number(_DTYPE, 0),
        shape,
        number(_SHARD, 0),
        number(_OFFSET, 0),
        number(_SIZE, 0),
        number(_CRC32C, 0),
        tuple(slices),
    )


# A model has few shapes and many tensors: remembering them halves the time of an index.
@lru_cache(maxsize=1024)
def _encode_shape(shape: tuple[int, ...]) -> bytes:
    return b"".join([encode_chunk(_DIMENSION, encode_number(_DIMENSION_SIZE, size) if size else b"") for size in shape])


@lru_cache(maxsize=1024)
def _decode_shape(data: bytes) -> tuple[int, ...]:
    numbers, chunks = _decode(data)
    if numbers.get(_UNKNOWN_RANK):
        raise CorruptError("its rank is unknown")
    shape = tuple([_decode(chunk)[0].get(_DIMENSION_SIZE, 0) for tag, chunk in chunks if tag == _DIMENSION])
    if len(shape) > MAX_RANK:
        raise CorruptError(f"its rank is {len(shape)}, over {MAX_RANK}")
    return shape


def _encode_slice(part: TensorSlice) -> bytes:
    return b"".join(encode_chunk(_EXTENT, _encode_extent(extent)) for extent in part.extents)


def _encode_extent(extent: Extent) -> bytes:
    if extent.length is None:
        return b""
    start = encode_number(_START, extent.start) if extent.start else b""
    return start + encode_number(_LENGTH, extent.length)  # present even if zero: it stands in a `oneof`


def _decode_slice(data: bytes) -> TensorSlice:
    _, chunks = _decode(data)
    return TensorSlice(tuple([_decode_extent(chunk) for tag, chunk in chunks if tag == _EXTENT]))


def _decode_extent(data: bytes) -> Extent:
    if not data:
        return FULL
    numbers, _ = _decode(data)
    start, length = numbers.get(_START, 0), numbers.get(_LENGTH, _EVERYTHING)
    if length != _EVERYTHING:
        return Extent(start, length)
    if start:
        raise CorruptError(f"a slice begins at {start} but has no length")
    return FULL


def _decode(data: bytes) -> tuple[dict[int, int], list[tuple[int, bytes]]]:
    """Return the message's numbers by tag, the last of each as protobuf demands, and its chunks in order."""
    numbers: dict[int, int] = {}
    chunks: list[tuple[int, bytes]] = []
    position, end = 0, len(data)
    try:
        while position < end:
            # A varint is nearly always one byte; calling for each would double the time of reading an index.
            tag = data[position]
            position += 1
            if tag >= CONTINUES:
                tag, position = read_varint(data, position - 1)
            wire_type = tag & 7
            if wire_type in (VARINT, BYTES):
                value = data[position]
                position += 1
                if value >= CONTINUES:
                    value, position = read_varint(data, position - 1)
                if wire_type == VARINT:
                    numbers[tag] = value
                else:
                    chunks.append((tag, data[position : position + value]))
                    position += value
            elif wire_type == FIXED32:
                numbers[tag] = int.from_bytes(data[position : position + 4], "little")
                position += 4
            elif wire_type == FIXED64:
                position += 8
            else:
                raise CorruptError(f"it has a field of wire type {wire_type}")
    except IndexError:
        position = end + 1
    if position > end:
        raise CorruptError("it ends inside a field")
    return numbers, chunks
