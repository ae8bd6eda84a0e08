"""One worker's share of a checkpoint, and how it goes up while something else is looked after.

    share_of(plan, layout)
    write_share(share, beside)            all at the same time:
    ├── upload_shards                     its data objects
    ├── the crc32c of what is compared    what other workers have, too, must be equal there
    └── beside                            whatever the worker has to look at meanwhile, which may call it all off

Promises: when it raises, what it provably created has been taken back; when what goes on beside fails, the upload ends
within a second, though requests may still be under way.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ckpt_remote.ballot import Plan
from ckpt_remote.bundle import crc32c, shard_name
from ckpt_remote.flow import Flow, run
from ckpt_remote.layout import Layout, comparable
from ckpt_remote.origin import Attempt
from ckpt_remote.parallel import Beside, run_all
from ckpt_remote.patience import Progress
from ckpt_remote.plan import Shard, Tensor
from ckpt_remote.progress import enter
from ckpt_remote.store import Retry, Store
from ckpt_remote.upload import Uploaded, upload_shards, withdraw

__all__ = ["SAVE_COUNTER", "Save", "Share", "Write", "Written", "share_of", "write_share"]

T = TypeVar("T")

SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
"""The key of a checkpoint's count of saves (checkpoint.py)."""

# Checksums need no more threads than there may be cores for them, beside those that send.
_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one worker writes of a checkpoint.

    Attributes:
        path: The prefix of the checkpoint.
        of: The count in the names of the data objects.
        first: The number of its first data object.
        shards: What to write.
        attempt: Whose seal the objects get.
        compared: What other workers may have, too.
        exact: Whether the store deletes only exactly what it is told to.
    """

    path: str
    of: int
    first: int
    shards: tuple[Shard, ...]
    attempt: Attempt
    compared: tuple[Tensor, ...]
    exact: bool

    def name(self, number: int) -> str:
        """The key of one of its data objects, counted from 0."""
        return shard_name(self.path, self.first + number, self.of)


@dataclass(frozen=True, slots=True)
class Written:
    """A share that is durable.

    Attributes:
        uploaded: The data objects.
        checksums: The crc32c of each tensor that is compared.
    """

    uploaded: Uploaded
    checksums: tuple[int, ...]


Write: TypeAlias = Callable[[Share, Callable[[Progress], Flow[Any]]], Flow[tuple[Written, Any]]]
"""Writes a share, and performs a flow at the same time. If either fails, what was created is taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """One save, as a worker begins it.

    Attributes:
        path: The prefix of the checkpoint.
        counter: The save counter.
        number: What the caller numbers it; None if that is the counter.
        tensors: What this worker has.
        write: Writes a share.
    """

    path: str
    counter: int = 0
    number: int | None = None
    tensors: Sequence[Tensor]
    write: Write


def share_of(plan: Plan, layout: Layout, rank: int, save: Save, attempt: Attempt) -> Share:
    """What one worker writes of a checkpoint that is planned.

    Args:
        plan: The plan.
        layout: Who writes what.
        rank: The worker.
        save: What it has.
        attempt: Whose seal its objects get.
    """
    return Share(
        path=plan.path,
        of=plan.of,
        first=plan.first[rank],
        shards=layout.share(rank, save.tensors),
        attempt=attempt,
        compared=comparable(save.tensors),
        exact=plan.exact,
    )


def write_share(
    store: Store, share: Share, beside: Callable[[Progress], Flow[T]], *, retry: Retry
) -> tuple[Written, T]:
    """Uploads a share.

    Args:
        store: The directory.
        share: What to write.
        beside: What to look after meanwhile.
        retry: How to repeat requests that a store fails to answer.

    Returns:
        What was written, and what the other flow returned.

    Raises:
        ConflictError: An object of that name exists already.
        StoreError: The store kept failing.
        Exception: What the other flow raised.
    """
    start, url = time.monotonic(), store.url_of(share.path)
    progress = Progress()
    awake = replace(retry, sleep=progress.sleep)
    checks = [partial(crc32c, tensor.data) for tensor in share.compared]
    compare = partial(run_all, checks, threads=_THREADS, name="ckpt_remote-compare")
    try:
        other = Beside(lambda: run(beside(progress), store, awake), name="ckpt_remote-beside")
        compared = Beside(compare, name="ckpt_remote-compare")
        moved = enter(url, "write", sum(tensor.size for shard in share.shards for tensor in shard))
        uploaded = upload_shards(
            store,
            share.name,
            share.shards,
            attempt=share.attempt,
            retry=retry,
            exact=share.exact,
            check=other.check,
            moved=moved,
        )
    except BaseException:
        progress.call_off()
        raise
    try:
        checksums = compared.result()
        progress.finish(time.monotonic() - start)
        enter(url, "wait")
        result = other.result()
    except BaseException as error:
        progress.call_off()
        if not isinstance(error, Exception):  # after Ctrl-C nobody waits; what is left is found by its seal
            raise
        withdraw(store, uploaded.created, retry)
        raise
    return Written(uploaded, tuple(checksums)), result
