"""One directory of checkpoints, as one writer sees it: what the state says, and how a save changes it.

    refresh()                          the state as it is now
    claim()                            before the first save: a state of our own, which fences older writers
    └── settle                         was the last write, whose outcome nobody learnt, there after all?
    publish(index, objects)
    ├── retention.sweep                which checkpoints stay, are preserved, are retired
    └── commit                         index, then state, by compare-and-swap
    delete_retired()                   exactly what the new state says

Promises: what it knows is what is durable; it changes only when a write has landed. It knows no TensorFlow: data are
uploaded before, and what they consist of is handed in.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_remote.commit import STATE, commit, delete_retired, describe, publish_state, run
from ckpt_remote.errors import CheckpointError, ConflictError, CorruptError, NotFoundError, UnknownOutcomeError
from ckpt_remote.retention import sweep
from ckpt_remote.state import Entry, Record, Retired, State, decode_state
from ckpt_remote.store import Object, Retry, Store, Version

__all__ = ["Directory", "Retention"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """TensorFlow's two numbers.

    Attributes:
        max_to_keep: How many checkpoints stay managed; None keeps all.
        keep_checkpoint_every_n_hours: Hours between those kept for good; None keeps none.
    """

    max_to_keep: int | None
    keep_checkpoint_every_n_hours: float | None


class Directory:
    """The checkpoints of a directory, with their paths relative to it.

    Args:
        store: The directory.
        aliases: Other ways to write its URL, as a state of absolute paths may.
        retry: How to repeat requests that a store fails to answer.

    Attributes:
        latest: The newest checkpoint; None if there is none.
        entries: The managed checkpoints, oldest first.
        preserved: What retention kept for good, oldest first.

    Raises:
        NotFoundError: The bucket does not exist.
        CorruptError: The state cannot be read, or names something outside the directory.
    """

    def __init__(self, store: Store, aliases: Sequence[str], retry: Retry) -> None:
        self._store = store
        self._aliases = (*aliases, store.url)
        self._retry = retry
        self._objects: dict[str, Retired] = {}  # what our own checkpoints consist of, to spare reading it
        self._unsettled: str | None = None  # the id of a state write whose outcome nobody learnt
        self._version: Version | None = None
        self._claimed = False
        self._adopt(self._read())

    def refresh(self) -> None:
        """Continues from the state as it is now, whoever wrote it."""
        found = self._read()
        if (found and found.version) != self._version:
            self._adopt(found)
        self._unsettled = None

    @property
    def is_settled(self) -> bool:
        """Whether the outcome of the last write is known."""
        return self._unsettled is None

    def claim(self) -> None:
        """Becomes the directory's writer: nobody who has read an older state can change anything from now on.

        Only the first call writes, and costs one request.

        Raises:
            ConflictError: Another writer has changed the state since it was read.
            UnknownOutcomeError: The store gave no answer; see `is_settled`.
        """
        self._settle()
        if not self._claimed:
            state = State(
                latest=self.latest,
                entries=self.entries,
                last_preserved_timestamp=self._last_preserved,
                record=self._record(preserved=self.preserved, retired=self._retired, epoch=self._epoch + 1),
            )
            self._write(state)
            self._claimed = True
        if self._superseded:
            raise ConflictError(
                f"Cannot save to {self._store.url}: another writer has gone on from what this one wrote last. Stop "
                "this writer, or restore, or make a new manager, which continues from what is there.",
                path=self._store.url,
            )

    @property
    def guard(self) -> Version:
        """The version of the state that this writer has claimed."""
        if self._version is None:
            raise ValueError("the directory has not been claimed")
        return self._version

    def replaces(self, path: str) -> Retired | None:
        """What the checkpoint of that path consists of, if the state lists one: ask before its index changes."""
        listed = path in self.preserved or any(entry.path == path for entry in self.entries)
        return self._describe(path) if listed else None

    def publish(self, index: bytes, objects: Retired, replaced: Retired | None, retention: Retention) -> None:
        """Makes a checkpoint visible, and notes what retention retires, for `delete_retired`.

        Args:
            index: Its encoded index.
            objects: What it consists of, all of it durable.
            replaced: What `replaces` said before.
            retention: What to keep.

        Raises:
            ConflictError: Another writer has changed the state since it was read. Nothing that it lists was touched.
            UnknownOutcomeError: The store gave no answer to the last request; see `is_settled`.
            StoreError: The store kept failing. Nothing was published.
        """
        state = self._next(objects.path, replaced, retention)
        self._objects.pop(objects.path, None)  # an index that is put back after a failure is not the one we know
        self._write(state, index, objects)
        self._objects[objects.path] = objects

    def _write(self, state: State, index: bytes = b"", objects: Retired | None = None) -> None:
        """Writes a state, behind the index of a new checkpoint if there is one, and takes over what has landed."""
        url, attempts = self._store.url, self._retry.attempts
        if objects is None:
            flow = publish_state(state, self._version, url=url, attempts=attempts)
        else:
            flow = commit(objects, index, state, self.guard, url=url, attempts=attempts)
        try:
            version = run(flow, self._store, self._retry).version
        except BaseException as error:
            if _may_have_landed(error):
                self._unsettled = state.record.write_id if state.record else None
            raise
        self._know(state, version)
        self._superseded = version is None  # somebody has gone on from it already

    def _read(self) -> Object | None:
        try:
            return self._store.read(STATE)
        except NotFoundError:
            self._store.require_container()
            return None

    def _settle(self) -> None:
        if self._unsettled is None:
            return
        found = self._read()
        if found is not None:
            record = self._decode(found).record
            if record is not None and record.write_id == self._unsettled:
                self._adopt(found)
        self._unsettled = None

    def _decode(self, found: Object) -> State:
        return decode_state(found.data, path=self._store.url_of(STATE), directories=self._aliases)

    def _adopt(self, found: Object | None) -> None:
        """Continues from what another manager, or a stock one, has left."""
        now = time.time()
        # Without a state a second back, as TensorFlow does, for managers made again in quick succession.
        state = self._decode(found) if found else State(latest=None, last_preserved_timestamp=now - 1.0)
        preserved_until = state.last_preserved_timestamp
        if now < preserved_until:
            _log.warning(
                "the clock is %.3f s behind the last preserved checkpoint of %s: it is taken for saved just now",
                preserved_until - now,
                self._store.url,
            )
            preserved_until = now
        managed = [Entry(entry.path, min(entry.timestamp, now)) for entry in state.entries]
        known = state.record.preserved if state.record else ()
        left = (entry.path for entry in managed if entry.timestamp <= preserved_until)
        self._know(state, found.version if found else None)
        self.entries = tuple(entry for entry in managed if entry.timestamp > preserved_until)
        self.preserved = tuple(dict.fromkeys((*known, *left)))
        self._last_preserved = preserved_until
        self._superseded = False
        self._claimed = False

    def _know(self, state: State, version: Version | None) -> None:
        self.latest = state.latest
        self.entries = state.entries
        self.preserved = state.record.preserved if state.record else ()
        self._last_preserved = state.last_preserved_timestamp
        self._retired = state.record.retired if state.record else ()
        self._lineage = state.record.followed_by() if state.record else ()
        self._epoch = state.record.epoch if state.record else 0
        self._version = version

    def _next(self, path: str, replaced: Retired | None, retention: Retention) -> State:
        """The state that lists `path`, with what retention says of the others."""
        entries = [*(entry for entry in self.entries if entry.path != path), Entry(path, time.time())]
        decision = sweep(
            entries,
            self._last_preserved,
            max_to_keep=retention.max_to_keep,
            keep_checkpoint_every_n_hours=retention.keep_checkpoint_every_n_hours,
        )
        retired = [self._describe(entry.path) for entry in decision.retired]
        preserved = (*self.preserved, *(entry.path for entry in decision.preserved))
        return State(
            latest=path,
            entries=decision.active,
            last_preserved_timestamp=decision.last_preserved_timestamp,
            record=self._record(
                preserved=tuple(known for known in preserved if known != path),
                retired=tuple(gone for gone in (*self._retired, replaced, *retired) if gone is not None),
                epoch=self._epoch,
            ),
        )

    def _record(self, *, preserved: tuple[str, ...], retired: tuple[Retired, ...], epoch: int) -> Record:
        return Record(
            write_id=uuid.uuid4().hex, epoch=epoch, lineage=self._lineage, preserved=preserved, retired=retired
        )

    def _describe(self, path: str) -> Retired | None:
        """What a checkpoint consists of; None if that cannot be told, and then nothing of it is ever deleted."""
        if path not in self._objects:
            try:
                found = run(describe(path, url=self._store.url), self._store, self._retry)
            except CorruptError as error:
                _log.warning("%s is left: its index is damaged: %s", self._store.url_of(path), error)
                return None
            if found is None:
                return None
            self._objects[path] = found
        return self._objects[path]

    def delete_retired(self) -> None:
        """Deletes what the state no longer lists. A failure costs space only: it is logged, and tried again later."""
        remaining = []
        for retired in self._retired:
            if self._objects.get(retired.path) == retired:
                del self._objects[retired.path]
            try:
                failures = run(delete_retired(retired, url=self._store.url), self._store, self._retry)
            except CorruptError as error:
                _log.warning(
                    "%s is left in place, as its index is damaged: %s", self._store.url_of(retired.path), error
                )
                continue
            except CheckpointError as error:
                failures = {retired.index: error}
            if failures:
                remaining.append(retired)
            for key, failure in failures.items():
                _log.warning("%s could not be deleted, and will be tried again: %s", self._store.url_of(key), failure)
        self._retired = tuple(remaining)


def _may_have_landed(error: BaseException) -> bool:
    """Whether a commit that ended so may have changed the state: for want of an answer, or cut short by Ctrl-C."""
    return isinstance(error, UnknownOutcomeError) or not isinstance(error, CheckpointError)
