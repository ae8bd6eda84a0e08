"""How a manager saves: alone, as the leader of several workers, or as one that follows.

Promises: `save` returns when the checkpoint is visible to every reader; when it raises, nothing has changed, unless
`may_have_landed` says that it may have.
"""

import abc
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ckpt_remote.checkpoint import write
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import CheckpointError, UnknownOutcomeError, UnsupportedError
from ckpt_remote.flow import Flow, run
from ckpt_remote.follower import follow, refuse
from ckpt_remote.leader import Leader, give_up, lead, take_down
from ckpt_remote.member import Member
from ckpt_remote.patience import Progress
from ckpt_remote.plan import Tensor
from ckpt_remote.rendezvous import look_around
from ckpt_remote.share import Save, Share, Written, write_share
from ckpt_remote.store import Retry, Store
from ckpt_remote.tap import Snapshot
from ckpt_remote.workers import Workers

__all__ = ["Crew", "crew_of"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Crew(abc.ABC):
    """Saves into a directory.

    Args:
        known: The directory.
        store: Where it is.
        retry: How to repeat requests that a store fails to answer.
        name: What the names of the checkpoints begin with.
        retention: What to keep.
    """

    def __init__(self, known: Directory, store: Store, retry: Retry, *, name: str, retention: Retention) -> None:
        self.known = known
        self.name = name
        self.retention = retention
        self._store = store
        self._retry = retry

    @abc.abstractmethod
    def save(self, path: str, snapshot: Snapshot, *, counter: int, number: int | None) -> tuple[str, int]:
        """Saves a checkpoint, and returns its path, and how many bytes it has.

        Args:
            path: The prefix.
            snapshot: What it consists of.
            counter: The save counter.
            number: What the caller numbers it; None if that is the counter.
        """

    @abc.abstractmethod
    def may_have_landed(self, error: BaseException) -> bool:
        """Whether the last save, which raised that, may be visible, or come to be."""

    @abc.abstractmethod
    def begin(self, counter: int, *, is_behind: bool) -> None:
        """Says that a save begins, and forgets the last.

        Args:
            counter: The save counter.
            is_behind: Whether training goes on meanwhile.
        """

    def meet(self) -> None:  # noqa: B027 - who is alone meets nobody
        """Says that all workers have waited for their saves."""

    @property
    def is_alone(self) -> bool:
        """Whether no other worker saves with this one."""
        return False

    @property
    def owns(self) -> bool:
        """Whether the directory is this process's to change."""
        return True

    @property
    def counter(self) -> int | None:
        """What all workers' save counters are to be as of the last save; None if that was not agreed upon."""
        return None

    def give_up(self, path: str, error: Exception) -> None:  # noqa: B027 - who is alone is waited for by nobody
        """Tells whoever waits for it that a save has failed before it began."""

    def refresh(self) -> bool:
        """Reads the state, and returns whether it has changed."""
        return self._perform(self.known.load())

    def clean_up(self) -> None:
        """Deletes what the state says is retired."""
        self._perform(self.known.delete_retired())

    def close(self) -> None:  # noqa: B027 - who is alone has nothing to remove
        """Leaves nothing behind that only serves to save."""

    def _perform(self, flow: Flow[T]) -> T:
        return run(flow, self._store, self._retry)

    def _write(self, share: Share, beside: Callable[[Progress], Flow[Any]]) -> Flow[tuple[Written, Any]]:
        yield from ()
        return write_share(self._store, share, beside, retry=self._retry)


class _Owner(Crew):
    """One that writes the state."""

    _before: int | None = None
    _doubts: frozenset[str] = frozenset()

    def begin(self, counter: int, *, is_behind: bool) -> None:
        """As `Crew.begin`."""
        del counter, is_behind  # nobody to agree with
        self._before, self._doubts = None, self.known.doubts

    def may_have_landed(self, error: BaseException) -> bool:
        """As `Crew.may_have_landed`."""
        del error
        return (self._before is not None and self.known.serial != self._before) or not self.known.doubts <= self._doubts


class Alone(_Owner):
    """The only worker."""

    @property
    def is_alone(self) -> bool:
        """As `Crew.is_alone`."""
        return True

    def save(self, path: str, snapshot: Snapshot, *, counter: int, number: int | None) -> tuple[str, int]:
        """As `Crew.save`."""
        del counter, number  # nobody to agree with
        self._perform(self.known.claim(self.name))
        target = self._perform(self.known.begin(path))
        written = write(snapshot, self._store, target, retry=self._retry)
        self._before = self.known.serial
        self._perform(self.known.publish(written.index, written.objects, written.created, target, self.retention))
        return path, snapshot.size


class Leading(_Owner):
    """The worker that decides, merges and publishes."""

    def __init__(self, workers: Workers, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._leader = Leader(workers, self._store.url)

    def save(self, path: str, snapshot: Snapshot, *, counter: int, number: int | None) -> tuple[str, int]:
        """As `Crew.save`."""
        try:
            tensors = _tensors(snapshot, partial(self.give_up, path))
            save = Save(path=path, counter=counter, number=number, tensors=tensors, write=self._write)
            size = self._perform(lead(self._leader, self.known, save, name=self.name, retention=self.retention))
            return path, size
        finally:
            self._before = self._leader.before

    def begin(self, counter: int, *, is_behind: bool) -> None:
        """As `Crew.begin`."""
        super().begin(counter, is_behind=is_behind)
        self._leader.begin(counter)

    def give_up(self, path: str, error: Exception) -> None:
        """As `Crew.give_up`."""
        self._perform(give_up(self._leader, self.known, path, error, name=self.name))

    def close(self) -> None:
        """As `Crew.close`; who has yet to learn that a save has failed learns it from the plan, which stays."""
        if not (self._leader.plan and self._leader.plan[0].failure):
            self._perform(take_down(self._leader))


class Following(Crew):
    """Any other worker."""

    def __init__(self, workers: Workers, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._member = Member(workers, self._store.url)

    def save(self, path: str, snapshot: Snapshot, *, counter: int, number: int | None) -> tuple[str, int]:
        """As `Crew.save`."""
        tensors = _tensors(snapshot, partial(self.give_up, path))
        save = Save(path=path, counter=counter, number=number, tensors=tensors, write=self._write)
        path = self._perform(follow(self._member, save))
        try:
            self.refresh()
        except CheckpointError as error:  # the checkpoint is visible all the same
            _log.warning("What is in %s now could not be read: %s", self._store.url, error)
        return path, sum(tensor.size for tensor in tensors)

    def begin(self, counter: int, *, is_behind: bool) -> None:
        """As `Crew.begin`."""
        del counter  # the leader's counts
        self._member.begin(is_behind=is_behind)

    def meet(self) -> None:
        """As `Crew.meet`."""
        self._member.meet()

    @property
    def owns(self) -> bool:
        """As `Crew.owns`: it is the leader's."""
        return False

    @property
    def counter(self) -> int | None:
        """As `Crew.counter`."""
        return self._member.counter

    def give_up(self, path: str, error: Exception) -> None:
        """As `Crew.give_up`."""
        del path
        self._perform(refuse(self._member, error))

    def may_have_landed(self, error: BaseException) -> bool:
        """As `Crew.may_have_landed`."""
        return isinstance(error, UnknownOutcomeError)

    def refresh(self) -> bool:
        """As `Crew.refresh`."""
        changed = super().refresh()
        self._member.start_over(self.known.found, self.known.latest)
        self._perform(look_around(self._member))
        return changed

    def clean_up(self) -> None:
        """Nothing: that is the leader's."""


def crew_of(workers: Workers, known: Directory, store: Store, retry: Retry, *, name: str, retention: Retention) -> Crew:
    """How this worker saves."""
    if workers.size == 1:
        return Alone(known, store, retry, name=name, retention=retention)
    kind = Leading if workers.leads else Following
    return kind(workers, known, store, retry, name=name, retention=retention)


def _tensors(snapshot: Snapshot, refuse: Callable[[Exception], None]) -> list[Tensor]:
    """What a worker has; where that cannot be saved together, the others are told."""
    if snapshot.whole_groups or snapshot.files:
        what = "side files of registered savers" if snapshot.files else "a sharding callback of your own"
        error = UnsupportedError(f"Several workers cannot save {what} together. Leave it out, or save from one worker.")
        with contextlib.suppress(CheckpointError):  # which hides nothing: the others learn it at the deadline
            refuse(error)
        raise error
    return [tensor for group in snapshot.groups for tensor in group]
