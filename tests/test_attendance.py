"""Of which of the leader's saves a plan is, seen from a worker's."""

import pytest
from support.meeting import TIMEOUT, plan

from ckpt_remote.attendance import Attendance
from ckpt_remote.ballot import Failure
from ckpt_remote.workers import Workers

REFUSED = Failure("StoreError", "Worker 0: 403")


def attendance(*, ordinal=4, begun=1, at=1000.0, ended=990.0):
    """What worker 1 knows when it begins to save, and was in the leader's fourth save last."""
    found = Attendance(Workers(1, 3, timeout=TIMEOUT))
    found.agree(ordinal)
    found.end(ended)
    for _ in range(begun):
        found.begin(at)
    return found


def missed_by(*ranks):
    return Failure("IncompleteError", "a worker has not come", absent=ranks)


@pytest.mark.parametrize(
    ("ordinal", "last", "expected"),
    [
        (4, None, "before"),
        (5, None, "this"),
        (5, REFUSED, "this"),
        (6, None, "this"),
        (6, REFUSED, "missed"),
        (6, missed_by(2), "missed"),
        (7, REFUSED, "this"),
    ],
    ids=str,
)
def test_both_count_alike(ordinal, last, expected):
    assert expected == attendance().relation(plan(ordinal=ordinal, last=last), 1001.0)


def test_what_failed_here_before_there_was_a_plan_counts():
    found = attendance(begun=3)

    assert ["before", "before", "this"] == [found.relation(plan(ordinal=ordinal), 1001.0) for ordinal in (5, 6, 7)]


def test_a_worker_counts_from_the_last_save_that_is_known():
    found = attendance(begun=3)
    found.agree(9)
    found.begin(1010.0)

    assert ["before", "this"] == [found.relation(plan(ordinal=ordinal), 1011.0) for ordinal in (9, 10)]


@pytest.mark.parametrize(
    ("ended", "now", "expected"),
    [(899.0, 1001.0, "this"), (901.0, 1001.0, "missed"), (899.0, 1101.0, "missed")],
    ids=["was in no save meanwhile", "was in one", "is in one that long"],
)
def test_who_was_missed_has_left_the_save_out_if_it_was_in_no_save_meanwhile(ended, now, expected):
    assert expected == attendance(ended=ended).relation(plan(ordinal=6, last=missed_by(1)), now)


def test_who_begins_for_the_first_time_can_have_left_saves_out():
    found = Attendance(Workers(1, 3, timeout=TIMEOUT))
    found.begin(5.0)

    assert "this" == found.relation(plan(ordinal=2, last=missed_by(1, 2)), 6.0)
    assert "missed" == found.relation(plan(ordinal=2, last=REFUSED), 6.0)


def waited_in_vain(*, times=1):
    found = attendance(begun=0)
    for number in range(times):
        found.begin(1000.0 + 110.0 * number)
        found.give_up(1100.0 + 110.0 * number)
        found.end(1100.0 + 110.0 * number)
    found.begin(1110.0 + 110.0 * times)
    return found


@pytest.mark.parametrize(
    ("idle", "preparation", "expected"),
    [(None, 1.0, "this"), (100.0, 1.0, "this"), (99.0, 1.0, "before"), (999.0, 121.0, "before")],
    ids=["never saved before", "was in no save meanwhile", "was in the one before", "was in this one"],
)
def test_a_leader_that_did_not_come_has_left_the_save_out_if_it_was_in_no_save_meanwhile(idle, preparation, expected):
    shown = plan(ordinal=5, idle=idle, preparation=preparation)

    assert expected == waited_in_vain().relation(shown, 1221.0)


def test_what_has_not_been_left_out_counts_though_nobody_came():
    """The leader's has failed before it could show a plan."""
    found = waited_in_vain()

    assert "this" == found.relation(plan(ordinal=6, idle=1.0, last=REFUSED), 1221.0)
    assert "missed" == found.relation(plan(ordinal=7, idle=1.0, last=REFUSED), 1221.0)


def test_a_leader_can_leave_several_out():
    found = waited_in_vain(times=2)

    assert "this" == found.relation(plan(ordinal=5, idle=210.0), 1331.0)
    assert "before" == found.relation(plan(ordinal=5, idle=200.0), 1331.0)
    assert "before" == found.relation(plan(ordinal=4, idle=999.0), 1331.0)
