"""How a worker that does not lead meets the one that does, in the store and nowhere else.

    the leader                                   each other worker
    ├── publish the plan                         ├── find_plan
    ├── (its own share goes up)                  ├── join
    ├── gather         a vote of everybody       ├── (its share goes up, while watch looks at the plan)
    ├── (commit)                                 ├── vote           once for all: its part, or why there is none
    └── take_down      the plan                  └── await_outcome  what the state says

Promises: a vote is cast once, and cannot be taken back: who has not voted can still make the attempt fail, and who has
must wait to learn. Nothing is decided by a listing or a clock: time only says when to give up. What the leader says,
here or of another worker, is what is raised. The leader's side is `roll_call`.
"""

import contextlib
import logging
from typing import Literal

from ckpt_remote.ballot import Failure, Part, Plan, decode_plan
from ckpt_remote.commit import STATE
from ckpt_remote.errors import CheckpointError, ConflictError, CorruptError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Flow, Get, GetAll, Wait
from ckpt_remote.member import Member, require_same_save
from ckpt_remote.origin import SEAL_SIZE, Attempt, read_seal
from ckpt_remote.patience import SLOWNESS, Pauses, Progress, Reminders
from ckpt_remote.probe import PLAN
from ckpt_remote.state import State, decode_state
from ckpt_remote.store import Object
from ckpt_remote.upload import create
from ckpt_remote.verdicts import AbandonedError, SupersededError, overtaken, taken_over, twice

__all__ = [
    "answer",
    "await_outcome",
    "find_plan",
    "join",
    "look_around",
    "object_to",
    "require",
    "vote",
    "watch",
]

_log = logging.getLogger(__name__)

# Seconds in which a leader that has claimed the directory is expected to show a plan.
_GRACE = 30.0
# Seconds after which the state is asked what has become of a plan that stands all the same: its leader may have died
# before it could take it down.
_SETTLED = 5.0


def look_around(member: Member) -> Flow[None]:
    """Notes what is there when a worker reads the state that has yet to join a leader."""
    if member.session is None:
        with contextlib.suppress(CorruptError):
            plan = yield from _look(member.url, member.epoch)
            if plan is not None:
                member.note(plan)


def find_plan(member: Member) -> Flow[Plan]:
    """Waits for the leader's plan of this save.

    Raises:
        AbandonedError: The leader has not come in time or has given this save up, or another job has taken the
            directory over.
        StoreError: The store kept failing.
    """
    pauses, reminders = Pauses(), Reminders()
    start: float = yield Wait(0.0)
    now, stale, patience = start, "", 0.0
    while True:
        found, state = yield GetAll((PLAN, STATE))
        plan = _plan(found, member.url, member.epoch)
        verdict = "wait" if plan is None else member.verdict(plan)
        if plan is not None and verdict == "refuse":
            yield from object_to(plan, member.objection(plan), member)
        if plan is not None and verdict == "follow":
            if now == start and plan.failure is not None:
                stale, patience = plan.attempt.number, member.patience()
            is_stale = plan.attempt.number == stale
            if not is_stale or now - start >= patience:
                is_missed = is_stale and plan.failure is not None and member.workers.rank in plan.failure.absent
                member.overtaken = member.overtaken + 1 if is_missed and patience else 0
                member.accept(plan)
                return plan
        waited = now - start
        if member.has_lost or waited > min(_GRACE, member.workers.timeout):
            known = None if state is None else _legible(state, member.url)
            if member.has_lost_to(known):
                raise taken_over(member.url)
            if waited > member.workers.timeout:
                raise member.give_up(plan, known)
        if reminders.is_due(waited):
            _log.warning(
                "Worker %d has waited %.0f seconds for worker 0 to begin to save to %s, of %.0f at most",
                member.workers.rank, waited, member.url, member.workers.timeout,
            )  # fmt: skip
        now = yield Wait(pauses.next())


def join(plan: Plan, member: Member) -> Flow[Attempt]:
    """Says that this worker is here, and returns whose seals its objects get.

    Raises:
        AbandonedError: Another process acts as this worker.
        SupersededError: The attempt is over.
        StoreError: The store kept failing.
    """
    attempt = member.identify(plan)
    try:
        yield from create(plan.key("join", member.workers.rank), (), attempt)
    except ConflictError as error:
        if not (yield from _is_own("join", plan, attempt, member, error)):
            raise SupersededError from error
    # It may have landed when all that was said about the attempt had been removed: then nobody hears what follows.
    yield from require(plan, member.url)
    return attempt


def require(plan: Plan, url: str) -> Flow[None]:
    """Passes if that plan is up.

    Raises:
        SupersededError: It is not.
        StoreError: The store kept failing.
    """
    current = yield from _look(url, plan.epoch)
    if current is None or current.attempt != plan.attempt:
        raise SupersededError


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
        raise twice(member.workers.rank, member.url, keep=True) from cause
    return current is not None


def watch(plan: Plan, progress: Progress, url: str) -> Flow[None]:
    """Looks at the plan as long as this worker is busy.

    Raises:
        SupersededError: The leader has begun another attempt.
        AbandonedError: Nothing will come of it.
        StoreError: The store kept failing.
    """
    pauses = Pauses(busy=True)
    while not progress.is_over:
        current = yield from _look(url, plan.epoch)
        if current is not None:
            _require_same(current, plan, url)
        yield Wait(pauses.next())


def answer(plan: Plan, part: Part, member: Member) -> Flow[None]:
    """Says whatever does not make the attempt pass.

    Raises:
        AbandonedError: Another process acts as this worker.
        StoreError: The store kept failing.
    """
    attempt = member.identify(plan)
    try:
        yield from create(plan.key("part", member.workers.rank), (part.encode(),), attempt)
    except ConflictError as error:
        yield from _is_own("part", plan, attempt, member, error)


