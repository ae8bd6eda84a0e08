"""Where tensors go."""

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_remote.bundle import Extent, TensorSlice
from ckpt_remote.plan import Tensor, plan_shards, shard_size

FLOAT, HALF, INT8 = 1, 19, 6
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


def tensor(shape, *, dtype=INT8, key="t", part=None):
    size = math.prod(shape if part is None else part.shape(shape)) * {FLOAT: 4, HALF: 2, INT8: 1}[dtype]
    return Tensor(key=key, dtype=dtype, shape=shape, part=part, data=np.arange(size, dtype=np.uint8))


@given(st.lists(shapes, max_size=8), st.integers(1, 40))
def test_every_byte_is_placed_once_where_its_slice_says(all_shapes, limit):
    tensors = [tensor(shape, key=str(number)) for number, shape in enumerate(all_shapes)]
    found = [np.full(t.shape, 255, np.uint8) for t in tensors]

    for shard in plan_shards(tensors, limit):
        for piece in shard:
            box = (
                tuple(slice(n) for n in piece.tensor.shape)
                if piece.part is None
                else piece.part.bounds(piece.tensor.shape)
            )
            target = found[int(piece.tensor.key)][box]
            assert (target == 255).all(), "a byte was placed twice"
            found[int(piece.tensor.key)][box] = np.asarray(piece.data).reshape(target.shape)

    for original, copy in zip(tensors, found, strict=True):
        assert original.data.tobytes() == copy.tobytes()


@given(st.lists(shapes, min_size=1, max_size=8), st.integers(4, 40))
@example([(1, 1, 7, 7)], 4)
def test_no_shard_exceeds_the_limit(all_shapes, limit):
    shards = plan_shards([tensor(shape, dtype=FLOAT) for shape in all_shapes], limit)

    assert all(sum(piece.size for piece in shard) <= limit for shard in shards)


def test_a_type_that_tensorflow_cannot_slice_stays_whole():
    (shard,) = plan_shards([tensor((8, 8), dtype=HALF)], 16)

    assert [(128, None)] == [(piece.size, piece.part) for piece in shard]


def test_a_slice_of_a_partitioned_tensor_is_cut_further_within_the_whole():
    part = TensorSlice((Extent(4, 4), Extent()))
    shards = plan_shards([tensor((8, 3), part=part)], 6)

    assert [(Extent(4, 2), Extent(0, 3)), (Extent(6, 2), Extent(0, 3))] == [shard[0].part.extents for shard in shards]


def test_small_tensors_share_a_shard_in_order():
    (shard,) = plan_shards([tensor((2,), key=str(n)) for n in range(5)], 16)

    assert list("01234") == [piece.tensor.key for piece in shard]


def test_there_is_a_shard_even_without_tensors():
    assert ((),) == plan_shards([], 16)


def test_pieces_are_views_of_the_tensors_memory():
    whole = tensor((4, 4))
    pieces = [piece for shard in plan_shards([whole], 4) for piece in shard]

    assert all(np.shares_memory(np.asarray(piece.data), whole.data) for piece in pieces)


def test_shards_grow_with_the_save_between_16_and_128_mib():
    mib = 2**20

    assert 16 * mib == shard_size(0) == shard_size(2**30)
    assert 40 * mib == shard_size(256 * 40 * mib)
    assert 128 * mib == shard_size(2**50)
