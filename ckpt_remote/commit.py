"""Publish and retire checkpoints: the protocol, as generators of store requests.

    publish_state                              compare-and-swap of `checkpoint`: a claim, or part of a save
    commit(index, state)                       what makes a save visible, after its data is durable
    ├── publish          create, or replace exactly the index that was read, while the state is ours
    └── publish_state    the one write that readers act on
    describe(path)                             what a checkpoint consists of, from its index
    delete_retired(intention)                  index first, then data that no current index uses

A flow yields `Get`, `Put`, `Delete` and `Pause` values and receives their results; `run` performs them on a store, and
tests perform them on a model, in any order and with any fault. A lost response is resolved by reading back.

Promises: the state changes only by compare-and-swap against the version that was read; a write that landed is never
reported as lost, nor one that lost as landed; nothing is deleted that the state still lists, or whose index is not
the one that was retired. The recorded intention to replace a listed number, the check that a store keeps its word, and
the collection of dead attempts belong here too, and are not implemented yet.
"""

import dataclasses
import logging
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ckpt_remote.bundle import decode_index, encode_index, index_name
from ckpt_remote.errors import (
    CheckpointError,
    ConflictError,
    CorruptError,
    NotFoundError,
    StoreError,
    UnknownOutcomeError,
)
from ckpt_remote.state import Retired, State, decode_state, encode_state
from ckpt_remote.store import Object, PutMode, Retry, Store, Version

__all__ = [
    "STATE",
    "Delete",
    "Flow",
    "Get",
    "Pause",
    "Put",
    "commit",
    "delete_retired",
    "describe",
    "publish",
    "publish_state",
    "run",
]

_log = logging.getLogger(__name__)

STATE = "checkpoint"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Get:
    """Read an object whole; answered with an `Object`, or None where there is none."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Write an object under a condition; answered with its `Version`."""

    key: str
    data: bytes
    mode: PutMode


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete objects; answered with the failures by key."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the attempt after this many."""

    attempt: int


Request = Get | Put | Delete | Pause
Flow = Generator[Request, Any, T]


def run(flow: Flow[T], store: Store, retry: Retry) -> T:
    """Performs a flow's requests on a store, one after the other, and returns what the flow returns."""
    try:
        request = next(flow)
        while True:
            try:
                answer = _perform(request, store, retry)
            except CheckpointError as error:
                request = flow.throw(error)
            else:
                request = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _perform(request: Request, store: Store, retry: Retry) -> object:
    match request:
        case Get(key):
            try:
                return store.read(key)
            except NotFoundError:
                return None
        case Put(key, data, mode):
            return store.put(key, [data], mode)
        case Delete(keys):
            return store.delete(keys)
        case Pause(attempt):
            retry.pause(attempt)
            return None


@dataclass(frozen=True, slots=True)
class Published:
    """A state write that landed.

    Attributes:
        version: The version it made; None when another writer has built on it since.
    """

    version: Version | None


@dataclass(frozen=True, slots=True)
class Replacement:
    """A small object that was written.

    Attributes:
        before: What it replaced, if anything.
        version: The version written.
        lost: Whether a request for it went unanswered, and may land late.
    """

    before: Object | None
    version: Version
    lost: bool


def commit(
    objects: Retired, index: bytes, state: State, version: Version, *, url: str, attempts: int
) -> Flow[Published]:
    """Makes a checkpoint visible whose data objects are all durable.

    Args:
        objects: What it consists of.
        index: The encoded index.
        state: The new state, with a fresh write id, listing the checkpoint.
        version: The version of the state that the new one was made from, which this writer has written or claimed.
        url: The directory, for messages.
        attempts: How often a request without an answer is sent.

    Raises:
        ConflictError: Another writer has changed the state. Nothing that it lists was touched.
        UnknownOutcomeError: The state write may have landed, or may yet land. Nothing was deleted.
        StoreError: The store kept failing before the state was written. Nothing was published.
    """
    put = yield from publish(objects.index, index, guard=version, url=url, attempts=attempts)
    try:
        return (yield from publish_state(state, version, url=url, attempts=attempts))
    except (ConflictError, StoreError) as error:  # the state did not change, for certain
        if not put.lost:  # else a copy of the index may still land, and would miss what was taken back
            yield from _take_back(objects, put, still_ours=isinstance(error, StoreError))
        raise


def _take_back(objects: Retired, put: Replacement, *, still_ours: bool) -> Flow[None]:
    """Undoes the index, unless another writer has replaced it since, and deletes the data that nothing names then."""
    key = objects.index
    try:
        if put.before is not None:
            # Under a new write id: equal bytes would bring the old version back, and with it whatever waits for it.
            index = decode_index(put.before.data, path=key)
            header = dataclasses.replace(index.header, write_id=uuid.uuid4().hex)
            yield Put(key, encode_index(dataclasses.replace(index, header=header)), put.version)
        elif not still_ours or (yield Delete((key,))):
            return
        failures = yield Delete(objects.data)
    except CheckpointError as error:
        failures = {key: error}
    for failed, failure in failures.items():
        _log.warning("%s belongs to a save that failed, and is left: %s", failed, failure)


