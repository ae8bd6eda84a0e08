"""Counts the votes of workers that save together: are all shares there, and is what all have the same?

    verify           every data object is there, whole, and of who says so
    compare          what several workers have is the same everywhere
    require_tiling   parts of one tensor do not overlap

Promises: nothing is published that is not whole, or of which two workers have different copies. Mirrored variables may
drift apart, which is no error: of those, the leader's copies are to be published.
"""

import struct
from collections.abc import Sequence

from ckpt_remote.ballot import Failure, Plan, Votes
from ckpt_remote.bundle import (
    OBJECT_GRAPH,
    Header,
    Index,
    Tiling,
    decode_index,
    decode_strings,
    shard_name,
    tensor_name,
)
from ckpt_remote.flow import Ends, Flow
from ckpt_remote.layout import Identity, Manifest, identity
from ckpt_remote.origin import SEAL_SIZE, Attempt, read_seal
from ckpt_remote.plan import Shard, Tensor
from ckpt_remote.store import ObjectInfo
from ckpt_remote.upload import index_entries
from ckpt_remote.verdicts import AbandonedError

__all__ = ["compare", "graph_of", "index_of", "pack", "require_tiling", "verify"]


def index_of(shards: Sequence[Shard], checksums: Sequence[Sequence[int]]) -> Index:
    """The index of one worker's share."""
    return Index(Header(num_shards=len(shards)), index_entries(shards, checksums))


def pack(checksums: Sequence[int]) -> bytes:
    """Checksums as they are told."""
    return struct.pack(f"<{len(checksums)}I", *checksums)


def graph_of(tensors: Sequence[Tensor]) -> bytes:
    """The object graph of one worker; empty for a name-based checkpoint."""
    for tensor in tensors:
        if tensor.key == OBJECT_GRAPH:
            return decode_strings(tensor.data, 1, tensor.crc32c or 0)[0]
    return b""


def verify(plan: Plan, votes: Votes, url: str) -> Flow[list[Index]]:
    """Sees to it that every data object of the others is there, whole, and theirs; returns the indexes of their shares.

    Raises:
        AbandonedError: One is not.
    """
    expected: dict[ObjectInfo, tuple[int, Attempt]] = {}
    indexes = []
    for rank, (part, by) in sorted(votes.items()):
        index = decode_index(part.index)
        indexes.append(index)
        sizes = [0] * (plan.first[rank + 1] - plan.first[rank])
        for entry in index.entries.values():
            if not entry.slices:
                sizes[entry.shard] = max(sizes[entry.shard], entry.offset + entry.size)
        for number, size in enumerate(sizes, plan.first[rank]):
            expected[ObjectInfo(shard_name(plan.path, number, plan.of), size + SEAL_SIZE)] = rank, by
    ends: tuple[bytes | None, ...] = (yield Ends(tuple(expected), SEAL_SIZE)) if expected else ()
    for (info, (rank, by)), end in zip(expected.items(), ends, strict=True):
        if end is None or read_seal(end, info.key) != by:
            text = f"Cannot save {url}/{plan.path}: {info.key} is not there as worker {rank} wrote it. Save again."
            raise AbandonedError(Failure("IncompleteError", text))
    return indexes


def compare(manifests: Sequence[Manifest], mine: bytes, votes: Votes, *, url: str) -> frozenset[Identity]:
    """Sees to it that what several workers have is the same everywhere, and returns which mirrored variables are not.

    Raises:
        AbandonedError: It is not.
    """
    if len({manifest.digest for manifest in manifests}) == 1 and all(
        part.checksums == mine for part, _ in votes.values()
    ):
        return frozenset()
    known: dict[Identity, tuple[int, int]] = {}
    drifted = set()
    for rank, manifest in enumerate(manifests):
        packed = votes[rank][0].checksums if rank in votes else mine
        for spec, (checksum,) in zip(manifest.comparable, struct.iter_unpack("<I", packed), strict=True):
            first, expected = known.setdefault(identity(spec), (rank, checksum))
            if checksum != expected and not spec.mirrored:
                raise AbandonedError(Failure("ValueError", _different(spec.key, first, rank, url)))
            if checksum != expected:
                drifted.add(identity(spec))
    return frozenset(drifted)


def require_tiling(index: Index, *, url: str) -> None:
    """Sees to it that no element of a tensor has two values.

    Raises:
        AbandonedError: One has: workers have parts of one tensor that overlap.
    """
    for key, entry in index.entries.items():
        bounds = [part.bounds(entry.shape) for part in entry.slices]
        tiling = Tiling(bounds) if len(bounds) > 1 else None
        if tiling is not None and not all(tiling.take(bound) for bound in bounds):
            text = (
                f"Cannot save to {url}: workers have parts of {tensor_name(key)!r} that overlap, so nobody knows which "
                "values count; nothing was published. Give each worker a part of its own, or all the whole."
            )
            raise AbandonedError(Failure("ValueError", text))


def _different(key: str, one: int, other: int, url: str) -> str:
    return (
        f"Cannot save to {url}: workers {one} and {other} have different values under one name, {key!r}; nothing was "
        "published. What all have must be equal: saved at the same step by all workers, and made in a strategy's scope "
        "or sent by worker 0 to all before save(), as moving averages. What is each worker's own needs a name of its "
        "own, as in Checkpoint(**{f'part_{rank}': part})."
    )
