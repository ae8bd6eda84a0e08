"""How long workers that save together wait: between two looks, and for each other; and when they say so.

Promises: it decides nothing but when to look again and how long is long enough, and reads no clock.
"""

import threading
import time

__all__ = ["SLOWNESS", "Pauses", "Progress", "Reminders"]

SLOWNESS = 3.0
"""A share takes this many times as long as one's own before its worker is given up."""

# Seconds between two looks: at first, and at most. Per worker that the leader looks at, a little more.
_FIRST_PAUSE, _LONGEST_PAUSE, _PAUSE_A_WORKER = 0.02, 1.0, 0.002
# At first while one's own share goes up: all are about as far, and when it is over the wait ends anyway.
_BUSY_PAUSE = 0.2
# In between, this part of what was waited.
_PART = 0.1
# Seconds of waiting that are worth a line in the log.
_LONG = 30.0


class Progress:
    """How far a worker's own share is. Safe to ask from another thread."""

    def __init__(self) -> None:
        self._took: float | None = None
        self._over = threading.Event()

    def finish(self, seconds: float) -> None:
        """Says that it is durable, and how many seconds that took."""
        self._took = seconds
        self._over.set()

    def call_off(self) -> None:
        """Says that it has failed."""
        self.finish(float("inf"))

    def sleep(self, seconds: float) -> None:
        """Waits so long; while it goes up, no longer than that takes."""
        if self.is_over:
            time.sleep(seconds)
        else:
            self._over.wait(seconds)

    @property
    def is_over(self) -> bool:
        """Whether nothing is done for it any more."""
        return self._took is not None

    @property
    def took(self) -> float | None:
        """How many seconds it took; None while it goes up, infinity after it has failed."""
        return self._took


class Pauses:
    """How long to wait between two looks: a small part of what was waited already, so that little time is lost.

    Args:
        workers: How many are looked at.
        busy: Whether one's own share goes up meanwhile.
    """

    def __init__(self, workers: int = 0, *, busy: bool = False) -> None:
        self._first = (_BUSY_PAUSE if busy else _FIRST_PAUSE) + _PAUSE_A_WORKER * workers
        self._waited = 0.0

    def next(self) -> float:
        """Seconds."""
        pause = min(_LONGEST_PAUSE, max(self._first, _PART * self._waited))
        self._waited += pause
        return pause


class Reminders:
    """When to say that one is still waiting: after half a minute, and whenever it has become twice as long."""

    def __init__(self) -> None:
        self._next = _LONG

    def is_due(self, waited: float) -> bool:
        """Whether to say it now, after so many seconds; true once for each time."""
        if waited < self._next:
            return False
        self._next = 2 * waited
        return True
