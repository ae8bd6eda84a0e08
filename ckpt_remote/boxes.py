"""Row-major blocks of memory: where to cut them, and which boxes a contiguous range of one consists of.

A box is a start and a length along each axis, which is what a slice of a tensor can be. A contiguous range is seldom
one box, but always a few: of two axes, the end of one row, whole rows, and the beginning of another.

Promises: the boxes of a range hold each of its elements once, in the order of memory, and are fewer than two for
each axis. Between two neighbouring cuts lies exactly one box. The same shape is cut in the same places.

It knows no tensors and no types.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

__all__ = ["Box", "Cuts", "boxes", "even_cuts"]

Box: TypeAlias = tuple[tuple[int, int], ...]
"""Start and length along each axis, the outermost first."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a block is cut: each of its rows into the same chunks, nearly equal and of whole steps.

    Attributes:
        rows: How many rows there are.
        chunks: How many chunks each becomes; not more than it has steps.
        steps: How many steps a row has.
        step: Bytes of a step.
    """

    rows: int
    chunks: int
    steps: int
    step: int

    def offset(self, cut: int) -> int:
        """The offset of a cut in bytes; the first is the block's beginning, the last its end."""
        row, chunk = divmod(cut, self.chunks)
        return (row * self.steps + chunk * self.steps // self.chunks) * self.step

    def offsets(self) -> Iterator[int]:
        """The offsets of all cuts, ascending."""
        return map(self.offset, self._all)

    def nearest(self, offset: int) -> int:
        """The offset of the cut that is nearest to an offset in the block; of two, the first."""
        after = bisect_left(self._all, offset, key=self.offset)
        return min(map(self.offset, (max(after - 1, 0), after)), key=lambda cut: abs(cut - offset))

    @property
    def _all(self) -> range:
        return range(self.rows * self.chunks + 1)


def even_cuts(lengths: tuple[int, ...], item_size: int, limit: int) -> Cuts:
    """Cuts a block into boxes of at most `limit` bytes, or of one element where that takes more.

    Args:
        lengths: How far the block reaches along each axis.
        item_size: Bytes of an element.
        limit: The largest size of a box in bytes.
    """
    limit = max(limit, item_size)
    if prod(lengths) * item_size <= limit:
        return Cuts(rows=1, chunks=1, steps=1, step=prod(lengths) * item_size)
    axis = 0  # the outermost of which one step fits into a box; those before it go step by step
    while prod(lengths[axis + 1 :]) * item_size > limit:
        axis += 1
    step = prod(lengths[axis + 1 :]) * item_size
    return Cuts(rows=prod(lengths[:axis]), chunks=-(-lengths[axis] // (limit // step)), steps=lengths[axis], step=step)


def boxes(lengths: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The boxes of the elements from `start` to before `stop` of a block, in the order of memory."""
    if start == stop:
        return
    if not lengths:
        yield ()
        return
    step = prod(lengths[1:])
    (first, head), (last, tail) = divmod(start, step), divmod(stop, step)
    if first == last:
        yield from (((first, 1), *box) for box in boxes(lengths[1:], head, tail))
        return
    if head:
        yield from (((first, 1), *box) for box in boxes(lengths[1:], head, step))
        first += 1
    if first < last:
        yield ((first, last - first), *((0, length) for length in lengths[1:]))
    yield from (((last, 1), *box) for box in boxes(lengths[1:], 0, tail))
