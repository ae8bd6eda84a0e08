"""Which of the leader's saves a worker's save is.

Where the caller numbers them, the numbers tell. Else both count: as long as nobody leaves a call out or makes one too
many, equal counts are equal steps. What each has begun counts, also what has failed before the other could see it.

A strict count would keep two apart for good once one of them has left a call out. Workers that wait for their saves
need none: nobody is a step ahead while another is still saving. So they take what the leader saves next for theirs
where they have missed each other. Behind training a worker may be a step ahead, so there the count holds, until all
have waited for their saves (`CheckpointManager.sync`).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ckpt_remote.ballot import Plan

__all__ = ["Attendance", "Relation"]

Relation: TypeAlias = Literal["before", "this", "missed"]
"""Of what a plan is, seen from a worker's save: one that is over for it, the same, or a later one, so that this one is
over without a plan that this worker has seen.
"""


@dataclass(slots=True)
class Attendance:
    """What a worker counts.

    Attributes:
        rank: Its own.
        ordinal: The last save that it knows to be the same on both, as the leader counts.
        begun: How many it has begun since.
        in_vain: For how many of those no leader came.
        number: The caller's number of this one, if it gave one.
        former: The same of the one before.
        is_strict: Whether the count holds, whoever has been missed.
    """

    rank: int
    ordinal: int = 0
    begun: int = 0
    in_vain: int = 0
    number: int | None = None
    former: int | None = None
    is_strict: bool = False

    def begin(self, *, is_strict: bool) -> None:
        """Says that a save begins, whose number is to be told."""
        self.begun += 1
        self.former, self.number = self.number, None
        self.is_strict = is_strict

    def agree(self, ordinal: int) -> None:
        """Says that this save is that one of the leader's."""
        self.ordinal, self.begun, self.in_vain = ordinal, 0, 0

    def relation(self, plan: Plan) -> Relation:
        """Of what a plan is."""
        if (told := self._by_number(plan)) is not None:
            return told
        due = self.ordinal + self.begun
        if plan.ordinal < due:
            return "this" if not self.is_strict and plan.ordinal >= due - self.in_vain else "before"
        if plan.ordinal == due or plan.last is None:
            return "this"
        # Who was missed has left that save out, and is at the next; unless it was only late.
        has_missed = self.is_strict or (plan.ordinal == due + 1 and self.rank not in plan.last.absent)
        return "missed" if has_missed else "this"

    def _by_number(self, plan: Plan) -> Relation | None:
        """The same where the numbers tell, because they grow from save to save."""
        if plan.number is None or self.number is None or plan.number == self.number == self.former:
            return None
        if self.former is not None and max(plan.number, self.former) < self.number:
            return "before"
        if plan.former is not None and max(self.number, plan.former) < plan.number:
            return "missed"
        return "this"  # or numbers that differ from the first save on: an error, of which all are told

    def is_former(self, plan: Plan) -> bool:
        """Whether the save is the one that the leader began before that plan's, as far as numbers tell."""
        return plan.former is None or self.number is None or plan.former == self.number
