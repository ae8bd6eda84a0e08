from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.bundles import open_bundle, tensorflow_write

from ckpt_remote.bundle import VARIANT, is_intact
from ckpt_remote.bundle.verify import check_bytes
from ckpt_remote.errors import CorruptError


def variants() -> tf.Tensor:
    """Return three lists of tensors, the last of them long enough for a length of two bytes."""
    shape = tf.constant([], tf.int32)
    return tf.stack(
        [tf.raw_ops.TensorListFromTensor(tensor=tf.range(float(n)), element_shape=shape) for n in (0, 1, 20)]
    )


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(tf.range(5.0), id="numbers"),
        pytest.param(tf.zeros((0, 3)), id="nothing"),
        pytest.param(tf.constant(["a", "", "b" * 200]), id="strings"),
        pytest.param(variants(), id="variants"),
    ],
)
def test_what_tensorflow_wrote_is_intact_and_no_changed_byte_passes(tensor: tf.Tensor, tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "ckpt", [("t", "", tensor)])
    entry = open_bundle(tmp_path / "ckpt")._entries[b"t"]
    data = (tmp_path / "ckpt.data-00000-of-00001").read_bytes()
    assert is_intact(entry, data)
    assert is_intact(entry, np.frombuffer(data, np.uint8))
    assert is_intact(entry, memoryview(bytearray(data)))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert not is_intact(entry, damaged)
        assert not is_intact(entry, data[:position])
    assert not is_intact(entry, data + b"\x00")


def test_variants_of_another_number_are_corrupt(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "ckpt", [("t", "", variants())])
    entry = open_bundle(tmp_path / "ckpt")._entries[b"t"]
    assert entry.dtype == VARIANT
    data = (tmp_path / "ckpt.data-00000-of-00001").read_bytes()
    for count in (0, 2, 4, 2**62):
        changed = type(entry)(entry.dtype, (count,), 0, 0, entry.size, entry.crc32c)
        with pytest.raises(CorruptError, match="variant"):
            check_bytes(changed, data)
