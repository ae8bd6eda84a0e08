"""Does this store keep its word? Asked on an object of our own, before anything depends on it.

    create, create again            the second must be refused
    replace the version just made   must pass
    replace the version before      must be refused
    delete the version before       should be refused

Some stores accept conditions and ignore them; some know only a part. Where two writers could destroy each other's
checkpoints, nothing is written. Conditions on deletions are newer than the others and fewer stores know them: without
them there is only a moment, between a look and a deletion, in which a writer would have to sleep; so that is said.

Promises: the state and the checkpoints are not touched; a lost answer is not taken for a broken word; what it made is
removed, and if that fails, found by the collection of garbage.
"""

import logging
import secrets

from ckpt_remote.commit import STATE
from ckpt_remote.errors import CheckpointError, ConflictError, StoreError, UnsupportedError
from ckpt_remote.flow import Delete, Flow, Get, Pause, Put, Remove
from ckpt_remote.origin import Attempt
from ckpt_remote.store import Object, PutMode, Version

__all__ = ["CONTROL", "PLAN", "PROBES", "check_store"]

_log = logging.getLogger(__name__)

CONTROL = "_ckpt_remote/"
"""The folder of what is neither a checkpoint nor the state, below the directory."""
PLAN = f"{CONTROL}plan"
"""What workers that save together are told by their leader: the one name below that is used again."""
PROBES = f"{CONTROL}probe-"
"""What the names of probes begin with. A probe ends with a seal, as data do."""

_NOTE = b"ckpt_remote asks here whether the store honours conditions. Delete it when nothing is being saved.\n"


def check_store(attempt: Attempt, state: Version | None, *, url: str) -> Flow[bool]:
    """Proves that the store creates only where nothing is, and replaces only exactly what it is told to.

    Args:
        attempt: Whose seal the probe gets.
        state: The version of the state that was read; None if there was none.
        url: The directory, for messages.

    Returns:
        Whether it deletes only exactly what it is told to, too.

    Raises:
        UnsupportedError: It does not. Nothing but the probe was written.
        ConflictError: Another writer has changed the state, and may have collected the probe.
        StoreError: The store kept failing.
    """
    key = f"{PROBES}{secrets.token_hex(8)}"
    probe = _Probe(key, attempt.seal(key), url)
    first = yield from probe.write(b"1", "create")
    if first is None:
        raise (yield from probe.broken("refused to create an object of a name that nobody has", state))
    if (yield from probe.write(b"2", "create")) is not None:
        raise (yield from probe.broken("created an object where there was one already (If-None-Match: *)", state))
    second = yield from probe.write(b"3", first.version)
    if second is None:
        raise (yield from probe.broken("refused to replace an object of exactly the version that it has", state))
    if (yield from probe.write(b"4", first.version)) is not None:
        what = "replaced an object of another version than the one it was told (If-Match)"
        raise (yield from probe.broken(what, state))
    return (yield from _deletes_exactly(key, first.version, second.version, url))


def _deletes_exactly(key: str, former: Version, current: Version, url: str) -> Flow[bool]:
    """Deletes the probe; what fails is found later, by its seal."""
    refused = False
    try:
        yield Remove(key, former)
    except ConflictError:
        refused = True
    except CheckpointError:  # it stumbles, and is taken for one that cannot
        pass
    else:
        _log.warning(
            "The store of %s ignores conditions on deletions (If-Match). What a failed save has written is left to the "
            "next one. And a writer that sleeps between a look and a deletion, and wakes up when another has saved the "
            "same number again, could delete the other's index: save no number twice while another process may live.",
            url,
        )
    try:
        exactly: bool = yield Remove(key, current)
    except CheckpointError:
        return False
    return refused and exactly


class _Probe:
    """The object that the questions are asked on."""

    def __init__(self, key: str, seal: bytes, directory: str) -> None:
        self._key = key
        self._seal = seal
        self._directory = directory

    def write(self, mark: bytes, mode: PutMode) -> Flow[Object | None]:
        """Writes under a condition; None if the store refuses."""
        data = _NOTE + mark + self._seal
        while True:
            try:
                return Object(data, (yield Put(self._key, (data,), mode)))
            except (StoreError, ConflictError) as failure:
                if isinstance(failure, StoreError) and not failure.transient:
                    raise
                current: Object | None = yield Get(self._key)
                if current is not None and current.data == data:  # it had landed
                    return current
                if isinstance(failure, ConflictError):
                    return None
                yield Pause(failure)

    def broken(self, what: str, state: Version | None) -> Flow[CheckpointError]:
        """The error that says what the store did, unless somebody has claimed the directory and collected the probe."""
        yield Delete((self._key,))  # nobody can save here, and so nobody would collect it
        current: Object | None = yield Get(STATE)
        if (current and current.version) != state:
            return ConflictError(
                f"Cannot save to {self._directory}: another writer has just taken it over. Stop this writer, or "
                "restore, or make a new manager, which continues from what is there.",
                path=self._directory,
            )
        url = f"{self._directory}/{self._key}"
        return UnsupportedError(
            f"Cannot save safely to this store: on the test object {url} it {what}. Two writers, or one that was "
            "thought dead, could destroy each other's checkpoints here, so nothing was saved. Use a store that honours "
            "conditional writes, or correct what stands between: a proxy or gateway may drop the headers.",
            path=url,
        )
