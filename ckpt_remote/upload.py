"""Stream tensors into shard objects, many at a time, from their own memory.

    upload_shards(store, name, shards)
    └── one thread a stream, one shard after another
        ├── crc32c of each piece           (the bundle's own checksum, computed once)
        └── store.put(key, buffers, "create")   one request, nothing packed, nothing overwritten
            └── on a lost response: sent again; on "exists" after one: read back and compared

Promises: memory grows by what the engine needs for the requests in flight, not by the tensors; an object is only
ever created, never overwritten; after a failure, what this call provably created is deleted, and nothing else.
It does not write the index and publishes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from ckpt_remote.buffers import Buffer, join
from ckpt_remote.bundle import (
    Entry,
    TensorSlice,
    crc32c,
    mask,
    parse_shard_name,
    shard_name,
    slice_key,
    tensor_key,
)
from ckpt_remote.errors import CheckpointError, ConflictError, StoreError
from ckpt_remote.plan import Piece, Shard
from ckpt_remote.store import Retry, Store

__all__ = ["STREAMS", "index_entries", "upload_data", "upload_shards"]

_log = logging.getLogger(__name__)

# Real stores cap each connection at some 100 MB/s and answer in some 20 ms: a fast network wants many of both.
STREAMS = 32


@dataclass(slots=True)
class _Upload:
    """What one call has done so far; shared by its threads, each touching only its own shards."""

    store: Store
    retry: Retry
    created: list[str] = field(default_factory=list)

    def shard(self, key: str, shard: Shard) -> tuple[int, ...]:
        """Uploads one shard and returns the masked checksum of each piece."""
        checksums = tuple(
            mask(crc32c(piece.data))
            if piece.tensor.crc32c is None or piece.size != piece.tensor.size
            else piece.tensor.crc32c
            for piece in shard
        )
        self._create(key, [piece.data for piece in shard])
        self.created.append(key)
        return checksums

    def _create(self, key: str, buffers: Sequence[Buffer]) -> None:
        lost = False  # whether an earlier attempt may have landed

        def attempt() -> None:
            nonlocal lost
            try:
                self.store.put(key, buffers, "create")
            except StoreError as error:
                lost = lost or error.transient
                raise
            except ConflictError:
                if not (lost and self.store.read(key).data == join(buffers)):
                    raise

        self.retry.call(attempt)


def upload_shards(
    store: Store, name: Callable[[int], str], shards: Sequence[Shard], *, retry: Retry, streams: int = STREAMS
) -> list[tuple[int, ...]]:
    """Creates one object for each shard.

    Args:
        store: The directory.
        name: The key of the shard with a given number.
        shards: What to write, as planned.
        retry: How to repeat requests that a store fails to answer.
        streams: How many requests are in flight at most.

    Returns:
        For each shard the masked crc32c of each of its pieces.

    Raises:
        ConflictError: An object of that name exists already. What this call created was deleted.
        StoreError: The store kept failing. What this call provably created was deleted.
    """
    upload = _Upload(store, retry)
    with ThreadPoolExecutor(min(streams, len(shards)), thread_name_prefix="ckpt_remote-upload") as pool:
        futures = [pool.submit(upload.shard, name(number), shard) for number, shard in enumerate(shards)]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            _withdraw(store, upload.created)
            raise


def _withdraw(store: Store, created: Sequence[str]) -> None:
    """Deletes what nothing refers to yet; a failure costs space, and is said, but does not hide the first error."""
    try:
        failures = store.delete(created)
    except CheckpointError as error:
        failures = dict.fromkeys(created, error)
    for key, failure in failures.items():
        _log.warning("%s was written for a save that failed, and could not be deleted: %s", store.url_of(key), failure)


def upload_data(store: Store, path: str, shards: Sequence[Shard], *, retry: Retry) -> tuple[int, list[tuple[int, ...]]]:
    """Uploads the data objects of a checkpoint.

    TensorFlow takes the count in the data objects' names from the index and does not mind unused numbers, so where
    an earlier attempt at this checkpoint has left objects, another count makes new names: nothing is overwritten.

    Args:
        store: The directory.
        path: The prefix of the checkpoint.
        shards: What to write, as planned.
        retry: How to repeat requests that a store fails to answer.

    Returns:
        The count in the names, and for each shard the masked crc32c of each of its pieces.
    """
    count = len(shards)
    for attempt in range(retry.attempts):
        try:
            checksums = upload_shards(store, partial(_name, path, count), shards, retry=retry)
        except ConflictError:
            if attempt + 1 == retry.attempts:
                raise
            count = _free_count(store, path, count)
        else:
            break
    return count, checksums


def _name(path: str, count: int, shard: int) -> str:
    return shard_name(path, shard, count)


def _free_count(store: Store, path: str, count: int) -> int:
    """A count that no data object of this checkpoint has in its name. Only reached after a collision."""
    taken = [count]
    for found in store.list(f"{path}.data-"):
        parsed = parse_shard_name(found.key)
        if parsed is not None and parsed[0] == path:
            taken.append(parsed[2])
    return max(taken) + 1


def index_entries(shards: Sequence[Shard], checksums: Sequence[Sequence[int]]) -> dict[bytes, Entry]:
    """The index entries of what `upload_shards` wrote: one for each tensor, and one for each slice of a sliced one."""
    entries: dict[bytes, Entry] = {}
    slices: dict[str, tuple[Piece, list[TensorSlice]]] = {}
    for number, (shard, masked) in enumerate(zip(shards, checksums, strict=True)):
        offset = 0
        for piece, checksum in zip(shard, masked, strict=True):
            tensor = piece.tensor
            shape = tensor.shape if piece.part is None else piece.part.shape(tensor.shape)
            key = tensor_key(tensor.key) if piece.part is None else slice_key(tensor.key, piece.part)
            if key in entries:
                raise ValueError(f"the checkpoint has two values for {tensor.key!r}")
            entries[key] = Entry(
                dtype=tensor.dtype, shape=shape, shard=number, offset=offset, size=piece.size, crc32c=checksum
            )
            if piece.part is not None:
                slices.setdefault(tensor.key, (piece, []))[1].append(piece.part)
            offset += piece.size
    for name, (piece, parts) in slices.items():
        if tensor_key(name) in entries:
            raise ValueError(f"the checkpoint has both a whole value and slices for {name!r}")
        entries[tensor_key(name)] = Entry(dtype=piece.tensor.dtype, shape=piece.tensor.shape, slices=tuple(parts))
    return entries
