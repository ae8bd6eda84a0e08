"""The checkpoints of a directory, as one writer sees them: what there is, and how a save changes it.

    load()                      the state as it is now
    claim()                     before the first save: a state of our own, which fences older writers
    └── rewrite                 ends a replacement that its author left half done
    begin(path)                 an attempt: its seal, and names that nobody deletes
    ├── Collector.note_garbage  after a claim or a failure: what dead attempts left
    └── write_record            only where a listed checkpoint is to be replaced: the intention
    publish(index, objects)
    ├── retention.sweep         which checkpoints stay, are preserved, are retired
    └── commit                  index, then state, by compare-and-swap
    delete_retired()            exactly what the new state says
    collect()                   the same for what dead attempts left, without a save

Promises: what it tells is what is durable (see `ownership`). It performs no request itself: each of these is a flow.
It knows no TensorFlow: data are uploaded between `begin` and `publish`, and what they consist of is handed in.
"""

import dataclasses
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckpt_remote.bundle import MAX_SHARDS
from ckpt_remote.collector import Collector
from ckpt_remote.commit import commit, delete_retired, describe, described, foresee, rewrite
from ckpt_remote.errors import CheckpointError, ConflictError, CorruptError
from ckpt_remote.flow import Flow
from ckpt_remote.origin import Attempt
from ckpt_remote.ownership import Ownership
from ckpt_remote.progress import Collected, emit
from ckpt_remote.retention import sweep
from ckpt_remote.state import Entry, Retired, State
from ckpt_remote.store import Version
from ckpt_remote.succession import NO_RECORD, number_of

__all__ = ["Directory", "Retention", "Target"]

_log = logging.getLogger(__name__)

