"""Who writes what: the shares of workers that save one checkpoint together.

    manifest_of(tensors)           what one worker has
    assign(manifests)              who writes what, from what each has
    layout.share(rank, tensors)    what one worker writes, as data objects

Where all workers have the same, each works this out by itself: it assigns its own manifest to everybody. Where they
do not, the leader learns what each has, and tells them.

Promises: every byte that anybody has is written by exactly one worker; shares are as level as types allow; equal
manifests give equal layouts. What is led, and what only TensorFlow can serialise (strings, the object graph,
iterators), is written by the first worker that has it; but where workers have different objects, nobody writes an
object graph: theirs are to be merged. It compares no contents and does no I/O.
"""

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from ckpt_remote.bundle import OBJECT_GRAPH, TensorSlice, find_dtype, parse_shape_and_slice
from ckpt_remote.errors import CorruptError
from ckpt_remote.plan import Spec, Tensor, level, plan_shards, shard_size, share_out

__all__ = [
    "Identity",
    "Layout",
    "Manifest",
    "assign",
    "comparable",
    "decode_manifest",
    "encode_manifest",
    "identity",
    "manifest_of",
]

S = TypeVar("S", Spec, Tensor)

Identity: TypeAlias = tuple[str, str]
"""What tells a tensor from every other one in a checkpoint: its key, and which slice of it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one worker has.

    Attributes:
        specs: Its tensors, in the order of their identities.
        digest: Equal for equal manifests.
    """

    specs: tuple[Spec, ...]
    digest: str

    @property
    def comparable(self) -> tuple[Spec, ...]:
        """Those whose contents must be equal where several workers have them."""
        return comparable(self.specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who writes what.

    Attributes:
        own: For each worker what it alone writes, whole.
        common: What all have, and each writes a part of.
        taken: How many bytes of that each worker writes.
        limit: The size to aim for in each data object, in bytes.
    """

    own: tuple[frozenset[Identity], ...]
    common: frozenset[Identity]
    taken: tuple[int, ...]
    limit: int

    def share(self, rank: int, tensors: Sequence[S]) -> tuple[tuple[S, ...], ...]:
        """The data objects that one worker writes, of what it has; none if it has nothing to write."""
        return self._shards(rank, tensors, share_out(self._common(tensors), self.taken)[rank])

    def counts(self, manifests: Sequence[Manifest]) -> tuple[int, ...]:
        """How many data objects each worker writes."""
        parts = share_out(self._common(manifests[0].specs), self.taken)
        return tuple(
            len(self._shards(rank, manifest.specs, part))
            for rank, (manifest, part) in enumerate(zip(manifests, parts, strict=True))
        )

    def _common(self, tensors: Sequence[S]) -> list[S]:
        return sorted((tensor for tensor in tensors if identity(tensor) in self.common), key=identity)

    def _shards(self, rank: int, tensors: Sequence[S], part: Sequence[S]) -> tuple[tuple[S, ...], ...]:
        mine = self.own[rank]
        shards = sorted((tensor for tensor in tensors if identity(tensor) in mine), key=identity) if mine else []
        shards.extend(part)
        return plan_shards(shards, self.limit) if shards else ()


def identity(spec: Spec | Tensor) -> Identity:
    """What tells a tensor from every other one in a checkpoint."""
    return spec.key, "" if spec.part is None else str(spec.part)


def comparable(tensors: Sequence[S]) -> tuple[S, ...]:
    """Those whose contents must be equal where several workers have them, in the order of their identities."""
    return tuple(sorted((tensor for tensor in tensors if _is_numeric(tensor)), key=identity))


def manifest_of(tensors: Sequence[Tensor]) -> Manifest:
    """What a worker has that has these tensors."""
    specs = tuple(sorted((tensor.spec for tensor in tensors), key=identity))
    return Manifest(specs, _digest(specs))


def encode_manifest(manifest: Manifest) -> bytes:
    """Prints a manifest, in a few bytes a tensor."""
    return zlib.compress(json.dumps([_row(spec) for spec in manifest.specs]).encode())


def decode_manifest(data: bytes, *, path: str) -> Manifest:
    """Parses a manifest.

    Raises:
        CorruptError: It is none.
    """
    try:
        specs = tuple(_spec(*row) for row in json.loads(zlib.decompress(data)))
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise CorruptError(f"{path} holds no manifest: {error}.", path=path) from error
    return Manifest(specs, _digest(specs))


def assign(manifests: Sequence[Manifest], led: Container[Identity] = ()) -> Layout:
    """Decides who writes what.

    Args:
        manifests: What each worker has, in the order of their ranks.
        led: Of what several workers have copies that differ, so that only those of one worker may count.

    Raises:
        ValueError: Two workers have tensors of one name that differ in type or shape.
    """
    specs, holders = _holders(manifests)
    workers = len(manifests)
    shared = {it for it, spec in specs.items() if _is_numeric(spec) and it not in led}
    common = frozenset(it for it in shared if len(holders[it]) == workers > 1)
    own: list[set[Identity]] = [set() for _ in range(workers)]
    filled = [0] * workers
    if len({manifest.digest for manifest in manifests}) > 1:
        holders.pop((OBJECT_GRAPH, ""), None)
    # The largest first, each to the least laden of those that have it.
    for it in sorted(holders.keys() - common, key=lambda it: (-_weight(specs[it]), it)):
        candidates = holders[it] if it in shared else holders[it][:1]
        rank = min(candidates, key=lambda rank: (filled[rank], rank))
        own[rank].add(it)
        filled[rank] += _weight(specs[it])
    total = sum(specs[it].size for it in common)
    return Layout(
        own=tuple(frozenset(names) for names in own),
        common=common,
        taken=tuple(level(filled, total)),
        limit=shard_size(total + sum(filled)),
    )


def _holders(manifests: Sequence[Manifest]) -> tuple[dict[Identity, Spec], dict[Identity, list[int]]]:
    specs: dict[Identity, Spec] = {}
    holders: dict[Identity, list[int]] = defaultdict(list)
    alike: dict[str, list[int]] = defaultdict(list)
    for rank, manifest in enumerate(manifests):
        alike[manifest.digest].append(rank)
    for ranks in alike.values():
        rank = ranks[0]
        for spec in manifests[rank].specs:
            it = identity(spec)
            known = specs.setdefault(it, spec)
            if (known.dtype, known.shape) != (spec.dtype, spec.shape) and (_is_numeric(spec) or _is_numeric(known)):
                raise ValueError(
                    f"Workers {holders[it][0]} and {rank} have different tensors under one name, {spec.key!r}: "
                    f"{find_dtype(known.dtype).name} of shape {known.shape}, {find_dtype(spec.dtype).name} of shape "
                    f"{spec.shape}. Give what is each worker's own a name of its own."
                )
            holders[it] += ranks
    for it in holders if len(alike) > 1 else ():
        holders[it].sort()
    return specs, holders


def _is_numeric(spec: Spec | Tensor) -> bool:
    return find_dtype(spec.dtype).itemsize is not None


def _weight(spec: Spec) -> int:
    # Strings are few, and each worker's are of another length: they must not move anybody's share.
    return spec.size if _is_numeric(spec) else 0


def _digest(specs: Sequence[Spec]) -> str:
    rows = [_row(spec)[: None if _is_numeric(spec) else 3] for spec in specs]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _row(spec: Spec) -> list[Any]:
    part = "" if spec.part is None else str(spec.part)
    return [spec.key, spec.dtype, list(spec.shape), part, spec.size, int(spec.mirrored)]


def _spec(key: str, dtype: int, shape: Sequence[int], *rest: Any) -> Spec:
    part, size, mirrored = rest
    parsed: TensorSlice | None = None
    if part:
        parsed = parse_shape_and_slice(" ".join([*map(str, shape), part]))[1]
    return Spec(key=key, dtype=dtype, shape=tuple(shape), size=size, part=parsed, mirrored=bool(mirrored))
