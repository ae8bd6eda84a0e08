"""`CheckpointManager`: `tf.train.CheckpointManager` for object stores.

    save()                                         restore(), restore_or_initialize()
    └── Saving         waits for it, or does not   ├── Directory.load       the state as it is now
        └── Crew.save  alone, or with others       └── checkpoint.restore   TensorFlow's own, from a checked copy

What it promises is said at the class. Everything about bytes, stores and protocol is in the modules below.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar

import tensorflow as tf
from fsspec import AbstractFileSystem
from typing_extensions import Self

from ckpt_remote.checkpoint import restore
from ckpt_remote.crew import crew_of
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.display import show
from ckpt_remote.errors import CheckpointError, CorruptError, NotFoundError
from ckpt_remote.flow import Flow, run
from ckpt_remote.numbering import Interval, as_integer
from ckpt_remote.probe import CONTROL
from ckpt_remote.progress import Failed, emit
from ckpt_remote.recovery import restore_newest
from ckpt_remote.saving import Saving
from ckpt_remote.store import Retry, Store, open_store, split_url
from ckpt_remote.workers import Workers

__all__ = ["CheckpointManager"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# What TensorFlow writes and cannot find again.
_UNREADABLE = re.compile(r"\[.*\]|\\")
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
        asynchronous: Whether `save` returns once the values are taken, and what follows happens while training goes on.
            A save that is due while one is under way waits for it; with "skip" it is left out.
        workers: This process's place among the workers that save together; by default what `TF_CONFIG` says.

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
        asynchronous: bool | Literal["skip"] = False,
        workers: Workers | None = None,
    ) -> None:
        # The base constructor reads the directory through TensorFlow's own file systems, which know no S3; every
        # public member of the base is overridden instead.
        if max_to_keep is not None and as_integer(max_to_keep) <= 0:
            raise ValueError(f"Expected a positive integer or `None` for `max_to_keep`, got {max_to_keep}.")
        if checkpoint_interval is not None and step_counter is None:
            raise ValueError("`step_counter` should be passed if `checkpoint_interval` is not None.")
        if _UNREADABLE.search(checkpoint_name):
            raise ValueError(
                f"TensorFlow takes brackets and backslashes for wildcards, and cannot restore {checkpoint_name!r}."
            )
        if checkpoint_name.startswith(CONTROL):
            raise ValueError(f"Names below {CONTROL} are the library's own: give another `checkpoint_name`.")
        workers = workers or Workers.from_environment()
        _require_meaning(asynchronous, workers)
        self._target = checkpoint
        self._url = os.fspath(directory)
        self._name = checkpoint_name
        self._init_fn = init_fn
        self._interval = Interval(checkpoint_interval, step_counter, last_checkpoint_step)
        self._open = lambda url: open_store(url, storage_options, filesystem)
        self._store = self._open(self._url)
        self._retry = Retry(dataclasses.replace(self._store.policy, deadline=_PATIENCE))
        self._store.url_of(f"{checkpoint_name}-1")  # a name that no object can have is refused now, not after an upload
        show()
        self._known = Directory(self._store.url, (self._url,))
        self._workers = workers
        self._crew = crew_of(
            self._workers,
            self._known,
            self._store,
            self._retry,
            name=checkpoint_name,
            retention=Retention(max_to_keep=max_to_keep, keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours),
        )
        self._saving = Saving(
            checkpoint, self._crew, self._interval, asynchronous=asynchronous, store=self._store, full=self._full
        )
        self._refresh()

    @property
    def directory(self) -> str:
        """The directory as it was given."""
        return self._url

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """The `tf.train.Checkpoint` that is saved and restored."""
        return self._target

    @property
    def _checkpoint(self) -> tf.train.Checkpoint:
        """What `tf.distribute.experimental.PreemptionCheckpointHandler` reaches for in place of `checkpoint`."""
        return self._target

    @property
    def checkpoint_interval(self) -> int | None:
        """The least number of steps between two checkpoints."""
        return self._interval.steps

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

        With `asynchronous`, the values are taken when this returns, and the checkpoint has the URL that this returns
        once `sync` returns. What goes wrong until then is raised by the next `save` that is due, `sync` or `close`.
        Such a `save` has begun all the same; one that is not asynchronous has passed.

        Args:
            checkpoint_number: An integer, or an integer variable or tensor, to number the checkpoint by; by default
                `checkpoint.save_counter`, which is advanced in any case.
            check_interval: Whether to wait for `checkpoint_interval` steps to pass; if not, a checkpoint is saved
                unless one was saved at this very step.
            options: The sharding callback decides what shares a data object, the write callbacks run when the
                checkpoint is visible, and get its URL. `enable_async` is as `asynchronous`, for this save.

        Returns:
            The checkpoint's URL, or None if none is saved.

        Raises:
            ConflictError: Another writer has changed the directory since this manager read it.
            StoreError: The store kept failing. The next save may pass.
            UnknownOutcomeError: The store gave no answer to the last request, so nobody knows yet.
            UnsupportedError: There is no safe way to save on this store.
        """
        return self._saving.save(checkpoint_number, options, check_interval=check_interval)

    def claim(self) -> None:
        """Becomes the directory's writer now, instead of at the first save.

        Every other manager that has read an older state gets `ConflictError` from then on. Writes the state once, and
        nothing the second time. Restoring never claims, so evaluators and workers may do it. Of several workers that
        save together, worker 0 claims; for the others this does nothing.

        Raises:
            ConflictError: Another writer has changed the directory since this manager read it.
            UnknownOutcomeError: The store gave no answer to the request, so nobody knows yet.
            UnsupportedError: There is no safe way to save on this store.
        """
        with self._saving.turn():
            if self._crew.owns:
                self._perform(self._known.claim(self._name))

    def restore(
        self,
        path: str | os.PathLike[str] | None = None,
        options: tf.train.CheckpointOptions | None = None,
        *,
        existing_only: bool = False,
    ) -> Any:
        """Restores a checkpoint, the newest by default, which is looked up again.

        Every tensor has passed its checksum before the first value is assigned. Objects that are created later are
        restored then, as with TensorFlow.

        Args:
            path: The URL of a checkpoint, in this directory or elsewhere.
            options: As for `tf.train.Checkpoint.restore`.
            existing_only: Fetch what there are objects for now, and nothing else: a model without its optimizer, say.
                Objects that are created later begin with their initial values.

        Returns:
            TensorFlow's load status; without any checkpoint that of `checkpoint.restore(None)`.

        Raises:
            NotFoundError: There is no such checkpoint.
            CorruptError: It is damaged; nothing was assigned.
        """
        if path is not None:
            with self._saving.turn():  # a save that is under way may be the one
                pass
            store, name = self._locate(os.fspath(path))
            return self._restore(store, name, options, existing_only=existing_only)
        self._refresh()
        while self._known.latest is not None:
            try:
                return self._restore(self._store, self._known.latest, options, existing_only=existing_only)
            except CorruptError:
                if not self._refresh():  # else a writer has retired or replaced it in the meantime
                    raise
        return self._target.restore(None, options=options)

    def restore_or_initialize(self) -> str | None:
        """Restores the newest checkpoint that is whole, or calls `init_fn` if there is none at all.

        A checkpoint that is damaged is passed over, with a warning that names it and the one that is tried next. Only
        reads, so evaluators and workers may call it. A state that cannot be read is an error, never "none yet", and
        so is a directory where every checkpoint is damaged.

        Returns:
            The URL of what was restored, or None.

        Raises:
            CorruptError: The state cannot be read, or no checkpoint is whole. `init_fn` was not called.
        """
        self._refresh()
        if self._known.latest is not None:
            restore_one = partial(self._restore, self._store, options=None)
            path = restore_newest(self._known, restore_one, self._refresh, self._full, url=self._store.url)
            self._interval.begin()
            return self._full(path)
        if self._init_fn is not None:
            self._init_fn()
        return None

    def collect_garbage(self, *, dry_run: bool = True) -> list[str]:
        """Deletes what saves that were killed, failed or lost a race have left, or only says what that is.

        Nothing else: every object carries the seal of the save that wrote it, and only those of this directory's own
        history go, which no checkpoint uses that is listed, preserved or unknown to us. Each first save of a manager
        does the same for the names that it uses itself; this looks everywhere below the directory.

        Who puts an older `checkpoint` file back should know: of the saves that followed it, the first looks like one
        that died before it was listed, and goes. If more followed, all are kept.

        Of several workers that save together, worker 0 does it; the others delete nothing.

        Args:
            dry_run: Only list. If another process saves into the directory right now, what it has written so far is
                listed, too: to delete, this manager claims the directory, and then that save cannot be finished any
                more.

        Returns:
            The URLs of what is to be deleted, or was.

        Raises:
            ConflictError: Another writer has changed the directory since this manager read it. Nothing was deleted.
            StoreError: The store kept failing, or does not let us list.
        """
        with self._saving.turn():
            if dry_run:
                seen = Directory(self._store.url, (self._url,))
                self._perform(seen.load())
                found = self._perform(seen.collect(dry_run=True))
            elif not self._crew.owns:
                found = ()
            else:
                self._perform(self._known.claim(self._name))
                found = self._perform(self._known.collect(dry_run=False))
        return [self._full(key) for key in found]

    def sync(self) -> None:
        """Returns when no save is under way; raises what has gone wrong in one, if nobody has been told yet."""
        self._saving.sync()

    def close(self) -> None:
        """As `sync`, and gives the store's connections back. The manager is not used afterwards."""
        try:
            self.sync()
        finally:
            self._crew.close()
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            _log.exception("Closing the manager of %s has failed, too.", self._url)  # what came first counts

    def _perform(self, flow: Flow[T]) -> T:
        return run(flow, self._store, self._retry)

    def _refresh(self) -> bool:
        """Reads the state, and returns whether it has changed."""
        with self._saving.turn():
            changed = self._crew.refresh()
        if self._known.latest is None:
            self._store.require_container()
        return changed

    def _restore(
        self, store: Store, path: str, options: tf.train.CheckpointOptions | None, *, existing_only: bool = False
    ) -> Any:
        """Restores a checkpoint; one that the state lists, and that is not there, is damaged."""
        try:
            return restore(
                self._target, store, path, options, shared=self._workers.size > 1, existing_only=existing_only
            )
        except CheckpointError as error:
            emit(Failed(url=store.url_of(path), action="restore", error=str(error)))
            is_listed = store is self._store and path in self._known.newest_first
            if not (isinstance(error, NotFoundError) and is_listed):
                raise
            raise CorruptError(
                f"{self._full(path)} is damaged: the state lists it, but its index, {path}.index, is gone. Restore an "
                "older checkpoint.",
                path=self._full(path),
            ) from error

    def _full(self, path: str) -> str:
        return os.path.join(self._url, path)  # noqa: PTH118  (a URL, and TensorFlow's spelling of it)

    def _locate(self, path: str) -> tuple[Store, str]:
        for directory in (self._url, self._store.url):
            if path.startswith(f"{directory.rstrip('/')}/"):
                return self._store, path[len(directory.rstrip("/")) :].lstrip("/")
        directory, name = split_url(path)
        return self._open(directory), name


def _require_meaning(asynchronous: object, workers: Workers) -> None:
    if asynchronous not in {False, True, "skip"}:
        raise ValueError(f'`asynchronous` is False, True or "skip", not {asynchronous!r}.')
    if asynchronous == "skip" and workers.size > 1:
        raise ValueError('`asynchronous="skip"` is for one worker: several would not leave out the same saves.')
