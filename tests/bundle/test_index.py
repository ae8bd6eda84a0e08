import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import NUMERIC, tensorflow_write

from ckpt_remote.bundle import (
    MAX_SHARDS,
    STRING,
    VARIANT,
    Entry,
    Extent,
    Header,
    Index,
    TensorSlice,
    decode_index,
    encode_index,
    index_name,
    parse_shard_name,
    shard_name,
    slice_key,
    tensor_key,
)
from ckpt_remote.bundle.messages import encode_entry, encode_header
from ckpt_remote.bundle.table import write_table
from ckpt_remote.errors import CorruptError, UnsupportedError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: name[0] != "\x00")


@st.composite
def entries(draw: st.DrawFn, num_shards: int = 3) -> Entry:
    dtype = draw(st.sampled_from(NUMERIC))
    shape = tuple(draw(st.lists(st.integers(0, 300), max_size=4)))
    size = dtype.itemsize
    for length in shape:
        size *= length
    offset = draw(st.integers(0, 2**62))
    return Entry(
        dtype.number,
        shape,
        draw(st.integers(0, num_shards - 1)),
        offset,
        size,
        draw(st.integers(0, 2**32 - 1)),
    )


@given(st.dictionaries(NAMES.map(tensor_key), entries(), max_size=30), st.text("abc123", max_size=8))
def test_an_index_is_read_back(found: dict[bytes, Entry], write_id: str) -> None:
    index = Index(Header(3, write_id), found)
    assert decode_index(encode_index(index)) == index


def test_the_order_of_the_entries_does_not_show() -> None:
    items = [(f"{i}".encode(), Entry(1, (), 0, 4 * i, 4)) for i in range(30)]
    assert encode_index(Index(Header(1), dict(items))) == encode_index(Index(Header(1), dict(reversed(items))))


def test_an_index_of_tensorflow_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    tensorflow_write(
        tmp_path / "ckpt",
        [
            ("whole", "", tf.zeros((3, 4))),
            ("scalar", "", tf.constant(1, tf.int64)),
            ("empty", "", tf.zeros((0, 5))),
            ("text", "", tf.constant(["a", "b" * 200])),
            ("sliced", "4 6 0,2:-", tf.zeros((2, 6))),
            ("sliced", "4 6 2,2:0,3", tf.zeros((2, 3))),
            ("sliced", "4 6 2,2:3,3", tf.zeros((2, 3))),
            ("grün/\U0001f600", "", tf.zeros(3)),
        ],
    )
    data = (tmp_path / "ckpt.index").read_bytes()
    index = decode_index(data)
    assert encode_index(index) == data
    assert index.header == Header(1)
    assert index.entries[b"sliced"].slices == (
        TensorSlice((Extent(0, 2), Extent())),
        TensorSlice((Extent(2, 2), Extent(0, 3))),
        TensorSlice((Extent(2, 2), Extent(3, 3))),
    )


GOOD = Entry(1, (2, 3), 0, 8, 24)
HALF = TensorSlice((Extent(0, 1), Extent()))
NONSENSE = {
    "no type": (b"a", replace(GOOD, dtype=0)),
    "a shard that is not there": (b"a", replace(GOOD, shard=2)),
    "an end that no file has": (b"a", replace(GOOD, offset=2**63 - 24)),
    "a size unlike its shape": (b"a", replace(GOOD, size=20)),
    "more elements than can be counted": (b"a", Entry(1, (2**31, 2**31, 2**31), 0, 0, 0)),
    "an empty shape too large for an array": (b"a", Entry(1, (0, 2**31, 2**31, 2**31), 0, 0, 0)),
    "too few bytes for its strings": (b"a", Entry(STRING, (10,), 0, 0, 13)),
    "a slice of another rank": (b"a", replace(GOOD, slices=(TensorSlice((Extent(),)),))),
    "a slice outside": (b"a", replace(GOOD, slices=(TensorSlice((Extent(1, 2), Extent())),))),
    "a slice of a slice": (slice_key("a", HALF), replace(GOOD, slices=(HALF,))),
    "a key that only looks like a slice's": (b"\x00a", GOOD),
}


@pytest.mark.parametrize(("key", "entry"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_neither_read_nor_written(key: bytes, entry: Entry) -> None:
    data = write_table([(b"", encode_header(Header(2))), (key, encode_entry(entry))])
    with pytest.raises(CorruptError, match="entry") as caught:
        decode_index(data, path="s3://b/ckpt-1.index")
    assert repr(key) in str(caught.value)
    assert caught.value.path == "s3://b/ckpt-1.index"
    with pytest.raises(ValueError, match="entry"):
        encode_index(Index(Header(2), {key: entry}))


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        (b"", GOOD),
        (b"a", replace(GOOD, offset=-1)),
        (b"a", replace(GOOD, crc32c=2**32)),
        (b"a", Entry(1, (-2, -3), 0, 0, 24)),
        (b"a", Entry(VARIANT, (-1,), 0, 0, 24)),
        (b"a", Entry(1, (1,) * 255, 0, 0, 4)),
    ],
)
def test_numbers_that_the_format_cannot_hold_are_not_written(key: bytes, entry: Entry) -> None:
    with pytest.raises(ValueError, match="entry"):
        encode_index(Index(Header(2), {key: entry}))


