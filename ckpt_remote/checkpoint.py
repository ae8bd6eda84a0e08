"""Save and restore a `tf.train.Checkpoint` on a store: between TensorFlow's own machinery and ours.

    write(snapshot, store, target)          restore(checkpoint, store, path, options)
    ├── plan_shards   what goes where       ├── reader.fetch     a checked local copy, in memory where there is room
    └── upload        shards, side files    └── checkpoint.restore(local)   TensorFlow's own
                                                └── the copy goes when nothing can be restored from it any more

`write` makes nothing visible: publishing the index that it returns is `commit`'s business.
"""

import errno
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import tensorflow as tf

from ckpt_remote.bundle import OBJECT_GRAPH, Header, Index, encode_index, index_name, restrict_object_graph, tensor_key
from ckpt_remote.commit import publish
from ckpt_remote.directory import Target
from ckpt_remote.errors import CheckpointError, StoreError, UnsupportedError
from ckpt_remote.flow import run
from ckpt_remote.plan import Shard, plan_shards, shard_size
from ckpt_remote.progress import Restored, emit, enter
from ckpt_remote.pull import local_device
from ckpt_remote.reader import Stored, fetch, open_checkpoint, restrict
from ckpt_remote.single_flight import fetch_once
from ckpt_remote.staging import Folder, memory_directory
from ckpt_remote.state import Retired
from ckpt_remote.store import Retry, Store, Version
from ckpt_remote.tap import Snapshot
from ckpt_remote.upload import index_entries, upload_data, withdraw

__all__ = ["Written", "restore", "write"]

