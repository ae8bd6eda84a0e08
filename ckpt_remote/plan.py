"""Which part of which tensor goes to which worker, and there to which shard: arithmetic on shapes and sizes.

    level        how many bytes of what all workers have each of them takes
    share_out    one run of the tensors' bytes for each worker
    plan_shards  the shards of one worker

Promises: every byte of every tensor is placed exactly once; the same tensors give the same plan, on every worker, and
whether their bytes are there (`Tensor`) or not (`Spec`); no shard exceeds the asked size unless a single tensor that
TensorFlow cannot read in slices does; what is cut is a contiguous range of a tensor's own memory, so nothing needs to
be copied to write it.

It does not read tensors, name objects or know about stores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import prod
from typing import TypeAlias, TypeVar

from ckpt_remote.boxes import Cuts, boxes, even_cuts
from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.bundle import Extent, TensorSlice, find_dtype

__all__ = ["Shard", "Spec", "Tensor", "level", "plan_shards", "shard_size", "share_out"]

# Real stores cap each connection, so many small pieces in flight beat few large ones; still smaller ones cost requests.
_SMALLEST_SHARD = 16 * 2**20
# Above this size a PUT gains nothing more and a lost one costs more to repeat.
_LARGEST_SHARD = 128 * 2**20
# Beyond some hundred objects, restoring and deleting pay for each one.
_SANE_COUNT = 256
# Shares end between pieces of this part of the smallest: level to one in a hundred, and no slice is a sliver.
_PIECES_OF_A_SHARE = 256
# kTensorSliceMaxRank in core/util/tensor_slice_util.h: reading a slice of a tensor of more ends the process.
_MAX_SLICED_RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is known of one tensor, or of one slice of a partitioned tensor, without its bytes.

    Attributes:
        key: The checkpoint key.
        dtype: TensorFlow's DataType number.
        shape: The shape of the whole tensor, in elements.
        size: How many bytes.
        part: Which slice of the tensor they are; None for all of it.
        mirrored: Whether a distribution strategy keeps this variable equal on all workers, up to rounding.
    """

    key: str
    dtype: int
    shape: tuple[int, ...]
    size: int
    part: TensorSlice | None = None
    mirrored: bool = False

    def cut(self, start: int, size: int, part: TensorSlice) -> "Spec":
        """The `size` bytes from `start` on, which are the slice `part` of the whole tensor."""
        del start  # a slice says by itself where its bytes are
        return replace(self, size=size, part=part)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensor:
    """One tensor, or one slice of a partitioned tensor, with its bytes.

    Attributes:
        key: The checkpoint key.
        dtype: TensorFlow's DataType number.
        shape: The shape of the whole tensor, in elements.
        data: The bytes as the bundle holds them, row-major and little-endian; owned by the caller until uploaded.
        part: Which slice of the tensor they are; None for all of it.
        mirrored: Whether a distribution strategy keeps this variable equal on all workers, up to rounding.
        crc32c: The masked checksum of `data` where it is known already.
    """

    key: str
    dtype: int
    shape: tuple[int, ...]
    data: Buffer
    part: TensorSlice | None = None
    mirrored: bool = False
    crc32c: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def spec(self) -> Spec:
        """The same without the bytes."""
        return Spec(
            key=self.key, dtype=self.dtype, shape=self.shape, size=self.size, part=self.part, mirrored=self.mirrored
        )

    def cut(self, start: int, size: int, part: TensorSlice) -> "Tensor":
        """The `size` bytes from `start` on, not copied, which are the slice `part` of the whole tensor."""
        return replace(self, data=byte_view(self.data)[start : start + size], part=part, crc32c=None)


S = TypeVar("S", Spec, Tensor)

Shard: TypeAlias = tuple[Tensor, ...]
"""What one data object holds, in the order of its bytes: tensors, each whole or a slice."""


