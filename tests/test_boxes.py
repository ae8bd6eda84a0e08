"""Row-major blocks, cut and taken apart: NumPy knows where everything lies."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt_remote.boxes import boxes, even_cuts

LENGTHS = st.lists(st.integers(1, 6), max_size=5).map(tuple)


def elements(lengths, box):
    """The elements of a box, by their place in the block's memory."""
    block = np.arange(prod(lengths)).reshape(lengths)
    return block[tuple(slice(start, start + length) for start, length in box)].reshape(-1).tolist()


@st.composite
def ranges(draw):
    lengths = draw(LENGTHS)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, prod(lengths))] * 2)))
    return lengths, start, stop


@given(ranges())
def test_the_boxes_of_a_range_hold_its_elements_once_and_in_order(drawn):
    lengths, start, stop = drawn

    assert list(range(start, stop)) == [e for box in boxes(lengths, start, stop) for e in elements(lengths, box)]


@given(ranges())
def test_the_boxes_of_a_range_are_few_and_none_is_empty(drawn):
    lengths, start, stop = drawn
    found = list(boxes(lengths, start, stop))

    assert len(found) <= max(2 * len(lengths) - 1, 1)
    assert all(elements(lengths, box) for box in found)


def test_a_range_is_the_end_of_a_row_whole_rows_and_the_beginning_of_another():
    assert [((0, 1), (3, 2)), ((1, 2), (0, 5)), ((3, 1), (0, 1))] == list(boxes((4, 5), 3, 16))


@given(LENGTHS, st.sampled_from([1, 2, 8]), st.integers(0, 200))
def test_between_neighbouring_cuts_lies_one_box_of_at_most_the_limit_or_an_element(lengths, item_size, limit):
    offsets = list(even_cuts(lengths, item_size, limit).offsets())

    assert (0, prod(lengths) * item_size) == (offsets[0], offsets[-1])
    for start, stop in pairwise(offsets):
        assert 0 < stop - start <= max(limit, item_size)
        assert 1 == len(list(boxes(lengths, start // item_size, stop // item_size)))
        assert 0 == start % item_size


@given(LENGTHS, st.integers(1, 200))
@example((7, 5), 15)
def test_the_boxes_between_cuts_differ_by_a_step_at_most_and_are_as_few_as_the_limit_allows(lengths, limit):
    cuts = even_cuts(lengths, 1, limit)
    sizes = [stop - start for start, stop in pairwise(cuts.offsets())]

    assert max(sizes) - min(sizes) <= cuts.step
    assert cuts.chunks == 1 or cuts.steps * cuts.step > (cuts.chunks - 1) * (limit // cuts.step * cuts.step)


@given(LENGTHS, st.integers(1, 50), st.data())
def test_the_nearest_cut_is_no_further_than_any_other(lengths, limit, data):
    cuts = even_cuts(lengths, 2, limit)
    offset = data.draw(st.integers(0, 2 * prod(lengths)))

    assert min(abs(cut - offset) for cut in cuts.offsets()) == abs(cuts.nearest(offset) - offset)


@pytest.mark.parametrize("lengths", [(0,), (3, 0), (0, 3)], ids=str)
def test_an_empty_block_has_no_boxes_and_nothing_to_cut(lengths):
    assert [] == list(boxes(lengths, 0, 0))
    assert {0} == set(even_cuts(lengths, 4, 100).offsets())


def test_cuts_of_a_huge_block_are_found_without_counting_them():
    cuts = even_cuts((10**9, 1000), 4, 4)

    assert 2 * 10**12 == cuts.nearest(2 * 10**12 + 1)
