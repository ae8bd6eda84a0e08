"""How workers that save together meet, in the store and nowhere else.

    the leader                                   each other worker
    ├── publish the plan                         ├── find_plan
    ├── (its own share goes up)                  ├── join
    ├── gather         a vote of everybody       ├── (its share goes up, while watch looks at the plan)
    ├── (commit)                                 ├── vote           once for all: its part, or why there is none
    └── take_down      the plan                  └── await_outcome  what the state says

Promises: a vote is cast once, and cannot be taken back: the leader commits only with everybody's, so who has not voted
can still make the attempt fail, and who has must wait to learn. Nothing is decided by a listing or a clock: time only
says when to give up. What one worker of the job finds wrong, all raise.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Literal

from ckpt_remote.ballot import Failure, Part, Plan, Votes, decode_join, decode_part, decode_plan
from ckpt_remote.commit import STATE
from ckpt_remote.errors import (
    CheckpointError,
    ConflictError,
    CorruptError,
    StoreError,
    UnknownOutcomeError,
)
from ckpt_remote.flow import Flow, Get, GetAll, Wait
from ckpt_remote.origin import SEAL_SIZE, Attempt, new_attempt, read_seal
from ckpt_remote.probe import PLAN
from ckpt_remote.state import Record, decode_state
from ckpt_remote.store import Object
from ckpt_remote.upload import create
from ckpt_remote.workers import Workers

__all__ = [
    "AbandonedError",
    "DiffersError",
    "Member",
    "OccupiedError",
    "Progress",
    "SupersededError",
    "ToldError",
    "await_joins",
    "await_outcome",
    "find_plan",
    "gather",
    "join",
    "vote",
    "watch",
]

# Seconds between two looks: at first, and at most. Per worker that the leader looks at, a little more.
_FIRST_PAUSE, _LONGEST_PAUSE, _PAUSE_A_WORKER = 0.05, 1.0, 0.004
# A share takes this many times as long as the leader's own before its worker is given up.
_SLOWNESS = 3.0
# Seconds in which a leader that has claimed the directory is expected to show a plan.
_GRACE = 30.0


class ToldError(Exception):
    """Somebody else has said what ends this attempt."""


class SupersededError(ToldError):
    """The leader has begun another attempt at the same save."""


class DiffersError(ToldError):
    """A worker has something else than it was taken to have."""


class OccupiedError(ToldError):
    """Objects of other attempts are in the way of a worker's."""


class AbandonedError(ToldError):
    """Nothing will come of this save.

    Args:
        failure: Why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Progress:
    """How far a worker's own share is. Safe to ask from another thread."""

    def __init__(self) -> None:
        self._took: float | None = None

    def finish(self, seconds: float) -> None:
        """Says that it is durable, and how many seconds that took."""
        self._took = seconds

    def call_off(self) -> None:
        """Says that it has failed."""
        self._took = float("inf")

    @property
    def is_over(self) -> bool:
        """Whether nothing is done for it any more."""
        return self._took is not None

    @property
    def took(self) -> float | None:
        """How many seconds it took; None while it goes up, infinity after it has failed."""
        return self._took


@dataclass(slots=True)
class Member:
    """What a worker other than the leader knows of its job.

    Attributes:
        workers: Its place.
        url: The directory, for messages.
        since: The digest of the state that it found.
        epoch: How often the directory had been claimed then.
        session: The leader's, once it has joined one.
        ordinal: How often it has begun to save.
        seen: The attempts that are over for it.
        missed: Whether it came too late for the last save that it saw.
    """

    workers: Workers
    url: str
    since: str = ""
    epoch: int = 0
    session: str | None = None
    ordinal: int = 0
    seen: set[str] = field(default_factory=set)
    missed: bool = False

    def expects(self, plan: Plan) -> bool:
        """Whether a plan is one for this save.

        Raises:
            AbandonedError: Another job has taken the directory over, or the others have gone on without this worker.
        """
        if self.session is None:
            if plan.status == "over" or not self.may_follow(plan):
                return False
        elif plan.session != self.session:
            raise _taken_over(self.url)
        if plan.ordinal > self.ordinal:
            self._miss(plan)
        return plan.ordinal == self.ordinal and (plan.attempt.number not in self.seen or plan.failure is not None)

    def may_follow(self, plan: Plan) -> bool:
        """Whether a plan is one of this worker's job that starts from what this worker has found."""
        return (plan.job, plan.size, plan.since) == (self.workers.job, self.workers.size, self.since)

    def _miss(self, plan: Plan) -> None:
        # One save behind, this worker meets the others at the next; any further, it was started by itself.
        self.ordinal = plan.ordinal if self.missed else self.ordinal
        self.missed = not self.missed
        raise _incomplete(
            f"The others have given up the save to {self.url} that this worker, {self.workers.rank}, has just begun: "
            "nothing of it was published. Call save() on every worker at the same steps."
        )


