"""Many workers save together in every schedule that chance finds, and each rule of their protocol is needed.

`make test` runs a thousand schedules and looks for each mutant; `make soak` runs at least fifty thousand.
"""

import dataclasses
import os
from collections.abc import Callable
from types import FunctionType
from typing import TypeAlias

import pytest
from support.crews import Crews
from support.exploration import explore, hunt
from support.schedules import Faults

from ckpt_remote import attendance, follower, leader, member, rendezvous
from ckpt_remote.errors import ConflictError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Put
from ckpt_remote.layout import assign
from ckpt_remote.probe import PLAN

SCHEDULES = max(1000, int(os.environ.get("CKPT_REMOTE_SCHEDULES", "0")) // 2)
MUTANT_SCHEDULES = 6_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("jobs", [1, 2])
def test_no_schedule_of_many_workers_breaks_a_promise(jobs, capsys):
    outcome = explore(Crews, range(SCHEDULES // jobs), jobs=jobs)
    with capsys.disabled():
        print(f"\n{jobs} jobs at first: {outcome}")

    assert [] == outcome.violations
    assert [] == outcome.missing(
        "before", "after", "late", "crash", "sleep", "fenced", "left out", "unknown", "IncompleteError", "together"
    )


# The mutants: each takes one rule away.


def the_leader_does_not_wait_for_everybody(monkeypatch):
    def hasty(plan, *rest, **known):
        votes = yield from real(dataclasses.replace(plan, size=max(2, plan.size - 1)), *rest, **known)
        return votes

    real = leader.gather
    monkeypatch.setattr(leader, "gather", hasty)


def a_vote_can_be_taken_back(monkeypatch):
    """Who gets no answer says that it failed, whatever the leader has made of its vote."""

    def withhold(plan, member, failure):
        raise failure
        yield

    monkeypatch.setattr(rendezvous, "_withhold", withhold)


def a_vote_that_was_withheld_is_believed_without_a_look_at_the_state(monkeypatch):
    real = rendezvous._withhold
    withhold = FunctionType(real.__code__, {**vars(rendezvous), "_fate": lambda plan, found, url: "open"})
    monkeypatch.setattr(rendezvous, "_withhold", withhold)


def silence_of_the_leader_is_taken_for_failure(monkeypatch):
    def impatient(plan, member, *, took):
        try:
            yield from real(plan, member, took=took)
        except UnknownOutcomeError as error:
            raise StoreError(str(error)) from error

    real = rendezvous.await_outcome
    monkeypatch.setattr(follower, "await_outcome", impatient)


def workers_take_back_what_an_index_may_name(monkeypatch):
    def ungrateful(cls, error, who="", *, keep=False):
        return real(cls, error, who)

    real = rendezvous.Failure.of.__func__
    monkeypatch.setattr(rendezvous.Failure, "of", classmethod(ungrateful))


def all_workers_use_the_seal_of_the_plan(monkeypatch):
    monkeypatch.setattr(member, "new_attempt", lambda term, serial: CURRENT[0])

    def join(plan, member):
        CURRENT[:] = [plan.attempt]
        return (yield from real(plan, member))

    real = rendezvous.join
    monkeypatch.setattr(follower, "join", join)


CURRENT = []


def a_plan_of_another_job_is_joined(monkeypatch):
    def careless(self, plan):
        named = dataclasses.replace(plan, job=self.workers.job)
        if self.session is None:
            named = dataclasses.replace(named, since=self.since)
        return real(self, named)

    real = member.Member.verdict
    monkeypatch.setattr(member.Member, "verdict", careless)


def a_plan_comes_up_whatever_is_there_by_then(monkeypatch):
    def blunt(me, plan, guard):
        me.litter += plan.keys()
        try:
            version = yield Put(PLAN, (plan.encode(),), "overwrite")
        except ConflictError as error:
            raise StoreError("no answer") from error
        me.plan = plan, version

    monkeypatch.setattr(leader, "_put_up", blunt)


def what_all_have_is_not_compared(monkeypatch):
    monkeypatch.setattr(leader, "compare", lambda *arguments, **named: frozenset())


def copies_that_have_drifted_count(monkeypatch):
    def generous(manifests, led):
        return assign(manifests, frozenset())

    monkeypatch.setattr(leader, "assign", generous)
    monkeypatch.setattr(follower, "assign", generous)


def the_state_is_not_asked_what_became_of_a_plan_that_is_gone(monkeypatch):
    monkeypatch.setattr(rendezvous, "_fate", lambda plan, found, url: "visible")


def control_objects_go_before_the_state_is_written(monkeypatch):
    def early(self, plan, merged, created, target):
        yield from leader.take_down(self.me)
        return (yield from real(self, plan, merged, created, target))

    real = leader._Attempts._publish
    monkeypatch.setattr(leader._Attempts, "_publish", early)


def a_plan_of_a_save_that_has_failed_here_is_joined(monkeypatch):
    take_for_this(monkeypatch, "before")


def a_failure_that_nobody_saw_is_not_told(monkeypatch):
    take_for_this(monkeypatch, "missed")


def take_for_this(monkeypatch, relation):
    def careless(self, plan):
        found = real(self, plan)
        return "this" if found == relation else found

    real = attendance.Attendance.relation
    monkeypatch.setattr(attendance.Attendance, "relation", careless)


Mutant: TypeAlias = Callable[[pytest.MonkeyPatch], None]

# Each in the world in which it is found soonest.
RIVALS = {"jobs": 2, "faults": Faults(fail=0.2, crash=0.004, sleep=0.03, restarts=2)}
STUMBLING = {"jobs": 1, "faults": Faults(fail=0.3, crash=0.0, sleep=0.0, restarts=0)}
SLEEPY_RIVALS = {"jobs": 2, "faults": Faults(fail=0.2, crash=0.001, sleep=0.15, restarts=1)}
SLEEPY = {"jobs": 1, "faults": Faults(fail=0.06, crash=0.001, sleep=0.06, restarts=1)}
MUTANTS: list[tuple[Mutant, dict[str, object]]] = [
    (the_leader_does_not_wait_for_everybody, RIVALS),
    (a_vote_can_be_taken_back, RIVALS),
    (a_vote_that_was_withheld_is_believed_without_a_look_at_the_state, RIVALS),
    (silence_of_the_leader_is_taken_for_failure, SLEEPY),
    (workers_take_back_what_an_index_may_name, RIVALS),
    (all_workers_use_the_seal_of_the_plan, RIVALS),
    (a_plan_of_another_job_is_joined, RIVALS),
    (a_plan_comes_up_whatever_is_there_by_then, STUMBLING),
    (what_all_have_is_not_compared, RIVALS),
    (copies_that_have_drifted_count, RIVALS),
    (the_state_is_not_asked_what_became_of_a_plan_that_is_gone, RIVALS),
    (control_objects_go_before_the_state_is_written, SLEEPY_RIVALS),
    (a_plan_of_a_save_that_has_failed_here_is_joined, RIVALS),
    (a_failure_that_nobody_saw_is_not_told, RIVALS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "world"), MUTANTS, ids=lambda it: getattr(it, "__name__", ""))
def test_without_any_one_of_its_rules_the_protocol_of_many_workers_breaks(mutant, world, monkeypatch, capsys):
    mutant(monkeypatch)
    with capsys.disabled():
        violations = hunt(mutant.__name__, Crews, MUTANT_SCHEDULES, **world)

    assert violations
