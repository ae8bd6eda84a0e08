"""Why requests fail that their client does not explain: the store is asked once, and the answer holds for a while.

Promises: threads that fail together ask once and share the answer; an answer that leaves hope holds for `HOLD`
seconds, for every object, so that a store that asks for less gets less; trouble is forgotten as soon as a request
passes; an answer that leaves no hope is given only to those whose requests had failed before it came. An answer is
about the bucket and the account, so it lives no longer than the engine that asked: newer credentials mean a new
engine. It does not notice that a passing trouble became a lasting one in the meantime: who asks again later learns it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckpt_remote import errors
from ckpt_remote.store import faults

__all__ = ["HOLD", "Inquiry"]

HOLD = 10.0
"""Seconds: longer than the six attempts at one request take, unless the store asks for longer pauses."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the store said: `meaning` is None if nothing is wrong with it, or if it would not say."""

    meaning: faults.Meaning | None
    came: float


class Inquiry:
    """What is known about a store's trouble.

    Args:
        ask: Sends the question; it returns what is wrong with the store, or None.
        clock: Seconds, monotonic.
    """

    def __init__(self, ask: Callable[[], faults.Meaning | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._last: _Answer | None = None

    def explain(self, request: faults.Request) -> tuple[errors.CheckpointError | None, int]:
        """What a failed request means, or None if that is not known, and how many questions were sent to learn it."""
        failed = self._clock()
        with self._lock:
            if (last := self._last) is not None:
                known = last.meaning and last.meaning(request)
                hopeful = known is None or faults.is_passing(known)
                if last.came >= failed or (hopeful and self._clock() - last.came < HOLD):
                    return known, 0
            meaning = self._ask()
            self._last = _Answer(meaning, self._clock())
            return meaning and meaning(request), 1

    def note(self, trouble: faults.Meaning) -> None:
        """Something passing is wrong with the store, as was learnt in another way."""
        self._last = _Answer(trouble, self._clock())

    def forget(self) -> None:
        """A request passed: the store is in no trouble."""
        last = self._last
        if last is not None and last.meaning is not None:
            self._last = None
