"""What happened, as values, and who wants to know.

    with listen(print):
        manager.save()      # Entered(...), Moved(...), Repeated(...), Saved(...), ...

Promises: events are frozen and hold no credential; listeners are called in the thread where it happened, after it
happened; one that fails is logged and does not disturb the save. Nothing here decides anything.

What shows events to people is `display`, what hands them to dashboards `dashboards`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "Collected",
    "Entered",
    "Event",
    "Failed",
    "FellBack",
    "Listener",
    "Moved",
    "Phase",
    "Repeated",
    "Restored",
    "Saved",
    "emit",
    "enter",
    "hear",
    "listen",
]

_log = logging.getLogger(__name__)


Phase: TypeAlias = Literal["take", "write", "wait", "publish", "fetch", "assign"]
"""What a save does: take the values, write the data, wait for other workers, publish the checkpoint. What a restore
does: fetch and check the data, assign the values.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A save or a restore has begun the next thing that it does.

    Attributes:
        url: The checkpoint.
        phase: What it does now.
        size: Bytes that are to be moved by it; 0 if it moves none.
    """

    url: str
    phase: Phase
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Some more bytes of a phase are done: durable, or fetched.

    Attributes:
        url: The checkpoint.
        phase: Of which.
        size: How many more.
    """

    url: str
    phase: Phase
    size: int


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
class Restored:
    """A checkpoint is restored, as far as there are objects for it by now.

    Attributes:
        url: Which.
        size: Bytes of data that were needed.
        seconds: How long it took.
    """

    url: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A save or a restore has failed.

    Attributes:
        url: The checkpoint.
        action: Which of them.
        error: What went wrong, as people read it.
    """

    url: str
    action: Literal["save", "restore"]
    error: str


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


Event: TypeAlias = Entered | Moved | Repeated | Saved | Restored | Failed | FellBack | Collected
Listener: TypeAlias = Callable[[Event], object]

_listeners: tuple[Listener, ...] = ()


def hear(listener: Listener) -> None:
    """Calls `listener` with every event of this process from now on."""
    global _listeners  # noqa: PLW0603 - the one list of who listens; replaced whole, so that no lock is needed to read it
    _listeners = (*_listeners, listener)


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Calls `listener` with every event of this process until the block ends."""
    global _listeners  # noqa: PLW0603 - as above
    hear(listener)
    try:
        yield
    finally:
        remaining = list(_listeners)
        remaining.remove(listener)
        _listeners = tuple(remaining)


def enter(url: str, phase: Phase, size: int = 0) -> Callable[[int], None]:
    """Tells that a phase has begun, and returns what is to be told how many bytes of it are done."""
    emit(Entered(url=url, phase=phase, size=size))
    return lambda done: emit(Moved(url=url, phase=phase, size=done))


def emit(event: Event) -> None:
    """Tells everybody who listens."""
    for listener in _listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - whatever it is, the save goes on
            _log.exception("A listener failed at %r, which it was told of only.", event)
