"""`CheckpointManager`: `tf.train.CheckpointManager` for object stores.

    save()                                         restore(), restore_or_initialize()
    ├── interval and numbering, as TensorFlow      ├── read the state again
    ├── checkpoint.write     data, durable         └── checkpoint.restore   TensorFlow's own, from a checked copy
    ├── commit               index, then state
    └── commit.delete_retired

What it promises is said at the class. Everything about bytes, stores and protocol is in the modules below.
"""

import inspect
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import tensorflow as tf
from fsspec import AbstractFileSystem
from typing_extensions import Self

from ckpt_remote.checkpoint import restore, write
from ckpt_remote.commit import STATE, commit, delete_retired, describe, run
from ckpt_remote.errors import (
    CheckpointError,
    ConflictError,
    CorruptError,
    NotFoundError,
    UnknownOutcomeError,
)
from ckpt_remote.numbering import SaveCounter, as_integer
from ckpt_remote.retention import sweep
from ckpt_remote.state import Entry, Record, Retired, State, decode_state
from ckpt_remote.store import Object, Retry, Store, Version, open_store, split_url

__all__ = ["CheckpointManager"]

_log = logging.getLogger(__name__)


class CheckpointManager(tf.train.CheckpointManager):
    """Saves checkpoints to an object store, and keeps some of them, as `tf.train.CheckpointManager` does on a disk.

    What a reader sees is the previous set of checkpoints or the new one, never anything between: data becomes durable
    first, then the index, then, in one conditional write, the state that names it. What the bucket holds is an ordinary
    TensorFlow checkpoint. A save that fails changes nothing: the interval, `save_counter` and numbering are as before,
    and the next save works.

    Only one manager may save into a directory at a time. A second one that finds the state changed since it read it
    gets `ConflictError`, and has then touched nothing of the other's. Any number may read.

    Args:
        checkpoint: The `tf.train.Checkpoint` to save and restore.
        directory: A URL of fsspec's, as in "s3://bucket/run", or a local path.
        max_to_keep: How many checkpoints stay managed; None keeps all.
        keep_checkpoint_every_n_hours: Keep for good one of those that fall out of `max_to_keep` every so many hours.
        checkpoint_name: The first part of the checkpoints' names.
        step_counter: The `tf.Variable` that `checkpoint_interval` counts.
        checkpoint_interval: The least number of steps between two checkpoints.
        init_fn: Called by `restore_or_initialize` when there is nothing to restore.
        last_checkpoint_step: The step of the last save, where the caller knows it.
        storage_options: Options for the store, under fsspec's names.
        filesystem: A ready fsspec filesystem to use instead.

    Raises:
        ValueError: `max_to_keep` is not positive, or an option is unknown.
        NotFoundError: The bucket does not exist.
        CorruptError: The state in the directory cannot be read, or names something outside it.
        StoreError: The store refused or could not be reached.
        UnsupportedError: There is no safe way to save on this store.

    Example:
        >>> import tensorflow as tf, ckpt_remote
        >>> step = tf.Variable(0)
        >>> checkpoint = tf.train.Checkpoint(step=step)
        >>> manager = ckpt_remote.CheckpointManager(checkpoint, "memory://bucket/run", max_to_keep=3)
        >>> manager.save()
        'memory://bucket/run/ckpt-1'
    """

    def __init__(  # noqa: PLR0917  (TensorFlow's arguments, in TensorFlow's order)
        self,
        checkpoint: tf.train.Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: tf.Variable | None = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        filesystem: AbstractFileSystem | None = None,
    ) -> None:
        # The base constructor reads the directory through TensorFlow's own file systems, which know no S3; every
        # public member of the base is overridden instead.
        if max_to_keep is not None and max_to_keep <= 0:
            raise ValueError(f"Expected a positive integer or `None` for `max_to_keep`, got {max_to_keep}.")
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("`step_counter` should be passed if `checkpoint_interval` is not None.")
        self._target = checkpoint
        self._url = os.fspath(directory)
        self._name = checkpoint_name
        self._max_to_keep = max_to_keep
        self._every_n_hours = keep_checkpoint_every_n_hours
        self._step_counter = step_counter
        self._interval = checkpoint_interval
        self._init_fn = init_fn
        self._last_step = last_checkpoint_step
        self._retry = Retry()
        self._open = lambda url: open_store(url, storage_options, filesystem)
        self._store = self._open(self._url)
        self._save_counter = SaveCounter(checkpoint)
        self._objects: dict[str, Retired] = {}  # what the checkpoints of this manager consist of, to spare reading it
        self._superseded = False
        self._version: Version | None = None
        self._adopt(self._read_state())

    @property
    def directory(self) -> str:
        """The directory as it was given."""
        return self._url

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """The `tf.train.Checkpoint` that is saved and restored."""
        return self._target

    @property
    def checkpoint_interval(self) -> int | None:
        """The least number of steps between two checkpoints."""
        return self._interval

    @property
    def latest_checkpoint(self) -> str | None:
        """The newest checkpoint's URL; None if there is none. As of the last save, restore or construction."""
        return None if self._latest is None else self._full(self._latest)

    @property
    def checkpoints(self) -> list[str]:
        """The managed checkpoints' URLs, oldest first, without those kept by `keep_checkpoint_every_n_hours`."""
        return [self._full(entry.path) for entry in self._entries]

    @property
    def preserved_checkpoints(self) -> list[str]:
        """What `keep_checkpoint_every_n_hours` kept for good, oldest first; remembered across restarts."""
        return [self._full(path) for path in self._preserved]

    def save(
        self,
        checkpoint_number: Any | None = None,
        check_interval: bool = True,  # noqa: FBT001, FBT002  (TensorFlow's signature)
        options: tf.train.CheckpointOptions | None = None,
    ) -> str | None:
        """Saves a checkpoint, or nothing if the interval has not passed.

        When this returns, the checkpoint is durable, and visible to every reader. When it raises, nothing has changed,
        but for `UnknownOutcomeError`, where it may have.

        Args:
            checkpoint_number: An integer, or an integer variable or tensor, to number the checkpoint by; by default
                `checkpoint.save_counter`, which is advanced in any case.
            check_interval: Whether to wait for `checkpoint_interval` steps to pass; if not, a checkpoint is saved
                unless one was saved at this very step.
            options: The sharding callback decides what shares a data object, the write callbacks run when the
                checkpoint is visible, and get its URL.

        Returns:
            The checkpoint's URL, or None if none was saved.

        Raises:
            ConflictError: Another writer has changed the directory since this manager read it.
            StoreError: The store kept failing. The next save may pass.
            UnknownOutcomeError: The store gave no answer to the last request, so nobody knows yet.
        """
        step = None
        if self._interval is not None:
            step = as_integer(self._step_counter)
            if self._last_step is not None and (
                step == self._last_step or (check_interval and step < self._last_step + self._interval)
            ):
                return None
        if self._superseded:
            raise ConflictError(
                f"cannot save to {self._store.url}: another writer has gone on from what this manager saved last. Stop "
                "this writer, or make a new manager, which continues from what is there",
                path=self._store.url,
            )
        number = self._save_counter.advance()
        try:
            path = f"{self._name}-{number if checkpoint_number is None else as_integer(checkpoint_number)}"
            self._save(path, options)
        except UnknownOutcomeError:
            self._last_step = step
            raise
        except BaseException:
            self._save_counter.rollback()
            raise
        self._last_step = step
        url = self._full(path)
        for callback in (options.experimental_write_callbacks if options else None) or ():
            callback(url) if inspect.signature(callback).parameters else callback()
        return url

    def restore(
        self, path: str | os.PathLike[str] | None = None, options: tf.train.CheckpointOptions | None = None
    ) -> Any:
        """Restores a checkpoint, the newest by default, which is looked up again.

        Every tensor has passed its checksum before the first value is assigned. Objects that are created later are
        restored then, as with TensorFlow.

        Args:
            path: The URL of a checkpoint, in this directory or elsewhere.
            options: As for `tf.train.Checkpoint.restore`.

        Returns:
            TensorFlow's load status; without any checkpoint that of `checkpoint.restore(None)`.

        Raises:
            NotFoundError: There is no such checkpoint.
            CorruptError: It is damaged; nothing was assigned.
        """
        if path is not None:
            store, name = self._locate(os.fspath(path))
            return restore(self._target, store, name, options)
        self._refresh()
        if self._latest is None:
            return self._target.restore(None, options=options)
        return restore(self._target, self._store, self._latest, options)

    def restore_or_initialize(self) -> str | None:
        """Restores the newest checkpoint, or calls `init_fn` if there is none yet.

        Only reads, so evaluators and workers may call it. A state that cannot be read is an error, never "none yet".

        Returns:
            The URL of what was restored, or None.
        """
        self._refresh()
        if self._latest is not None:
            restore(self._target, self._store, self._latest, None)
            if self._interval is not None:
                self._last_step = as_integer(self._step_counter)
            return self.latest_checkpoint
        if self._init_fn is not None:
            self._init_fn()
        return None

    def sync(self) -> None:
        """Returns when no save is under way."""

    def close(self) -> None:
        """Gives the store's connections back. The manager is not used afterwards."""
        self.sync()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _full(self, path: str) -> str:
        return os.path.join(self._url, path)  # noqa: PTH118  (a URL, and TensorFlow's spelling of it)

    def _locate(self, path: str) -> tuple[Store, str]:
        for directory in (self._url, self._store.url):
            if path.startswith(f"{directory.rstrip('/')}/"):
                return self._store, path[len(directory.rstrip("/")) + 1 :]
        directory, name = split_url(path)
        return self._open(directory), name

    def _read_state(self) -> Object | None:
        try:
            return self._store.read(STATE)
        except NotFoundError:
            self._store.require_container()
            return None

    def _refresh(self) -> None:
        found = self._read_state()
        if (found and found.version) != self._version:
            self._adopt(found)

    def _adopt(self, found: Object | None) -> None:
        """Continues from the state that another manager, or a stock one, has left."""
        now = time.time()
        if found is None:
            # A second back, as TensorFlow does, for managers made again in quick succession.
            state = State(latest=None, last_preserved_timestamp=now - 1.0)
        else:
            directories = (self._url, self._store.url)
            state = decode_state(found.data, path=self._store.url_of(STATE), directories=directories)
        preserved_until = state.last_preserved_timestamp
        if now < preserved_until:
            _log.warning(
                "the clock is %.3f s behind the last preserved checkpoint of %s; the older time is taken for both",
                preserved_until - now,
                self._store.url,
            )
            preserved_until = now
        managed = [Entry(entry.path, min(entry.timestamp, now)) for entry in state.entries]
        self._entries = [entry for entry in managed if entry.timestamp > preserved_until]
        known = state.record.preserved if state.record else ()
        left = (entry.path for entry in managed if entry.timestamp <= preserved_until)
        self._preserved = tuple(dict.fromkeys((*known, *left)))
        self._latest = state.latest
        self._last_preserved = preserved_until
        self._retired = state.record.retired if state.record else ()
        self._lineage = state.record.followed_by() if state.record else ()
        self._version = found.version if found else None
        self._superseded = False

    def _save(self, path: str, options: tf.train.CheckpointOptions | None) -> None:
        started = time.perf_counter()
        replaced = self._describe(path) if self._lists(path) else None
        written = write(self._target, self._store, path, options, self._retry)
        state = self._next_state(path, replaced)
        flow = commit(path, written.index, state, self._version, url=self._store.url, attempts=self._retry.attempts)
        version = run(flow, self._store, self._retry).version
        self._take_over(state, version)
        self._objects[path] = written.objects
        seconds = time.perf_counter() - started
        rate = written.size / max(seconds, 1e-9) / 1e6
        _log.info("saved %s: %.3f GB in %.2f s (%.0f MB/s)", self._full(path), written.size / 1e9, seconds, rate)
        self._delete_retired()

    def _lists(self, path: str) -> bool:
        return path in self._preserved or any(entry.path == path for entry in self._entries)

    def _next_state(self, path: str, replaced: Retired | None) -> State:
        """The state that lists `path`, with what retention says of the others."""
        entries = [*(entry for entry in self._entries if entry.path != path), Entry(path, time.time())]
        decision = sweep(
            entries,
            self._last_preserved,
            max_to_keep=self._max_to_keep,
            keep_checkpoint_every_n_hours=self._every_n_hours,
        )
        retired = [self._describe(entry.path) for entry in decision.retired]
        preserved = (*self._preserved, *(entry.path for entry in decision.preserved))
        return State(
            latest=path,
            entries=decision.active,
            last_preserved_timestamp=decision.last_preserved_timestamp,
            record=Record(
                write_id=uuid.uuid4().hex,
                lineage=self._lineage,
                preserved=tuple(known for known in preserved if known != path),
                retired=tuple(gone for gone in (*self._retired, replaced, *retired) if gone is not None),
            ),
        )

    def _describe(self, path: str) -> Retired | None:
        """What a checkpoint consists of; None if that cannot be told, and then nothing of it is ever deleted."""
        if path not in self._objects:
            try:
                found = run(describe(path, url=self._store.url), self._store, self._retry)
            except CorruptError as error:
                _log.warning("%s will not be deleted, as its index is damaged: %s", self._full(path), error)
                return None
            if found is None:
                return None
            self._objects[path] = found
        return self._objects[path]

    def _take_over(self, state: State, version: Version | None) -> None:
        """What is durable becomes what this manager knows."""
        if state.record is None:
            raise ValueError("a state of ours has a record")
        self._entries = list(state.entries)
        self._latest = state.latest
        self._last_preserved = state.last_preserved_timestamp
        self._preserved = state.record.preserved
        self._retired = state.record.retired
        self._lineage = state.record.followed_by()
        self._version = version
        self._superseded = version is None

    def _delete_retired(self) -> None:
        """Deletes what the state no longer lists. A failure costs space only: it is logged, and tried again later."""
        remaining = []
        for retired in self._retired:
            if self._objects.get(retired.path) == retired:
                del self._objects[retired.path]
            try:
                failures = run(delete_retired(retired, url=self._store.url), self._store, self._retry)
            except CorruptError as error:
                _log.warning("%s is left in place, as its index is damaged: %s", self._full(retired.path), error)
                continue
            except CheckpointError as error:
                failures = {retired.index: error}
            if failures:
                remaining.append(retired)
            for key, failure in failures.items():
                _log.warning("%s could not be deleted, and will be tried again: %s", self._store.url_of(key), failure)
        self._retired = tuple(remaining)
