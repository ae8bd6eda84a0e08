"""What happened, as values, and who wants to know.

    with listen(print):
        manager.save()      # Repeated(...), Saved(...), ...

Promises: events are frozen and hold no credential; listeners are called in the thread where it happened, after it
happened; one that fails is logged and does not disturb the save. Nothing here decides anything.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Collected", "Event", "FellBack", "Repeated", "Saved", "emit", "listen"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """A request failed for the moment and is sent again.

    Attributes:
        error: What went wrong, as people read it.
        failures: How many requests of this operation have failed so far.
        pause: Seconds until the next one.
    """

    error: str
    failures: int
    pause: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint is durable and visible.

    Attributes:
        url: Which.
        size: Bytes of data.
        seconds: From the call of `save` to the write that made it visible.
        stall: How many of them training waited.
    """

    url: str
    size: int
    seconds: float
    stall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack:
    """A damaged checkpoint was passed over.

    Attributes:
        damaged: Which.
        error: What is wrong with it.
        tried_next: The older one that is tried instead; None if there is none.
    """

    damaged: str
    error: str
    tried_next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Objects that no checkpoint needs were deleted.

    Attributes:
        keys: Their names in the directory.
    """

    keys: tuple[str, ...]


Event: TypeAlias = Repeated | Saved | FellBack | Collected
Listener: TypeAlias = Callable[[Event], object]

_listeners: tuple[Listener, ...] = ()


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Calls `listener` with every event of this process until the block ends."""
    global _listeners  # noqa: PLW0603 - the one list of who listens; replaced whole, so that no lock is needed to read it
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        remaining = list(_listeners)
        remaining.remove(listener)
        _listeners = tuple(remaining)


def emit(event: Event) -> None:
    """Tells everybody who listens."""
    for listener in _listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - whatever it is, the save goes on
            _log.exception("A listener failed at %r, which it was told of only.", event)
