import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import (
    NUMERIC,
    open_bundle,
    read_shards,
    same_bits,
    tensorflow_tensor,
    tensorflow_write,
)

from ckpt_remote.bundle import (
    RESOURCE,
    VARIANT,
    BundleReader,
    BundleWriter,
    DType,
    Entry,
    Extent,
    Header,
    Index,
    TensorSlice,
    decode_index,
    slice_key,
    tensor_entry,
)
from ckpt_remote.errors import CorruptError, NotFoundError, StoreError, UnsupportedError


def bits(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random bits as an array, whatever they mean: NaNs of every kind among them."""
    size = math.prod(shape) * dtype.numpy.itemsize
    content = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    # Of these a byte has only so many bits, and NumPy must not be shown others.
    content &= {"bool": 1, "int4": 7, "uint4": 15, "float4_e2m1fn": 15, "int2": 1, "uint2": 3}.get(dtype.name, 255)
    return content.view(dtype.numpy).reshape(shape)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_every_type_and_shape_is_read_bit_for_bit(dtype: DType, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = bits(dtype, shape)
    tensorflow_write(tmp_path / "ckpt", [("t", "", tensorflow_tensor(values, dtype))])
    reader = open_bundle(tmp_path / "ckpt")
    assert (reader.dtype("t"), reader.shape("t")) == (dtype.number, shape)
    assert same_bits(reader.get_tensor("t"), values)


def test_an_array_is_writable_and_of_its_own_memory(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "ckpt", [("t", "", tf.range(4))])
    index = decode_index((tmp_path / "ckpt.index").read_bytes())
    content = bytearray((tmp_path / "ckpt.data-00000-of-00001").read_bytes())
    reader = BundleReader(index, lambda _, offset, size: memoryview(content)[offset : offset + size])
    array = reader.get_tensor("t")
    array += 1
    assert reader.get_tensor("t").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_slices_are_put_together_bit_for_bit(dtype: DType, tmp_path: Path) -> None:
    whole = bits(dtype, (5, 6), seed=1)
    parts = {"0,2:-": whole[:2], "2,3:0,4": whole[2:, :4], "2,3:4,2": whole[2:, 4:]}
    tensorflow_write(
        tmp_path / "ckpt",
        [("t", f"5 6 {where}", tensorflow_tensor(part, dtype)) for where, part in parts.items()],
    )
    reader = open_bundle(tmp_path / "ckpt")
    assert reader.names() == ["t"]
    assert reader.shape("t") == (5, 6)
    assert same_bits(reader.get_tensor("t"), whole)


def test_slices_of_strings_are_read_too_though_tensorflow_cannot(tmp_path: Path) -> None:
    tensorflow_write(
        tmp_path / "c", [("t", "3 0,1", tf.constant(["a"])), ("t", "3 1,2", tf.constant(["b", "c" * 150]))]
    )
    assert open_bundle(tmp_path / "c").get_tensor("t").tolist() == [b"a", b"b", b"c" * 150]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1), unique=True, max_size=8))
def test_names_are_what_tensorflow_lists(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    prefix = tmp_path_factory.mktemp("names") / "ckpt"
    tensorflow_write(
        prefix,
        [(name, "", tf.constant(float(i))) for i, name in enumerate(["fixed", *set(names) - {"fixed"}])],
    )
    reader = open_bundle(prefix)
    listed = tf.train.list_variables(prefix)
    assert sorted((name, list(reader.shape(name))) for name in reader.names()) == sorted(listed)


def test_bundles_that_tensorflow_merged_are_read(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "a", [("x", "", tf.range(3)), ("v", "4 2 0,2:-", tf.ones((2, 2)))])
    tensorflow_write(tmp_path / "b", [("y", "", tf.constant(["s"])), ("v", "4 2 2,2:-", tf.zeros((2, 2)))])
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / "a"), str(tmp_path / "b")],
        destination_prefix=str(tmp_path / "merged"),
    )
    reader = open_bundle(tmp_path / "merged")
    assert reader.names() == ["v", "x", "y"]
    assert reader.get_tensor("v").tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert reader.get_tensor("x").tolist() == [0, 1, 2]
    assert reader.get_tensor("y").tolist() == [b"s"]
    assert {shard for name in reader.names() for shard, _, _ in reader.extents(name)} == {0, 1}


def test_a_model_of_a_checkpoint_is_read_and_its_iterator_left_to_tensorflow(tmp_path: Path) -> None:
    iterator = iter(tf.data.Dataset.range(5).shuffle(3))
    next(iterator)
    checkpoint = tf.train.Checkpoint(kernel=tf.Variable(tf.random.normal((3, 4))), step=tf.Variable(7), data=iterator)
    path = Path(checkpoint.save(str(tmp_path / "ckpt")))
    reader, loaded = open_bundle(path), tf.train.load_checkpoint(path)
    assert set(reader.names()) == set(loaded.get_variable_to_shape_map())
    variants = [name for name in reader.names() if reader.dtype(name) == VARIANT]
    assert [name.split("/")[0] for name in variants] == ["data"]
    for name in variants:
        with pytest.raises(UnsupportedError, match="only TensorFlow") as caught:
            reader.get_tensor(name)
        assert repr(name) in str(caught.value)
    for name in set(reader.names()) - set(variants):
        assert reader.get_tensor(name).tolist() == np.asarray(loaded.get_tensor(name)).tolist()


def test_partitioned_variables_of_a_sharded_saver_are_read(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("scope", partitioner=v1.fixed_size_partitioner(3)):
            variable = v1.get_variable("v", shape=(7, 5), initializer=v1.random_uniform_initializer())
        v1.get_variable("w", initializer=2.5)
        saver = v1.train.Saver(sharded=True)
        session.run(v1.global_variables_initializer())
        whole = session.run(variable.as_tensor())
        path = Path(saver.save(session, str(tmp_path / "ckpt")))
    reader = open_bundle(path)
    assert reader.names() == ["scope/v", "w"]
    assert len(reader.extents("scope/v")) == 3
    assert same_bits(reader.get_tensor("scope/v"), whole)
    assert reader.get_tensor("w") == np.float32(2.5)


def test_extents_are_exactly_what_is_read() -> None:
    writer = BundleWriter("c", num_shards=3)
    writer.add("whole", np.arange(10))
    writer.add("empty", np.zeros((0, 4)))
    writer.add("text", np.array([b"a", b"b"], object))
    for start in (0, 2, 4):
        writer.add_slice("sliced", (6,), TensorSlice((Extent(start, 2),)), np.arange(2.0))
    files = writer.finish()
    read: list[tuple[int, int, int]] = []

    def record(shard: int, offset: int, size: int) -> bytes:
        read.append((shard, offset, size))
        return files[f"c.data-{shard:05d}-of-00003"][offset : offset + size]

    reader = BundleReader(decode_index(files["c.index"]), record)
    for name, count in (("whole", 1), ("empty", 0), ("text", 1), ("sliced", 3)):
        read.clear()
        reader.get_tensor(name)
        assert tuple(read) == reader.extents(name)
        assert len(read) == count


def test_a_missing_tensor_is_not_found_under_any_kind_of_name(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "ckpt", [("v", "4 0,2", tf.zeros(2)), ("v", "4 2,2", tf.zeros(2))])
    index = decode_index((tmp_path / "ckpt.index").read_bytes())
    reader = BundleReader(index, read_shards(tmp_path / "ckpt", 1), path="s3://b/ckpt")
    for name in ("w", "", slice_key("v", TensorSlice((Extent(0, 2),))).decode("utf-8", "surrogateescape")):
        for call in (reader.get_tensor, reader.shape, reader.dtype, reader.extents):
            with pytest.raises(NotFoundError) as caught:
                call(name)
            assert caught.value.path == "s3://b/ckpt"
            assert repr(name) in str(caught.value)


def test_no_changed_or_missing_byte_passes(tmp_path: Path) -> None:
    tensors = [
        ("n", "", tf.range(3)),
        ("s", "", tf.constant(["ab", "c"])),
        ("v", "2 0,1", tf.ones(1)),
        ("v", "2 1,1", tf.ones(1)),
    ]
    tensorflow_write(tmp_path / "ckpt", tensors)
    index = decode_index((tmp_path / "ckpt.index").read_bytes())
    content = (tmp_path / "ckpt.data-00000-of-00001").read_bytes()

    def readable(data: bytes) -> dict[str, bool]:
        reader = BundleReader(index, lambda _, offset, size: data[offset : offset + size], path="s3://b/ckpt")
        return {name: loads(reader, name) for name in ("n", "s", "v")}

    assert all(readable(content).values())
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        assert list(readable(bytes(damaged)).values()).count(False) == 1
        assert not all(readable(content[:position]).values())


def loads(reader: BundleReader, name: str) -> bool:
    """Return whether the tensor can be read, and see to it that the error says which cannot."""
    try:
        reader.get_tensor(name)
    except CorruptError as error:
        return (repr(name) in str(error), error.path) != (True, "s3://b/ckpt")
    return True


def test_what_the_callers_read_raises_comes_through() -> None:
    def unreachable(shard: int, offset: int, size: int) -> bytes:
        raise StoreError("s3://b: no route")

    reader = BundleReader(Index(Header(1), {b"a": Entry(1, (), 0, 0, 4)}), unreachable)
    with pytest.raises(StoreError, match="no route"):
        reader.get_tensor("a")


def zeros(*slices: TensorSlice, shape: tuple[int, ...]) -> BundleReader:
    """Return a reader of a tensor of zeros in these slices, whatever they are."""
    entries = {b"v": Entry(4, shape, slices=slices)}
    for part in slices:
        content = bytes(math.prod(part.shape(shape)))
        entries[slice_key("v", part)] = tensor_entry(4, part.shape(shape), 0, 0, content)
    return BundleReader(Index(Header(1), entries), lambda _shard, _offset, size: bytes(size))


def part(*extents: tuple[int, int]) -> TensorSlice:
    return TensorSlice(tuple(Extent(start, length) for start, length in extents))


def test_slices_that_tile_their_tensor_in_any_way_are_put_together() -> None:
    pinwheel = [
        part((0, 1), (0, 2)),
        part((0, 2), (2, 1)),
        part((1, 2), (0, 1)),
        part((2, 1), (1, 2)),
        part((1, 1), (1, 1)),
    ]
    assert zeros(*pinwheel, shape=(3, 3)).get_tensor("v").tolist() == [[0] * 3] * 3


@pytest.mark.parametrize(
    "slices",
    [
        pytest.param([part((0, 2), (0, 2))], id="a gap"),
        pytest.param([part((0, 2), (0, 3)), part((1, 2), (0, 3))], id="an overlap"),
        pytest.param([part((0, 2), (0, 3)), part((1, 1), (0, 3))], id="an overlap as large as the gap"),
        pytest.param([part((0, 1), (0, 3))] * 3, id="one slice three times"),
    ],
)
def test_slices_that_overlap_or_leave_a_gap_are_corrupt(slices: list[TensorSlice]) -> None:
    with pytest.raises(CorruptError, match="slices overlap"):
        zeros(*slices, shape=(3, 3)).get_tensor("v")


def test_a_slice_that_is_missing_or_unlike_its_tensor_is_corrupt() -> None:
    first, second = part((0, 2)), part((2, 2))
    reader = zeros(first, second, shape=(4,))
    good = dict(reader._entries)
    for bad in (None, Entry(4, (3,), 0, 0, 3), Entry(6, (2,), 0, 0, 2)):
        entries = good | {slice_key("v", second): bad}
        entries = {key: entry for key, entry in entries.items() if entry is not None}
        damaged = BundleReader(Index(Header(1), entries), lambda _shard, _offset, size: bytes(size))
        for call in (damaged.get_tensor, damaged.extents):
            with pytest.raises(CorruptError, match="slice 2,2"):
                call("v")


def test_a_claim_of_more_than_there_is_costs_no_memory() -> None:
    """Whole or in slices, it is found out by the first byte that is missing."""
    huge = 2**45
    whole = BundleReader(Index(Header(1), {b"v": Entry(4, (huge,), 0, 0, huge)}), lambda *_: b"")
    halves = [part((0, huge // 2)), part((huge // 2, huge // 2))]
    entries = {slice_key("v", half): Entry(4, (huge // 2,), 0, 0, huge // 2) for half in halves}
    entries[b"v"] = Entry(4, (huge,), slices=tuple(halves))
    for reader in (whole, BundleReader(Index(Header(1), entries), lambda *_: b"")):
        with pytest.raises(CorruptError, match="0 are there"):
            reader.get_tensor("v")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry(RESOURCE, (), 0, 0, 4), "resource"),
        (Entry(VARIANT, (), 0, 0, 4), "variant"),
        (Entry(99, (), 0, 0, 4), "data type 99"),
        (Entry(4, (1,) * 65, 0, 0, 1), "rank 65"),
    ],
)
def test_what_numpy_cannot_hold_is_unsupported(entry: Entry, reason: str) -> None:
    reader = BundleReader(Index(Header(1), {b"v": entry}), lambda _shard, _offset, size: bytes(size))
    with pytest.raises(UnsupportedError, match=reason):
        reader.get_tensor("v")
