"""Which tensor goes to which shard: pure arithmetic on shapes and sizes.

Promises: every byte of every tensor is placed exactly once; no shard exceeds the asked size unless a single
tensor that TensorFlow cannot read in slices does; the same tensors give the same plan; pieces are contiguous
ranges of a tensor's own memory, so nothing needs to be copied to write them.

It does not read tensors, name objects or know about stores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.bundle import Extent, TensorSlice, find_dtype

__all__ = ["Piece", "Shard", "Tensor", "plan_shards", "shard_size", "whole_shard"]

# Real stores cap each connection, so many small pieces in flight beat few large ones; still smaller ones cost requests.
_SMALLEST_SHARD = 16 * 2**20
# Above this size a PUT gains nothing more and a lost one costs more to repeat.
_LARGEST_SHARD = 128 * 2**20
# Beyond some hundred objects, restoring and deleting pay for each one.
_SANE_COUNT = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensor:
    """One tensor, or one slice of a partitioned tensor, with its bytes.

    Attributes:
        key: The checkpoint key.
        dtype: TensorFlow's DataType number.
        shape: The shape of the whole tensor, in elements.
        part: Which slice of it these bytes are; None for all of it.
        data: The bytes as the bundle holds them, row-major and little-endian; owned by the caller until uploaded.
        crc32c: The masked checksum of `data` where it is known already.
    """

    key: str
    dtype: int
    shape: tuple[int, ...]
    data: Buffer
    part: TensorSlice | None = None
    crc32c: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """A contiguous range of a tensor's bytes that goes into one shard.

    Attributes:
        tensor: Where the bytes are.
        start: The first byte within `tensor.data`.
        size: How many bytes.
        part: The slice of the whole tensor that they are; None for all of it.
    """

    tensor: Tensor
    start: int
    size: int
    part: TensorSlice | None

    @property
    def data(self) -> memoryview:
        """The bytes, not copied."""
        return byte_view(self.tensor.data)[self.start : self.start + self.size]


Shard = tuple[Piece, ...]


def shard_size(total: int) -> int:
    """The size to aim for in each data object of a save of `total` bytes.

    Grows from 16 MiB, so that many connections share the work, to at most 128 MiB, so that a huge save has a
    sane number of objects.
    """
    return min(max(_SMALLEST_SHARD, -(-total // _SANE_COUNT)), _LARGEST_SHARD)


def plan_shards(tensors: Sequence[Tensor], limit: int) -> tuple[Shard, ...]:
    """Places every tensor into shards of at most `limit` bytes.

    A tensor larger than a shard becomes slices over several, which TensorFlow restores and lists as one tensor;
    types that TensorFlow cannot read in slices stay whole in a shard of their own. Small tensors share shards in
    the order given. There is always at least one shard, so that a checkpoint has a data object even when empty.

    Args:
        tensors: What to place.
        limit: The largest size of a shard in bytes, where types allow.

    Returns:
        The shards, each a tuple of pieces in the order of their bytes.
    """
    shards: list[Shard] = []
    open_shard: list[Piece] = []
    filled = 0
    for tensor in tensors:
        for piece in _pieces(tensor, limit):
            if piece.size * 2 > limit:  # shares badly: a shard of its own, and the small ones stay together
                shards.append((piece,))
                continue
            if filled + piece.size > limit:
                shards.append(tuple(open_shard))
                open_shard, filled = [], 0
            open_shard.append(piece)
            filled += piece.size
    if open_shard or not shards:
        shards.append(tuple(open_shard))
    return tuple(shards)


def whole_shard(tensors: Sequence[Tensor]) -> Shard:
    """One shard of all the tensors, uncut, however large."""
    return tuple(Piece(tensor=tensor, start=0, size=tensor.size, part=tensor.part) for tensor in tensors)


def _pieces(tensor: Tensor, limit: int) -> Iterator[Piece]:
    if tensor.size <= limit or not find_dtype(tensor.dtype).sliceable:
        yield from whole_shard([tensor])
        return
    origin, lengths = _extents(tensor)
    start = 0
    for corner, size in _contiguous(lengths, tensor.size // prod(lengths), limit):
        extents = tuple(Extent(base + offset, length) for base, (offset, length) in zip(origin, corner, strict=True))
        yield Piece(tensor=tensor, start=start, size=size, part=TensorSlice(extents))
        start += size


def _extents(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the tensor's bytes begin in the whole tensor, and how far they reach, per dimension."""
    if tensor.part is None:
        return (0,) * len(tensor.shape), tensor.shape
    origin = tuple(extent.start for extent in tensor.part.extents)
    lengths = tuple(
        size if extent.length is None else extent.length
        for extent, size in zip(tensor.part.extents, tensor.shape, strict=True)
    )
    return origin, lengths


def _contiguous(
    lengths: tuple[int, ...], item_size: int, limit: int
) -> Iterator[tuple[tuple[tuple[int, int], ...], int]]:
    """Cuts a row-major block into contiguous boxes of at most `limit` bytes, nearly equal in size.

    Yields, in the order of the bytes, each box as (offset, length) per dimension, and its size in bytes.
    """
    axis = 0  # the outermost dimension of which one step fits into a shard; those before it go step by step
    while prod(lengths[axis + 1 :]) * item_size > limit:
        axis += 1
    step_bytes = prod(lengths[axis + 1 :]) * item_size
    count = -(-lengths[axis] // (limit // step_bytes))
    inner = tuple((0, length) for length in lengths[axis + 1 :])
    for leading in range(prod(lengths[:axis])):
        outer: list[tuple[int, int]] = []
        for length in reversed(lengths[:axis]):
            leading, index = divmod(leading, length)  # noqa: PLW2901  (digits of a mixed-radix number)
            outer.append((index, 1))
        for chunk in range(count):
            begin, end = chunk * lengths[axis] // count, (chunk + 1) * lengths[axis] // count
            yield (*reversed(outer), (begin, end - begin), *inner), (end - begin) * step_bytes
