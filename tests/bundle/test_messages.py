import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

from ckpt_remote.bundle import Entry, Extent, Header, TensorSlice
from ckpt_remote.bundle.messages import decode_entry, decode_header, encode_entry, encode_header
from ckpt_remote.errors import CorruptError, UnsupportedError

INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(0, 300) | st.integers(0, 2**63 - 1)
EXTENTS = st.just(Extent()) | st.builds(Extent, st.just(0) | INT64, st.just(0) | INT64)
SLICES = st.lists(EXTENTS, max_size=3).map(lambda extents: TensorSlice(tuple(extents)))
ENTRIES = st.builds(
    Entry,
    dtype=st.integers(1, 33),
    shape=st.lists(INT64, max_size=4).map(tuple),
    shard=INT32,
    offset=INT64,
    size=INT64,
    crc32c=st.integers(0, 2**32 - 1),
    slices=st.lists(SLICES, max_size=3).map(tuple),
)


def tensorflow_entry(entry: Entry) -> tensor_bundle_pb2.BundleEntryProto:
    message = tensor_bundle_pb2.BundleEntryProto(
        dtype=entry.dtype, shard_id=entry.shard, offset=entry.offset, size=entry.size, crc32c=entry.crc32c
    )
    message.shape.SetInParent()
    for size in entry.shape:
        message.shape.dim.add().size = size
    for part in entry.slices:
        slot = message.slices.add()
        for extent in part.extents:
            added = slot.extent.add()
            if extent.length is not None:
                added.start, added.length = extent.start, extent.length
    return message


@given(ENTRIES)
def test_an_entry_is_what_protobuf_writes(entry: Entry) -> None:
    assert encode_entry(entry) == tensorflow_entry(entry).SerializeToString(deterministic=True)


@given(ENTRIES)
def test_an_entry_is_read_back(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@given(st.integers(1, 99_999), st.text(st.characters(codec="utf-8"), max_size=50))
def test_a_header_is_read_back_and_tensorflow_ignores_its_write_id(num_shards: int, write_id: str) -> None:
    data = encode_header(Header(num_shards, write_id))
    assert decode_header(data) == Header(num_shards, write_id)
    message = tensor_bundle_pb2.BundleHeaderProto.FromString(data)
    message.DiscardUnknownFields()
    assert message == tensor_bundle_pb2.BundleHeaderProto(num_shards=num_shards, version={"producer": 1})
    assert encode_header(Header(num_shards)) == message.SerializeToString(deterministic=True)


def test_a_write_id_is_at_most_a_kilobyte() -> None:
    with pytest.raises(ValueError, match="at most 1024 bytes"):
        encode_header(Header(1, "ü" * 513))
    longest = encode_header(Header(1, "x" * 1024))
    with pytest.raises(CorruptError, match="write id"):
        decode_header(longest.replace(b"\x80\x08x", b"\x81\x08xx"))


def test_a_write_id_that_is_no_text_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="not UTF-8"):
        decode_header(encode_header(Header(1, "abc")).replace(b"abc", b"a\xffc"))


def test_big_endian_bundles_are_refused() -> None:
    message = tensor_bundle_pb2.BundleHeaderProto(num_shards=1, endianness="BIG")
    with pytest.raises(UnsupportedError, match="big-endian"):
        decode_header(message.SerializeToString())


def test_bundles_that_forbid_older_readers_are_refused() -> None:
    readable = tensor_bundle_pb2.BundleHeaderProto(num_shards=3, version={"producer": 9, "min_consumer": 1})
    assert decode_header(readable.SerializeToString()) == Header(3)
    later = tensor_bundle_pb2.BundleHeaderProto(num_shards=3, version={"producer": 9, "min_consumer": 2})
    with pytest.raises(UnsupportedError, match="format 2"):
        decode_header(later.SerializeToString())


UNKNOWN = {
    "varint": b"\xf8\x07\xac\x02",
    "eight bytes": b"\xf9\x07" + bytes(8),
    "chunk": b"\xfa\x07\x03abc",
    "four bytes": b"\xfd\x07" + bytes(4),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    entry = Entry(1, (2, 3), 4, 5, 24, 6, (TensorSlice((Extent(0, 1), Extent())),))
    data = encode_entry(entry)
    assert decode_entry(unknown + data) == decode_entry(data + unknown) == entry
    assert decode_header(unknown + encode_header(Header(7, "id"))) == Header(7, "id")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x08", id="no value"),
        pytest.param(b"\x12\x05\x12", id="chunk cut"),
        pytest.param(b"\x35\x01\x02\x03", id="checksum cut"),
        pytest.param(b"\xf9\x07\x01", id="unknown field cut"),
        pytest.param(b"\x08" + b"\xff" * 10 + b"\x01", id="endless varint"),
        pytest.param(b"\x0b\x0c", id="group"),
        pytest.param(b"\x12\x02\x18\x01", id="unknown rank"),
        pytest.param(b"\x12\xfe\x03" + b"\x12\x00" * 255, id="rank 255"),
        pytest.param(b"\x3a\x04\x0a\x02\x08\x01", id="extent with a start only"),
    ],
)
def test_malformed_entries_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_entry(data)


@given(st.binary(max_size=60))
def test_other_bytes_are_decoded_or_corrupt(data: bytes) -> None:
    try:
        decode_entry(data)
        decode_header(data)
    except (CorruptError, UnsupportedError):
        return


def test_a_length_of_minus_one_is_a_full_extent() -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    extent = b"\x10" + minus_one
    data = b"\x08\x01\x12\x02\x12\x00\x3a" + bytes([len(extent) + 2]) + b"\x0a" + bytes([len(extent)]) + extent
    assert decode_entry(data).slices == (TensorSlice((Extent(),)),)


FILES = st.lists(st.from_regex(r"[-._]?[a-z0-9_.-]*[a-z](/[a-z]+)?", fullmatch=True), max_size=3).map(tuple)


@given(FILES)
def test_side_files_are_read_back_and_tensorflow_ignores_them(files: tuple[str, ...]) -> None:
    data = encode_header(Header(2, "id", files))
    assert decode_header(data) == Header(2, "id", files)
    assert tensor_bundle_pb2.BundleHeaderProto.FromString(data).num_shards == 2


@pytest.mark.parametrize("file", ["", "/", "/../x", "/./x", "//x", "x/", "a\nb", "/.."])
def test_side_files_outside_the_directory_are_neither_read_nor_written(file: str) -> None:
    with pytest.raises(ValueError, match="side file"):
        encode_header(Header(1, files=(file,)))
    good = encode_header(Header(1, files=("@@@@@@",)))
    content = file.encode()
    data = good.replace(b"\x06@@@@@@", bytes([len(content)]) + content)
    with pytest.raises(CorruptError, match="side file"):
        decode_header(data)
