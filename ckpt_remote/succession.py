"""What one state makes of the state before it, as pure functions.

    adopt(found, now, home)     a manager continues from what another, or a stock one, has left
    follow_up(record, ...)      the record of the next state
    number_of(path)             the number of a checkpoint

Promises: serial number, epoch and highest number never go back within a term. It does no I/O and reads no clock.
"""

import dataclasses
import logging
import uuid
from typing import Any

from ckpt_remote.state import Entry, Record, State

__all__ = ["NO_RECORD", "adopt", "follow_up", "number_of"]

_log = logging.getLogger(__name__)

NO_RECORD = Record(write_id="", term="", epoch=0)
"""That of a state that no manager of this library has written."""


def adopt(found: State | None, now: float, home: str) -> State:
    """The state to continue from, with a record.

    Args:
        found: What is there.
        now: Seconds since the epoch.
        home: The directory. What was copied from elsewhere begins a history of its own.
    """
    # Without a state a second back, as TensorFlow does, for managers made again in quick succession.
    state = found or State(latest=None, last_preserved_timestamp=now - 1.0)
    preserved_until = state.last_preserved_timestamp
    if now < preserved_until:
        _log.warning(
            "the clock is %.3f s behind the last preserved checkpoint of %s: it is taken for saved just now",
            preserved_until - now,
            home,
        )
        preserved_until = now
    managed = [Entry(entry.path, min(entry.timestamp, now)) for entry in state.entries]
    record = state.record or NO_RECORD
    left = (entry.path for entry in managed if entry.timestamp <= preserved_until)
    return dataclasses.replace(
        state,
        entries=tuple(entry for entry in managed if entry.timestamp > preserved_until),
        last_preserved_timestamp=preserved_until,
        record=dataclasses.replace(
            record,
            term=record.term if record.home == home else "",
            preserved=tuple(dict.fromkeys((*record.preserved, *left))),
        ),
    )


def follow_up(record: Record, home: str, **changes: Any) -> Record:
    """The record of the state that follows the one with `record`, but for `changes`."""
    new: dict[str, Any] = {"write_id": uuid.uuid4().hex, "home": home, "serial": record.serial + 1}
    following = dataclasses.replace(record, **{**new, "lineage": record.followed_by(), **changes})
    highest = max(following.highest, *(number_of(gone.path) for gone in following.retired), 0)
    return dataclasses.replace(following, highest=highest)


def number_of(path: str) -> int:
    """The number of a checkpoint; -1 if its path does not end with one."""
    digits = path.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1  # noqa: PLR2004 - int64
