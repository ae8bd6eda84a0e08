"""Collect what dead attempts have left in a directory, as its writer goes on saving.

    suspect, inherit      where something may have been left
    note_garbage          looks there, and notes what is dead
    noted                 what the next state is to say is to be deleted; only after that is it deleted
    find                  what is dead under any prefix
    delete_control        what is neither checkpoint nor state, and so needs no word in the state

Promises: a directory in which nothing failed is never listed, but once before its first owner; a failure to look or
to delete costs space only. Whatever a checkpoint may consist of is noted here, never deleted.
"""

import contextlib
import logging
from collections.abc import Iterable

from ckpt_remote.commit import remove
from ckpt_remote.errors import CheckpointError
from ckpt_remote.flow import Delete, Flow, List
from ckpt_remote.garbage import Garbage, find_garbage
from ckpt_remote.origin import new_term
from ckpt_remote.ownership import Ownership
from ckpt_remote.probe import CONTROL, PLAN
from ckpt_remote.state import Record, Retired

__all__ = ["Collector"]

_log = logging.getLogger(__name__)


class Collector:
    """Where one writer expects garbage, and what it has found.

    Args:
        ownership: The state, as that writer knows it.
        url: The directory, for messages.
    """

    def __init__(self, ownership: Ownership, url: str) -> None:
        self._ownership = ownership
        self._url = url
        self._suspects: set[str] = set()  # prefixes under which something may have been left
        self._inherited: int | None = None  # the serial number of the state that was claimed, until that was looked at
        self._noted: tuple[Retired, ...] = ()

    @property
    def noted(self) -> tuple[Retired, ...]:
        """Garbage that the next state says is to be deleted."""
        return self._noted

    def note(self, *garbage: Retired) -> None:
        """Adds to it."""
        self._noted = (*self._noted, *garbage)

    def forget(self) -> None:
        """Forgets what is noted: others have changed the state."""
        self._noted = ()

    def suspect(self, prefix: str) -> None:
        """Says that an attempt begins, which may leave something under a prefix."""
        self._suspects.add(prefix)

    def inherit(self, former: Record, name: str) -> None:
        """Says that the directory was claimed.

        Args:
            former: The record of the state that was claimed. A stock manager leaves nothing that we would know.
            name: What the names of the checkpoints begin with.
        """
        self._suspects.update((f"{name}-", CONTROL) if former.term else ())
        self._inherited = former.serial if former.term else None

    def clear(self, prefix: str) -> None:
        """Says that a state was written which has what was noted, and lists what lies under a prefix."""
        self._suspects.discard(prefix)
        self._noted = ()

    def look_for_probes(self) -> Flow[None]:
        """Where nobody has claimed anything yet, a claim that was killed has left its probe, if anything.

        Asked when the state is read, so that the first save in a fresh directory lists nothing.
        """
        with contextlib.suppress(CheckpointError):
            if (yield List(CONTROL)):
                self._suspects.add(CONTROL)

    def find(self, prefixes: Iterable[str]) -> Flow[Garbage]:
        """What is dead; before a claim, what will be after it.

        Raises:
            StoreError: The store kept failing, or does not let us list.
        """
        record = self._ownership.record
        return (
            yield from find_garbage(
                prefixes,
                term=record.term or new_term(),
                serial=record.serial if self._inherited is None else self._inherited,
                newest=record.serial + (not self._ownership.is_claimed),
                listed=self._ownership.state.paths,
                url=self._url,
            )
        )

    def note_garbage(self) -> Flow[None]:
        """Looks where something may have been left, so that the next state says that it is to be deleted.

        Raises:
            ConflictError: What is there shows that another writer has changed the state.
        """
        if not self._suspects:
            return
        try:
            garbage = yield from self.find(sorted(self._suspects))
        except CheckpointError as error:
            _log.warning("What dead attempts left in %s stays, as it cannot be listed: %s", self._url, error)
        else:
            if garbage.is_from_later:
                yield from self._ownership.start_over()
            known = (*self._ownership.record.retired, *self._noted)
            data = {key for retired in known for key in retired.data}
            # An index is known by its write id: under a name that is known, a late request may have put another.
            self.note(
                *(g for g in garbage.checkpoints if g not in known and (g.write_id or not data.issuperset(g.data)))
            )
            yield from self.delete_control(garbage.control)
        self._suspects.clear()
        self._inherited = None

    def delete_control(self, keys: tuple[str, ...]) -> Flow[None]:
        """Deletes what is neither checkpoint nor state; of a name that is used again, only the version that is dead."""
        failures: dict[str, CheckpointError] = {}
        others = tuple(key for key in keys if key != PLAN)
        if PLAN in keys:
            try:
                yield from remove(PLAN, guard=self._ownership.guard, url=self._url)
            except CheckpointError as error:
                failures[PLAN] = error
        if others:
            failures |= yield Delete(others)
        for key, failure in failures.items():
            _log.info("%s/%s could not be deleted, and is left to the next owner: %s", self._url, key, failure)
