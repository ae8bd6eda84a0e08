"""Save and restore a `tf.train.Checkpoint` on a store: between TensorFlow's own machinery and ours.

    write(checkpoint, store, target, options)           restore(checkpoint, store, path, options)
    ├── tap.capture      tensors, in memory             ├── reader.fetch     a checked local copy, in memory where
    ├── plan_shards      what goes where                │                    there is room
    └── upload           shards and side files          └── checkpoint.restore(local)   TensorFlow's own
                                                            └── the copy goes when nothing can be restored from it
                                                                any more

`write` makes nothing visible: publishing the index that it returns is `commit`'s business.
"""

import errno
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from ckpt_remote.bundle import Header, Index, encode_index, index_name
from ckpt_remote.commit import publish
from ckpt_remote.directory import Target
from ckpt_remote.errors import CheckpointError, StoreError
from ckpt_remote.flow import run
from ckpt_remote.plan import Shard, plan_shards, shard_size, whole_shard
from ckpt_remote.reader import OBJECT_GRAPH, Stored, fetch, open_checkpoint
from ckpt_remote.staging import Folder, memory_directory
from ckpt_remote.state import Retired
from ckpt_remote.store import Retry, Store, Version
from ckpt_remote.tap import Snapshot, capture
from ckpt_remote.upload import index_entries, upload_data

__all__ = ["Written", "restore", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint whose data is durable and whose index is not published yet.

    Attributes:
        index: The encoded index.
        objects: What it consists of.
        created: Its data objects with their versions, as far as they are known.
        size: Bytes of data.
    """

    index: bytes
    objects: Retired
    created: Mapping[str, Version]
    size: int


def write(
    checkpoint: tf.train.Checkpoint,
    store: Store,
    target: Target,
    options: tf.train.CheckpointOptions | None,
    *,
    retry: Retry,
) -> Written:
    """Uploads all data of a checkpoint.

    Args:
        checkpoint: What to save.
        store: The directory.
        target: Where in there, and under whose seal.
        options: The user's.
        retry: How to repeat requests that a store fails to answer.

    Raises:
        ConflictError: Another writer has changed the state.
        StoreError: The store kept failing; what was provably created has been deleted.
    """
    path, attempt = target.path, target.attempt
    snapshot = capture(checkpoint, path.rpartition("/")[2], options)
    shards = _plan(snapshot)
    counts = target.counts(len(shards))
    count, uploaded = upload_data(store, path, shards, attempt=attempt, counts=counts, retry=retry)
    for suffix, content in snapshot.files:
        run(publish(f"{path}{suffix}", bytes(content), guard=target.guard, url=store.url), store, retry)
    files = tuple(suffix for suffix, _ in snapshot.files)
    write_id = attempt.write_id(index_name(path))
    index = Index(Header(num_shards=count, write_id=write_id, files=files), index_entries(shards, uploaded.checksums))
    return Written(
        index=encode_index(index),
        objects=Retired(
            path=path,
            write_id=write_id,
            used=len(shards),
            of=count,
            files=tuple(f"{path}{suffix}" for suffix in files),
        ),
        created=uploaded.created,
        size=snapshot.size,
    )


def _plan(snapshot: Snapshot) -> tuple[Shard, ...]:
    if snapshot.whole_groups:
        return tuple(whole_shard(group) for group in snapshot.groups)
    limit = shard_size(snapshot.size)
    return tuple(shard for group in snapshot.groups for shard in plan_shards(group, limit))


class _HeldOptions(tf.train.CheckpointOptions):
    """Lives exactly as long as TensorFlow may still restore something from a local copy.

    A restore keeps its options for as long as objects may yet appear whose values it has to fill in. Unlike its base,
    this class can be weakly referenced, so the copy's life can be tied to it.
    """

    def __init__(self, options: tf.train.CheckpointOptions | None) -> None:
        super().__init__()
        if options is not None:
            self.experimental_io_device = options.experimental_io_device
            self.experimental_skip_slot_variables = options.experimental_skip_slot_variables


def restore(
    checkpoint: tf.train.Checkpoint, store: Store, path: str, options: tf.train.CheckpointOptions | None
) -> Any:
    """Restores a checkpoint with TensorFlow's own machinery from a checked local copy.

    Nothing is assigned unless every tensor has passed its checksum.

    Returns:
        TensorFlow's load status.

    Raises:
        NotFoundError: There is no such checkpoint.
        CorruptError: It is damaged.
    """
    stored = open_checkpoint(store, path)
    folder, prefix = _fetch(stored)
    try:
        held = _HeldOptions(options)
        status = checkpoint.restore(str(prefix), options=held)
    except BaseException:
        folder.remove()
        raise
    _drop_superseded(checkpoint, stored.index)
    if OBJECT_GRAPH not in stored.index.entries:
        folder.remove_with(checkpoint)  # name-based: the values are read when the status is asked to
    elif tf.executing_eagerly() and _is_consumed(status):
        folder.remove()
    else:
        folder.remove_with(held)
        _copies[checkpoint] = folder, frozenset(stored.index.entries)
    return status


# What was restored last into a checkpoint and may still be needed: the copy, and the keys in it.
_copies: weakref.WeakKeyDictionary[Any, tuple[Folder, frozenset[bytes]]] = weakref.WeakKeyDictionary()


def _drop_superseded(checkpoint: tf.train.Checkpoint, index: Index) -> None:
    """Drops the copy of the restore before, where the new one has a newer value for all that was in it.

    TensorFlow remembers every restore for objects that may yet be created, and takes the newest value for each; an
    evaluator that restores a part over and over would otherwise keep a copy of every checkpoint it has seen.
    """
    folder, keys = _copies.get(checkpoint, (None, frozenset()))
    if folder is not None and keys <= index.entries.keys():
        folder.remove()
        del _copies[checkpoint]


def _fetch(stored: Stored) -> tuple[Folder, Path]:
    """A checked local copy: in memory if there is room, or else on disk."""
    memory = memory_directory(sum(stored.data.values()))
    for parent in (memory, None) if memory else (None,):
        folder = Folder(parent)
        try:
            return folder, fetch(stored, folder.path)
        except BaseException as error:
            folder.remove()
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                if parent is not None and error.errno == errno.ENOSPC:
                    continue  # others took the room in the meantime
                raise StoreError(
                    f"Cannot restore {stored.url}: its local copy in {folder.path.parent} failed ({error.strerror}). "
                    "Make room there, or set TMPDIR to a place that has it.",
                    path=stored.url,
                ) from error
            raise
    raise AssertionError("the last place either holds the copy or raises")


def _is_consumed(status: Any) -> bool:
    try:
        status.assert_consumed()
    except AssertionError:
        return False
    return True
