import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import tensorflow_write

from ckpt_remote.bundle import (
    Extent,
    TensorSlice,
    decode_slice_key,
    is_slice_key,
    slice_key,
    tensor_key,
    tensor_name,
)
from ckpt_remote.bundle.table import read_table
from ckpt_remote.errors import CorruptError

NUMBERS = st.integers(0, 200) | st.integers(0, 62).flatmap(lambda bits: st.integers(0, 2**bits))
EXTENTS = st.just(Extent()) | st.builds(Extent, NUMBERS, NUMBERS)
SLICES = st.lists(EXTENTS, max_size=4).map(lambda extents: TensorSlice(tuple(extents)))
NAMES = st.text(st.characters(codec="utf-8")) | st.binary().map(tensor_name)


@given(NAMES, SLICES)
def test_a_key_is_read_back(name: str, part: TensorSlice) -> None:
    assert decode_slice_key(slice_key(name, part)) == (name, part)
    assert is_slice_key(slice_key(name, part))


@given(st.binary())
def test_every_name_survives_even_if_it_is_not_utf8(key: bytes) -> None:
    assert tensor_key(tensor_name(key)) == key


@given(
    st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name[0] != "\x00"),
    st.integers(0, 61).flatmap(lambda bits: st.integers(0, 2**bits)),
    st.integers(1, 2),
)
def test_the_key_is_tensorflows(tmp_path_factory: pytest.TempPathFactory, name: str, start: int, length: int) -> None:
    folder = tmp_path_factory.mktemp("keys")
    values = tf.zeros((length, 2), tf.int8)
    tensorflow_write(folder / "ckpt", [(name, f"{start + length + 1} 2 {start},{length}:-", values)])
    keys = [key for key, _ in read_table((folder / "ckpt.index").read_bytes())]
    expected = slice_key(name, TensorSlice((Extent(start, length), Extent())))
    assert keys == [b"", expected, tensor_key(name)]


@given(NAMES, SLICES, NAMES, SLICES)
def test_keys_are_in_the_order_of_names_then_extents(
    name: str, part: TensorSlice, other_name: str, other_part: TensorSlice
) -> None:
    def order(name: str, part: TensorSlice) -> tuple[bytes, int, list[tuple[int, int]]]:
        return (
            tensor_key(name),
            len(part.extents),
            [(e.start, -1 if e.length is None else e.length) for e in part.extents],
        )

    smaller = order(name, part) < order(other_name, other_part)
    assert (slice_key(name, part) < slice_key(other_name, other_part)) == smaller


@given(st.binary(max_size=40).map(lambda tail: b"\x00" + tail))
def test_other_bytes_are_corrupt_or_the_key_of_what_they_decode_to(key: bytes) -> None:
    try:
        name, part = decode_slice_key(key)
    except CorruptError:
        return
    assert slice_key(name, part) == key


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(b"\x00v", id="no separator"),
        pytest.param(b"\x00v\x00\x02\x01\x01\x80\x82", id="undefined escape"),
        pytest.param(b"\x00v\x00\x01\x01\x02\x80\x82", id="one extent of two"),
        pytest.param(b"\x00v\x00\x01\x01\x01\x80\x82\x00", id="a byte too many"),
        pytest.param(b"\x00v\x00\x01\x02\x00\x01\x80\x82", id="rank with a leading zero"),
        pytest.param(b"\x00v\x00\x01\x01\x01\x80\x7e", id="length -2"),
        pytest.param(b"\x00v\x00\x01\x01\x01\x81\x7f", id="a full extent that starts at 1"),
        pytest.param(b"\x00v\x00\x01\x01\x01\x80\xff\xff\xff", id="a number cut"),
        pytest.param(slice_key("v", TensorSlice((Extent(2**63, 1),))), id="start of 64 bits"),
        pytest.param(slice_key("v", TensorSlice((Extent(0, 2**70),))), id="length of eleven bytes"),
        pytest.param(slice_key("v", TensorSlice((Extent(-1, 1),))), id="start -1"),
        pytest.param(b"\x00v\x00\x01\x08" + b"\xff" * 8, id="rank 2**64-1"),
        pytest.param(b"\x01v\x00\x01\x01\x01\x80\x82", id="no leading zero"),
    ],
)
def test_malformed_keys_are_corrupt(key: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_slice_key(key)