def find_plan(member: Member) -> Flow[Plan]:
    """Waits for the leader's plan of this save.

    Raises:
        AbandonedError: The leader has not come in time, another job has taken the directory over, or the others have
            gone on without this worker.
        StoreError: The store kept failing.
    """
    pauses = _Pauses()
    start: float = yield Wait(0.0)
    now = start
    while True:
        found, state = yield GetAll((PLAN, STATE))
        plan = _plan(found, member.url)
        if plan is not None and member.expects(plan):
            member.session, member.missed = plan.session, False
            return plan
        if now - start > min(_GRACE, member.workers.timeout) and _epoch(state, member.url) > member.epoch:
            if plan is not None and plan.failure is not None and member.may_follow(plan):
                raise AbandonedError(plan.failure)
            raise _taken_over(member.url)
        if now - start > member.workers.timeout:
            raise _incomplete(
                f"The leader, worker 0, has not begun to save to {member.url} within {member.workers.timeout:.0f} "
                f"seconds: nothing was published. Worker {member.workers.rank} of {member.workers.size} waited. Call "
                "save() on every worker at the same steps, with the same directory; make the managers when all have "
                "started, and let all restore or none."
            )
        now = yield Wait(pauses.next())


def join(plan: Plan, member: Member) -> Flow[Attempt]:
    """Says that this worker is here, and returns whose seals its objects get.

    Raises:
        AbandonedError: Another process acts as this worker.
        SupersededError: The attempt is over.
        StoreError: The store kept failing.
    """
    attempt = new_attempt(plan.attempt.term, plan.attempt.serial)
    try:
        yield from create(plan.key("join", member.workers.rank), (), attempt)
    except ConflictError as error:
        if not (yield from _is_own("join", plan, attempt, member, error)):
            raise SupersededError from error
    return attempt


def _is_own(
    what: Literal["join", "part"], plan: Plan, attempt: Attempt, member: Member, cause: ConflictError
) -> Flow[bool]:
    """Whether what was in the way is there, and is ours; what is there no more the leader has removed.

    Raises:
        AbandonedError: It is another process's.
    """
    key = plan.key(what, member.workers.rank)
    current: Object | None = yield Get(key)
    if current is not None and read_seal(current.data[-SEAL_SIZE:], key) != attempt:
        raise _twice(member.workers.rank, member.url) from cause
    return current is not None


def watch(plan: Plan, progress: Progress, url: str) -> Flow[None]:
    """Looks at the plan as long as this worker is busy.

    Raises:
        SupersededError: The leader has begun another attempt.
        AbandonedError: Nothing will come of it.
        StoreError: The store kept failing.
    """
    pauses = _Pauses()
    while not progress.is_over:
        current = yield from _look(url)
        if current is not None:
            _require_same(current, plan, url)
        yield Wait(pauses.next())


def vote(plan: Plan, part: Part, attempt: Attempt, member: Member) -> Flow[None]:
    """Casts this worker's vote.

    Raises:
        AbandonedError: Another process acts as this worker.
        StoreError: The store kept failing, and the vote is that this worker failed.
        UnknownOutcomeError: Nobody can tell what the vote is.
    """
    key = plan.key("part", member.workers.rank)
    try:
        yield from create(key, (part.encode(),), attempt)
    except ConflictError as error:
        try:
            yield from _is_own("part", plan, attempt, member, error)
        except StoreError as failure:
            yield from _withhold(plan, attempt, member, failure)
    except StoreError as error:
        yield from _withhold(plan, attempt, member, error)


