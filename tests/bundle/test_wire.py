import pytest
from google.protobuf.internal import encoder
from hypothesis import given
from hypothesis import strategies as st

from ckpt_remote.bundle.wire import encode_varint, read_varint, reading
from ckpt_remote.errors import CorruptError, UnsupportedError

UINT64 = st.integers(0, 2**64 - 1) | st.integers(0, 64).map(lambda bits: 2**bits - 1)


@given(UINT64)
def test_a_varint_is_what_protobuf_writes(value: int) -> None:
    assert encode_varint(value) == encoder._VarintBytes(value)


@given(UINT64, st.binary(max_size=3), st.binary(max_size=3))
def test_a_varint_is_read_back_from_any_position(value: int, before: bytes, after: bytes) -> None:
    varint = encode_varint(value)
    assert read_varint(before + varint + after, len(before)) == (value, len(before) + len(varint))


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_that_does_not_fit_is_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="not between"):
        encode_varint(value)


@pytest.mark.parametrize("data", [b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x01", b"\xff" * 1000])
def test_a_varint_of_more_than_64_bits_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match="more than 64 bits"):
        read_varint(data, 0)


@given(UINT64)
def test_a_cut_varint_is_the_end_of_the_data(value: int) -> None:
    varint = encode_varint(value)
    for length in range(len(varint)):
        with pytest.raises(IndexError):
            read_varint(varint[:length], 0)


def test_errors_name_the_file_the_part_the_cause_and_the_next_step() -> None:
    with pytest.raises(CorruptError) as caught, reading("s3://b/ckpt-1.index", "header"):
        raise CorruptError("it is cut")
    assert str(caught.value) == "s3://b/ckpt-1.index: header: it is cut; fall back to an older checkpoint"
    assert caught.value.path == "s3://b/ckpt-1.index"
    with pytest.raises(UnsupportedError) as refused, reading("s3://b/ckpt-1.index"):
        raise UnsupportedError("it is newer; upgrade")
    assert str(refused.value) == "s3://b/ckpt-1.index: it is newer; upgrade"
    assert refused.value.path == "s3://b/ckpt-1.index"
