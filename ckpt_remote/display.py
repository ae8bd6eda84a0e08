"""Shows people how far a long save or restore is: a bar in a terminal, lines in the log elsewhere.

Promises: nothing is shown of what takes a second; a bar is only for what the main thread waits for, so it never breaks
into the output of a training that goes on meanwhile; it is gone when its work is done. Whatever happens here, the save
goes on (see `progress.emit`).
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

from ckpt_remote.progress import Entered, Event, Failed, Moved, Phase, Repeated, Restored, Saved, hear

__all__ = ["Display", "show"]

_log = logging.getLogger(__name__)

# Seconds of work that are worth a bar; and between two lines in the log.
_WORTH_A_BAR, _BETWEEN_LINES = 1.0, 30.0
_DOING: dict[Phase, str] = {"write": "saving", "fetch": "fetching"}


class _Bar(tqdm):  # type: ignore[type-arg]  # it takes a parameter for type checkers only
    """Draws when it is told of something, without a thread that would draw at other times."""

    monitor_interval = 0


_Bar.set_lock(threading.RLock())  # its own is for several processes, and may start one for itself


@dataclass(slots=True)
class _Work:
    """A phase under way.

    Attributes:
        what: What is done to what.
        size: Bytes in all.
        begun: When it began.
        said: When it was spoken of last.
        bar: Its bar, in a terminal.
        done: Bytes.
    """

    what: str
    size: int
    begun: float
    said: float
    bar: _Bar | None
    done: int = 0


class Display:
    """A listener that shows what it hears.

    Args:
        clock: Seconds, monotonic.
        terminal: Where bars are drawn, if that is one; None for standard error.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, terminal: TextIO | None = None) -> None:
        self._clock = clock
        self._terminal = terminal
        self.forget()

    def forget(self) -> None:
        """Begins anew, as in a forked child, which has none of the threads whose work this was."""
        self._works: dict[str, _Work] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        with self._lock:
            if isinstance(event, Entered):
                self._end(event.url)
                if event.size:
                    self._begin(event)
            elif isinstance(event, Moved):
                self._move(event)
            elif isinstance(event, Saved | Restored | Failed):
                self._end(event.url)
            elif isinstance(event, Repeated):
                for work in self._works.values():
                    if work.bar is not None:
                        work.bar.set_postfix_str(f"repeating: {event.failures} failed", refresh=False)

    def _begin(self, event: Entered) -> None:
        what, now = f"{_DOING.get(event.phase, event.phase)} {event.url}", self._clock()
        bar, terminal = None, self._terminal or sys.stderr
        if terminal is not None and terminal.isatty() and threading.current_thread() is threading.main_thread():
            bar = _Bar(
                total=event.size, desc=what, unit="B", unit_scale=True, delay=_WORTH_A_BAR, leave=False, file=terminal
            )
        self._works[event.url] = _Work(what=what, size=event.size, begun=now, said=now, bar=bar)

    def _move(self, event: Moved) -> None:
        work = self._works.get(event.url)
        if work is None:
            return
        work.done += event.size
        if work.bar is not None:
            work.bar.update(event.size)
            return
        now = self._clock()
        if now - work.said >= _BETWEEN_LINES:
            work.said = now
            rate = work.done / (now - work.begun) / 1e6
            _log.info("%s: %.2f of %.2f GB, %.0f MB/s", work.what, work.done / 1e9, work.size / 1e9, rate)

    def _end(self, url: str) -> None:
        work = self._works.pop(url, None)
        if work is not None and work.bar is not None:
            work.bar.close()


def show() -> None:
    """Shows what this process does, from now on."""
    global _display  # noqa: PLW0603 - a process has one terminal
    if _display is None:
        _display = Display()
        os.register_at_fork(after_in_child=_display.forget)
        hear(_display)


_display: Display | None = None
