"""Of which of the leader's saves a plan is, seen from a worker's."""

import pytest
from support.meeting import plan

from ckpt_remote.attendance import Attendance
from ckpt_remote.ballot import Failure

REFUSED = Failure("StoreError", "Worker 0: 403")
MISSED = Failure("IncompleteError", "worker 1 has not come", absent=(1,))


def attendance(*, begun=1, is_strict=False, number=None, former=None):
    """What worker 1 knows when it begins to save, and was in the leader's fourth save last."""
    found = Attendance(1)
    found.agree(4)
    for _ in range(begun):
        found.begin(is_strict=is_strict)
    found.number, found.former = number, former
    return found


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize(
    ("ordinal", "last", "expected"),
    [(4, None, "before"), (5, None, "this"), (5, REFUSED, "this"), (5, MISSED, "this"), (6, REFUSED, "missed")],
    ids=str,
)
def test_equal_counts_are_equal_saves(ordinal, last, expected, is_strict):
    assert expected == attendance(is_strict=is_strict).relation(plan(ordinal=ordinal, last=last))


def test_what_failed_here_before_there_was_a_plan_counts():
    found = attendance(begun=3)

    assert ["before", "before", "this"] == [found.relation(plan(ordinal=ordinal)) for ordinal in (5, 6, 7)]


def test_a_worker_counts_from_the_last_save_that_is_known():
    found = attendance(begun=3)
    found.agree(9)
    found.begin(is_strict=False)

    assert ["before", "this"] == [found.relation(plan(ordinal=ordinal)) for ordinal in (9, 10)]


@pytest.mark.parametrize(("is_strict", "expected"), [(False, "this"), (True, "missed")])
def test_who_was_missed_has_left_the_save_out_unless_it_may_only_be_late(is_strict, expected):
    assert expected == attendance(is_strict=is_strict).relation(plan(ordinal=6, last=MISSED))


@pytest.mark.parametrize(("is_strict", "expected"), [(False, "this"), (True, "before")])
def test_a_leader_that_did_not_come_has_left_the_save_out_unless_it_may_only_be_late(is_strict, expected):
    found = attendance(begun=2, is_strict=is_strict)
    found.in_vain = 1

    assert [expected, "this"] == [found.relation(plan(ordinal=ordinal)) for ordinal in (5, 6)]
    assert "before" == found.relation(plan(ordinal=4))


@pytest.mark.parametrize(
    ("theirs", "own", "expected"),
    [
        ((40, 30), (40, 30), "this"),
        ((40, 30), (40, 20), "this"),
        ((30, 20), (40, 20), "before"),
        ((30, 20), (40, 30), "before"),
        ((40, 30), (30, 20), "missed"),
        ((50, 30), (40, 30), "missed"),
        ((50, 30), (40, None), "missed"),
        ((50, None), (40, 30), "this"),
        ((7, None), (8, None), "this"),
        ((8, None), (7, None), "this"),
        ((7, 70), (8, 70), "this"),
    ],
    ids=str,
)
def test_numbers_that_grow_tell_whatever_the_counts_say(theirs, own, expected):
    found = attendance(is_strict=True, number=own[0], former=own[1])

    assert {expected} == {
        found.relation(plan(ordinal=ordinal, number=theirs[0], former=theirs[1], last=REFUSED)) for ordinal in range(9)
    }


@pytest.mark.parametrize(
    ("former", "number", "expected"),
    [(30, 30, True), (20, 30, False), (40, 30, False), (None, 30, True), (20, None, True)],
)
def test_what_the_leader_tells_of_its_former_save_is_of_this_one_unless_numbers_say_otherwise(former, number, expected):
    assert expected == attendance(number=number, former=10).is_former(plan(number=50, former=former))


def test_a_number_that_is_used_again_and_again_tells_nothing():
    found = attendance(number=1, former=1)

    assert ["before", "this", "missed"] == [
        found.relation(plan(ordinal=ordinal, number=1, former=1, last=REFUSED)) for ordinal in (4, 5, 6)
    ]
