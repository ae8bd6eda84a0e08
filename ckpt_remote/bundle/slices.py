"""Slices of a tensor: one extent for each dimension (TensorFlow's tensor_slice.proto and tensor_slice.cc).

Promises: `bounds` accepts a slice only inside its tensor, and a `Tiling` no element twice. A slice by itself
may hold anything: only a shape says whether it makes sense.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FULL", "Extent", "TensorSlice", "Tiling", "parse_shape_and_slice"]


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of one dimension.

    Attributes:
        start: The first index. Zero where the extent is full.
        length: The number of indices, or None for the whole dimension.
    """

    start: int = 0
    length: int | None = None


FULL = Extent()
"""The whole dimension, however long."""


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A rectangular part of a tensor.

    Attributes:
        extents: One for each dimension of the tensor.
    """

    extents: tuple[Extent, ...]

    def bounds(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the slice as NumPy's index into a tensor of `shape`.

        Raises:
            ValueError: The slice is not a part of that shape.
        """
        if len(self.extents) != len(shape):
            raise ValueError(f"slice {self} has rank {len(self.extents)}, its tensor {shape} rank {len(shape)}")
        bounds = []
        for extent, size in zip(self.extents, shape, strict=True):
            length = size if extent.length is None else extent.length
            if extent.start < 0 or length < 0 or extent.start + length > size:
                raise ValueError(f"slice {self} reaches outside its tensor of shape {shape}")
            bounds.append(slice(extent.start, extent.start + length))
        return tuple(bounds)

    def shape(self, full: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of this part of a tensor of shape `full`.

        Raises:
            ValueError: The slice is not a part of that shape.
        """
        return tuple(bound.stop - bound.start for bound in self.bounds(full))

    def __str__(self) -> str:
        """Return TensorFlow's notation: `0,5:-` is five rows, all columns."""
        return ":".join("-" if e.length is None else f"{e.start},{e.length}" for e in self.extents)


class Tiling:
    """Sees to it that no two parts of a tensor overlap.

    Marks them on the grid of their edges, which ordinarily has as many cells as there are parts, and never more than
    the tensor has elements. Parts that do not overlap and have as many elements as the tensor leave no gap.

    Args:
        bounds: All the parts that there will be.
    """

    def __init__(self, bounds: Sequence[tuple[slice, ...]]) -> None:
        axes = [
            sorted({edge for bound in axis for edge in (bound.start, bound.stop)}) for axis in zip(*bounds, strict=True)
        ]
        self._lines = [{edge: line for line, edge in enumerate(axis)} for axis in axes]
        self._taken = np.zeros([len(axis) - 1 for axis in axes], np.bool_)

    def take(self, bounds: tuple[slice, ...]) -> bool:
        """Mark one of the parts as taken, and return whether all of it was free."""
        cells = tuple(
            slice(line[bound.start], line[bound.stop]) for line, bound in zip(self._lines, bounds, strict=True)
        )
        free = not self._taken[cells].any()
        self._taken[cells] = True
        return free


def parse_shape_and_slice(spec: str) -> tuple[tuple[int, ...], TensorSlice]:
    """Return the full shape and the slice of `10 4 0,5:-`, say: the notation of TensorFlow's `SaveSpec`.

    Raises:
        ValueError: `spec` is not of that form, or the slice not a part of the shape.
    """
    *dimensions, extents = spec.split(" ")
    part = TensorSlice(tuple(_parse_extent(extent, spec) for extent in extents.split(":")))
    shape = tuple(int(dimension) for dimension in dimensions)
    part.bounds(shape)
    return shape, part


def _parse_extent(text: str, spec: str) -> Extent:
    if text == "-":
        return FULL
    start, comma, length = text.partition(",")
    if not comma:
        raise ValueError(f"{spec!r} is not a shape and slice such as '10 4 0,5:-'")
    return Extent(int(start), int(length))
