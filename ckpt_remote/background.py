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
from concurrent.futures import Future, wait
from dataclasses import dataclass

__all__ = ["Background"]

_log = logging.getLogger(__name__)

# Seconds: a signal that arrives just before an endless wait would not end it.
_GLANCE = 0.5


@dataclass(slots=True)
class _Failure:
    """What the last task has raised, as long as nobody has asked for it."""

    what: str
    error: BaseException | None = None

    def log(self) -> None:
        if self.error is not None:
            _log.error("%s has failed, and nobody has asked how it ended", self.what, exc_info=self.error)


class Background:
    """Runs one task at a time on a thread of its own.

    Args:
        what: What the tasks do, for messages and as the name of the thread.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._over: Future[None] | None = None
        self._failure = _Failure(what)
        weakref.finalize(self, self._failure.log)  # at exit, too

    @property
    def is_busy(self) -> bool:
        """Whether a task is under way."""
        return self._over is not None and self._process == os.getpid() and not self._over.done()

    def start(self, task: Callable[[], object]) -> None:
        """Begins a task; there is none under way, and nobody has to learn of a failure."""
        over: Future[None] = Future()
        # Not a daemon: the interpreter waits for it.
        threading.Thread(target=_run, args=([task], self._failure, over), name=self._what).start()
        self._process, self._over = os.getpid(), over

    def wait(self) -> None:
        """Returns when no task is under way. Ctrl-C ends the wait, and not the task."""
        while self.is_busy and self._over is not None:
            wait([self._over], timeout=_GLANCE)

    def raise_failure(self) -> None:
        """Raises what the last task has raised, if it is over and has, once."""
        error, self._failure.error = self._failure.error, None
        if error is not None:
            raise error


def _run(todo: list[Callable[[], object]], failure: _Failure, over: Future[None]) -> None:
    task = todo.pop()
    try:
        task()
    except BaseException as error:  # noqa: BLE001 - raised where somebody asks
        traceback.clear_frames(error.__traceback__)
        failure.error = error
    del task  # whoever waits may go on when the memory that it held is free
    over.set_result(None)
