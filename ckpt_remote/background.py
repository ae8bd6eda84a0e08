"""One task at a time behind the caller's back, whose failure is not lost.

Promises: a failure is raised once, by whoever asks next, with its own traceback; one that nobody has asked for when the
interpreter exits, or the object is dropped, is logged. The interpreter does not exit before a task has ended. A forked
child has no task.
"""

import logging
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from ckpt_remote.parallel import wait_for

__all__ = ["Background"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Failures:
    """What tasks have raised, as long as nobody has asked for it."""

    what: str
    errors: list[BaseException] = field(default_factory=list)

    def log(self) -> None:
        for error in self.errors:
            _log.error("%s has failed, and nobody has asked how: %s", self.what, error, exc_info=error)


class Background:
    """Runs one task at a time on a thread of its own.

    Args:
        what: What the tasks do, for messages and as the name of the thread.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._over: Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._failures = _Failures(what)
        weakref.finalize(self, self._failures.log)  # at exit, too

    @property
    def is_busy(self) -> bool:
        """Whether a task is under way."""
        return self._over is not None and self._process == os.getpid() and not self._over.done()

    def start(self, task: Callable[[], object]) -> None:
        """Begins a task; there is none under way, and nobody has to learn of a failure."""
        over: Future[None] = Future()
        # The interpreter waits for it, whoever begins it.
        thread = threading.Thread(target=_run, args=([task], self._failures, over), name=self._what, daemon=False)
        self._process, self._over, self._thread = os.getpid(), over, thread
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads
            over.set_result(None)
            raise

    def require_elsewhere(self) -> None:
        """Refuses a task that would wait for itself.

        Raises:
            RuntimeError: This is the task's own thread.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"A write callback is a part of {self._what} behind training, and cannot use the manager: it would "
                "wait for itself. Use the manager in the loop, after sync()."
            )

    def wait(self) -> None:
        """Returns when no task is under way. Ctrl-C ends the wait, and not the task."""
        self.require_elsewhere()
        if self.is_busy and self._over is not None:
            wait_for(self._over)

    @property
    def has_failed(self) -> bool:
        """Whether a task that is over has raised something that nobody has asked for."""
        return bool(self._failures.errors)

    def raise_failure(self) -> None:
        """Raises what the first task has raised that is over and has, if any; each once."""
        if self._failures.errors:
            raise self._failures.errors.pop(0)


def _run(todo: list[Callable[[], object]], failures: _Failures, over: Future[None]) -> None:
    task = todo.pop()
    try:
        task()
    except BaseException as error:  # noqa: BLE001 - raised where somebody asks
        traceback.clear_frames(error.__traceback__)
        failures.errors.append(error)
    del task  # whoever waits may go on when the memory that it held is free
    over.set_result(None)
