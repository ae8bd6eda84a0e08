"""How the leader of a save by many workers learns who is there, and has everybody's vote.

    gather         waits for the votes
    await_joins    waits until everybody has at least heard

Promises: it returns only with a vote of everybody, unless the leader's own share has failed; one vote against ends it
at once, whoever is missing. Nothing is decided by a listing or a clock: time only says when to give up. A request is
made only for what is missing. The others' side is `rendezvous`.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from ckpt_remote.ballot import Part, Plan, Votes, decode_join, decode_part
from ckpt_remote.commit import STATE
from ckpt_remote.flow import Flow, GetAll, Wait
from ckpt_remote.origin import Attempt
from ckpt_remote.patience import SLOWNESS, Pauses, Progress, Reminders
from ckpt_remote.store import Version
from ckpt_remote.verdicts import AbandonedError, DiffersError, FencedError, OccupiedError, twice, vanished

__all__ = ["await_joins", "gather"]

_log = logging.getLogger(__name__)

# So many workers are named of those that are missing.
_NAMED = 8


def gather(
    plan: Plan, progress: Progress, guard: Version, *, timeout: float, present: set[int], url: str
) -> Flow[Votes]:
    """Waits for everybody's vote.

    Args:
        plan: What they vote on.
        progress: How far the leader's own share is.
        guard: The version of the state that the leader owns.
        timeout: Seconds after which a worker that gives no sign is given up.
        present: Gets the ranks of those who have joined.
        url: The directory, for messages.

    Raises:
        AbandonedError: A worker gave no sign in time, or has failed, or two processes act as one.
        FencedError: The state is not the leader's any more.
        DiffersError: A worker has something else than it was taken to have.
        OccupiedError: A worker found objects of other attempts in its way.
        StoreError: The store kept failing.
    """
    roll = _Roll(plan, guard, url)
    pauses, reminders = Pauses(plan.size, busy=True), Reminders()
    begun: float = yield Wait(0.0)
    waited, finished = 0.0, None
    while roll.missing and progress.took != float("inf"):
        yield from roll.look()
        present.update(roll.joined)
        own = progress.took
        if own is not None and finished is None:  # the others will not be long
            finished = waited
            pauses = Pauses(plan.size)
        # A share may take long, and as long as the leader's own goes up nobody can say how long.
        longest = timeout + finished + SLOWNESS * own if finished is not None and own is not None else float("inf")
        limits = {rank: longest if rank in roll.joined else timeout for rank in roll.missing}
        for rank, limit in limits.items():
            if waited > limit:
                raise vanished(rank, plan, url, absent=[it for it in limits if it not in roll.joined])
        if limits and reminders.is_due(waited):
            soonest = min(limits.values())
            most = f", of {soonest:.0f} at most" if soonest < float("inf") else ""
            _log.warning("%s/%s waits for %s: %.0f seconds%s", url, plan.path, _named(limits, plan), waited, most)
        if limits:
            waited = (yield Wait(pauses.next())) - begun
    return roll.parts


def await_joins(plan: Plan, *, timeout: float, present: set[int]) -> Flow[None]:
    """Waits until everybody has seen a plan, though nothing will come of it."""
    pauses = Pauses(plan.size)
    start: float = yield Wait(0.0)
    now = start
    while now - start <= timeout and len(present) < plan.size - 1:
        absent = [rank for rank in range(1, plan.size) if rank not in present]
        found = yield GetAll(tuple(plan.key("join", rank) for rank in absent))
        present.update(rank for rank, join in zip(absent, found, strict=True) if join is not None)
        now = yield Wait(pauses.next())


def _named(ranks: Collection[int], plan: Plan) -> str:
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"worker {', '.join(map(str, sorted(ranks)[:_NAMED]))}{more} of {plan.size}"


@dataclass(slots=True)
class _Roll:
    """Who has joined, and who has voted."""

    plan: Plan
    guard: Version
    url: str
    joined: dict[int, Attempt] = field(default_factory=dict)
    parts: dict[int, tuple[Part, Attempt]] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(1, self.plan.size) if rank not in self.parts]

    def look(self) -> Flow[None]:
        """Reads what those who are missing have said since, and whether the state is still the leader's."""
        keys = [(rank, self.plan.key("join", rank)) for rank in self.missing if rank not in self.joined]
        found = (yield GetAll(tuple(key for _, key in keys))) if keys else ()
        for (rank, key), read in zip(keys, found, strict=True):
            if read is not None:
                self.joined[rank] = decode_join(read.data, key, path=f"{self.url}/{key}")
        keys = [(rank, self.plan.key("part", rank)) for rank in self.missing if rank in self.joined]
        # At the same time: when all have joined, each look is one wait for the store.
        state, *found = yield GetAll((STATE, *(key for _, key in keys)))
        if state is None or state.version != self.guard:
            raise FencedError
        for (rank, key), read in zip(keys, found, strict=True):
            if read is not None:
                self._count(rank, *decode_part(read.data, key, path=f"{self.url}/{key}"))

    def _count(self, rank: int, part: Part, by: Attempt) -> None:
        if by != self.joined[rank]:
            raise twice(rank, self.url)
        if part.is_occupied:
            raise OccupiedError
        if part.failure is not None:
            raise AbandonedError(part.failure)
        if part.manifest and self.plan.status == "open":
            raise DiffersError
        self.parts[rank] = part, by
