"""Ask again when a store stumbles: a store that repeats what is safe to repeat.

Promises: only transient `StoreError`s are retried, and only of requests whose repetition changes nothing
(reads, listings, deletes, overwrites); at most `Policy.attempts` times, questions about the cause included, with
full-jitter backoff, none started
after the deadline, and none before the store is ready where it says when (`Retry-After`). Conditional puts pass
through exactly once, because a lost response would come back as a conflict with oneself: their callers read
back instead. Engines below retry nothing themselves, so attempts do not multiply.
"""

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ckpt_remote import errors, progress
from ckpt_remote.buffers import Buffer
from ckpt_remote.store import faults, interface

__all__ = ["Policy", "Retry", "Retrying", "Trial"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how patiently to ask again.

    Args:
        attempts: Requests in all, the first included. One that asked the store why another failed counts too, but
            where two are allowed, two are made.
        first_delay: Upper bound of the first pause in seconds; it doubles from pause to pause. The pause is
            drawn uniformly below the bound, so that many workers do not return together.
        longest_delay: What that bound never exceeds, in seconds.
        deadline: Seconds after the first request from which none is started.
    """

    attempts: int = 6
    first_delay: float = 0.2
    longest_delay: float = 10.0
    deadline: float = 30.0

    def longest_pause(self, failures: int) -> float:
        """The bound of the pause after so many failures (at least one), in seconds."""
        return min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))


@dataclass(frozen=True, slots=True)
class Retry:
    """A policy at work, with the time and chance that it needs.

    Args:
        policy: How often and how patiently to ask again.
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
        uniform: Draws between two numbers.
    """

    policy: Policy = Policy()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def start(self) -> "Trial":
        """An operation whose requests share one budget of failures and one deadline."""
        return Trial(self, self.clock())

    def call(self, request: Callable[[], _T]) -> _T:
        """Performs a request until it passes, fails for good, or the policy is exhausted."""
        return self.start().call(request)


@dataclass(slots=True)
class Trial:
    """One operation under way, be it one request or several.

    Args:
        retry: The policy, time and chance.
        started: When, by the policy's clock.
        failures: How many of its requests have failed.
        questions: How many more requests were sent to learn why.
    """

    retry: Retry
    started: float
    failures: int = 0
    questions: int = 0

    def call(self, request: Callable[[], _T]) -> _T:
        """Performs a request that may be repeated, until it passes, fails for good, or the budget is spent."""
        while True:
            try:
                return request()
            except errors.StoreError as failure:
                if not failure.transient:
                    raise
                self.count(failure)
                self.wait(failure)

    def count(self, failure: errors.StoreError) -> None:
        """Takes a passing failure, and what was sent to learn its cause, from the budget."""
        self.failures += failure.transient
        self.questions += failure.questions

    def begin_anew(self, pause: float) -> float:
        """Waits so many seconds for somebody else; then the whole budget is there again. Returns the time."""
        self.retry.sleep(pause)
        self.failures = 0
        self.questions = 0
        self.started = self.retry.clock()
        return self.started

    def wait(self, failure: errors.CheckpointError) -> None:
        """Waits as long as is due before the next request; raises `failure` if there is to be none."""
        policy = self.retry.policy
        asked = failure.retry_after if isinstance(failure, errors.StoreError) else None
        pause = max(self.retry.uniform(0.0, policy.longest_pause(max(1, self.failures))), asked or 0.0)
        late = self.retry.clock() + pause - self.started > policy.deadline
        spent = self.failures >= min(2, policy.attempts) and self.failures + self.questions >= policy.attempts
        if spent or late:
            raise failure
        _logger.info("%d of %d requests failed, the next in %.2f s: %s", self.failures, policy.attempts, pause, failure)
        progress.emit(progress.Repeated(error=str(failure), failures=self.failures, pause=pause))
        self.retry.sleep(pause)


class Retrying(interface.Store):
    """`inner`, with safe requests repeated according to `policy`."""

    def __init__(
        self,
        inner: interface.Store,
        policy: Policy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.url = inner.url
        self.engine = inner.engine
        self.policy = policy or Policy()
        self._inner = inner
        self._repeat = Retry(self.policy, clock, sleep, uniform).call

    @property
    def single(self) -> interface.Store:
        """The inner store."""
        return self._inner.single

    def read(self, key: str) -> interface.Object:
        """As the inner store's, repeated."""
        return self._repeat(lambda: self._inner.read(key))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As the inner store's, repeated."""
        return self._repeat(lambda: self._inner.read_range(key, start, length))

    def size(self, key: str) -> int:
        """As the inner store's, repeated."""
        return self._repeat(lambda: self._inner.size(key))

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As the inner store's; repeated only to overwrite."""
        if mode != "overwrite":
            return self._inner.put(key, buffers, mode)
        return self._repeat(lambda: self._inner.put(key, buffers, mode))

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As the inner store's, repeated. The listing is complete before its first entry is handed out."""
        yield from self._repeat(lambda: list(self._inner.list(prefix)))

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As the inner store's; keys whose deletion failed for the moment are tried again."""
        failures: dict[str, errors.CheckpointError] = {}
        remaining = list(keys)

        def attempt() -> None:
            found = self._inner.delete(remaining)
            for key in remaining:
                failures.pop(key, None)
            failures.update(found)
            remaining[:] = [key for key, error in found.items() if faults.is_passing(error)]
            if remaining:
                raise found[remaining[0]]

        with contextlib.suppress(errors.StoreError):  # reported by key
            self._repeat(attempt)
        return failures

    def remove(self, key: str, version: interface.Version) -> bool:
        """As the inner store's, once."""
        return self._inner.remove(key, version)

    def require_container(self) -> None:
        """As the inner store's, repeated."""
        self._repeat(self._inner.require_container)

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()
