"""What a worker that does not lead knows of its job, and what it makes of a plan.

    Member.verdict        take the plan for the one of this save, wait for another, or say no to it
    require_same_save     whether the leader is still at it

Promises: it does no I/O and reads no clock. A worker that has joined a leader follows no other; until then only one
that starts from what it has found itself, or proves to be alive.
"""

from dataclasses import dataclass, field
from typing import Literal

from ckpt_remote.attendance import Attendance, Relation
from ckpt_remote.ballot import Failure, Plan
from ckpt_remote.origin import Attempt, new_attempt
from ckpt_remote.state import State
from ckpt_remote.verdicts import (
    AbandonedError,
    ahead,
    behind,
    in_vain,
    incomplete,
    not_begun,
    taken_over,
    too_early,
)
from ckpt_remote.workers import Workers

__all__ = ["Member", "require_same_save"]

# Seconds in which a leader whose last save failed is expected to begin the next, where this worker has begun it.
_STALE = 3.0


@dataclass(slots=True)
class Member:
    """What a worker other than the leader knows of its job.

    Attributes:
        workers: Its place.
        url: The directory, for messages.
        since: The digest of the state that it found.
        latest: The checkpoint that it named.
        epoch: How often the directory had been claimed when its leader had.
        session: The leader's, once it has joined one.
        attendance: Which of the leader's saves it is at.
        counter: The leader's save counter, once it is known in a save.
        seen: The attempts that are over for it.
        unsaid: Those in which it has failed and could not say so.
        strangers: By session, the first attempt seen of leaders that may be dead.
        overtaken: How many calls on end have found only that a save had failed because this worker had not come.
        takes_part: Whether it has begun to take part in the save that it is at.
        excuse: Why the last save that it has begun without a plan failed here, if it can tell.
        has_met: Whether all have waited for their saves since the last.
        has_lost: Whether another job has claimed the directory since its leader had.
        identity: The attempt that it has joined last, by number, and whose seals its objects get there.
    """

    workers: Workers
    url: str
    since: str = ""
    latest: str | None = None
    epoch: int = 0
    session: str | None = None
    counter: int | None = None
    seen: set[str] = field(default_factory=set)
    unsaid: set[str] = field(default_factory=set)
    strangers: dict[str, str] = field(default_factory=dict)
    overtaken: int = 0
    takes_part: bool = False
    excuse: Failure | None = None
    has_met: bool = False
    has_lost: bool = False
    identity: tuple[str, Attempt] | None = None
    attendance: Attendance = field(init=False)

    def __post_init__(self) -> None:
        self.attendance = Attendance(self.workers.rank)

    def begin(self, *, is_behind: bool) -> None:
        """Says that it begins to save, and whether training goes on meanwhile."""
        self.takes_part, self.counter = False, None
        self.attendance.begin(is_strict=is_behind and not self.has_met)
        self.has_met = False

    def meet(self) -> None:
        """Says that all have waited for their saves."""
        self.has_met = True

    def verdict(self, plan: Plan) -> Literal["follow", "wait", "refuse"]:
        """What to do about a plan: take it for the one of this save, wait for another, or say no to it.

        Raises:
            AbandonedError: Another job has taken the directory over, or the leader has given this save up.
        """
        if self.session is None:
            if not self._may_follow(plan):
                return "refuse" if self._is_too_early(plan) else "wait"
        elif plan.session != self.session:
            raise taken_over(self.url)
        if self.takes_part:
            require_same_save(plan, self.attendance.ordinal, self.url)
            relation: Relation = "this"
        else:
            relation = self.attendance.relation(plan)
        if relation == "missed":
            told = plan.last if self.attendance.is_former(plan) else None
            self._agree(plan.ordinal - 1)
            raise behind(plan, self.workers, self.url) if told is None else AbandonedError(told)
        if plan.attempt.number in self.unsaid and plan.failure is None:
            return "refuse"
        is_over = plan.failure is None or not (self.takes_part or self.session is None)
        if plan.attempt.number in self.seen and is_over:
            return "wait"
        if relation == "before":  # so what it is of has failed here
            return "refuse" if plan.failure is None else "wait"
        return "follow"

    def identify(self, plan: Plan) -> Attempt:
        """Whose seals this worker's objects get in an attempt, however often it comes to that."""
        if self.identity is None or self.identity[0] != plan.attempt.number:
            self.identity = plan.attempt.number, new_attempt(plan.attempt.term, plan.attempt.serial)
        return self.identity[1]

    def accept(self, plan: Plan) -> None:
        """Takes a plan for the one of this save, and its leader for the leader."""
        self.session, self.counter, self.epoch = plan.session, plan.counter, plan.epoch
        self.takes_part = True
        self._agree(plan.ordinal)

    def objection(self, plan: Plan) -> Failure:
        """Why it says no to a plan that is none of this save."""
        if self.session is None and self._is_too_early(plan):
            return too_early(self.workers, self.url).failure
        return self.excuse or ahead(plan, self.attendance.number, self.workers, self.url).failure

    def patience(self) -> float:
        """Seconds for which it waits for another plan than one that had failed before it looked.

        That may be of a save that this worker left out: then the next one is near. If it is not, the two may miss each
        other again, so the next time it waits longer.
        """
        is_its_own = self.session is None or self.takes_part
        return 0.0 if is_its_own else min(_STALE * 2**self.overtaken, self.workers.timeout)

    def _agree(self, ordinal: int) -> None:
        self.attendance.agree(ordinal)
        self.excuse = None

    def _may_follow(self, plan: Plan) -> bool:
        """Whether a plan is one of this worker's job.

        That is, starts from what this worker has found; or, where this worker came when the leader had begun already,
        is by one that has published nothing, and is alive: of the dead there may be a plan, and it may come up late,
        but no second one follows, and no answer.
        """
        if not self._is_ours(plan):
            return False
        if plan.failure is not None and plan.attempt.number in self.seen:
            return True  # the answer to this worker's objection
        return plan.status != "over" and (plan.since == self.since or (plan.is_first and self._is_alive(plan)))

    def _is_too_early(self, plan: Plan) -> bool:
        """Whether a leader of its job had begun before this worker's manager was made, or a dead one has left that."""
        is_new = plan.failure is None and plan.attempt.number not in self.seen
        return self._is_ours(plan) and plan.is_first and is_new and plan.since != self.since

    def note(self, plan: Plan) -> str:
        """The first attempt of its leader that this worker has seen."""
        return self.strangers.setdefault(plan.session, plan.attempt.number)

    def has_lost_to(self, state: State | None) -> bool:
        """Whether the state says that somebody else than its leader has claimed the directory."""
        record = None if state is None else state.record
        self.has_lost = self.session is not None and record is not None and record.epoch > self.epoch
        return self.has_lost

    def start_over(self, since: str, latest: str | None) -> None:
        """Says that it has read the state, which has that digest and names that checkpoint."""
        self.since, self.latest, self.has_lost = since, latest, False

    def give_up(self, plan: Plan | None, state: State | None) -> AbandonedError:
        """Why its leader has not come."""
        if not self.takes_part:
            self.attendance.in_vain += 1
            self.excuse = in_vain(self.workers, self.url).failure
        if self.session is not None and plan is not None and plan.number not in {None, self.attendance.number}:
            return ahead(plan, self.attendance.number, self.workers, self.url)
        if self.session is None and plan is not None and self._is_ours(plan) and self._is_alive(plan):
            return not_begun(self.workers, self.url, is_late=not plan.is_first)
        if self.session is None and state is not None and state.latest != self.latest:
            return taken_over(self.url)  # without this worker its job can have saved nothing
        return not_begun(self.workers, self.url, is_late=False)

    def _is_ours(self, plan: Plan) -> bool:
        return (plan.job, plan.size) == (self.workers.job, self.workers.size)

    def _is_alive(self, plan: Plan) -> bool:
        """Whether its leader has shown another plan before."""
        return self.note(plan) != plan.attempt.number


def require_same_save(current: Plan, ordinal: int, url: str) -> None:
    """Passes unless the leader has begun another save."""
    if current.ordinal == ordinal:
        return
    if current.ordinal == ordinal + 1 and current.last is not None:
        raise AbandonedError(current.last)
    raise incomplete(f"The leader has given up the save to {url}, and nothing of it was published.")
