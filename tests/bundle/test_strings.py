from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import open_bundle, tensorflow_write, write_files

from ckpt_remote.bundle import BundleWriter, decode_strings, encode_strings
from ckpt_remote.errors import CorruptError

STRINGS = st.lists(st.binary(max_size=5) | st.binary(min_size=120, max_size=300), max_size=6)


@given(STRINGS)
def test_strings_are_read_back(values: list[bytes]) -> None:
    data, crc = encode_strings(values)
    assert decode_strings(data, len(values), crc) == values
    assert decode_strings(memoryview(bytearray(data)), len(values), crc) == values


@given(STRINGS)
def test_the_bytes_and_the_checksum_are_tensorflows(
    tmp_path_factory: pytest.TempPathFactory, values: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("strings")
    tensorflow_write(folder / "ckpt", [("s", "", tf.constant(values, tf.string))])
    data, crc = encode_strings(values)
    assert (folder / "ckpt.data-00000-of-00001").read_bytes() == data
    assert open_bundle(folder / "ckpt")._entries[b"s"].crc32c == crc
    assert open_bundle(folder / "ckpt").get_tensor("s").tolist() == values


def test_tensorflow_reads_our_strings(tmp_path: Path) -> None:
    values = np.array([[b"", b"a" * 200], [b"\x00\xff", "ü".encode()]], object)
    writer = BundleWriter("ckpt")
    writer.add("s", values)
    write_files(tmp_path, writer.finish())
    assert (tf.train.load_checkpoint(tmp_path / "ckpt").get_tensor("s") == values).all()


def test_any_other_number_of_strings_is_corrupt() -> None:
    data, crc = encode_strings([b"ab", b"", b"c" * 130])
    for count in (0, 1, 2, 4, 1000, 2**62):
        with pytest.raises(CorruptError):
            decode_strings(data, count, crc)


def test_lengths_that_only_add_up_are_corrupt() -> None:
    data, crc = encode_strings([b"ab", b"cde"])
    swapped = data[1::-1] + data[2:]
    with pytest.raises(CorruptError, match="lengths of its strings"):
        decode_strings(swapped, 2, crc)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    data, crc = encode_strings([b"ab", b"", b"c" * 130])
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptError):
                decode_strings(damaged, 3, crc)
        with pytest.raises(CorruptError):
            decode_strings(data[:position], 3, crc)
    with pytest.raises(CorruptError):
        decode_strings(data, 3, crc ^ 1)