def test_the_number_of_shards_is_bounded() -> None:
    for number in (-1, MAX_SHARDS + 1):
        with pytest.raises(ValueError, match="shards"):
            encode_index(Index(Header(number), {}))
    for number in (MAX_SHARDS + 1, 2**31, 2**63):
        with pytest.raises(CorruptError, match="shards"):
            decode_index(write_table([(b"", encode_header(Header(number)))]))


def test_an_index_without_header_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="header"):
        decode_index(write_table([(b"a", encode_entry(GOOD))]))


def test_a_big_endian_index_is_unsupported_and_says_which() -> None:
    with pytest.raises(UnsupportedError, match=r"ckpt-1\.index: header: .*big-endian"):
        decode_index(write_table([(b"", b"\x08\x01\x10\x01")]), path="ckpt-1.index")


def test_types_of_later_releases_do_not_hide_the_others() -> None:
    index = Index(Header(1), {b"a": Entry(99, (2,), 0, 0, 7), b"b": Entry(1, (), 0, 7, 4)})
    assert decode_index(encode_index(index)) == index


SMALL = Index(
    Header(2, "write"),
    {
        b"a/b": GOOD,
        b"a/c": Entry(STRING, (1,), 1, 0, 9, 77),
        b"s": replace(GOOD, size=0, offset=0, slices=(HALF, TensorSlice((Extent(1, 1), Extent())))),
        slice_key("s", HALF): Entry(1, (1, 3), 0, 32, 12),
        slice_key("s", TensorSlice((Extent(1, 1), Extent()))): Entry(1, (1, 3), 1, 9, 12),
    },
)


def test_an_index_cut_anywhere_is_corrupt() -> None:
    data = encode_index(SMALL)
    for length in range(len(data)):
        with pytest.raises(CorruptError):
            decode_index(data[:length])


@given(st.data())
def test_entries_that_pass_their_checksum_and_were_changed_all_the_same_are_harmless(
    data: st.DataObject,
) -> None:
    items = [(b"", encode_header(SMALL.header))]
    items += [(key, encode_entry(entry)) for key, entry in sorted(SMALL.entries.items())]
    which = data.draw(st.integers(0, len(items) - 1))
    key, value = items[which]
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(value)))
        value = value[:position] + data.draw(st.binary(max_size=12)) + value[position + data.draw(st.integers(0, 3)) :]
    items[which] = (key, value)
    try:
        index = decode_index(write_table(items))
    except (CorruptError, UnsupportedError):
        return
    assert decode_index(encode_index(index)) == index


def test_memory_is_bounded_by_the_size_of_the_file() -> None:
    values = [(b"", encode_header(Header(1)))]
    values += [(f"{i:05d}".encode(), encode_entry(Entry(1, (), 0, 4 * i, 4))) for i in range(5000)]
    data = write_table(values)
    tracemalloc.start()
    decode_index(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * len(data)


@pytest.mark.parametrize(("shard", "count"), [(0, 1), (7, 8), (0, MAX_SHARDS), (MAX_SHARDS - 1, MAX_SHARDS)])
def test_names_of_shards_are_tensorflows_and_read_back(shard: int, count: int) -> None:
    name = shard_name("run/ckpt-1", shard, count)
    assert name == f"run/ckpt-1.data-{shard:05d}-of-{count:05d}"
    assert parse_shard_name(name) == ("run/ckpt-1", shard, count)
    assert index_name("run/ckpt-1") == "run/ckpt-1.index"


@pytest.mark.parametrize(("shard", "count"), [(-1, 1), (1, 1), (0, 0), (0, MAX_SHARDS + 1)])
def test_shards_that_cannot_be_have_no_name(shard: int, count: int) -> None:
    with pytest.raises(ValueError, match="no shard"):
        shard_name("ckpt", shard, count)


@pytest.mark.parametrize(
    "name",
    [
        "ckpt-1.index",
        "ckpt-1.data-00001-of-00001",
        "ckpt-1.data-00000-of-00000",
        "ckpt-1.data-0-of-1",
        "ckpt-1.data-00000-of-00001.tempstate123",
        "ckpt-1.data-\u0660\u0660\u0660\u0660\u0660-of-\u0660\u0660\u0660\u0660\u0661",
        "ckpt-1.data-00000-of-00001\n",
        "",
    ],
)
def test_other_names_are_no_shards(name: str) -> None:
    assert parse_shard_name(name) is None


def test_a_prefix_may_look_like_a_shard() -> None:
    name = shard_name("a.data-00000-of-00001\n", 1, 2)
    assert parse_shard_name(name) == ("a.data-00000-of-00001\n", 1, 2)