# Counts that tell attempts at one number apart; below them are those that shards really have.
_FIRST_SPARE_COUNT = 10_000
_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """TensorFlow's two numbers.

    Attributes:
        max_to_keep: How many checkpoints stay managed; None keeps all.
        keep_checkpoint_every_n_hours: Hours between those kept for good; None keeps none.
    """

    max_to_keep: int | None
    keep_checkpoint_every_n_hours: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an attempt to save a checkpoint writes.

    Attributes:
        path: The prefix, relative to the directory.
        attempt: Whose seal its objects get.
        state: The write id that the state will have in which it is visible.
        guard: The version of the state that this writer owns.
        exact: Whether the store deletes only exactly what it is told to, so that a failed save can take its own back.
        listed: Whether the state lists or preserves a checkpoint of that number, which is to be replaced.
        fresh: Whether no checkpoint ever had this number, so that no delete of its names can be under way.
        taken: Counts whose names are to be deleted by intentions that are known.
        chance: Draws the counts where they must be new.
    """

    path: str
    attempt: Attempt
    state: str
    guard: Version
    exact: bool
    listed: bool
    fresh: bool
    taken: frozenset[int]
    chance: random.Random

    def counts(self, shards: int) -> Iterator[int]:
        """What to put behind `-of-` in the names of the data objects, until nothing is in the way."""
        if self.fresh:
            yield shards
        for _ in range(_TRIES):
            count = self.chance.randint(min(max(shards, _FIRST_SPARE_COUNT), MAX_SHARDS), MAX_SHARDS)
            if count not in self.taken:
                yield count


class Directory:
    """The checkpoints of a directory, with their paths relative to it. `load` comes first.

    Args:
        url: The directory, for messages.
        aliases: Other ways to write its URL, as a state of absolute paths may.
        clock: The time, in seconds since the epoch; the system's by default.
        chance: Draws names.
    """

    def __init__(
        self,
        url: str,
        aliases: Sequence[str] = (),
        *,
        clock: Callable[[], float] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._url = url
        self._clock = clock or _now
        self._chance = chance or random.SystemRandom()
        self._ownership = Ownership(url, aliases, clock=self._clock, forget=self._forget)
        self._collector = Collector(self._ownership, url)
        self._ours: dict[str, tuple[Retired, Version]] = {}  # our checkpoints and their indexes, to spare reading them

    @property
    def latest(self) -> str | None:
        """The newest checkpoint; None if there is none."""
        return self._ownership.state.latest

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The managed checkpoints, oldest first."""
        return self._ownership.state.entries

    @property
    def preserved(self) -> tuple[str, ...]:
        """What retention kept for good, oldest first."""
        return self._ownership.record.preserved

    @property
    def newest_first(self) -> tuple[str, ...]:
        """All checkpoints, the latest before the others."""
        known = (self.latest, *(entry.path for entry in reversed(self.entries)), *reversed(self.preserved))
        return tuple(dict.fromkeys(path for path in known if path is not None))

    @property
    def serial(self) -> int:
        """The serial number of the state that is known."""
        return self._ownership.record.serial

    @property
    def epoch(self) -> int:
        """How often the directory had been claimed by the state that is known."""
        return self._ownership.record.epoch

    @property
    def found(self) -> str:
        """The digest of the state that was last read from the store; empty if there was none."""
        return self._ownership.found

    @property
    def doubts(self) -> frozenset[str]:
        """The ids of the writes of the state whose outcome nobody knows. None of them can land after the next one."""
        return self._ownership.doubts

    @property
    def guard(self) -> Version:
        """The version of the state that this writer owns."""
        return self._ownership.guard

    def attempt(self) -> Attempt:
        """A new attempt to build upon the state that is known."""
        return self._ownership.attempt()

    def load(self) -> Flow[bool]:
        """Continues from the state as it is now, whoever wrote it, and returns whether it has changed.

        Raises:
            CorruptError: The state cannot be read, or names something outside the directory.
        """
        changed: bool = yield from self._ownership.load()
        if not self._ownership.record.term:
            yield from self._collector.look_for_probes()
        return changed

    def claim(self, name: str) -> Flow[None]:
        """Becomes the directory's writer: nobody who has read an older state can change anything from now on.

        Only the first call asks and writes anything.

        Args:
            name: What the names of the checkpoints begin with: where a dead owner may have left something.

        Raises:
            ConflictError: Another writer has changed the state since it was read.
            UnknownOutcomeError: The store gave no answer; see `doubts`.
            UnsupportedError: The store does not honour conditions.
        """
        known = self._ownership
        if known.is_claimed and not known.doubts and not known.fenced:
            return
        former = yield from known.claim()
        yield from self._end_replacement()
        self._collector.inherit(former, name)
        known.complete_claim()

    def begin(self, path: str) -> Flow[Target]:
        """Starts an attempt to save a checkpoint. The directory has been claimed.

        Raises:
            ConflictError: Another writer has changed the state.
            UnknownOutcomeError: The store gave no answer; see `doubts`.
        """
        yield from self._end_replacement()
        yield from self._collector.note_garbage()
        self._collector.suspect(f"{path}.")
        listed = path in self._ownership.state.paths
        if listed:
            yield from self._intend(path)
        return Target(
            path=path,
            attempt=self.attempt(),
            state=uuid.uuid4().hex,
            guard=self.guard,
            exact=self._ownership.exact,
            listed=listed,
            fresh=number_of(path) > self._ownership.record.highest
            and all(path != garbage.path for garbage in self._collector.noted),
            taken=frozenset(gone.of for gone in self._intended() if gone.path == path),
            chance=self._chance,
        )

    def publish(
        self, index: bytes, objects: Retired, created: Mapping[str, Version], target: Target, retention: Retention
    ) -> Flow[None]:
        """Makes a checkpoint visible, and notes what retention retires, for `delete_retired`.

        Args:
            index: Its encoded index.
            objects: What it consists of, all of it durable.
            created: Its data objects with their versions, as far as they are known: what is deleted if it fails.
            target: What `begin` said.
            retention: What to keep.

        Raises:
            ConflictError: Another writer has changed the state since it was read. Nothing that it lists was touched.
            UnknownOutcomeError: The store gave no answer to the last request; see `doubts`.
            StoreError: The store kept failing. Nothing was published.
        """
        state = yield from self._next(objects, retention, target.state)
        self._ours.pop(objects.path, None)  # an index that is put back after a failure is not the one we know
        flow = commit(
            objects,
            index,
            state,
            target.guard,
            created=created if target.exact else None,
            attempt=target.attempt,
            url=self._url,
            replaces=target.listed,
        )
        published = yield from self._ownership.write(flow, state)
        if published.index is not None:
            self._ours[objects.path] = objects, published.index
        self._collector.clear(f"{objects.path}.")

    def fence(self) -> None:
        """Says that another writer has changed the state."""
        self._ownership.fence()

    def delete_retired(self) -> Flow[None]:
        """Deletes what the state no longer lists. A failure costs space only: it is logged, and tried again later."""
        if self._ownership.fenced:
            return
        intended, listed = self._ownership.record.retired, self._ownership.state.paths
        remaining: list[Retired] = []
        for number, retired in enumerate(intended):
            own, version = self._ours.get(retired.path, (None, None))
            try:
                failures = yield from delete_retired(
                    retired,
                    version if own == retired and self._ownership.exact and retired.path not in listed else None,
                    guard=self.guard,
                    url=self._url,
                )
            except CorruptError as error:
                _log.warning("%s/%s is left in place, as its index is damaged: %s", self._url, retired.path, error)
                continue
            except ConflictError:  # the new owner reads the same intentions
                self._ownership.fence()
                remaining += intended[number:]
                break
            except CheckpointError as error:
                failures = {retired.index: error}
            if failures:
                remaining.append(retired)
            elif own == retired:
                del self._ours[retired.path]
            for key, failure in failures.items():
                _log.warning("%s/%s could not be deleted, and will be tried again: %s", self._url, key, failure)
        self._ownership.amend(retired=tuple(remaining))

    def collect(self, *, dry_run: bool) -> Flow[tuple[str, ...]]:
        """What dead attempts have left anywhere in the directory, by key; without `dry_run`, it is deleted.

        To delete, the directory has been claimed: what is to go is written into the state first.
        """
        garbage = yield from self._collector.find([""])
        intended = (*self._ownership.record.retired, *garbage.checkpoints)
        doomed = set(garbage.control)
        for retired in intended:
            doomed |= yield from foresee(retired, garbage.present, url=self._url)
        keys = sorted(doomed)
        if dry_run or not keys:
            return tuple(keys)
        yield from self._ownership.write_record(retired=intended)
        yield from self.delete_retired()
        yield from self._collector.delete_control(garbage.control)
        left = {key for retired in self._ownership.record.retired for key in _keys(retired)}
        gone = tuple(key for key in keys if key not in left)
        emit(Collected(keys=gone))
        return gone

    def _intended(self) -> tuple[Retired, ...]:
        """What is to be deleted: as noted, and as the state says, by which the next owner deletes it once more."""
        written = self._ownership.state.record or NO_RECORD
        return (*self._collector.noted, *self._ownership.record.retired, *written.retired)

    def _intend(self, path: str) -> Flow[None]:
        """Notes in the state that a listed checkpoint is to be replaced, before anything of it changes."""
        found = yield from self._describe(path)
        if found is not None:
            yield from self._ownership.write_record(replaced=found)

    def _end_replacement(self) -> Flow[None]:
        """Ends a replacement that was left half done, by us or by an owner before us.

        Its author may be about to swap the index: it gets a new write id, so that this cannot land. What is there
        stays, old or new; the data of the other are garbage.
        """
        before = self._ownership.record.replaced
        if before is None:
            return
        self._ours.pop(before.path, None)
        current = None
        try:
            index = yield from rewrite(before.index, self.attempt(), guard=self.guard, url=self._url)
            current = None if index is None else described(before.path, index, url=self._url)
        except ConflictError:
            self._ownership.fence()
            raise
        except CorruptError as error:
            _log.warning("%s/%s is left as it is, as its index is damaged: %s", self._url, before.path, error)
        if current is not None and current.objects != before.objects:
            self._collector.note(dataclasses.replace(before, write_id=None))
        self._ownership.amend(replaced=None)

    def _next(self, objects: Retired, retention: Retention, write_id: str) -> Flow[State]:
        """The state that lists a checkpoint, with what retention says of the others."""
        path, known = objects.path, self._ownership.record
        entries = [*(entry for entry in self.entries if entry.path != path), Entry(path, self._clock())]
        decision = sweep(
            entries,
            self._ownership.state.last_preserved_timestamp,
            max_to_keep=retention.max_to_keep,
            keep_checkpoint_every_n_hours=retention.keep_checkpoint_every_n_hours,
        )
        retired = [*known.retired, *self._collector.noted]
        if known.replaced is not None:
            retired.append(known.replaced)
        for entry in decision.retired:
            found = yield from self._describe(entry.path)
            retired += [found] if found is not None else []
        preserved = (*self.preserved, *(entry.path for entry in decision.preserved))
        return State(
            latest=path,
            entries=decision.active,
            last_preserved_timestamp=decision.last_preserved_timestamp,
            record=self._ownership.follow_up(
                write_id=write_id,
                highest=max(known.highest, number_of(path)),
                preserved=tuple(other for other in preserved if other != path),
                retired=tuple(retired),
                replaced=None,
            ),
        )

    def _forget(self) -> None:
        self._ours.clear()  # others may have replaced what we knew
        self._collector.forget()

    def _describe(self, path: str) -> Flow[Retired | None]:
        """What a checkpoint consists of; None if that cannot be told, and then nothing of it is ever deleted."""
        if path in self._ours:
            return self._ours[path][0]
        try:
            found = yield from describe(path, url=self._url)
        except CorruptError as error:
            _log.warning("%s/%s is left: its index is damaged: %s", self._url, path, error)
            return None
        return None if found is None else found[0]


def _now() -> float:
    return time.time()


def _keys(retired: Retired) -> tuple[str, ...]:
    return retired.data if retired.write_id is None else (retired.index, *retired.data)
