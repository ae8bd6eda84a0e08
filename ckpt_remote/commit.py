"""Publish and retire checkpoints: the protocol, as flows of store requests.

    commit(index, state)      what makes a save visible, after its data is durable
    ├── publish               create the index, or replace exactly what was read, while the state is ours
    └── publish_state         the one write that readers act on
    rewrite(key)              the same content under a new write id, so that nothing still under way can land
    describe(path)            what a checkpoint consists of, from its index
    delete_retired(intention) index first, then data that no current index uses
    remove(key)               exactly what was read, while the state is ours

Promises: the state changes only by compare-and-swap against the version that was read; a write that landed is never
reported as lost, nor one that lost as landed; nothing is deleted that the state still lists, or whose index is not
the one that was retired.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ckpt_remote.bundle import decode_index, encode_index, index_name
from ckpt_remote.errors import (
    CheckpointError,
    ConflictError,
    CorruptError,
    StoreError,
    UnknownOutcomeError,
)
from ckpt_remote.flow import Delete, Flow, Get, Pause, Put, Remove
from ckpt_remote.origin import Attempt, read_write_id
from ckpt_remote.state import Retired, State, decode_state, encode_state
from ckpt_remote.store import Object, PutMode, Version
from ckpt_remote.upload import take_back

__all__ = [
    "STATE",
    "Published",
    "Replacement",
    "commit",
    "delete_retired",
    "describe",
    "described",
    "foresee",
    "publish",
    "publish_state",
    "remove",
    "rewrite",
]

_log = logging.getLogger(__name__)

STATE = "checkpoint"


@dataclass(frozen=True, slots=True)
class Published:
    """A state write that landed.

    Attributes:
        version: The version it made; None when another writer has built on it since.
        index: The version of the index that was published before it, if one was.
    """

    version: Version | None
    index: Version | None = None


@dataclass(frozen=True, slots=True)
class Replacement:
    """A small object that was written.

    Attributes:
        before: What it replaced, if anything.
        after: What was written.
        lost: Whether a request for it went unanswered, and may land late.
    """

    before: Object | None
    after: Object
    lost: bool


class _UnansweredError(StoreError):
    """The store kept failing, and the object may have been written."""

    def plain(self) -> StoreError:
        """For callers, who know no difference."""
        return StoreError(str(self), path=self.path, transient=self.transient)


class _OvertakenError(ConflictError):
    """Another writer has changed the state, and the object may have been written."""


def commit(
    objects: Retired,
    index: bytes,
    state: State,
    version: Version,
    *,
    created: Mapping[str, Version] | None,
    attempt: Attempt,
    url: str,
    replaces: bool = False,
) -> Flow[Published]:
    """Makes a checkpoint visible whose data objects are all durable.

    Args:
        objects: What it consists of.
        index: The encoded index.
        state: The new state, with a fresh write id, listing the checkpoint.
        version: The version of the state that the new one was made from, which this writer has written or claimed.
        created: The data objects with their versions, as far as they are known: what is taken back after a failure.
            None where the store does not delete exactly what it is told to: then nothing can be taken back.
        attempt: The attempt that wrote it all.
        url: The directory, for messages.
        replaces: Whether the state lists its number already, so that its index alone makes it visible.

    Raises:
        ConflictError: Another writer has changed the state. What this attempt provably wrote, and nothing that the
            state lists, was deleted.
        UnknownOutcomeError: The state may have been written, or may yet be; or an index that is visible without it.
        StoreError: The store kept failing before the state was written. Nothing was published.
    """
    try:
        put = yield from _swap(objects.index, None, lambda _: index, guard=version, url=url)
    except _UnansweredError as error:
        if replaces:
            raise _half_replaced(objects, url) from error
        raise error.plain() from error.__cause__
    except ConflictError as error:
        # A listed index that was swapped has a new write id from the new owner, and our data.
        if created and not replaces and not isinstance(error, _OvertakenError):
            yield from take_back(created)
        raise
    if put.before is not None and not replaces:
        _tell_of_stranger(put.before, objects.index, attempt, url)
    try:
        published = yield from publish_state(state, version, url=url)
    except ConflictError as error:
        if replaces:  # its index alone makes it visible, and the new owner may have gone on from it
            raise ConflictError(f"{error} {objects.path} was replaced before that.", path=error.path) from error
        if not put.lost and not (yield from _is_listed(objects.path, url)):
            yield from _take_back(objects, put, created, attempt)
        raise
    except StoreError as error:  # the state did not change, for certain
        # If an answer was lost, a copy of the index may still land, and would miss what was taken back.
        undone = not put.lost and (yield from _take_back(objects, put, created, attempt))
        if replaces and not undone:
            raise _half_replaced(objects, url) from error
        raise
    return dataclasses.replace(published, index=put.after.version)


def _tell_of_stranger(before: Object, key: str, attempt: Attempt, url: str) -> None:
    """Says that a checkpoint was replaced which nothing listed, unless it was one of our own that had died."""
    try:
        writer = read_write_id(decode_index(before.data, path=key).header.write_id, key)
    except CorruptError:
        return
    if writer is None or writer.term != attempt.term:
        _log.warning(
            "%s/%s was there already, and no state listed it: it is replaced by the new checkpoint of that number. Its "
            "data objects are left.",
            url,
            key,
        )


def _half_replaced(objects: Retired, url: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        f"Cannot tell whether {url}/{objects.path} was replaced: the store kept failing. It is whole, with the old "
        "values or the new. Save it again, or restore it to see.",
        path=f"{url}/{objects.path}",
    )


def _is_listed(path: str, url: str) -> Flow[bool]:
    """Whether the state may list a checkpoint: a stock manager that went on from our state dropped our write id."""
    try:
        current: Object | None = yield Get(STATE)
        state = None if current is None else decode_state(current.data, path=f"{url}/{STATE}", directories=(url,))
    except CheckpointError:
        return True
    return state is not None and path in state.paths


def _take_back(
    objects: Retired, put: Replacement, created: Mapping[str, Version] | None, attempt: Attempt
) -> Flow[bool]:
    """Undoes the index, unless another writer has replaced it since, and deletes the data that nothing names then.

    Returns:
        Whether the index is as it was before.
    """
    key = objects.index
    if put.before is None and created is None:
        return False
    try:
        if put.before is None:
            yield Remove(key, put.after.version)
        else:
            yield Put(key, (_under_new_write_id(put.before, key, attempt),), put.after.version)
    except CheckpointError as error:
        _log.warning("%s belongs to a save that failed, and is left, with its data: %s", key, error)
        return False
    if created:
        yield from take_back(created)
    return True


def _under_new_write_id(index: Object, key: str, attempt: Attempt) -> bytes:
    """Equal bytes would bring an old version back where versions are digests, and with it whatever waits for it.

    What had no seal of this history gets none, only a nonce: it must not look like garbage of ours one day.
    """
    decoded = decode_index(index.data, path=key)
    writer = read_write_id(decoded.header.write_id, key)
    ours = writer is not None and writer.term == attempt.term
    header = dataclasses.replace(decoded.header, write_id=attempt.write_id(key) if ours else attempt.number)
    return encode_index(dataclasses.replace(decoded, header=header))


def publish(key: str, data: bytes, *, guard: Version, url: str) -> Flow[Replacement]:
    """Creates a small object, or replaces exactly the one that was read, while the state is at the version `guard`.

    Whoever owns the directory has changed the state before it writes anything else. So an object that was read before
    the state was seen unchanged is older than any other owner's, and replacing exactly that one touches nobody's. An
    index carries a write id, so equal bytes are this very write.

    Raises:
        ConflictError: Another writer has changed the state.
        StoreError: The store kept failing; the object may have been written.
    """
    try:
        return (yield from _swap(key, None, lambda _: data, guard=guard, url=url))
    except _UnansweredError as error:
        raise error.plain() from error.__cause__


def rewrite(key: str, attempt: Attempt, *, guard: Version, url: str) -> Flow[Object | None]:
    """Gives an index a new write id, so that no replacement of the one there now can land any more.

    Returns:
        The index as it is now; None if there is none.

    Raises:
        ConflictError: Another writer has changed the state.
        CorruptError: The index is damaged. It was not touched.
        StoreError: The store kept failing; it may have been written.
    """
    current: Object | None = yield Get(key)
    if current is None:
        return None
    yield from _require_guard(guard, url)

    def change(found: Object | None) -> bytes:
        if found is None:
            raise ConflictError(f"Cannot settle {url}/{key}: it was deleted in the meantime.", path=f"{url}/{key}")
        return _under_new_write_id(found, key, attempt)

    try:
        put = yield from _swap(key, current, change, guard=guard, url=url)
    except _UnansweredError as error:
        raise error.plain() from error.__cause__
    return put.after


def _swap(
    key: str, current: Object | None, change: Callable[[Object | None], bytes], *, guard: Version, url: str
) -> Flow[Replacement]:
    """Replaces what is there by what `change` makes of it."""
    data = change(current)
    lost = False
    try:
        while True:
            mode: PutMode = "create" if current is None else current.version
            try:
                return Replacement(current, Object(data, (yield Put(key, (data,), mode))), lost)
            except (StoreError, ConflictError) as failure:
                if isinstance(failure, StoreError):
                    if not failure.transient:
                        raise
                    lost = True
                found: Object | None = yield Get(key)
                if found is not None and found.data == data:
                    return Replacement(current, found, lost)
                yield from _require_guard(guard, url, failure)
                if found == current or isinstance(failure, StoreError):
                    yield Pause(failure)
                if found != current:
                    current, data = found, change(found)
    except StoreError as error:
        if lost:
            raise _UnansweredError(str(error), path=error.path, transient=error.transient) from error
        raise
    except ConflictError as error:
        if lost:
            raise _OvertakenError(str(error), path=error.path) from error
        raise


def _require_guard(guard: Version, url: str, cause: CheckpointError | None = None) -> Flow[None]:
    state: Object | None = yield Get(STATE)
    if state is None or state.version != guard:
        raise ConflictError(_changed(url, gone=state is None), path=url) from cause


def _changed(url: str, *, gone: bool) -> str:
    cause = "its state is gone" if gone else "another writer has changed its state"
    return (
        f"Cannot save to {url}: {cause} since this manager read it; nothing of theirs was touched. Stop this writer, "
        "or restore, or make a new manager, which continues from what is there."
    )


def publish_state(state: State, version: Version | None, *, url: str) -> Flow[Published]:
    """Swaps the state against the version it was made from, exactly once.

    Raises:
        ConflictError: Another writer has changed it.
        UnknownOutcomeError: It may have landed, or may yet land.
        StoreError: The store refused it for good. It did not land.
    """
    if state.record is None:
        raise ValueError("a state without a record could not be told from another writer's")
    data = encode_state(state)
    path = f"{url}/{STATE}"
    lost = False  # whether a request went unanswered, and may land late
    while True:
        try:
            return Published((yield Put(STATE, (data,), version or "create")))
        except (StoreError, ConflictError) as failure:
            if isinstance(failure, StoreError):
                if not (failure.transient or lost):
                    raise
                lost = True
            try:
                current: Object | None = yield Get(STATE)
                if current is not None and current.data == data:
                    return Published(current.version)
                if current is not None and _built_on(current, state.record.write_id, path, url):
                    return Published(None)
                if (None if current is None else current.version) != version:
                    raise ConflictError(_changed(url, gone=current is None), path=path) from failure
                if isinstance(failure, StoreError) and not failure.transient:
                    raise  # for good; but the request before it may yet land
                try:
                    yield Pause(failure)
                except ConflictError as error:
                    if lost:
                        raise StoreError(str(error), path=path) from error
                    raise
            except StoreError as error:
                raise UnknownOutcomeError(
                    f"Cannot tell whether the state {path} was written: the store gave no answer; nothing was "
                    "deleted. Read it again later: it lists the old checkpoints or the new.",
                    path=path,
                ) from error


def _built_on(current: Object, write_id: str, path: str, url: str) -> bool:
    try:
        record = decode_state(current.data, path=path, directories=(url,)).record
    except CorruptError:
        return False
    return record is not None and write_id in record.lineage


def describe(path: str, *, url: str) -> Flow[tuple[Retired, Version] | None]:
    """What a checkpoint consists of, read from its index, and the index's version; None where there is none.

    Raises:
        CorruptError: The index is damaged, so nobody can tell.
    """
    key = index_name(path)
    current: Object | None = yield Get(key)
    return None if current is None else (described(path, current, url=url), current.version)


def described(path: str, current: Object, *, url: str) -> Retired:
    """What a checkpoint with that index consists of."""
    index = decode_index(current.data, path=f"{url}/{index_name(path)}")
    return Retired(
        path=path,
        write_id=index.header.write_id,
        used=1 + max((entry.shard for entry in index.entries.values() if not entry.slices), default=-1),
        of=index.header.num_shards,
        files=tuple(f"{path}{suffix}" for suffix in index.header.files),
    )


def delete_retired(
    retired: Retired, known: Version | None, *, guard: Version, url: str
) -> Flow[Mapping[str, CheckpointError]]:
    """Deletes exactly what an intention in the state names, except what a newer index at the same number uses.

    The index goes first, so that nothing ever looks whole that is not, and only if it is the one that was retired.
    Names of indexes are used again, so a version is removed, not a name, and one that was read before the state was
    seen unchanged: it is older than any other owner's. Names of data are not used again once the state has this
    intention.

    Args:
        retired: The intention, which is in the state.
        known: The version of the index if this writer wrote it.
        guard: The version of the state that holds the intention, written by this writer.
        url: The directory, for messages.

    Returns:
        What could not be deleted, by key; if anything, the intention stands.

    Raises:
        ConflictError: Another writer has changed the state: the rest is the other's to delete.
        CorruptError: The index there is damaged, so it cannot be told what it uses. Nothing was deleted.
        StoreError: The store kept failing.
    """
    used: tuple[str, ...] = ()
    if known is not None:
        try:
            yield Remove(retired.index, known)
        except ConflictError:  # replaced: look what is there now
            known = None
    if known is None:
        used = yield from _remove_index(retired, guard=guard, url=url)
    for file in retired.files:
        if file not in used:
            yield from remove(file, guard=guard, url=url)
    data = tuple(key for key in retired.objects if key not in used)
    failures: Mapping[str, CheckpointError] = (yield Delete(data)) if data else {}
    return failures


def foresee(retired: Retired, present: Collection[str], *, url: str) -> Flow[frozenset[str]]:
    """Which of the keys that are there now `delete_retired` would delete."""
    kept: tuple[str, ...] = ()
    if retired.index in present:
        try:
            found = yield from describe(retired.path, url=url)
        except CorruptError:
            return frozenset()
        if found is not None and found[0] != retired:
            kept = (retired.index, *found[0].data)
    return frozenset({retired.index, *retired.data}.intersection(present).difference(kept))


def _remove_index(retired: Retired, *, guard: Version, url: str) -> Flow[tuple[str, ...]]:
    """Removes the index if it is the retired one; otherwise says what it uses."""
    found = yield from describe(retired.path, url=url)
    if found is None:
        return ()
    current, version = found
    if current != retired:
        return current.data
    yield from _require_guard(guard, url)
    yield Remove(retired.index, version)
    return ()


def remove(key: str, *, guard: Version, url: str) -> Flow[None]:
    """Removes an object of a name that is used again, if there is one, while the state is at the version `guard`.

    As an index: exactly the version that was read before the state was seen unchanged.

    Raises:
        ConflictError: Another writer has changed the state, or the object.
        StoreError: The store kept failing.
    """
    current: Object | None = yield Get(key)
    if current is not None:
        yield from _require_guard(guard, url)
        yield Remove(key, current.version)