def _withhold(plan: Plan, attempt: Attempt, member: Member, failure: StoreError) -> Flow[None]:
    """After a vote that nobody knows the fate of: sees to it that it is not cast, unless it was."""
    key = plan.key("part", member.workers.rank)
    no = Part(failure=Failure.of(failure, f"Worker {member.workers.rank}: ")).encode()
    try:
        try:
            yield from create(key, (no,), attempt)
        except ConflictError as error:
            yield from _is_own("part", plan, attempt, member, error)
        current: Object | None = yield Get(key)
        # The leader removes a vote that it has counted, but only once the checkpoint is visible.
        if (yield from _is_committed(plan, member.url)):
            return
    except CheckpointError as error:
        raise UnknownOutcomeError(
            f"Cannot tell whether {member.url}/{plan.path} was saved: the store gave this worker, "
            f"{member.workers.rank}, no answer. Read the state again later: it lists the checkpoint or does not.",
            path=member.url,
        ) from error
    if current is None or current.data[:-SEAL_SIZE] == no:
        raise failure


def await_outcome(plan: Plan, member: Member, *, took: float) -> Flow[None]:
    """Waits until the checkpoint is visible.

    Args:
        plan: What this worker has voted on.
        member: This worker.
        took: How many seconds its share took.

    Raises:
        SupersededError: The leader has begun another attempt.
        AbandonedError: Nothing will come of it.
        UnknownOutcomeError: The leader has not told in time, or the store kept failing.
    """
    patience = 2 * member.workers.timeout + _SLOWNESS * took
    pauses = _Pauses()
    start: float = yield Wait(0.0)
    now = start
    failure: StoreError | None = None
    while now - start <= patience:
        try:
            current = yield from _look(member.url)
            stands = current is not None and current.attempt == plan.attempt
            if not stands and (yield from _is_committed(plan, member.url)):
                return
        except StoreError as error:
            failure = error
        else:
            if current is not None:
                _require_same(current, plan, member.url)
        now = yield Wait(pauses.next())
    with contextlib.suppress(StoreError):
        if (yield from _is_committed(plan, member.url)):  # the leader died before it took the plan down
            return
    raise UnknownOutcomeError(
        f"Cannot tell whether {member.url}/{plan.path} was saved: worker {member.workers.rank} has done its part, and "
        f"the leader has not told within {patience:.0f} seconds what became of it. Read the state again later: it "
        "lists the checkpoint or does not.",
        path=member.url,
    ) from failure


def gather(plan: Plan, progress: Progress, *, timeout: float, present: set[int], url: str) -> Flow[Votes]:
    """Waits for everybody's vote.

    Args:
        plan: What they vote on.
        progress: How far the leader's own share is.
        timeout: Seconds after which a worker that gives no sign is given up.
        present: Gets the ranks of those who have joined.
        url: The directory, for messages.

    Raises:
        AbandonedError: A worker gave no sign in time, or has failed, or two processes act as one.
        DiffersError: A worker has something else than it was taken to have.
        OccupiedError: A worker found objects of other attempts in its way.
        StoreError: The store kept failing.
    """
    roll = _Roll(plan, url)
    pauses = _Pauses(plan.size)
    now: float = yield Wait(0.0)
    begun, finished = now, None
    while roll.missing and progress.took != float("inf"):
        yield from roll.look()
        present.update(roll.joined)
        own = progress.took
        if own is not None and finished is None:
            finished = now
        for rank in roll.missing:
            due = begun + timeout if rank not in roll.joined else None
            if finished is not None and own is not None and rank in roll.joined:
                due = finished + timeout + _SLOWNESS * own
            if due is not None and now > due:
                raise _vanished(rank, plan, url, joined=rank in roll.joined)
        if roll.missing:
            now = yield Wait(pauses.next())
    return roll.parts


def await_joins(plan: Plan, *, timeout: float, present: set[int]) -> Flow[None]:
    """Waits until everybody has seen a plan, though nothing will come of it."""
    pauses = _Pauses(plan.size)
    start: float = yield Wait(0.0)
    now = start
    while now - start <= timeout and len(present) < plan.size - 1:
        absent = [rank for rank in range(1, plan.size) if rank not in present]
        found = yield GetAll(tuple(plan.key("join", rank) for rank in absent))
        present.update(rank for rank, join in zip(absent, found, strict=True) if join is not None)
        now = yield Wait(pauses.next())


