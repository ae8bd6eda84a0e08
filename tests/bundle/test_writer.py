import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import NUMERIC, open_bundle, same_bits, tensorflow_write, write_files

from ckpt_remote.bundle import (
    STRING,
    VARIANT,
    BundleWriter,
    DType,
    Extent,
    TensorSlice,
    decode_index,
    encode_strings,
    parse_shape_and_slice,
    tensor_entry,
)

ROWS = [TensorSlice((Extent(0, 2), Extent())), TensorSlice((Extent(2, 3), Extent()))]


def restore(prefix: Path, name: str, dtype: DType, where: str = "") -> tf.Tensor:
    return tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=[name], shape_and_slices=[where], dtypes=[tf.as_dtype(dtype.number)]
    )[0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_tensorflow_restores_every_type_and_shape(dtype: DType, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype.numpy)
    writer = BundleWriter("ckpt")
    writer.add("t", values, dtype.number)
    write_files(tmp_path, writer.finish())
    assert tf.train.list_variables(tmp_path / "ckpt") == [("t", list(shape))]
    restored = restore(tmp_path / "ckpt", "t", dtype)
    assert restored.dtype == tf.as_dtype(dtype.number)
    assert tensorflow_bytes(restored) == values.tobytes()
    assert same_bits(open_bundle(tmp_path / "ckpt").get_tensor("t"), values)


def tensorflow_bytes(tensor: tf.Tensor) -> bytes:
    """Return the bytes of the tensor. Flat, because scalars of ml_dtypes do not convert to arrays."""
    return np.asarray(tf.reshape(tensor, [-1])).tobytes()


def test_nan_payloads_and_signs_of_zero_survive(tmp_path: Path) -> None:
    patterns = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0x7F800000], np.uint32)
    writer = BundleWriter("ckpt")
    writer.add("t", patterns.view(np.float32))
    write_files(tmp_path, writer.finish())
    loaded = tf.train.load_checkpoint(tmp_path / "ckpt").get_tensor("t")
    assert loaded.view(np.uint32).tolist() == patterns.tolist()


@pytest.mark.parametrize("dtype", [d for d in NUMERIC if d.sliceable], ids=lambda dtype: dtype.name)
def test_tensorflow_restores_our_slices_whole_and_in_other_slices(dtype: DType, tmp_path: Path) -> None:
    whole = (np.arange(15).reshape(5, 3) % 2).astype(dtype.numpy)
    writer = BundleWriter("ckpt", num_shards=2)
    for part in ROWS:
        writer.add_slice("v", (5, 3), part, whole[part.bounds((5, 3))], dtype.number)
    write_files(tmp_path, writer.finish())
    assert tf.train.list_variables(tmp_path / "ckpt") == [("v", [5, 3])]
    assert tensorflow_bytes(restore(tmp_path / "ckpt", "v", dtype)) == whole.tobytes()
    assert tensorflow_bytes(restore(tmp_path / "ckpt", "v", dtype, "5 3 1,2:1,2")) == whole[1:3, 1:].tobytes()


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12),
        st.sampled_from([d for d in NUMERIC if d.name[0] != "q"]).flatmap(
            lambda dtype: st.lists(st.integers(0, 4), max_size=3).map(
                lambda shape: np.arange(math.prod(shape)).reshape(shape).astype(dtype.numpy)
            )
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 4),
)
def test_tensorflow_loads_any_bundle(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray], num_shards: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    writer = BundleWriter("ckpt", num_shards, write_id="some write")
    for name, values in tensors.items():
        writer.add(name, values)
    write_files(folder, writer.finish())
    loaded = tf.train.load_checkpoint(folder / "ckpt")
    assert loaded.get_variable_to_shape_map() == {name: list(values.shape) for name, values in tensors.items()}
    for name, values in tensors.items():
        assert same_bits(np.asarray(loaded.get_tensor(name)), values)


def test_the_files_are_those_of_tensorflow_byte_for_byte(tmp_path: Path) -> None:
    """As long as names are added in their order, which TensorFlow keeps to."""
    writer = BundleWriter("ckpt")
    writer.add("a", np.arange(3))
    writer.add("b", np.array([b"x", b""], object))
    for part in ROWS:
        writer.add_slice("c", (5, 2), part, np.ones(part.shape((5, 2)), np.int8))
    tensorflow_write(
        tmp_path / "ckpt",
        [
            ("a", "", tf.range(3, dtype=tf.int64)),
            ("b", "", tf.constant(["x", ""])),
            ("c", "5 2 0,2:-", tf.ones((2, 2), tf.int8)),
            ("c", "5 2 2,3:-", tf.ones((3, 2), tf.int8)),
        ],
    )
    assert writer.finish() == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_tensors_are_spread_over_all_shards_and_an_empty_shard_is_a_file_too(tmp_path: Path) -> None:
    writer = BundleWriter("ckpt", num_shards=3)
    for number in range(6):
        writer.add(str(number), np.full(100, number))
    assert [len(data) for name, data in writer.finish().items() if "data" in name] == [1600] * 3
    few = BundleWriter("ckpt", num_shards=2)
    few.add("t", np.float32(1))
    write_files(tmp_path, few.finish())
    assert (tmp_path / "ckpt.data-00001-of-00002").read_bytes() == b""
    assert tf.train.load_checkpoint(tmp_path / "ckpt").get_tensor("t") == 1


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.arange(12, dtype=">i4").reshape(3, 4), id="big-endian"),
        pytest.param(np.arange(12.0).reshape(4, 3).T, id="transposed"),
        pytest.param(np.arange(24)[::2], id="strided"),
    ],
)
def test_the_layout_in_memory_does_not_matter(values: np.ndarray, tmp_path: Path) -> None:
    writer = BundleWriter("ckpt")
    writer.add("t", values)
    write_files(tmp_path, writer.finish())
    assert tf.train.load_checkpoint(tmp_path / "ckpt").get_tensor("t").tolist() == values.tolist()


