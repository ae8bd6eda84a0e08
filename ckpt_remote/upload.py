"""Stream tensors into shard objects, many at a time, from their own memory.

    upload_data(store, shards, target)
    └── upload_shards                one thread a stream, one shard after another
        ├── crc32c of each tensor    (the bundle's own checksum, computed once)
        └── create                   one put of the tensors' own memory and a seal: nothing packed, nothing overwritten
            └── on a lost response: the seal of what is there, if anything, says whose it is

Promises: memory grows by what the engine needs for the requests in flight, not by the tensors; an object is only
ever created, never overwritten; after a failure, what this call provably created is deleted, and nothing else.
It does not write the index and publishes nothing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ckpt_remote.buffers import Buffer, total_size
from ckpt_remote.bundle import Entry, TensorSlice, crc32c, mask, shard_name, slice_key, tensor_key
from ckpt_remote.errors import CheckpointError, ConflictError, StoreError
from ckpt_remote.flow import Ends, Flow, Pause, Put, Withdraw, run
from ckpt_remote.origin import SEAL_SIZE, Attempt
from ckpt_remote.parallel import run_all
from ckpt_remote.plan import Shard, Tensor
from ckpt_remote.store import ObjectInfo, Retry, Store, Version

__all__ = ["STREAMS", "Uploaded", "create", "index_entries", "take_back", "upload_data", "upload_shards", "withdraw"]

_log = logging.getLogger(__name__)

# Real stores cap each connection at some 100 MB/s and answer in some 20 ms: a fast network wants many of both.
STREAMS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """Shards that are durable.

    Attributes:
        checksums: For each the masked crc32c of each of its tensors and slices.
        created: The objects with their versions, but for those whose answer was lost: what can be taken back.
    """

    checksums: tuple[tuple[int, ...], ...]
    created: Mapping[str, Version]


def _nobody(_size: int) -> None:
    """Whom it does not concern."""


def create(key: str, buffers: Sequence[Buffer], attempt: Attempt) -> Flow[Version | None]:
    """Creates an object that ends with the attempt's seal.

    Returns:
        Its version; None if the answer was lost, and only its seal says that it is there.

    Raises:
        ConflictError: There is an object of that name that this attempt did not write.
        StoreError: The store kept failing. The object may exist, or come to be.
    """
    seal = attempt.seal(key)
    sealed = (*buffers, seal)
    info = ObjectInfo(key, total_size(sealed))
    while True:
        try:
            version: Version = yield Put(key, sealed, "create")
        except (StoreError, ConflictError) as failure:  # a conflict perhaps with ourselves: something may send it twice
            if isinstance(failure, StoreError) and not failure.transient:
                raise
            try:
                ends: tuple[bytes | None, ...] = yield Ends((info,), SEAL_SIZE)
            except StoreError as error:
                raise failure from error
            if ends[0] == seal:
                return None
            if isinstance(failure, ConflictError):
                raise
            yield Pause(failure)
        else:
            return version


@dataclass(slots=True)
class _Upload:
    """What one call has done so far; shared by its threads."""

    store: Store
    attempt: Attempt
    retry: Retry
    exact: bool
    moved: Callable[[int], object]
    created: dict[str, Version] = field(default_factory=dict)

    def shard(self, key: str, shard: Shard) -> tuple[int, ...]:
        """Uploads one shard and returns the masked checksum of each of its tensors."""
        checksums = tuple(mask(crc32c(tensor.data)) if tensor.crc32c is None else tensor.crc32c for tensor in shard)
        version = run(create(key, [tensor.data for tensor in shard], self.attempt), self.store, self.retry)
        if version is not None and self.exact:
            self.created[key] = version
        self.moved(sum(tensor.size for tensor in shard))
        return checksums


def upload_shards(
    store: Store,
    name: Callable[[int], str],
    shards: Sequence[Shard],
    *,
    attempt: Attempt,
    retry: Retry,
    streams: int = STREAMS,
    exact: bool = True,
    check: Callable[[], None] | None = None,
    moved: Callable[[int], object] = _nobody,
) -> Uploaded:
    """Creates one object for each shard.

    Args:
        store: The directory.
        name: The key of the shard with a given number.
        shards: What to write, as planned.
        attempt: Whose seal the objects get.
        retry: How to repeat requests that a store fails to answer.
        streams: How many requests are in flight at most.
        exact: Whether the store deletes only exactly what it is told to; if not, nothing is taken back.
        check: Asked now and then; what it raises ends the upload at once, though requests may still be under way.
        moved: Told of the bytes of each shard when it is durable.

    Raises:
        ConflictError: An object of that name exists already. What this call created was deleted.
        StoreError: The store kept failing. What this call provably created was deleted.
    """
    upload = _Upload(store, attempt, retry, exact, moved)
    tasks = [partial(upload.shard, name(number), shard) for number, shard in enumerate(shards)]
    try:
        checksums = run_all(tasks, threads=streams, name="ckpt_remote-upload", check=check)
    except Exception:  # after Ctrl-C requests are still under way: what they leave is found by the next save
        withdraw(store, upload.created, retry)
        raise
    return Uploaded(checksums=tuple(checksums), created=upload.created)


def withdraw(store: Store, created: Mapping[str, Version], retry: Retry) -> None:
    """Deletes what nothing refers to yet; a failure costs space, and is said, but does not hide the first error."""
    run(take_back(created), store, retry)


def take_back(created: Mapping[str, Version]) -> Flow[None]:
    """Deletes what nothing refers to, each object if it is still what was created. Who comes later finds the rest."""
    failures: Mapping[str, CheckpointError] = yield Withdraw(tuple(created.items()))
    for key, failure in failures.items():
        _log.warning("%s was written for a save that failed, and could not be deleted: %s", key, failure)


def upload_data(
    store: Store,
    path: str,
    shards: Sequence[Shard],
    *,
    attempt: Attempt,
    counts: Iterable[int],
    retry: Retry,
    exact: bool = True,
    moved: Callable[[int], object] = _nobody,
) -> tuple[int, Uploaded]:
    """Uploads the data objects of a checkpoint.

    TensorFlow takes the count in the data objects' names from the index and does not mind unused numbers, so where
    an earlier attempt at this checkpoint has left objects, another count makes new names: nothing is overwritten.

    Args:
        store: The directory.
        path: The prefix of the checkpoint.
        shards: What to write, as planned.
        attempt: Whose seal the objects get.
        counts: The counts to try, one after the other.
        exact: As for `upload_shards`.
        moved: As for `upload_shards`.
        retry: How to repeat requests that a store fails to answer.

    Returns:
        The count in the names, and what was written.

    Raises:
        ConflictError: There are objects under every count.
        StoreError: The store kept failing. What this call provably created was deleted.
    """
    conflict: ConflictError | None = None
    for count in counts:
        name = partial(_name, path, count)
        try:
            return count, upload_shards(store, name, shards, attempt=attempt, retry=retry, exact=exact, moved=moved)
        except ConflictError as error:
            conflict = error
    raise conflict or ValueError("there is no count to try")


def _name(path: str, count: int, shard: int) -> str:
    return shard_name(path, shard, count)


def index_entries(shards: Sequence[Shard], checksums: Sequence[Sequence[int]]) -> dict[bytes, Entry]:
    """The index entries of what `upload_shards` wrote: one for each tensor, and one for each slice of a sliced one."""
    entries: dict[bytes, Entry] = {}
    slices: dict[str, tuple[Tensor, list[TensorSlice]]] = {}
    for number, (shard, masked) in enumerate(zip(shards, checksums, strict=True)):
        offset = 0
        for tensor, checksum in zip(shard, masked, strict=True):
            shape = tensor.shape if tensor.part is None else tensor.part.shape(tensor.shape)
            key = tensor_key(tensor.key) if tensor.part is None else slice_key(tensor.key, tensor.part)
            if key in entries:
                raise ValueError(f"the checkpoint has two values for {tensor.key!r}")
            entries[key] = Entry(
                dtype=tensor.dtype, shape=shape, shard=number, offset=offset, size=tensor.size, crc32c=checksum
            )
            if tensor.part is not None:
                slices.setdefault(tensor.key, (tensor, []))[1].append(tensor.part)
            offset += tensor.size
    for name, (tensor, parts) in slices.items():
        if tensor_key(name) in entries:
            raise ValueError(f"the checkpoint has both a whole value and slices for {name!r}")
        entries[tensor_key(name)] = Entry(dtype=tensor.dtype, shape=tensor.shape, slices=tuple(parts))
    return entries