def shard_size(total: int) -> int:
    """The size to aim for in each data object of a save of `total` bytes.

    Grows from 16 MiB, so that many connections share the work, to at most 128 MiB, so that a huge save has a
    sane number of objects.
    """
    return min(max(_SMALLEST_SHARD, -(-total // _SANE_COUNT)), _LARGEST_SHARD)


def plan_shards(tensors: Sequence[S], limit: int) -> tuple[tuple[S, ...], ...]:
    """Places every tensor into shards of at most `limit` bytes.

    A tensor larger than a shard becomes slices over several, which TensorFlow restores and lists as one tensor; one
    that TensorFlow cannot read in slices, for its type or rank, stays whole in a shard of its own. Small tensors share
    shards in the order given. There is always at least one, so that a checkpoint has a data object even when empty.

    Args:
        tensors: What to place.
        limit: The largest size of a shard in bytes, where tensors allow.

    Returns:
        The shards, each a tuple of tensors and slices in the order of their bytes.
    """
    shards: list[tuple[S, ...]] = []
    open_shard: list[S] = []
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


def share_out(tensors: Sequence[S], capacities: Sequence[int]) -> tuple[tuple[S, ...], ...]:
    """Gives every worker one contiguous run of the tensors' bytes, of the size that it has room for.

    Each takes its capacity up to one part in 256 of the smallest, or one element where that is more. Where a run would
    end within a tensor that TensorFlow cannot read in slices, it ends at the nearer end of that tensor. Only tensors
    in which a run ends are cut, ordinarily one for each worker, into a slice or a few on each side.

    Args:
        tensors: What to place, in this order.
        capacities: How many bytes each worker should take; in proportion, where they do not sum to what there is. A
            worker of none takes no byte.

    Returns:
        What each worker takes; together every tensor exactly once.

    Raises:
        ValueError: There are bytes, and no worker has room for any.
    """
    ends: list[int] = _ends(capacities, sum(tensor.size for tensor in tensors))
    smallest = min((stop - start for start, stop in pairwise([0, *ends]) if start < stop), default=0)
    shares: list[list[S]] = [[] for _ in capacities]
    worker = position = 0
    for tensor in tensors:
        start = 0
        while ends[worker] < position + tensor.size:
            stop = _cuts(tensor, smallest // _PIECES_OF_A_SHARE).nearest(ends[worker] - position)
            shares[worker].extend(_slices(tensor, start, stop))
            worker, start = worker + 1, stop
        shares[worker].extend(_slices(tensor, start, tensor.size))
        position += tensor.size
    return tuple(map(tuple, shares))


def level(own: Sequence[int], common: int) -> tuple[int, ...]:
    """How many bytes of `common` each worker takes, so that all have as nearly the same to write as can be.

    Args:
        own: The bytes that each worker has to write in any case; there is at least one.
        common: The bytes that any of them can write.

    Returns:
        For each worker what it takes; together exactly `common`.
    """
    takers = sorted(range(len(own)), key=own.__getitem__)
    total = sum(own) + common
    while own[takers[-1]] * len(takers) > total:  # the most laden has more than it would come to
        total -= own[takers.pop()]
    taken = [0] * len(own)
    for place, worker in enumerate(takers):
        taken[worker] = (total + place) // len(takers) - own[worker]
    return tuple(taken)


def _ends(capacities: Sequence[int], total: int) -> list[int]:
    """Where each worker's run should end, in bytes from the beginning of the first tensor."""
    room = sum(capacities)
    if total and not room:
        raise ValueError(f"none of {len(capacities)} workers has room for any of {total} bytes")
    return [filled * total // max(room, 1) for filled in accumulate(capacities)]


def _pieces(tensor: S, limit: int) -> Iterator[S]:
    """A tensor in pieces of at most `limit` bytes, if TensorFlow can read it in slices."""
    if tensor.size <= limit:  # most are, and the arithmetic takes time
        yield tensor
        return
    for start, stop in pairwise(_cuts(tensor, limit).offsets()):
        yield from _slices(tensor, start, stop)


def _cuts(tensor: Spec | Tensor, limit: int) -> Cuts:
    """Where to cut a tensor into slices of at most `limit` bytes, if TensorFlow can read it in slices."""
    if len(tensor.shape) > _MAX_SLICED_RANK or not find_dtype(tensor.dtype).sliceable:
        return even_cuts((), tensor.size, limit)
    _, lengths = _extents(tensor)
    return even_cuts(lengths, tensor.size // max(prod(lengths), 1), limit)


def _slices(tensor: S, start: int, stop: int) -> Iterator[S]:
    """The bytes from `start` to before `stop` of a tensor: as it is if that is all of it, or a slice or a few."""
    if stop - start == tensor.size:
        yield tensor
    elif start < stop:
        origin, lengths = _extents(tensor)
        item_size = tensor.size // prod(lengths)
        for box in boxes(lengths, start // item_size, stop // item_size):
            part = TensorSlice(tuple(Extent(base + first, n) for base, (first, n) in zip(origin, box, strict=True)))
            size = prod(n for _, n in box) * item_size
            yield tensor.cut(start, size, part)
            start += size


def _extents(tensor: Spec | Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the tensor's bytes begin in the whole tensor, and how far they reach, per dimension."""
    if tensor.part is None:
        return (0,) * len(tensor.shape), tensor.shape
    return tuple(extent.start for extent in tensor.part.extents), tensor.part.shape(tensor.shape)
