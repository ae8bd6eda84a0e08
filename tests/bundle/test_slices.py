import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ckpt_remote.bundle import Extent, TensorSlice, parse_shape_and_slice
from ckpt_remote.bundle.slices import Tiling

SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


@st.composite
def slices_of(draw: st.DrawFn, shape: tuple[int, ...]) -> TensorSlice:
    extents = []
    for size in shape:
        start = draw(st.integers(0, size))
        extents.append(draw(st.just(Extent()) | st.builds(Extent, st.just(start), st.integers(0, size - start))))
    return TensorSlice(tuple(extents))


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), st.lists(slices_of(shape), min_size=1, max_size=5))))
def test_a_tiling_finds_exactly_the_overlaps(drawn: tuple[tuple[int, ...], list[TensorSlice]]) -> None:
    shape, parts = drawn
    tiling = Tiling([part.bounds(shape) for part in parts])
    taken = np.zeros(shape, bool)
    for part in parts:
        where = part.bounds(shape)
        assert tiling.take(where) == (not taken[where].any())
        taken[where] = True


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), slices_of(shape))))
def test_bounds_and_shape_agree_with_numpy(drawn: tuple[tuple[int, ...], TensorSlice]) -> None:
    shape, part = drawn
    assert np.empty(shape)[part.bounds(shape)].shape == part.shape(shape)


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), slices_of(shape))))
def test_the_notation_is_read_back(drawn: tuple[tuple[int, ...], TensorSlice]) -> None:
    shape, part = drawn
    assert parse_shape_and_slice(" ".join([*map(str, shape), str(part)])) == (shape, part)


def test_the_notation_is_that_of_tensorflows_partitioned_variables() -> None:
    info = tf.Variable.SaveSliceInfo(full_name="v", full_shape=[10, 4], var_offset=[5, 0], var_shape=[5, 4])
    assert parse_shape_and_slice(info.spec) == ((10, 4), TensorSlice((Extent(5, 5), Extent(0, 4))))
    assert parse_shape_and_slice("10 4 5,5:-") == ((10, 4), TensorSlice((Extent(5, 5), Extent())))


@pytest.mark.parametrize(
    "spec", ["", "10", "10 4", "10 4 0,5", "10 0,5:-", "10 6,5", "10 -1,5", "10 a,5", "x 0,5", "10 0"]
)
def test_a_notation_that_means_no_slice_is_refused(spec: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  every message is different, and for the developer
        parse_shape_and_slice(spec)


@pytest.mark.parametrize("extent", [Extent(3, 2), Extent(-1, 2), Extent(0, 5), Extent(0, -1), Extent(5)])
def test_a_slice_outside_its_tensor_has_no_bounds(extent: Extent) -> None:
    with pytest.raises(ValueError, match="outside"):
        TensorSlice((extent,)).bounds((4,))