def test_strings_may_be_objects_or_numpys_bytes(tmp_path: Path) -> None:
    writer = BundleWriter("ckpt")
    writer.add("objects", np.array([b"a\x00", b"bb"], object))
    writer.add("fixed", np.array([b"a", b"bb"]))
    writer.add("scalar", b"one")
    write_files(tmp_path, writer.finish())
    loaded = tf.train.load_checkpoint(tmp_path / "ckpt")
    assert loaded.get_tensor("objects").tolist() == [b"a\x00", b"bb"]
    assert loaded.get_tensor("fixed").tolist() == [b"a", b"bb"]
    assert loaded.get_tensor("scalar") == b"one"


@pytest.mark.parametrize("values", [np.array(["text"]), np.array(["text"], object), np.array([None]), "text"])
def test_text_is_refused_where_bytes_are_meant(values: np.ndarray) -> None:
    with pytest.raises(TypeError):
        BundleWriter("ckpt").add("t", values)


def test_a_type_that_the_array_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="no qint8 tensor"):
        BundleWriter("ckpt").add("t", np.zeros(3, np.uint8), 11)


def test_a_name_is_taken_once() -> None:
    writer = BundleWriter("ckpt")
    writer.add("t", 1)
    with pytest.raises(ValueError, match="before"):
        writer.add("t", 1)
    with pytest.raises(ValueError, match="before"):
        writer.add_slice("t", (5, 3), ROWS[0], np.zeros((2, 3), np.int64))


def test_slices_of_one_tensor_agree() -> None:
    writer = BundleWriter("ckpt")
    writer.add_slice("t", (5, 3), ROWS[0], np.zeros((2, 3)))
    for shape, part, values in [
        ((5, 3), ROWS[0], np.zeros((2, 3))),
        ((5, 3), ROWS[1], np.zeros((3, 3), np.float32)),
        ((6, 3), ROWS[1], np.zeros((3, 3))),
        ((5, 3), ROWS[1], np.zeros((2, 3))),
        ((5, 3), TensorSlice((Extent(4, 2), Extent())), np.zeros((2, 3))),
    ]:
        with pytest.raises(ValueError, match=r"before|another shape|outside"):
            writer.add_slice("t", shape, part, values)
    writer.add_slice("t", (5, 3), ROWS[1], np.zeros((3, 3)))
    assert decode_index(writer.finish()["ckpt.index"]).entries[b"t"].slices == tuple(ROWS)


def test_a_slice_of_everything_is_the_tensor_itself_as_in_tensorflow(tmp_path: Path) -> None:
    for number, spec in enumerate(["2 3 0,2:-", "2 3 -:-"]):
        writer = BundleWriter("ckpt")
        shape, part = parse_shape_and_slice(spec)
        writer.add_slice("t", shape, part, np.zeros((2, 3), np.float32))
        prefix = tmp_path / str(number)
        tensorflow_write(prefix, [("t", spec, tf.zeros((2, 3)))])
        assert writer.finish()["ckpt.index"] == prefix.with_suffix(".index").read_bytes()


@pytest.mark.parametrize("name", ["", "\x00a"])
def test_names_that_would_be_other_keys_are_refused(name: str) -> None:
    writer = BundleWriter("ckpt")
    writer.add(name, 1)
    with pytest.raises(ValueError, match="entry"):
        writer.finish()


def test_an_entry_fits_its_bytes() -> None:
    entry = tensor_entry(1, (2, 3), 4, 5, np.zeros(24, np.uint8))
    assert (entry.shard, entry.offset, entry.size) == (4, 5, 24)
    with pytest.raises(ValueError, match="23 bytes"):
        tensor_entry(1, (2, 3), 0, 0, bytes(23))


def test_the_checksum_of_strings_and_variants_must_be_given() -> None:
    data, crc = encode_strings([b"a"])
    assert tensor_entry(STRING, (1,), 0, 0, data, crc=crc).crc32c == crc
    for dtype in (STRING, VARIANT):
        with pytest.raises(ValueError, match="checksum"):
            tensor_entry(dtype, (1,), 0, 0, data)
