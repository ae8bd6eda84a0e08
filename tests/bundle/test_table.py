from collections.abc import Iterable
from pathlib import Path

import cramjam
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import tensorflow_write

from ckpt_remote.bundle import crc32c, mask
from ckpt_remote.bundle.table import read_table, write_table
from ckpt_remote.bundle.wire import encode_varint
from ckpt_remote.errors import CorruptError, UnsupportedError

ITEMS = st.dictionaries(st.binary(max_size=300), st.binary(max_size=300), max_size=60)
MAGIC = bytes.fromhex("57fb808b247547db")


def entry(shared: int, key: bytes, value: bytes) -> bytes:
    return b"".join([encode_varint(shared), encode_varint(len(key)), encode_varint(len(value)), key, value])


def block(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(4) + b"\x01\x00\x00\x00"


def table(data_blocks: Iterable[tuple[bytes, bytes]], compression: int = 0, handles: Iterable[bytes] = ()) -> bytes:
    """Return a table of blocks made by hand: each is the content as stored and its key in the index."""
    content, index = b"", []

    def append(block: bytes, kind: int) -> bytes:
        nonlocal content
        handle = encode_varint(len(content)) + encode_varint(len(block))
        content += block + bytes([kind]) + mask(crc32c(block + bytes([kind]))).to_bytes(4, "little")
        return handle

    for stored, separator in data_blocks:
        index.append(entry(0, separator, append(stored, compression)))
    footer = append(block(), 0) + append(block(*(handles or index)), 0)
    return content + footer.ljust(40, b"\x00") + MAGIC


SMALL = write_table([(b"", b"header"), (b"dense/bias", b"1"), (b"dense/kernel", b"2" * 200)])


@given(ITEMS)
def test_items_are_read_back(items: dict[bytes, bytes]) -> None:
    data = write_table(sorted(items.items()))
    assert list(read_table(data)) == sorted(items.items())
    assert list(read_table(memoryview(bytearray(data)))) == sorted(items.items())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Several blocks by TensorFlow, with long shared prefixes, and a key of more than two blocks."""
    names = [f"model/layer-{i // 7}/block_{i % 7}/kernel{'x' * (i % 90)}" for i in range(9000)]
    names.append("model/layer-5" + "y" * 600_000)
    prefix = tmp_path_factory.mktemp("large") / "ckpt"
    tensorflow_write(prefix, [(name, "", tf.zeros(())) for name in names])
    return prefix.with_suffix(".index").read_bytes()


def test_a_table_is_what_tensorflow_writes(large: bytes) -> None:
    items = list(read_table(large))
    assert len(items) == 9002
    assert len(large) > 4 * 2**18
    assert write_table(items) == large


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a"), (b"a", b"")])
def test_keys_out_of_order_are_not_written(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="does not come after"):
        write_table([(key, b"") for key in keys])


def test_snappy_blocks_are_read_as_tensorflow_reads_them(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "ckpt", [(f"layer{i:03d}", "", tf.constant(float(i))) for i in range(200)])
    index = tmp_path / "ckpt.index"
    items = list(read_table(index.read_bytes()))
    contents = [block(*(entry(0, key, value) for key, value in half)) for half in (items[:90], items[90:])]
    compressed = [bytes(cramjam.snappy.compress_raw(content)) for content in contents]
    data = table([(compressed[0], items[89][0]), (compressed[1], items[-1][0])], compression=1)
    assert len(data) < len(index.read_bytes())
    index.write_bytes(data)
    assert tf.train.load_checkpoint(tmp_path / "ckpt").get_tensor("layer199") == 199
    assert list(read_table(data)) == items


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(encode_varint(50) + b"\xff" * 30, id="garbage"),
        pytest.param(encode_varint(50) + b"\x00a", id="too short"),
        pytest.param(b"\xff" * 12, id="endless length"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="nothing"),
    ],
)
def test_garbage_for_snappy_is_corrupt(stored: bytes) -> None:
    with pytest.raises(CorruptError):
        list(read_table(table([(stored, b"z")], compression=1)))


@pytest.mark.parametrize("claim", [2000, 2**32 - 1, 2**63])
def test_snappy_bombs_are_refused_for_what_they_claim(claim: int) -> None:
    with pytest.raises(CorruptError, match=f"claims to hold {claim} bytes"):
        list(read_table(table([(encode_varint(claim) + bytes(20), b"z")], compression=1)))


def test_no_legal_snappy_exceeds_the_ratio_that_is_allowed() -> None:
    content = block(entry(0, b"a", b"\x00" * 2**20))
    compressed = bytes(cramjam.snappy.compress_raw(content))
    assert len(content) / len(compressed) > 20
    assert list(read_table(table([(compressed, b"a")], compression=1))) == [(b"a", b"\x00" * 2**20)]


def test_keys_that_grow_without_end_are_corrupt() -> None:
    length = 10_000
    entries = [entry(0, b"k" * length, b"")] + [entry(length + i, b"k", b"") for i in range(length)]
    with pytest.raises(CorruptError, match="longer than"):
        list(read_table(table([(block(*entries), b"z")])))


def test_a_block_that_is_listed_twice_is_corrupt() -> None:
    content = block(entry(0, b"a", b""))
    handle = encode_varint(0) + encode_varint(len(content))
    data = table([(content, b"a")], handles=[entry(0, b"a", handle), entry(0, b"b", handle)])
    with pytest.raises(CorruptError, match="handle"):
        list(read_table(data))


@pytest.mark.parametrize(("offset", "size"), [(0, 2**64 - 1), (2**64 - 1, 0), (0, 60)])
def test_a_block_outside_the_blocks_is_corrupt(offset: int, size: int) -> None:
    handle = encode_varint(offset) + encode_varint(size)
    with pytest.raises(CorruptError, match="reaches behind"):
        list(read_table(table([], handles=[entry(0, b"a", handle)])))


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([(block(entry(0, b"b", b""), entry(0, b"a", b"")), b"b")], id="falling"),
        pytest.param([(block(entry(0, b"a", b""), entry(1, b"", b"")), b"b")], id="twice"),
        pytest.param(
            [(block(entry(0, b"a", b"")), b"a"), (block(entry(0, b"a", b"")), b"b")], id="twice in two blocks"
        ),
        pytest.param([(block(entry(0, b"c", b"")), b"b")], id="behind the key in the index"),
        pytest.param([(block(entry(0, b"a", b"")), b"c"), (block(entry(0, b"b", b"")), b"d")], id="before its block"),
        pytest.param([(block(entry(1, b"a", b"")), b"b")], id="shares with nothing"),
        pytest.param([(b"\x00\x09\x00" + block(), b"b")], id="key reaches behind the entries"),
        pytest.param([(b"\x00\x00\x80" + block(), b"b")], id="length reaches behind the entries"),
        pytest.param([(b"\x01\x02\x03", b"b")], id="too short for restarts"),
        pytest.param([(b"\xff\xff\xff\xff", b"b")], id="four billion restarts"),
    ],
)
def test_crafted_blocks_are_corrupt(blocks: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(CorruptError):
        list(read_table(table(blocks)))


def test_an_unknown_compression_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="compression type 7"):
        list(read_table(table([(block(entry(0, b"a", b"")), b"a")], compression=7), path="x.index"))


def test_a_table_cut_anywhere_is_corrupt() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(CorruptError) as caught:
            list(read_table(SMALL[:length], path="ckpt.index"))
        assert caught.value.path == "ckpt.index"
        assert "ckpt.index" in str(caught.value)


def test_a_flipped_byte_is_found_or_in_the_padding_and_changes_nothing() -> None:
    items = list(read_table(SMALL))
    unnoticed = []
    for position in range(len(SMALL)):
        for mask_ in (0x01, 0x80, 0xFF):
            damaged = bytearray(SMALL)
            damaged[position] ^= mask_
            try:
                assert list(read_table(damaged)) == items
            except CorruptError:
                continue
            unnoticed.append(position)
    assert all(len(SMALL) - 48 <= position < len(SMALL) - 8 for position in unnoticed)


@given(st.binary(max_size=200), st.sampled_from([b"", bytes(32) + MAGIC]))
def test_other_bytes_are_a_table_or_corrupt(data: bytes, footer: bytes) -> None:
    try:
        list(read_table(data + footer))
    except (CorruptError, UnsupportedError):
        return
