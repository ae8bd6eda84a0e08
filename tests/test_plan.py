"""Where tensors go: to which worker, and there to which shard."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_remote.bundle import (
    DTYPES,
    STRING,
    Extent,
    Header,
    Index,
    TensorSlice,
    crc32c,
    dtype_from_numpy,
    encode_index,
    encode_strings,
    find_dtype,
    index_name,
    mask,
    merge,
    shard_name,
)
from ckpt_remote.plan import Spec, Tensor, level, plan_shards, shard_size, share_out
from ckpt_remote.upload import index_entries

FLOAT, INT8, BFLOAT16, HALF, INT4, COMPLEX = 1, 6, 14, 19, 29, 18
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)
CAPACITIES = st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(any)


def tensor(shape, *, dtype=INT8, key="t", part=None):
    size = math.prod(shape if part is None else part.shape(shape)) * find_dtype(dtype).itemsize
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return Tensor(key=key, dtype=dtype, shape=shape, part=part, data=data)


@st.composite
def parts_of(draw, shape):
    extents = [draw(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)) for n in shape]
    return TensorSlice(tuple(draw(st.just(Extent()) | st.just(Extent(a, b - a))) for a, b in extents))


@st.composite
def tensors(draw, dtypes=(INT8, FLOAT, BFLOAT16, COMPLEX, HALF, INT4)):
    made = []
    for number in range(draw(st.integers(0, 8))):
        shape = draw(SHAPES)
        part = draw(st.none() | parts_of(shape)) if shape else None
        made.append(tensor(shape, dtype=draw(st.sampled_from(dtypes)), key=str(number), part=part))
    return made


def sizes(shares):
    return [sum(piece.size for piece in share) for share in shares]


def assert_placed_once(made, pieces):
    """Every byte lies where its slice says, each element exactly once, and what has no byte is there once, too."""
    assert {each.key for each in made} == {piece.key for piece in pieces}
    for original in made:
        found = np.zeros((*original.shape, find_dtype(original.dtype).itemsize), np.uint8)
        times = np.zeros(original.shape, int)
        own = [piece for piece in pieces if piece.key == original.key]
        for piece in own:
            box = bounds(piece)
            times[box] += 1
            found[box] = np.asarray(piece.data).reshape(found[box].shape)
        assert original.data.tobytes() == found[bounds(original)].tobytes()
        assert (times[bounds(original)] == 1).all()
        assert times.sum() == times[bounds(original)].size
        assert original.size or len(own) == 1


def bounds(piece):
    return tuple(slice(n) for n in piece.shape) if piece.part is None else piece.part.bounds(piece.shape)


@given(tensors(), st.integers(1, 40))
def test_every_byte_is_in_one_shard_where_its_slice_says(made, limit):
    assert_placed_once(made, [piece for shard in plan_shards(made, limit) for piece in shard])


@given(tensors(), CAPACITIES)
@example([tensor((), key="a"), tensor((0, 3), key="b"), tensor((3,), key="c")], [0, 2, 0, 1, 0])
def test_every_byte_is_in_one_share_where_its_slice_says(made, capacities):
    shares = share_out(made, capacities)

    assert len(capacities) == len(shares)
    assert_placed_once(made, [piece for share in shares for piece in share])


@given(tensors(), CAPACITIES, st.integers(1, 40))
def test_every_byte_is_in_one_shard_of_one_share(made, capacities, limit):
    shares = share_out(made, capacities)

    assert_placed_once(made, [piece for share in shares for shard in plan_shards(share, limit) for piece in shard])


@given(tensors(), CAPACITIES, st.integers(1, 40))
def test_specs_are_planned_as_their_tensors(made, capacities, limit):
    """So every worker knows what the others do, and none needs their bytes."""
    specs = [each.spec for each in made]
    shares = share_out(made, capacities)

    assert share_out(specs, capacities) == tuple(tuple(piece.spec for piece in share) for share in shares)
    assert plan_shards(specs, limit) == tuple(
        tuple(piece.spec for piece in shard) for shard in plan_shards(made, limit)
    )


@given(tensors(), CAPACITIES)
def test_what_is_not_cut_is_handed_on_as_it_is(made, capacities):
    """With its checksum."""
    whole = {id(each) for each in made}
    cut = {(each.key, each.part) for each in made}

    for piece in (piece for share in share_out(made, capacities) for piece in share):
        assert (id(piece) in whole) == ((piece.key, piece.part) in cut)


def test_a_slice_keeps_what_is_known_of_its_tensor_but_for_the_checksum():
    whole = Tensor(key="t", dtype=FLOAT, shape=(4, 2), data=bytes(32), mirrored=True, crc32c=7)
    (piece,), _ = share_out([whole], [16, 16])

    assert ("t", FLOAT, (4, 2), True, None) == (piece.key, piece.dtype, piece.shape, piece.mirrored, piece.crc32c)
    assert Spec(key="t", dtype=FLOAT, shape=(4, 2), size=16, mirrored=True, part=piece.part) == piece.spec


@pytest.mark.parametrize(
    "place", [plan_shards, lambda made, limit: share_out(made, [limit] * 4)], ids=["shards", "shares"]
)
def test_slices_are_views_of_the_tensors_memory(place):
    whole = tensor((4, 4))
    pieces = [piece for group in place([whole], 4) for piece in group]

    assert 4 == len(pieces)
    assert all(np.shares_memory(np.asarray(piece.data), whole.data) for piece in pieces)


@given(st.lists(SHAPES, min_size=1, max_size=8), st.integers(4, 40))
@example([(1, 1, 7, 7)], 4)
def test_no_shard_exceeds_the_limit(all_shapes, limit):
    shards = plan_shards([tensor(shape, dtype=FLOAT) for shape in all_shapes], limit)

    assert all(size <= limit for size in sizes(shards))


UNSLICEABLE = {"type": tensor((8, 8), dtype=HALF), "rank": tensor((1, 1, 1, 1, 1, 1, 1, 1, 128))}


@pytest.mark.parametrize("whole", UNSLICEABLE.values(), ids=UNSLICEABLE)
def test_what_tensorflow_cannot_read_in_slices_stays_whole_in_a_shard(whole):
    assert ((whole,),) == plan_shards([whole], 16)


def test_a_tensor_of_as_many_dimensions_as_tensorflow_reads_in_slices_is_cut():
    assert [64, 64] == sizes(plan_shards([tensor((1, 1, 1, 1, 1, 1, 1, 128))], 64))


@pytest.mark.parametrize("whole", UNSLICEABLE.values(), ids=UNSLICEABLE)
def test_what_tensorflow_cannot_read_in_slices_goes_to_the_side_where_more_of_it_lies(whole):
    before = tensor((100,), key="before")

    assert ((before, whole), ()) == share_out([before, whole], [165, 63])
    assert ((before,), (whole,)) == share_out([before, whole], [163, 65])


def test_strings_stay_whole_however_many():
    data, crc = encode_strings([b"text"] * 100)
    strings = Tensor(key="s", dtype=STRING, shape=(100,), data=data, crc32c=crc)

    assert ((strings,),) == plan_shards([strings], 16)
    assert (0, len(data)) == tuple(sizes(share_out([strings], [10, 90])))


def test_a_slice_of_a_partitioned_tensor_is_cut_further_within_the_whole():
    part = TensorSlice((Extent(4, 4), Extent()))
    halves = [(Extent(4, 2), Extent(0, 3)), (Extent(6, 2), Extent(0, 3))]

    for groups in (plan_shards([tensor((8, 3), part=part)], 6), share_out([tensor((8, 3), part=part)], [6, 6])):
        assert halves == [group[0].part.extents for group in groups]


def test_small_tensors_share_a_shard_in_order():
    (shard,) = plan_shards([tensor((2,), key=str(n)) for n in range(5)], 16)

    assert list("01234") == [piece.key for piece in shard]


def test_what_fills_over_half_a_shard_has_one_of_its_own_and_small_tensors_stay_together():
    shards = plan_shards([tensor((size,), key=str(size)) for size in (4, 9, 5, 16, 6)], 16)

    assert [["9"], ["16"], ["4", "5", "6"]] == [[piece.key for piece in shard] for shard in shards]


def test_there_is_a_shard_even_without_tensors():
    assert ((),) == plan_shards([], 16)


def test_shards_grow_with_the_save_between_16_and_128_mib():
    mib = 2**20

    assert 16 * mib == shard_size(0) == shard_size(2**30)
    assert 40 * mib == shard_size(256 * 40 * mib)
    assert 128 * mib == shard_size(2**50)


def residual_blocks():
    yield (7, 7, 3, 64)
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(depth):
            yield from ((1, 1, 4 * width, width), (width,), (3, 3, width, width), (width,), (1, 1, width, 4 * width))
    yield from ((2048, 1000), (1000,))


def attention_blocks():
    yield from ((50257, 768), (1024, 768))
    for _ in range(12):
        yield from ((768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768), (768,))


MODELS = {
    "residual": list(residual_blocks()),
    "transformer": list(attention_blocks()),
    "one huge": [(100_000, 1000)],
    "two long rows": [(2, 10**6)],
    "rows behind axes of one": [(), (1, 1, 1, 10**6)],
    "small": [(1000 + n % 7,) for n in range(1000)],
}


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS)
def test_equal_workers_take_equal_shares_and_few_tensors_are_cut(shapes, workers):
    specs = [Spec(key=str(n), dtype=FLOAT, shape=shape, size=4 * math.prod(shape)) for n, shape in enumerate(shapes)]
    shares = share_out(specs, level([0] * workers, sum(spec.size for spec in specs)))
    slices = [piece for share in shares for piece in share if piece.part is not None]

    assert max(sizes(shares)) / min(sizes(shares)) < 1.01
    assert len({piece.key for piece in slices}) <= workers - 1
    assert len(slices) <= (workers - 1) * 2 * 7, "of four axes, each side of an end is seven boxes at most"
    assert all(piece.size >= min(sizes(shares)) // 2**12 for piece in slices), "a sliver"


@given(tensors((INT8, FLOAT, COMPLEX)), st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_every_share_is_its_capacity_up_to_a_part_in_256_of_the_smallest_or_an_element(made, own):
    capacities = level(own, sum(each.size for each in made))
    shares = share_out(made, capacities)
    tolerance = max(min(filter(None, capacities), default=0) / 256, 16)

    for size, capacity in zip(sizes(shares), capacities, strict=True):
        assert abs(size - capacity) <= tolerance
        assert capacity or not size


def test_a_small_share_beside_a_large_one_is_as_exact_for_its_size():
    large = Spec(key="large", dtype=INT8, shape=(10**6,), size=10**6)

    for capacities in ([999_000, 1000], [1000, 999_000]):
        assert abs(min(sizes(share_out([large], capacities))) - 1000) <= 1000 / 256


def test_capacities_are_proportions_where_they_do_not_sum_to_what_there_is():
    assert [25, 75] == sizes(share_out([tensor((100,))], [1, 3]))
    assert [25, 75] == sizes(share_out([tensor((100,))], [1_000_000, 3_000_000]))


def test_bytes_that_nobody_has_room_for_are_refused():
    with pytest.raises(ValueError, match="none of 2 workers has room for any of 100 bytes"):
        share_out([tensor((100,))], [0, 0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_what_all_have_fills_up_the_least_laden_first(own, common):
    taken = level(own, common)
    together = [mine + more for mine, more in zip(own, taken, strict=True)]

    assert common == sum(taken)
    assert all(0 == more or 0 < more <= min(together) + 1 - mine for mine, more in zip(own, taken, strict=True))


def values_of_every_kind():
    """By key: arrays in all the ways that they can be cut, or not."""
    random = np.random.default_rng(0)
    return {
        "matrix": random.normal(size=(50, 7)).astype(np.float32),
        "rows": random.normal(size=(2, 600)),
        "bfloat16": random.normal(size=(30, 11)).astype(ml_dtypes.bfloat16),
        "int4": random.integers(-8, 8, (40, 9)).astype(ml_dtypes.int4),
        "half": random.normal(size=(9, 20)).astype(np.float16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": random.integers(0, 2, (3, 100)).astype(np.bool_),
        "rank 8": random.normal(size=(1, 2, 2, 3, 2, 2, 2, 5)).astype(np.float32),
        "rank 9": random.normal(size=(1, 2, 2, 3, 2, 2, 2, 5, 1)).astype(np.float32),
        "text": np.array([b"some", b"text"] * 10, object),
    }


def in_memory(key, values):
    if values.dtype == object:
        data, crc = encode_strings(values.tolist())
        return Tensor(key=key, dtype=STRING, shape=values.shape, data=data, crc32c=crc)
    dtype = dtype_from_numpy(values.dtype)
    return Tensor(key=key, dtype=dtype.number, shape=values.shape, data=values.reshape(-1).view(np.uint8))


def partitioned(key, values, rows):
    """The two slices of a variable that a strategy has partitioned."""
    for part in (TensorSlice((Extent(0, rows), Extent())), TensorSlice((Extent(rows, len(values) - rows), Extent()))):
        slice_ = in_memory(key, values[part.bounds(values.shape)])
        yield Tensor(key=key, dtype=slice_.dtype, shape=values.shape, part=part, data=slice_.data)


def write_share(share, limit):
    """The index of one worker, and its data objects."""
    shards = plan_shards(share, limit)
    checksums = [[mask(crc32c(t.data)) if t.crc32c is None else t.crc32c for t in shard] for shard in shards]
    objects = [b"".join(bytes(t.data) for t in shard) for shard in shards]
    return Index(Header(len(shards)), index_entries(shards, checksums)), objects


@pytest.mark.parametrize("capacities", [(1, 1, 1), (5, 1, 3), (0, 1, 0)], ids=str)
def test_tensorflow_restores_what_three_workers_share_out_and_cut_into_shards(tmp_path: Path, capacities):
    import tensorflow as tf

    values = values_of_every_kind()
    embedding = np.random.default_rng(1).normal(size=(80, 6)).astype(np.float32)
    made = [*(in_memory(key, array) for key, array in values.items()), *partitioned("embedding", embedding, 33)]
    parts = [write_share(share, 300) for share in share_out(made, capacities)]
    objects = [content for _, contents in parts for content in contents]
    prefix = str(tmp_path / "ckpt")
    Path(index_name(prefix)).write_bytes(encode_index(merge([index for index, _ in parts])))
    for number, content in enumerate(objects):
        Path(shard_name(prefix, number, len(objects))).write_bytes(content)

    names = [*values, "embedding"]
    types = {t.key: t.dtype for t in made}
    restored = tf.raw_ops.RestoreV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), dtypes=[types[name] for name in names]
    )
    reader = tf.train.load_checkpoint(prefix)
    assert {name: list(array.shape) for name, array in values.items()} | {"embedding": [80, 6]} == (
        reader.get_variable_to_shape_map()
    )
    assert all(DTYPES[types[name]].name == dtype.name for name, dtype in reader.get_variable_to_dtype_map().items())
    for name, found, loaded in zip(names, restored, map(reader.get_tensor, names), strict=True):
        expected = values.get(name, embedding)
        assert expected.tolist() == found.numpy().tolist() == loaded.tolist()
