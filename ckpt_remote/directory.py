"""One directory of checkpoints, as one writer sees it: what the state says, and how a save changes it.

    load(), refresh()                  the state as it is now
    claim()                            before the first save
    ├── check_store                    does the store honour conditions?
    ├── publish_state                  a state of our own, which fences older writers
    └── rewrite                        ends a replacement that its author left half done
    begin(path)                        an attempt: its seal, and names that nobody deletes
    ├── find_garbage                   after a claim or a failure: what dead attempts left
    └── publish_state                  only where a listed checkpoint is to be replaced: the intention
    publish(index, objects)
    ├── retention.sweep                which checkpoints stay, are preserved, are retired
    └── commit                         index, then state, by compare-and-swap
    delete_retired()                   exactly what the new state says
    collect()                          the same for what dead attempts left, without a save

Promises: what it knows is what is durable; it changes only when a write has landed. It performs no request itself:
each of these is a flow. It knows no TensorFlow: data are uploaded between `begin` and `publish`, and what they
consist of is handed in.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_remote.bundle import MAX_SHARDS
from ckpt_remote.commit import (
    STATE,
    Published,
    commit,
    delete_retired,
    describe,
    described,
    foresee,
    publish_state,
    rewrite,
)
from ckpt_remote.errors import CheckpointError, ConflictError, CorruptError, UnknownOutcomeError
from ckpt_remote.flow import Delete, Flow, Get, List, Put, Remove
from ckpt_remote.garbage import Garbage, find_garbage
from ckpt_remote.origin import Attempt, new_attempt, new_term
from ckpt_remote.probe import CONTROL, PLAN, check_store
from ckpt_remote.progress import Collected, emit
from ckpt_remote.retention import sweep
from ckpt_remote.state import Entry, Retired, State, decode_state
from ckpt_remote.store import Object, Version
from ckpt_remote.succession import NO_RECORD, adopt, follow_up, number_of

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
        self._aliases = (*aliases, url)
        self._clock = clock or _now
        self._chance = chance or random.SystemRandom()
        self._version: Version | None = None  # of the state that is known
        self._claimed_by: int | None = None  # the process: a forked child owns nothing
        self._fenced = False  # whether another writer has changed the state
        self._doubts: frozenset[str] = frozenset()  # the ids of state writes that may have landed, or may yet land
        self._own: dict[str, tuple[Retired, Version]] = {}  # our checkpoints and their indexes, to spare reading them
        self._suspects: set[str] = set()  # prefixes under which something may have been left
        self._noted: tuple[Retired, ...] = ()  # garbage that the next state says is to be deleted
        self._inherited: int | None = None  # the serial number of the state that was claimed, until that was looked at
        self._found = ""
        self._exact = False  # whether the store deletes only exactly what it is told to
        self._home = url
        self._state = State(latest=None, last_preserved_timestamp=self._clock() - 1.0)
        self._record = NO_RECORD

    @property
    def latest(self) -> str | None:
        """The newest checkpoint; None if there is none."""
        return self._state.latest

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The managed checkpoints, oldest first."""
        return self._state.entries

    @property
    def preserved(self) -> tuple[str, ...]:
        """What retention kept for good, oldest first."""
        return self._record.preserved

    @property
    def serial(self) -> int:
        """The serial number of the state that is known."""
        return self._record.serial

    @property
    def epoch(self) -> int:
        """How often the directory had been claimed by the state that is known."""
        return self._record.epoch

    @property
    def found(self) -> str:
        """The digest of the state that was last read from the store; empty if there was none."""
        return self._found

    @property
    def doubts(self) -> frozenset[str]:
        """The ids of the writes of the state whose outcome nobody knows. None of them can land after the next one."""
        return self._doubts

    def load(self) -> Flow[bool]:
        """Continues from the state as it is now, whoever wrote it, and returns whether it has changed.

        Raises:
            CorruptError: The state cannot be read, or names something outside the directory.
        """
        found: Object | None = yield Get(STATE)
        changed = (found and found.version) != self._version
        if changed or self._fenced or self._doubts:
            self._adopt(found)
        if not self._record.term:
            yield from self._look_for_probes()
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
        if self._claimed_by == os.getpid() and not self._doubts and not self._fenced:
            return
        yield from self._settle()
        self._require_ownership()
        known = self._record
        term = known.term or new_term()
        self._exact = yield from check_store(new_attempt(term, known.serial), self._version, url=self._url)
        yield from self._write_record(term=term, epoch=known.epoch + 1)
        yield from self._end_replacement()
        self._suspects.update((f"{name}-", CONTROL) if known.term else ())
        self._inherited = known.serial if known.term else None
        self._claimed_by = os.getpid()

    def begin(self, path: str) -> Flow[Target]:
        """Starts an attempt to save a checkpoint. The directory has been claimed.

        Raises:
            ConflictError: Another writer has changed the state.
            UnknownOutcomeError: The store gave no answer; see `doubts`.
        """
        yield from self._end_replacement()
        if self._suspects:
            yield from self._note_garbage()
        self._suspects.add(f"{path}.")
        listed = path in self._state.paths
        if listed:
            yield from self._intend(path)
        return Target(
            path=path,
            attempt=self.attempt(),
            state=uuid.uuid4().hex,
            guard=self.guard,
            exact=self._exact,
            listed=listed,
            fresh=number_of(path) > self._record.highest and all(path != garbage.path for garbage in self._noted),
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
        self._own.pop(objects.path, None)  # an index that is put back after a failure is not the one we know
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
        published = yield from self._write(flow, state)
        if published.index is not None:
            self._own[objects.path] = objects, published.index
        self._suspects.discard(f"{objects.path}.")
        self._noted = ()

    def delete_retired(self) -> Flow[None]:
        """Deletes what the state no longer lists. A failure costs space only: it is logged, and tried again later."""
        if self._fenced:
            return
        intended, listed = self._record.retired, self._state.paths
        remaining: list[Retired] = []
        for number, retired in enumerate(intended):
            own, version = self._own.get(retired.path, (None, None))
            try:
                failures = yield from delete_retired(
                    retired,
                    version if own == retired and self._exact and retired.path not in listed else None,
                    guard=self.guard,
                    url=self._url,
                )
            except CorruptError as error:
                _log.warning("%s/%s is left in place, as its index is damaged: %s", self._url, retired.path, error)
                continue
            except ConflictError:  # the new owner reads the same intentions
                self._fenced = True
                remaining += intended[number:]
                break
            except CheckpointError as error:
                failures = {retired.index: error}
            if failures:
                remaining.append(retired)
            elif own == retired:
                del self._own[retired.path]
            for key, failure in failures.items():
                _log.warning("%s/%s could not be deleted, and will be tried again: %s", self._url, key, failure)
        self._record = dataclasses.replace(self._record, retired=tuple(remaining))

    def collect(self, *, dry_run: bool) -> Flow[tuple[str, ...]]:
        """What dead attempts have left anywhere in the directory, by key; without `dry_run`, it is deleted.

        To delete, the directory has been claimed: what is to go is written into the state first.
        """
        garbage = yield from self._find([""])
        intended = (*self._record.retired, *garbage.checkpoints)
        doomed = set(garbage.control)
        for retired in intended:
            doomed |= yield from foresee(retired, garbage.present, url=self._url)
        keys = sorted(doomed)
        if dry_run or not keys:
            return tuple(keys)
        yield from self._write_record(retired=intended)
        yield from self.delete_retired()
        yield from self._delete_control(garbage.control)
        left = {key for retired in self._record.retired for key in _keys(retired)}
        gone = tuple(key for key in keys if key not in left)
        emit(Collected(keys=gone))
        return gone

    @property
    def guard(self) -> Version:
        """The version of the state that this writer owns."""
        if self._version is None:
            raise ValueError("the directory has not been claimed")
        return self._version

    def _intended(self) -> tuple[Retired, ...]:
        """What is to be deleted: as noted, and as the state says, by which the next owner deletes it once more."""
        written = self._state.record or NO_RECORD
        return (*self._noted, *self._record.retired, *written.retired)

    def _settle(self) -> Flow[None]:
        """Goes on from writes of ours whose outcome nobody learnt, whether one of them landed or not.

        The claim that follows changes the state, so that none can land any more.
        """
        if not self._doubts:
            return
        found: Object | None = yield Get(STATE)
        record = self._decode(found).record if found is not None else None
        if (record is not None and record.write_id in self._doubts) or (found and found.version) == self._version:
            self._adopt(found)
        else:
            self._fenced = True
            self._doubts = frozenset()

    def _write(self, flow: Flow[Published], state: State) -> Flow[Published]:
        """Performs a flow that ends with a write of the state, and takes over what has landed."""
        doubts = self._doubts
        try:
            published: Published = yield from self._doubting(flow, state)
        except UnknownOutcomeError:
            self._doubt(state)
            raise
        except CheckpointError as error:
            self._doubts = doubts  # it has not landed, for certain
            self._fenced = self._fenced or isinstance(error, ConflictError)
            raise
        self._know(state, published.version)
        self._fenced = published.version is None  # somebody has gone on from it already
        self._doubts = frozenset()  # last: cut short by Ctrl-C before, it is settled by the next claim
        return published

    def _doubting(self, flow: Flow[Published], state: State) -> Flow[Published]:
        """The flow, with the doubt noted before the state is sent: nothing is said when it is cut short."""
        answer: object = None
        error: CheckpointError | None = None
        while True:
            try:
                request = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as stop:
                published: Published = stop.value
                return published
            if isinstance(request, Put) and request.key == STATE:
                self._doubt(state)
            answer, error = None, None
            try:
                answer = yield request
            except CheckpointError as failure:
                error = failure

    def _doubt(self, state: State) -> None:
        self._doubts |= {state.record.write_id} if state.record else set()

    def _write_record(self, **changes: Any) -> Flow[None]:
        """Writes the state as it is, but for some fields of our own record."""
        state = dataclasses.replace(self._state, record=follow_up(self._record, self._home, **changes))
        yield from self._write(publish_state(state, self._version, url=self._url), state)
        self._require_ownership()

    def _require_ownership(self) -> None:
        if self._fenced:
            raise ConflictError(
                f"Cannot save to {self._url}: another writer has gone on from there. Stop this writer, or restore, or "
                "make a new manager, which continues from what is there.",
                path=self._url,
            )

    def attempt(self) -> Attempt:
        """A new attempt to build upon the state that is known."""
        return new_attempt(self._record.term, self._record.serial)

    def _intend(self, path: str) -> Flow[None]:
        """Notes in the state that a listed checkpoint is to be replaced, before anything of it changes."""
        found = yield from self._describe(path)
        if found is not None:
            yield from self._write_record(replaced=found)

    def _end_replacement(self) -> Flow[None]:
        """Ends a replacement that was left half done, by us or by an owner before us.

        Its author may be about to swap the index: it gets a new write id, so that this cannot land. What is there
        stays, old or new; the data of the other are garbage.
        """
        before = self._record.replaced
        if before is None:
            return
        self._own.pop(before.path, None)
        current = None
        try:
            index = yield from rewrite(before.index, self.attempt(), guard=self.guard, url=self._url)
            current = None if index is None else described(before.path, index, url=self._url)
        except ConflictError:
            self._fenced = True
            raise
        except CorruptError as error:
            _log.warning("%s/%s is left as it is, as its index is damaged: %s", self._url, before.path, error)
        if current is not None and current.objects != before.objects:
            self._noted = (*self._noted, dataclasses.replace(before, write_id=None))
        self._record = dataclasses.replace(self._record, replaced=None)

    def _find(self, prefixes: Sequence[str]) -> Flow[Garbage]:
        """What is dead; before a claim, what will be after it."""
        term = self._record.term or new_term()
        serial = self._record.serial if self._inherited is None else self._inherited
        newest = self._record.serial + (self._claimed_by != os.getpid())
        return (
            yield from find_garbage(
                prefixes, term=term, serial=serial, newest=newest, listed=self._state.paths, url=self._url
            )
        )

    def _note_garbage(self) -> Flow[None]:
        """Looks where something may have been left, so that the next state says that it is to be deleted."""
        try:
            garbage = yield from self._find(sorted(self._suspects))
        except CheckpointError as error:
            _log.warning("What dead attempts left in %s stays, as it cannot be listed: %s", self._url, error)
        else:
            if garbage.is_from_later:
                yield from self._start_over()
            known = (*self._record.retired, *self._noted)
            data = {key for retired in known for key in retired.data}
            # An index is known by its write id: under a name that is known, a late request may have put another.
            new = (g for g in garbage.checkpoints if g not in known and (g.write_id or not data.issuperset(g.data)))
            self._noted = (*self._noted, *new)
            yield from self._delete_control(garbage.control)
        self._suspects.clear()
        self._inherited = None

    def _delete_control(self, keys: tuple[str, ...]) -> Flow[None]:
        """Deletes what is neither checkpoint nor state; of a name that is used again, only the version that is dead."""
        failures: dict[str, CheckpointError] = {}
        others = tuple(key for key in keys if key != PLAN)
        if PLAN in keys:
            plan: Object | None = yield Get(PLAN)
            state: Object | None = yield Get(STATE)
            if plan is not None and state is not None and state.version == self._version:
                try:
                    yield Remove(PLAN, plan.version)
                except CheckpointError as error:
                    failures[PLAN] = error
        if others:
            failures |= yield Delete(others)
        for key, failure in failures.items():
            _log.info("%s/%s could not be deleted, and is left to the next owner: %s", self._url, key, failure)

    def _start_over(self) -> Flow[None]:
        """Somebody has put an older state back, so what it does not list may be what others still want.

        Unless what is there is of an owner that came after us.
        """
        current: Object | None = yield Get(STATE)
        self._fenced = current is None or current.version != self._version
        self._require_ownership()
        _log.warning(
            "The state of %s is older than some of what lies there, so nothing that it does not list is deleted. "
            "Delete by hand what is not wanted.",
            self._url,
        )
        self._record = dataclasses.replace(self._record, term=new_term())

    def _look_for_probes(self) -> Flow[None]:
        """Where nobody has claimed anything yet, a claim that was killed has left its probe, if anything.

        Asked here, so that the first save in a fresh directory lists nothing.
        """
        with contextlib.suppress(CheckpointError):
            if (yield List(CONTROL)):
                self._suspects.add(CONTROL)

    def _decode(self, found: Object) -> State:
        return decode_state(found.data, path=f"{self._url}/{STATE}", directories=self._aliases)

    def _adopt(self, found: Object | None) -> None:
        """Continues from what another manager, or a stock one, has left."""
        state = adopt(self._decode(found) if found else None, self._clock(), self._home)
        if (found and found.version) != self._version:
            self._doubts = frozenset()
        self._found = hashlib.blake2b(found.data, digest_size=16).hexdigest() if found else ""
        self._own.clear()  # others may have replaced what we knew
        self._know(state, found.version if found else None)
        highest = max((self._record.highest, *(number_of(path) for path in self._state.paths)))
        self._record = dataclasses.replace(self._record, highest=highest)
        self._noted = ()
        self._fenced = False
        self._claimed_by = None

    def _know(self, state: State, version: Version | None) -> None:
        self._state = state
        self._record = state.record or NO_RECORD
        self._version = version

    def _next(self, objects: Retired, retention: Retention, write_id: str) -> Flow[State]:
        """The state that lists a checkpoint, with what retention says of the others."""
        path = objects.path
        entries = [*(entry for entry in self.entries if entry.path != path), Entry(path, self._clock())]
        decision = sweep(
            entries,
            self._state.last_preserved_timestamp,
            max_to_keep=retention.max_to_keep,
            keep_checkpoint_every_n_hours=retention.keep_checkpoint_every_n_hours,
        )
        retired = [*self._record.retired, *self._noted]
        if self._record.replaced is not None:
            retired.append(self._record.replaced)
        for entry in decision.retired:
            found = yield from self._describe(entry.path)
            retired += [found] if found is not None else []
        preserved = (*self.preserved, *(entry.path for entry in decision.preserved))
        return State(
            latest=path,
            entries=decision.active,
            last_preserved_timestamp=decision.last_preserved_timestamp,
            record=follow_up(
                self._record,
                self._home,
                write_id=write_id,
                highest=max(self._record.highest, number_of(path)),
                preserved=tuple(known for known in preserved if known != path),
                retired=tuple(retired),
                replaced=None,
            ),
        )

    def _describe(self, path: str) -> Flow[Retired | None]:
        """What a checkpoint consists of; None if that cannot be told, and then nothing of it is ever deleted."""
        if path in self._own:
            return self._own[path][0]
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
