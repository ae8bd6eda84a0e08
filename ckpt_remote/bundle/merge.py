"""Merges the indexes of several bundles into one, as MergeBundles in tensor_bundle.cc, and moves no data.

Promises: shard `i` of a part becomes the shard that many places after all shards of the parts before it, used
or not; a tensor whose slices are spread over parts is one tensor of all of them; nothing is dropped or
overwritten silently.

Does not rename anything: the parts' data files must have their final names already.
"""

from collections.abc import Sequence
from dataclasses import replace

from ckpt_remote.bundle.index import MAX_SHARDS, Index
from ckpt_remote.bundle.messages import Entry, Header

__all__ = ["merge"]


def merge(parts: Sequence[Index], *, write_id: str = "") -> Index:
    """Return one index of everything in `parts`.

    Args:
        parts: Indexes of bundles, in the order in which their shards are numbered.
        write_id: Goes into the header; the parts' own are dropped.

    Raises:
        ValueError: Two parts hold the same tensor or slice, or disagree about a sliced tensor's type or
            shape, or there are more than 99,999 shards.
    """
    entries: dict[bytes, Entry] = {}
    origins: dict[bytes, int] = {}
    shards = 0
    for number, part in enumerate(parts):
        for key, entry in part.entries.items():
            known = entries.get(key)
            if known is None:
                origins[key] = number
                entries[key] = entry if entry.slices else replace(entry, shard=entry.shard + shards)
            else:
                entries[key] = _unite(known, entry, f"{key!r}, in parts {origins[key]} and {number}")
        shards += part.header.num_shards
    if shards > MAX_SHARDS:
        raise ValueError(f"the parts have {shards} shards together, over {MAX_SHARDS}")
    files = dict.fromkeys(file for part in parts for file in part.header.files)
    return Index(Header(shards, write_id, tuple(files)), entries)


def _unite(one: Entry, other: Entry, where: str) -> Entry:
    """Return the entry of a tensor with the slices of both."""
    if not one.slices or not other.slices:
        raise ValueError(f"duplicate entry {where}")
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise ValueError(
            f"conflicting entry {where}: type {one.dtype} and shape {one.shape}, "
            f"and type {other.dtype} and shape {other.shape}"
        )
    return replace(one, slices=one.slices + other.slices)
