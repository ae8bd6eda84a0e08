"""The state of a directory, as one writer knows it, and whether that writer still owns it.

    load                  goes on from the state as it is now, whoever wrote it
    claim                 writes a state of our own, which fences all who have read an older one
    ├── check_store       does the store honour conditions?
    └── write_record
    amend, follow_up      what the next state is to say
    write                 performs a flow that ends with a write of the state, by compare-and-swap
    write_record          writes the state as it is, but for some fields of our own record

Promises: what it knows is what is durable; it changes only when a write has landed. A write that may have landed is
doubted from before it is sent until it is known what became of it; who has lost the directory learns so before
anything else is written. It does not know what checkpoints consist of, and performs no request itself: these are flows.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from ckpt_remote.commit import STATE, Published, publish_state
from ckpt_remote.errors import CheckpointError, ConflictError, UnknownOutcomeError
from ckpt_remote.flow import Flow, Get, Put
from ckpt_remote.origin import Attempt, new_attempt, new_term
from ckpt_remote.probe import check_store
from ckpt_remote.state import Record, State, decode_state
from ckpt_remote.store import Object, Version
from ckpt_remote.succession import NO_RECORD, adopt, follow_up, number_of

__all__ = ["Ownership"]

_log = logging.getLogger(__name__)


class Ownership:
    """The state, for one writer. `load` comes first.

    Args:
        url: The directory, for messages and as the home of its history.
        aliases: Other ways to write its URL, as a state of absolute paths may.
        clock: The time, in seconds since the epoch.
        forget: Called before a state that was read takes the place of the one that was known: others may have changed
            anything.

    Attributes:
        state: As it was last read or written.
        record: Its record, but for what has been amended since.
        version: Of the state that is known; None if there is none, or another writer has gone on from it already.
        doubts: The ids of writes that may have landed, or may yet land. None of them can land after the next one.
        fenced: Whether another writer has changed the state.
        found: The digest of the state that was last read from the store; empty if there was none.
        exact: Whether the store deletes only exactly what it is told to, as far as a claim has found out.
    """

    def __init__(
        self, url: str, aliases: Sequence[str], *, clock: Callable[[], float], forget: Callable[[], None]
    ) -> None:
        self._url = url
        self._aliases = (*aliases, url)
        self._clock = clock
        self._forget = forget
        self._claimed_by: int | None = None  # the process: a forked child owns nothing
        self.state = State(latest=None, last_preserved_timestamp=clock() - 1.0)
        self.record = NO_RECORD
        self.version: Version | None = None
        self.doubts: frozenset[str] = frozenset()
        self.fenced = False
        self.found = ""
        self.exact = False

    @property
    def is_claimed(self) -> bool:
        """Whether this process has claimed the directory, since it last adopted what was there."""
        return self._claimed_by == os.getpid()

    @property
    def guard(self) -> Version:
        """The version of the state that this writer owns."""
        if self.version is None:
            raise ValueError("the directory has not been claimed")
        return self.version

    def attempt(self) -> Attempt:
        """A new attempt to build upon the state that is known."""
        return new_attempt(self.record.term, self.record.serial)

    def load(self) -> Flow[bool]:
        """Goes on from the state as it is now, whoever wrote it, and returns whether it has changed.

        Raises:
            CorruptError: The state cannot be read, or names something outside the directory.
        """
        found: Object | None = yield Get(STATE)
        changed = (found and found.version) != self.version
        if changed or self.fenced or self.doubts:
            self._adopt(found)
        return changed

    def claim(self) -> Flow[Record]:
        """Writes a state of our own: nobody who has read an older one can change anything from now on.

        Returns:
            The record of the state before.

        Raises:
            ConflictError: Another writer has changed the state since it was read.
            UnknownOutcomeError: The store gave no answer; see `doubts`.
            UnsupportedError: The store does not honour conditions.
        """
        yield from self._settle()
        self.require()
        known = self.record
        term = known.term or new_term()
        self.exact = yield from check_store(new_attempt(term, known.serial), self.version, url=self._url)
        yield from self.write_record(term=term, epoch=known.epoch + 1)
        return known

    def complete_claim(self) -> None:
        """Says that whatever belongs to a claim has passed. A claim that stops short of that is made again."""
        self._claimed_by = os.getpid()

    def require(self) -> None:
        """Passes while nobody else is known to have changed the state.

        Raises:
            ConflictError: Another writer has.
        """
        if self.fenced:
            raise ConflictError(
                f"Cannot save to {self._url}: another writer has gone on from there. Stop this writer, or restore, or "
                "make a new manager, which continues from what is there.",
                path=self._url,
            )

    def fence(self) -> None:
        """Says that another writer has changed the state."""
        self.fenced = True

    def amend(self, **changes: Any) -> None:
        """Notes what the record of the next state is to say otherwise."""
        self.record = dataclasses.replace(self.record, **changes)

    def follow_up(self, **changes: Any) -> Record:
        """The record of the next state, but for `changes`."""
        return follow_up(self.record, self._url, **changes)

    def write(self, flow: Flow[Published], state: State) -> Flow[Published]:
        """Performs a flow that ends with a write of the state, and takes over what has landed.

        Raises:
            CheckpointError: What the flow raises. After `UnknownOutcomeError` the write is doubted, after
                `ConflictError` this writer is fenced.
        """
        doubts = self.doubts
        try:
            published: Published = yield from self._doubting(flow, state)
        except UnknownOutcomeError:
            self._doubt(state)
            raise
        except CheckpointError as error:
            self.doubts = doubts  # it has not landed, for certain
            self.fenced = self.fenced or isinstance(error, ConflictError)
            raise
        self._know(state, published.version)
        self.fenced = published.version is None  # somebody has gone on from it already
        self.doubts = frozenset()  # last: cut short by Ctrl-C before, it is settled by the next claim
        return published

    def write_record(self, **changes: Any) -> Flow[None]:
        """Writes the state as it is, but for some fields of our own record.

        Raises:
            CheckpointError: As `publish_state` does.
        """
        state = dataclasses.replace(self.state, record=self.follow_up(**changes))
        yield from self.write(publish_state(state, self.version, url=self._url), state)
        self.require()

    def start_over(self) -> Flow[None]:
        """Begins a new history: somebody has put an older state back, so others may still want what it does not list.

        Unless what is there is of an owner that came after us.

        Raises:
            ConflictError: It is.
        """
        current: Object | None = yield Get(STATE)
        self.fenced = current is None or current.version != self.version
        self.require()
        _log.warning(
            "The state of %s is older than some of what lies there, so nothing that it does not list is deleted. "
            "Delete by hand what is not wanted.",
            self._url,
        )
        self.amend(term=new_term())

    def _settle(self) -> Flow[None]:
        """Goes on from writes of ours whose outcome nobody learnt, whether one of them landed or not.

        The claim that follows changes the state, so that none can land any more.
        """
        if not self.doubts:
            return
        found: Object | None = yield Get(STATE)
        record = self._decode(found).record if found is not None else None
        if (record is not None and record.write_id in self.doubts) or (found and found.version) == self.version:
            self._adopt(found)
        else:
            self.fenced = True
            self.doubts = frozenset()

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
        self.doubts |= {state.record.write_id} if state.record else set()

    def _decode(self, found: Object) -> State:
        return decode_state(found.data, path=f"{self._url}/{STATE}", directories=self._aliases)

    def _adopt(self, found: Object | None) -> None:
        """Continues from what another manager, or a stock one, has left."""
        state = adopt(self._decode(found) if found else None, self._clock(), self._url)
        if (found and found.version) != self.version:
            self.doubts = frozenset()
        self.found = hashlib.blake2b(found.data, digest_size=16).hexdigest() if found else ""
        self._forget()
        self._know(state, found.version if found else None)
        self.amend(highest=max((self.record.highest, *(number_of(path) for path in self.state.paths))))
        self.fenced = False
        self._claimed_by = None

    def _know(self, state: State, version: Version | None) -> None:
        self.state = state
        self.record = state.record or NO_RECORD
        self.version = version