def object_to(plan: Plan, failure: Failure, member: Member) -> Flow[None]:
    """Says that this worker has failed; if the store does not let it, it is said when the plan is seen again.

    Raises:
        AbandonedError: Another process acts as this worker.
    """
    member.seen.add(plan.attempt.number)
    try:
        yield from join(plan, member)
        yield from answer(plan, Part(failure=failure), member)
    except SupersededError:
        return
    except AbandonedError:
        if member.session is not None:
            raise
        # It is the plan of a job that has died, whose worker had joined it.
    except StoreError as error:
        member.unsaid.add(plan.attempt.number)
        _log.info("Worker %d could not say that it has failed, and will try again: %s", member.workers.rank, error)
    else:
        member.unsaid.discard(plan.attempt.number)


def vote(plan: Plan, part: Part, member: Member) -> Flow[None]:
    """Says that this worker's share is durable.

    Raises:
        AbandonedError: Another process acts as this worker.
        StoreError: The store kept failing, and the vote is that this worker failed.
        UnknownOutcomeError: Nobody can tell what the vote is.
    """
    try:
        yield from answer(plan, part, member)
    except StoreError as error:
        yield from _withhold(plan, member, error)


def _withhold(plan: Plan, member: Member, failure: StoreError) -> Flow[None]:
    """After a vote that nobody knows the fate of: sees to it that it is not cast, unless it was."""
    no = Part(failure=Failure.of(failure, f"Worker {member.workers.rank}: "))
    try:
        yield from answer(plan, no, member)
        current: Object | None = yield Get(plan.key("part", member.workers.rank))
        # The leader removes a vote that it has counted, but only once the checkpoint is visible.
        if _fate(plan, (yield Get(STATE)), member.url) == "visible":
            return
    except CheckpointError as error:
        raise UnknownOutcomeError(
            f"Cannot tell whether {member.url}/{plan.path} was saved: this worker, {member.workers.rank}, could not "
            f"say that its part is done, or read what became of it ({error}). Read the state again later: it lists the "
            "checkpoint or does not. Or restart the job: restore_or_initialize() takes it if it is there.",
            path=member.url,
        ) from error
    if current is None or current.data[:-SEAL_SIZE] == no.encode():
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
    patience = 2 * member.workers.timeout + SLOWNESS * took
    pauses, reminders = Pauses(), Reminders()
    start: float = yield Wait(0.0)
    now = start
    failure: CheckpointError | None = None
    while now - start <= patience:
        try:
            current = yield from _look(member.url, plan.epoch)
            is_settled = now - start >= _SETTLED
            stands = current is not None and current.attempt == plan.attempt
            fate = "open" if stands and not is_settled else _fate(plan, (yield Get(STATE)), member.url)
            if fate == "visible":
                return
        except (StoreError, CorruptError) as error:  # one bad read says nothing
            failure = error
        else:
            if current is not None:
                _require_same(current, plan, member.url)
            if fate == "lost" and is_settled:  # before, the leader may yet say why
                raise overtaken(plan, member.url)
        if reminders.is_due(now - start):
            _log.warning(
                "Worker %d has done its part of %s/%s, and waits %.0f seconds for the others, of %.0f at most",
                member.workers.rank, member.url, plan.path, now - start, patience,
            )  # fmt: skip
        now = yield Wait(pauses.next())
    with contextlib.suppress(StoreError, CorruptError):
        if _fate(plan, (yield Get(STATE)), member.url) == "visible":  # the leader died before it took the plan down
            return
    raise UnknownOutcomeError(
        f"Cannot tell whether {member.url}/{plan.path} was saved: worker {member.workers.rank} has done its part, and "
        f"the leader has not told within {patience:.0f} seconds what became of it. Read the state again later: it "
        "lists the checkpoint or does not. Or restart the job: restore_or_initialize() takes it if it is there.",
        path=member.url,
    ) from failure


def _look(url: str, epoch: int) -> Flow[Plan | None]:
    return _plan((yield Get(PLAN)), url, epoch)


def _plan(found: Object | None, url: str, epoch: int) -> Plan | None:
    """The plan, unless its leader had lost the directory before it was claimed the `epoch`-th time."""
    plan = None if found is None else decode_plan(found.data, path=f"{url}/{PLAN}")
    # One that was under way when its leader died may come up at any time after.
    return None if plan is None or plan.epoch < epoch else plan


def _require_same(current: Plan, plan: Plan, url: str) -> None:
    """Passes if that is the plan still, and it stands."""
    if current.session != plan.session:
        raise taken_over(url)
    require_same_save(current, plan.ordinal, f"{url}/{plan.path}")
    if current.failure is not None:
        raise AbandonedError(current.failure)
    if current.attempt != plan.attempt:
        raise SupersededError


def _fate(plan: Plan, found: Object | None, url: str) -> Literal["visible", "lost", "open"]:
    """What the state says of an attempt; it is lost if another write has come next after what it builds upon."""
    record = None if found is None else _state(found, url).record
    if record is None:
        return "open"
    writes = (record.write_id, *record.lineage)
    if plan.state in writes:
        return "visible"
    is_next_known = record.term == plan.attempt.term and 0 < record.serial - plan.attempt.serial <= len(writes)
    return "lost" if is_next_known else "open"


def _legible(found: Object, url: str) -> State | None:
    with contextlib.suppress(CorruptError):
        return _state(found, url)
    return None


def _state(found: Object, url: str) -> State:
    return decode_state(found.data, path=f"{url}/{STATE}", directories=(url,))
