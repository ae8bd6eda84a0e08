"""The saves of one manager, one at a time: while training waits, or behind it.

    save
    ├── count     the save counter and the interval, undone if nothing comes of it
    ├── take      the values
    └── finish    on this thread or another: `Crew.save`, a word to whoever listens, and what is retired is deleted

Promises: when one fails, the counter and the interval are as before, unless the checkpoint may be there; what fails
behind training is raised by whoever asks next; of several workers the others are told of whatever fails on one.
"""

import contextlib
import dataclasses
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import tensorflow as tf

from ckpt_remote.background import Background
from ckpt_remote.crew import Crew
from ckpt_remote.errors import CheckpointError
from ckpt_remote.numbering import Interval, SaveCounter, as_integer
from ckpt_remote.progress import Failed, Saved, emit, enter
from ckpt_remote.store import Store
from ckpt_remote.tap import Snapshot, capture

__all__ = ["Saving"]

_log = logging.getLogger(__name__)


class Saving:
    """Saves a checkpoint after another.

    Args:
        checkpoint: What to save.
        crew: How.
        interval: How often at most.
        asynchronous: Whether training goes on meanwhile; with "skip" a save that is due then is left out.
        store: The directory, for messages.
        full: The URL of a path, as callers get it.
    """

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        crew: Crew,
        interval: Interval,
        *,
        asynchronous: bool | Literal["skip"],
        store: Store,
        full: Callable[[str], str],
    ) -> None:
        self._checkpoint = checkpoint
        self._crew = crew
        self._interval = interval
        self._counter = SaveCounter(checkpoint)
        self._asynchronous = asynchronous
        self._store = store
        self._full = full
        self._lock = os.getpid(), threading.Lock()
        self._background = Background(f"saving to {store.url}")

    def save(
        self, number: Any | None, options: tf.train.CheckpointOptions | None, *, check_interval: bool
    ) -> str | None:
        """Saves one, if it is due, and returns its URL; as `CheckpointManager.save`."""
        with self._mutex:
            if not self._interval.is_over(check=check_interval):
                return None
            if self._background.is_busy and self._asynchronous == "skip":
                return None
            self._background.wait()
            # What has failed before is raised when this one has begun: several workers do not learn of it at the same
            # call, and must not get out of step by it.
            has_failed = self._background.has_failed
            is_behind = self._goes_on_by_itself(options)
            counted = self._count(is_behind=is_behind)
            save = self._go_on if is_behind else self._wait
            url = save(counted, number, options)
        if not is_behind:
            _call_back(url, options)
        if has_failed:
            self._background.raise_failure()
        return url

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """No save is under way, and none begins."""
        with self._mutex:
            self._background.wait()
            yield

    def sync(self) -> None:
        """Returns when no save is under way; raises what has gone wrong in one, if nobody has been told yet."""
        self._background.wait()
        self._crew.meet()
        self._background.raise_failure()

    @property
    def _mutex(self) -> threading.Lock:
        """One save at a time. A forked child gets a lock of its own: a thread that it has not may hold the parent's."""
        self._background.require_elsewhere()
        process, lock = self._lock
        if process != os.getpid():
            lock = threading.Lock()
            self._lock = os.getpid(), lock
        return lock

    def _goes_on_by_itself(self, options: tf.train.CheckpointOptions | None) -> bool:
        # Sessions belong to the thread that opened them, so in graph mode nothing does.
        is_asked = self._asynchronous or getattr(options, "enable_async", False)
        return bool(is_asked) and tf.executing_eagerly()

    def _count(self, *, is_behind: bool) -> "_Counted":
        """Counts a save. The interval counts from here, also while it is under way."""
        last_step = self._interval.begin()
        if is_behind and not self._crew.is_alone:
            # They learn of a failure at different steps, and must not be due at different ones.
            last_step = self._interval.last
        number = self._counter.advance()
        self._crew.begin(number, is_behind=is_behind)
        return _Counted(path=f"{self._crew.name}-{number}", number=number, last_step=last_step)

    def _take(self, counted: "_Counted", number: Any | None, options: tf.train.CheckpointOptions | None) -> "_Begun":
        """Takes the values."""
        started = time.perf_counter()
        with self._undone_if_it_fails(counted, counted.path):
            if options is not None and not isinstance(options, tf.train.CheckpointOptions):
                raise TypeError(f"options are tf.train.CheckpointOptions, not {options!r}.")
            given = None if number is None else as_integer(number)
        path = counted.path if given is None else f"{self._crew.name}-{given}"
        enter(self._store.url_of(path), "take")
        with self._undone_if_it_fails(counted, path):
            # Before anything else: all workers take part in reading what is spread over them.
            snapshot = capture(self._checkpoint, path.rpartition("/")[2], options)
        return _Begun(
            path=path, snapshot=snapshot, counted=counted, given=given, started=started, taken=time.perf_counter()
        )

    def _wait(self, counted: "_Counted", number: Any | None, options: tf.train.CheckpointOptions | None) -> str:
        """Saves while training waits, and returns the URL."""
        with self._others_told(counted.path):
            begun = self._take(counted, number, options)
        return self._finish(begun)

    def _go_on(self, counted: "_Counted", number: Any | None, options: tf.train.CheckpointOptions | None) -> str:
        """Saves behind training, and returns the URL that it will have."""
        try:
            begun = self._take(counted, number, options)
        except Exception as error:
            if self._crew.is_alone:
                raise
            # The others learn of it at their next save. So does this worker: what all do then, they do at one step.
            self._background.start(partial(self._fail, counted.path, error))
            return self._full(counted.path)
        with self._undone_if_it_fails(counted, begun.path), self._others_told(begun.path):
            self._background.start(partial(self._finish_and_tell, begun, options))
        return self._full(begun.path)

    def _fail(self, path: str, error: Exception) -> None:
        with self._said_later(path), self._others_told(path):
            raise error

    def _finish(self, begun: "_Begun", *, stall: float | None = None) -> str:
        """Saves what was taken, and returns the URL; training waits unless `stall` says how long it has."""
        counter = begun.counted.number
        with self._undone_if_it_fails(begun.counted, begun.path):
            path, size = self._crew.save(begun.path, begun.snapshot, counter=counter, number=begun.given)
        self._agree(counter)
        seconds = time.perf_counter() - begun.started
        stall = seconds if stall is None else stall
        self._tell(Saved(url=self._store.url_of(path), size=size, seconds=seconds, stall=stall))
        self._clean_up()
        return self._full(path)

    def _finish_and_tell(self, begun: "_Begun", options: tf.train.CheckpointOptions | None) -> None:
        with self._said_later(begun.path):
            _call_back(self._finish(begun, stall=begun.taken - begun.started), options)

    @contextlib.contextmanager
    def _said_later(self, path: str) -> Iterator[None]:
        """Says of what goes wrong which save it was: who reads it has called for another, or for none."""
        try:
            yield
        except Exception as error:
            text = f"This went wrong behind training, in the save of {self._full(path)} that an earlier call began."
            if isinstance(error, CheckpointError):
                error.args = (f"{error} {text}",)
            elif sys.version_info >= (3, 11):  # a message of others is theirs
                error.add_note(text)
            raise

    @contextlib.contextmanager
    def _undone_if_it_fails(self, counted: "_Counted", path: str) -> Iterator[None]:
        """After a failure the counter and the interval are as before, unless the checkpoint may be there."""
        try:
            yield
        except BaseException as error:
            emit(Failed(url=self._store.url_of(path), action="save", error=str(error)))
            self._agree(counted.number)
            if not self._crew.may_have_landed(error):  # else its number and its step count as used
                self._counter.rollback()
                self._interval.last = counted.last_step
            raise

    def _agree(self, number: int) -> None:
        """Takes over the count of saves that all workers have."""
        if self._crew.counter not in (None, number):
            self._counter.adopt(self._crew.counter)

    @contextlib.contextmanager
    def _others_told(self, path: str) -> Iterator[None]:
        """Whatever fails inside, the other workers are told that the save has failed."""
        try:
            yield
        except Exception as error:
            try:
                self._crew.give_up(path, error)
            except Exception:  # noqa: BLE001 - a second failure must not hide the first
                _log.info("The other workers could not be told that %s was not saved.", self._full(path), exc_info=True)
            raise

    def _tell(self, saved: Saved) -> None:
        rate = saved.size / max(saved.seconds, 1e-9) / 1e6
        behind = f", behind training but for {saved.stall:.2f} s" if saved.stall < saved.seconds else ""
        _log.info("saved %s: %.3f GB in %.2f s (%.0f MB/s)%s", saved.url, saved.size / 1e9, saved.seconds, rate, behind)
        emit(saved)

    def _clean_up(self) -> None:
        """Deletes what is retired; whatever goes wrong, the save before it has passed."""
        try:
            self._crew.clean_up()
        except Exception:  # noqa: BLE001 - a foreign one must not hide that the checkpoint is there
            _log.exception("What %s no longer lists could not be deleted, and will be tried again.", self._store.url)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """A save that counts.

    Attributes:
        path: The prefix that the checkpoint has unless the caller numbers it.
        number: What the save counter says.
        last_step: What the interval counts from if it fails.
    """

    path: str
    number: int
    last_step: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """A save whose values are taken.

    Attributes:
        path: The prefix of the checkpoint.
        snapshot: The values.
        counted: What it counts as.
        given: The caller's number, if it gave one.
        started: When it began.
        taken: When it had the values.
    """

    path: str
    snapshot: Snapshot
    counted: _Counted
    given: int | None
    started: float
    taken: float


def _call_back(url: str, options: tf.train.CheckpointOptions | None) -> None:
    for callback in (options.experimental_write_callbacks if options else None) or ():
        callback(url) if inspect.signature(callback).parameters else callback()
