"""`CheckpointManager`: `tf.train.CheckpointManager` for object stores.

    save()                                         restore(), restore_or_initialize()
    ├── interval and numbering, as TensorFlow      ├── Directory.refresh    the state as it is now
    ├── checkpoint.write     data, durable         └── checkpoint.restore   TensorFlow's own, from a checked copy
    └── Directory.publish    visible; the retired deleted

What it promises is said at the class. Everything about bytes, stores and protocol is in the modules below.
"""

import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import tensorflow as tf
from fsspec import AbstractFileSystem
from typing_extensions import Self

from ckpt_remote.checkpoint import restore, write
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import CorruptError, NotFoundError
from ckpt_remote.numbering import SaveCounter, as_integer
from ckpt_remote.store import Policy, Retry, Store, open_store, split_url

__all__ = ["CheckpointManager"]

_log = logging.getLogger(__name__)

# Seconds from the first failure of a write in which it is sent again: an upload on a slow link takes minutes itself.
_PATIENCE = 900.0


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
        UnsupportedError: Nothing serves the URL's scheme.
        TypeError: An argument is of another type.

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
        if max_to_keep is not None and as_integer(max_to_keep) <= 0:
            raise ValueError(f"Expected a positive integer or `None` for `max_to_keep`, got {max_to_keep}.")
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("`step_counter` should be passed if `checkpoint_interval` is not None.")
        self._target = checkpoint
        self._url = os.fspath(directory)
        self._name = checkpoint_name
        self._retention = Retention(
            max_to_keep=max_to_keep, keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours
        )
        self._step_counter = step_counter
        self._interval = checkpoint_interval
        self._init_fn = init_fn
        self._last_step = last_checkpoint_step
        self._retry = Retry(Policy(deadline=_PATIENCE))
        self._open = lambda url: open_store(url, storage_options, filesystem)
        self._store = self._open(self._url)
        self._store.url_of(f"{checkpoint_name}-1")  # a name that no object can have is refused now, not after an upload
        self._known = Directory(self._store, (self._url,), self._retry)
        self._save_counter = SaveCounter(checkpoint)
        self._mutex = threading.Lock()

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
        return None if self._known.latest is None else self._full(self._known.latest)

    @property
    def checkpoints(self) -> list[str]:
        """The managed checkpoints' URLs, oldest first, without those kept by `keep_checkpoint_every_n_hours`."""
        return [self._full(entry.path) for entry in self._known.entries]

    @property
    def preserved_checkpoints(self) -> list[str]:
        """What `keep_checkpoint_every_n_hours` kept for good, oldest first; remembered across restarts."""
        return [self._full(path) for path in self._known.preserved]

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
            UnsupportedError: There is no safe way to save on this store.
        """
        if options is not None and not isinstance(options, tf.train.CheckpointOptions):
            raise TypeError(f"options are tf.train.CheckpointOptions, not {options!r}.")
        with self._mutex:
            if not self._is_due(check_interval=check_interval):
                return None
            url = self._full(self._save(checkpoint_number, options))
        for callback in (options.experimental_write_callbacks if options else None) or ():
            callback(url) if inspect.signature(callback).parameters else callback()
        return url

    def claim(self) -> None:
        """Becomes the directory's writer now, instead of at the first save.

        Every other manager that has read an older state gets `ConflictError` from then on. Writes the state once, and
        nothing the second time. Restoring never claims, so evaluators and workers may do it.

        Raises:
            ConflictError: Another writer has changed the directory since this manager read it.
            UnknownOutcomeError: The store gave no answer to the request, so nobody knows yet.
            UnsupportedError: There is no safe way to save on this store.
        """
        with self._mutex:
            self._known.claim()

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
        with self._mutex:
            self._known.refresh()
        return self._restore_latest(options)

    def restore_or_initialize(self) -> str | None:
        """Restores the newest checkpoint, or calls `init_fn` if there is none yet.

        Only reads, so evaluators and workers may call it. A state that cannot be read is an error, never "none yet".

        Returns:
            The URL of what was restored, or None.
        """
        with self._mutex:
            self._known.refresh()
        if self._known.latest is not None:
            self._restore_latest(None)
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

    def _restore_latest(self, options: tf.train.CheckpointOptions | None) -> Any:
        """Restores the newest checkpoint, and the one after it if a writer has retired the first in the meantime."""
        while self._known.latest is not None:
            latest = self._known.latest
            try:
                return restore(self._target, self._store, latest, options)
            except (NotFoundError, CorruptError):
                with self._mutex:
                    self._known.refresh()
                if self._known.latest == latest:
                    raise
        return self._target.restore(None, options=options)

    def _full(self, path: str) -> str:
        return os.path.join(self._url, path)  # noqa: PTH118  (a URL, and TensorFlow's spelling of it)

    def _locate(self, path: str) -> tuple[Store, str]:
        for directory in (self._url, self._store.url):
            if path.startswith(f"{directory.rstrip('/')}/"):
                return self._store, path[len(directory.rstrip("/")) + 1 :]
        directory, name = split_url(path)
        return self._open(directory), name

    def _is_due(self, *, check_interval: bool) -> bool:
        if self._interval is None or self._last_step is None:
            return True
        step = as_integer(self._step_counter)
        return step != self._last_step and not (check_interval and step < self._last_step + self._interval)

    def _save(self, checkpoint_number: Any | None, options: tf.train.CheckpointOptions | None) -> str:
        """Saves one checkpoint and returns its path; after a failure the counter is as it was before."""
        step = None if self._interval is None else as_integer(self._step_counter)
        number = self._save_counter.advance()
        try:
            self._known.claim()
            path = f"{self._name}-{number if checkpoint_number is None else as_integer(checkpoint_number)}"
            self._write(path, options)
        except BaseException:
            if self._known.is_settled:
                self._save_counter.rollback()
            else:
                self._last_step = step  # it may have landed, so its number and its step count as used
            raise
        self._last_step = step
        self._known.delete_retired()
        return path

    def _write(self, path: str, options: tf.train.CheckpointOptions | None) -> None:
        started = time.perf_counter()
        replaced = self._known.replaces(path)
        written = write(self._target, self._store, path, options, guard=self._known.guard, retry=self._retry)
        self._known.publish(written.index, written.objects, replaced, self._retention)
        seconds = time.perf_counter() - started
        rate = written.size / max(seconds, 1e-9) / 1e6
        _log.info("saved %s: %.3f GB in %.2f s (%.0f MB/s)", self._full(path), written.size / 1e9, seconds, rate)
