"""Protocols as generators of store requests, and the driver that performs them on a store.

A flow yields requests and is sent their answers; a request that fails is raised where it was yielded. `run` performs
the requests of one flow one after the other. Tests perform those of many flows, in any order and with any fault.

Promises: what is safe to repeat (reads, listings, recorded deletes) is repeated here while the budget of the flow
lasts; a conditional request is sent once, and the flow, which alone can read back what became of it, decides
whether to send it again: it yields `Pause` first, which fails when the budget is spent. So no flow sends more requests
to a store that keeps failing than its policy has attempts.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ckpt_remote.buffers import Buffer
from ckpt_remote.errors import CheckpointError, ConflictError, CorruptError, NotFoundError, StoreError
from ckpt_remote.parallel import run_all
from ckpt_remote.store import Object, ObjectInfo, PutMode, Retry, Store, Trial, Version

__all__ = [
    "Delete",
    "Ends",
    "Flow",
    "Get",
    "GetAll",
    "List",
    "Pause",
    "Put",
    "Remove",
    "Request",
    "Wait",
    "Withdraw",
    "run",
]

T = TypeVar("T")

_STREAMS = 16


@dataclass(frozen=True, slots=True)
class Get:
    """Read an object whole; answered with an `Object`, or None where there is none."""

    key: str


@dataclass(frozen=True, slots=True)
class GetAll:
    """Read objects whole, many at a time; answered with a tuple of `Object`s, and None where there is none."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ends:
    """Read the last `length` bytes of objects of known sizes; answered with a tuple of bytes.

    In place of an object that is missing, or shorter, there is None.
    """

    objects: tuple[ObjectInfo, ...]
    length: int


@dataclass(frozen=True, slots=True)
class List:
    """List what begins with `prefix`; answered with a tuple of `ObjectInfo`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Put:
    """Write an object under a condition, once; answered with its `Version`."""

    key: str
    buffers: tuple[Buffer, ...]
    mode: PutMode


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete an object if it is exactly this version, once; answered as `Store.remove`, also where there is none."""

    key: str
    version: Version


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete objects, whoever wrote them: of names that are never used again; answered with the failures by key."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Delete objects, each if it is exactly its version, once; answered with the failures by key.

    One that has become another's is no failure: it is left.
    """

    objects: tuple[tuple[str, Version], ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next attempt; fails with `failure` if there is to be none."""

    failure: CheckpointError


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait so many seconds for somebody else; answered with the time, in seconds, by a clock that only moves on.

    What came before has been answered: the budget of failures begins anew.
    """

    seconds: float


Request: TypeAlias = Get | GetAll | Ends | List | Put | Remove | Delete | Withdraw | Pause | Wait
Flow: TypeAlias = Generator[Request, Any, T]


def run(flow: Flow[T], store: Store, retry: Retry) -> T:
    """Performs a flow's requests on a store, one after the other, and returns what the flow returns."""
    trial = retry.start()
    try:
        request = next(flow)
        while True:
            try:
                answer = _perform(request, store.single, trial)
            except CheckpointError as error:
                request = flow.throw(error)
            else:
                request = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        flow.close()  # after Ctrl-C it learns now, not when somebody drops the traceback, that it was cut short


def _perform(request: Request, store: Store, trial: Trial) -> object:
    answer: object = None
    match request:
        case Get(key):
            answer = trial.call(partial(_get, store, key))
        case GetAll(keys):
            reads = [partial(trial.call, partial(_get, store, key)) for key in keys]
            answer = tuple(run_all(reads, threads=_STREAMS, name="ckpt_remote-reads"))
        case Ends(objects, length):
            tasks = [partial(trial.call, partial(_end, store, info, length)) for info in objects]
            answer = tuple(run_all(tasks, threads=_STREAMS, name="ckpt_remote-ends"))
        case List(prefix):
            answer = trial.call(lambda: tuple(store.list(prefix)))
        case Put(key, buffers, mode):
            answer = _once(trial, partial(store.put, key, buffers, mode))
        case Remove(key, version):
            answer = _once(trial, partial(store.remove, key, version))
        case Delete(keys):
            answer = _delete(store, keys, trial)
        case Withdraw(objects):
            removals = [partial(_withdraw, store, key, version) for key, version in objects]
            outcomes = run_all(removals, threads=_STREAMS, name="ckpt_remote-withdraw")
            answer = {key: error for (key, _), error in zip(objects, outcomes, strict=True) if error is not None}
        case Pause(failure):
            trial.failures += not isinstance(failure, StoreError)  # those were counted when they happened
            trial.wait(failure)
        case Wait(seconds):
            answer = trial.begin_anew(seconds)
    return answer


def _once(trial: Trial, request: partial[T]) -> T:
    try:
        return request()
    except StoreError as error:
        trial.count(error)
        raise


def _get(store: Store, key: str) -> Object | None:
    try:
        return store.read(key)
    except NotFoundError:
        return None


def _end(store: Store, info: ObjectInfo, length: int) -> bytes | None:
    if info.size < length:
        return None
    try:
        return bytes(store.read_range(info.key, info.size - length, length))
    except (NotFoundError, CorruptError):
        return None


def _withdraw(store: Store, key: str, version: Version) -> CheckpointError | None:
    try:
        store.remove(key, version)
    except ConflictError:
        return None
    except CheckpointError as error:
        return error
    return None


def _delete(store: Store, keys: tuple[str, ...], trial: Trial) -> dict[str, CheckpointError]:
    """Deletes, and tries again what failed for the moment."""
    failures: dict[str, CheckpointError] = {}
    while True:
        found = store.delete([key for key in keys if not failures or key in failures])
        failures = dict(found)
        passing = [error for error in found.values() if isinstance(error, StoreError) and error.transient]
        if not passing:
            return failures
        trial.count(passing[0])
        try:
            trial.wait(passing[0])
        except CheckpointError:
            return failures