def publish(key: str, data: bytes, *, guard: Version, url: str, attempts: int) -> Flow[Replacement]:
    """Creates a small object, or replaces exactly the one that was read, while the state is at the version `guard`.

    Whoever owns the directory has changed the state before it writes anything else. So an object that was read before
    the state was seen unchanged is older than any other owner's, and replacing exactly that one touches nobody's. An
    index carries a write id, so equal bytes are this very write.

    Raises:
        ConflictError: Another writer has changed the state.
        StoreError: The store kept failing; the object may have been written.
    """
    mode: PutMode = "create"
    before: Object | None = None
    failure: CheckpointError | None = None
    lost = False
    for attempt in range(attempts):
        if attempt:
            yield Pause(attempt)
        try:
            return Replacement(before, (yield Put(key, data, mode)), lost)
        except StoreError as error:
            if not error.transient:
                raise
            failure, lost = error, True
        except ConflictError as error:
            failure = error
        current: Object | None = yield Get(key)
        if current is not None and current.data == data:
            return Replacement(before, current.version, lost)
        state: Object | None = yield Get(STATE)
        if state is None or state.version != guard:
            raise ConflictError(_changed(url, gone=state is None), path=url) from failure
        before, mode = current, "create" if current is None else current.version
    raise failure or ConflictError(f"Cannot publish {url}/{key}: others kept changing it.")


def _changed(url: str, *, gone: bool) -> str:
    cause = "its state is gone" if gone else "another writer has changed its state"
    return (
        f"Cannot save to {url}: {cause} since this manager read it; nothing of theirs was touched. Stop this writer, "
        "or restore, or make a new manager, which continues from what is there."
    )


def publish_state(state: State, version: Version | None, *, url: str, attempts: int) -> Flow[Published]:
    """Swaps the state against the version it was made from, exactly once."""
    if state.record is None:
        raise ValueError("a state without a record could not be told from another writer's")
    data = encode_state(state)
    path = f"{url}/{STATE}"
    failure: CheckpointError | None = None
    lost = False  # whether a request went unanswered, and may land late
    for attempt in range(attempts):
        if attempt:
            yield Pause(attempt)
        try:
            return Published((yield Put(STATE, data, version or "create")))
        except StoreError as error:
            failure = error
            if not error.transient:
                if lost:
                    break
                raise
            lost = True
        except ConflictError as error:
            failure = error
        try:
            current: Object | None = yield Get(STATE)
        except StoreError as error:
            failure = error
            continue
        if current is not None and current.data == data:
            return Published(current.version)
        if current is not None and _built_on(current, state.record.write_id, path, url):
            return Published(None)
        if (None if current is None else current.version) != version:
            raise ConflictError(_changed(url, gone=current is None), path=path) from failure
    raise UnknownOutcomeError(
        f"Cannot tell whether the state {path} was written: the store gave no answer; nothing was "
        "deleted. Read it again later: it lists the old checkpoints or the new.",
        path=path,
    ) from failure


def _built_on(current: Object, write_id: str, path: str, url: str) -> bool:
    try:
        record = decode_state(current.data, path=path, directories=(url,)).record
    except CorruptError:
        return False
    return record is not None and write_id in record.lineage


def describe(path: str, *, url: str) -> Flow[Retired | None]:
    """What a checkpoint consists of, read from its index; None where there is none.

    Raises:
        CorruptError: The index is damaged, so nobody can tell.
    """
    key = index_name(path)
    current: Object | None = yield Get(key)
    if current is None:
        return None
    index = decode_index(current.data, path=f"{url}/{key}")
    return Retired(
        path=path,
        write_id=index.header.write_id,
        used=1 + max((entry.shard for entry in index.entries.values() if not entry.slices), default=-1),
        of=index.header.num_shards,
        files=tuple(f"{path}{suffix}" for suffix in index.header.files),
    )


def delete_retired(retired: Retired, *, url: str) -> Flow[Mapping[str, CheckpointError]]:
    """Deletes exactly what an intention in the state names, except what a newer index at the same number uses.

    Returns:
        What could not be deleted, by key; if anything, the intention stands.

    Raises:
        CorruptError: The index there is damaged, so it cannot be told what it uses. Nothing was deleted.
    """
    current = yield from describe(retired.path, url=url)
    used: tuple[str, ...] = ()
    if current == retired:
        failures: dict[str, CheckpointError] = yield Delete((retired.index,))
        if failures:  # the index goes first, so that nothing ever looks whole that is not
            return failures
    elif current is not None:
        used = current.data
    data = tuple(key for key in retired.data if key not in used)
    if not data:
        return {}
    failures = yield Delete(data)
    return failures
