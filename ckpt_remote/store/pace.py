"""Google's limit on writes of one object's name: one a second, respected instead of run into.

Promises: within this process a write of an object begins no sooner than a second after the last one ended, whoever
wrote; other objects wait for nothing. It knows nothing of other processes: what they cause comes back as HTTP 429,
which is transient.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from ckpt_remote import errors

__all__ = ["GOOGLE", "Pace"]

_MANY = 1024


class Pace:
    """The times of the last writes, by object. Safe to use from several threads.

    Args:
        interval: Seconds from the end of a write to the beginning of the next.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds; Ctrl-C interrupts it.
    """

    def __init__(
        self,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.interval = interval
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._written: dict[str, float] = {}

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until the object may be written, then write it in the `with` block.

        It waits once, so that nobody starves where several write.
        """
        with self._lock:
            written = self._written.get(name)
        if written is not None and (due := written + self.interval - self._clock()) > 0:
            self._sleep(due)
        try:
            yield
        except (errors.ConflictError, errors.NotFoundError):  # nothing was written
            raise
        except BaseException:  # it may have been
            self._wrote(name)
            raise
        self._wrote(name)

    def _wrote(self, name: str) -> None:
        now = self._clock()
        with self._lock:
            if len(self._written) >= _MANY:
                self._written = {key: then for key, then in self._written.items() if now - then < self.interval}
            self._written[name] = now


GOOGLE = Pace()
"""The pace of this process, whatever stores and managers it has."""