@dataclass(slots=True)
class _Roll:
    """Who has joined, and who has voted."""

    plan: Plan
    url: str
    joined: dict[int, Attempt] = field(default_factory=dict)
    parts: dict[int, tuple[Part, Attempt]] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(1, self.plan.size) if rank not in self.parts]

    def look(self) -> Flow[None]:
        """Reads what those who are missing have said since."""
        keys = [(rank, self.plan.key("join", rank)) for rank in self.missing if rank not in self.joined]
        found = (yield GetAll(tuple(key for _, key in keys))) if keys else ()
        for (rank, key), read in zip(keys, found, strict=True):
            if read is not None:
                self.joined[rank] = decode_join(read.data, key, path=f"{self.url}/{key}")
        keys = [(rank, self.plan.key("part", rank)) for rank in self.missing if rank in self.joined]
        found = (yield GetAll(tuple(key for _, key in keys))) if keys else ()
        for (rank, key), read in zip(keys, found, strict=True):
            if read is not None:
                self._count(rank, *decode_part(read.data, key, path=f"{self.url}/{key}"))

    def _count(self, rank: int, part: Part, by: Attempt) -> None:
        if by != self.joined[rank]:
            raise _twice(rank, self.url)
        if part.is_occupied:
            raise OccupiedError
        if part.failure is not None:
            raise AbandonedError(part.failure)
        if part.manifest and self.plan.status == "open":
            raise DiffersError
        self.parts[rank] = part, by


class _Pauses:
    """How long to wait between two looks: longer and longer."""

    def __init__(self, workers: int = 0) -> None:
        self._pause = _FIRST_PAUSE + _PAUSE_A_WORKER * workers

    def next(self) -> float:
        """Seconds."""
        pause = self._pause
        self._pause = min(_LONGEST_PAUSE, pause * 1.5)
        return pause


def _look(url: str) -> Flow[Plan | None]:
    return _plan((yield Get(PLAN)), url)


def _plan(found: Object | None, url: str) -> Plan | None:
    return None if found is None else decode_plan(found.data, path=f"{url}/{PLAN}")


def _require_same(current: Plan, plan: Plan, url: str) -> None:
    """Passes if that is the plan still, and it stands."""
    if current.session != plan.session:
        raise _taken_over(url)
    if current.ordinal != plan.ordinal:
        raise _incomplete(f"The leader has given up the save of {url}/{plan.path}, and it was not published.")
    if current.failure is not None:
        raise AbandonedError(current.failure)
    if current.attempt != plan.attempt:
        raise SupersededError


def _is_committed(plan: Plan, url: str) -> Flow[bool]:
    record = _record((yield Get(STATE)), url)
    return record is not None and plan.state in (record.write_id, *record.lineage)


def _epoch(state: Object | None, url: str) -> int:
    with contextlib.suppress(CorruptError):
        record = _record(state, url)
        return record.epoch if record else 0
    return 0


def _record(state: Object | None, url: str) -> Record | None:
    return None if state is None else decode_state(state.data, path=f"{url}/{STATE}", directories=(url,)).record


def _taken_over(url: str) -> AbandonedError:
    text = (
        f"Cannot save to {url}: another job has taken it over; nothing of theirs was touched. Stop this job, or "
        "restore, or make new managers on all workers, which continue from what is there."
    )
    return AbandonedError(Failure("ConflictError", text, keep=True))


def _incomplete(text: str) -> AbandonedError:
    return AbandonedError(Failure("IncompleteError", text, keep=True))


def _twice(rank: int, url: str) -> AbandonedError:
    text = (
        f"Two processes act as worker {rank} of those that save to {url}; nothing was published. Give each worker a "
        "rank of its own, and make sure that no process of an earlier job is alive."
    )
    return AbandonedError(Failure("ConflictError", text))


def _vanished(rank: int, plan: Plan, url: str, *, joined: bool) -> AbandonedError:
    what = "has begun its share and not finished it" if joined else "has not come"
    text = (
        f"Cannot save {url}/{plan.path}: worker {rank} of {plan.size} {what} in time, so nothing was published. See "
        "whether it is alive. Every worker calls save() at the same steps, with the same directory; the next save may "
        "pass."
    )
    return AbandonedError(Failure("IncompleteError", text))
