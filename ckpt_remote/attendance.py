"""Which of the leader's saves a worker's save is.

Both begin as many, unless one of them leaves some out, or is told to make one alone. So a worker counts on from the
last save that it knows to be the same on both. Where the counts differ, what is left out and what has only failed
unseen is told apart by where each was while the other waited: in a save, or not.

Promises: as long as nobody leaves a save out, no worker takes a plan for one of its save that is not. Whoever does is
in step again at the next save or the one after.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from ckpt_remote.ballot import Failure, Plan
from ckpt_remote.workers import Workers

__all__ = ["Attendance", "Relation"]

Relation: TypeAlias = Literal["before", "this", "missed"]
"""Of what a plan is, seen from a worker's save: one that is over for it, the same, or the next, as this one has failed
before the worker could see it.
"""


@dataclass(slots=True)
class Attendance:
    """What a worker counts.

    Attributes:
        workers: Its place.
        ordinal: The last save that it knows to be the same on both, as the leader counts.
        begun: How many it has begun since.
        in_vain: For how many of those, its last ones, no leader came.
        began: When it began this one.
        ended: When the one before was over.
        waited: When it began to wait in vain, and when it last gave up.
    """

    workers: Workers
    ordinal: int = 0
    begun: int = 0
    in_vain: int = 0
    began: float = 0.0
    ended: float = -inf
    waited: tuple[float, float] = (inf, -inf)

    def begin(self, now: float) -> None:
        """Says that a save begins."""
        self.begun += 1
        self.began = now

    def end(self, now: float) -> None:
        """Says that it is over."""
        self.ended = now

    def agree(self, ordinal: int) -> None:
        """Says that this save is that one of the leader's."""
        self.ordinal, self.begun = ordinal, 0
        self.in_vain, self.waited = 0, (inf, -inf)

    def give_up(self, now: float) -> None:
        """Says that the leader has not come to this save."""
        self.in_vain += 1
        self.waited = min(self.waited[0], self.began), now

    def relation(self, plan: Plan, now: float) -> Relation:
        """Of what a plan is."""
        due = self.ordinal + self.begun
        if plan.ordinal < due:
            is_this = plan.ordinal >= due - self.in_vain and self._is_left_out_there(plan, now)
            return "this" if is_this else "before"
        has_missed = plan.ordinal == due + 1 and plan.last is not None and not self._is_left_out_here(plan.last, now)
        return "missed" if has_missed else "this"

    def _is_left_out_there(self, plan: Plan, now: float) -> bool:
        """Whether the leader was in no save while this worker waited for it: it has left out what that was for."""
        began, ended = self.waited
        return plan.preparation < now - ended and (plan.idle is None or plan.idle >= ended - began)

    def _is_left_out_here(self, last: Failure, now: float) -> bool:
        """Whether this worker was in no save while the leader waited for it."""
        timeout = self.workers.timeout
        return self.workers.rank in last.absent and self.began - self.ended >= timeout and now - self.began < timeout