_F = TypeVar("_F", bound=Folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint whose data is durable and whose index is not published yet.

    Attributes:
        index: The encoded index.
        objects: What it consists of.
        created: Its data objects with their versions, as far as they are known.
    """

    index: bytes
    objects: Retired
    created: Mapping[str, Version]


def write(snapshot: Snapshot, store: Store, target: Target, *, retry: Retry) -> Written:
    """Uploads all data of a checkpoint.

    Args:
        snapshot: What it consists of.
        store: The directory.
        target: Where in there, and under whose seal.
        retry: How to repeat requests that a store fails to answer.

    Raises:
        ConflictError: Another writer has changed the state.
        UnsupportedError: It would mix the old side files of a listed checkpoint with the new.
        StoreError: The store kept failing; what was provably created has been deleted.
    """
    path, attempt = target.path, target.attempt
    if target.listed and snapshot.files:
        raise UnsupportedError(
            f"Cannot save {store.url_of(path)} again while it is listed: registered savers wrote files, whose "
            "names TensorFlow fixes, so old and new would be mixed for a while. Take another number."
        )
    shards = _plan(snapshot)
    counts = target.counts(len(shards))
    url = store.url_of(path)
    moved = enter(url, "write", snapshot.size)
    count, uploaded = upload_data(
        store, path, shards, attempt=attempt, counts=counts, retry=retry, exact=target.exact, moved=moved
    )
    enter(url, "publish")
    created = {**uploaded.created, **_write_files(snapshot, store, target, uploaded.created, retry)}
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
        created=created,
    )


def _write_files(
    snapshot: Snapshot, store: Store, target: Target, before: Mapping[str, Version], retry: Retry
) -> Mapping[str, Version]:
    """Writes the side files of registered savers; if that fails, nothing of the checkpoint stays."""
    created: dict[str, Version] = {}
    try:
        for suffix, content in snapshot.files:
            key = f"{target.path}{suffix}"
            put = run(publish(key, bytes(content), guard=target.guard, url=store.url), store, retry)
            if put.before is None and not put.lost and target.exact:
                created[key] = put.after.version
    except Exception:
        withdraw(store, {**before, **created}, retry)
        raise
    return created


def _plan(snapshot: Snapshot) -> tuple[Shard, ...]:
    if snapshot.whole_groups:
        return snapshot.groups
    limit = shard_size(snapshot.size)
    return tuple(shard for group in snapshot.groups for shard in plan_shards(group, limit))


def _of_what_exists(checkpoint: tf.train.Checkpoint, graph: bytes) -> tuple[bytes, frozenset[str]]:
    """Of an object graph, what it says of the objects that there are by now, and the paths of these."""
    _ = checkpoint.save_counter  # which a restore creates
    return restrict_object_graph(graph, checkpoint, tf.train.TrackableView.children)


class _HeldOptions(tf.train.CheckpointOptions):
    """Lives exactly as long as TensorFlow may still restore something from a local copy.

    A restore keeps its options for as long as objects may yet appear whose values it has to fill in. Unlike its base,
    this class can be weakly referenced, so the copy's life can be tied to it.
    """

    def __init__(self, options: tf.train.CheckpointOptions | None) -> None:
        super().__init__()
        if tf.executing_eagerly():  # parameter servers would look for the copy on a disk of their own
            self.experimental_io_device = local_device()
        elif options is not None:
            self.experimental_io_device = options.experimental_io_device
        if options is not None:
            self.experimental_skip_slot_variables = options.experimental_skip_slot_variables


def restore(
    checkpoint: tf.train.Checkpoint,
    store: Store,
    path: str,
    options: tf.train.CheckpointOptions | None,
    *,
    shared: bool = False,
    existing_only: bool = False,
) -> Any:
    """Restores a checkpoint with TensorFlow's own machinery from a checked local copy.

    Nothing is assigned unless every tensor has passed its checksum.

    Args:
        checkpoint: What to restore.
        store: The directory.
        path: The checkpoint's prefix in there.
        options: The user's.
        shared: Whether other processes on this host may restore the same checkpoint at the same time, so that one copy
            is to serve all. Then the one that fetches it verifies the checksums, once for all.
        existing_only: Whether to fetch only what there are objects for by now.

    Returns:
        TensorFlow's load status.

    Raises:
        NotFoundError: There is no such checkpoint.
        CorruptError: It is damaged.
    """
    started = time.perf_counter()
    stored = open_checkpoint(store, path)
    if existing_only:
        stored = restrict(stored, partial(_of_what_exists, checkpoint))
    if shared:
        folder: Folder = fetch_once(stored.url, stored.encoded, partial(_fetch, stored))
    else:
        folder = _fetch(stored, Folder)
    try:
        enter(stored.url, "assign")
        prefix = folder.path / stored.path.rpartition("/")[2]
        held = _HeldOptions(options)
        status = checkpoint.restore(str(prefix), options=held)
    except BaseException:
        folder.remove()
        raise
    _drop_superseded(checkpoint, stored.index)
    if tensor_key(OBJECT_GRAPH) not in stored.index.entries:
        folder.remove_with(checkpoint)  # name-based: the values are read when the status is asked to
    elif tf.executing_eagerly() and _is_consumed(status):
        folder.remove()
    else:
        folder.remove_with(held)
        _copies[checkpoint] = folder, frozenset(stored.index.entries)
    emit(Restored(url=stored.url, size=stored.size, seconds=time.perf_counter() - started))
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


def _fetch(stored: Stored, kind: type[_F]) -> _F:
    """A checked local copy: in memory if there is room, or else on disk."""
    memory = memory_directory(stored.size)
    for parent in (memory, None) if memory else (None,):
        folder = kind(parent)
        try:
            fetch(stored, folder.path)
        except BaseException as error:
            folder.remove()
            if isinstance(error, OSError) and not isinstance(error, CheckpointError):
                if parent is not None and error.errno == errno.ENOSPC:
                    continue  # others took the room in the meantime
                raise StoreError(
                    f"Cannot restore {stored.url}: its local copy in {folder.path.parent.parent} failed "
                    f"({error.strerror}). Make room there, or set TMPDIR to a place that has it.",
                    path=stored.url,
                ) from error
            raise
        return folder
    raise AssertionError("the last place either holds the copy or raises")


def _is_consumed(status: Any) -> bool:
    try:
        status.assert_consumed()
    except AssertionError:
        return False
    return True
