"""What a worker makes of a plan. How it comes by one is in test_rendezvous.py."""

from dataclasses import replace

import pytest
from support.meeting import TERM, URL, member, plan

from ckpt_remote.ballot import Failure
from ckpt_remote.member import require_same_save
from ckpt_remote.origin import new_attempt
from ckpt_remote.state import Record, State
from ckpt_remote.verdicts import AbandonedError

REFUSED = Failure("StoreError", "Worker 0: 403")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "follow"),
        ({"status": "failed", "failure": REFUSED}, "follow"),
        ({"status": "over", "failure": REFUSED}, "wait"),
        ({"job": "another"}, "wait"),
        ({"size": 4}, "wait"),
        ({"since": "what another job found"}, "wait"),
    ],
    ids=str,
)
def test_who_is_new_follows_who_starts_from_what_it_has_found_itself(changes, verdict):
    assert verdict == member().verdict(plan(**changes))


def test_who_is_new_follows_another_that_has_published_nothing_and_shows_a_second_plan():
    me, left = member(since="a later state"), plan(is_first=True)
    assert "refuse" == me.verdict(left)
    me.seen.add(left.attempt.number)

    assert ["wait", "wait"] == [me.verdict(left), me.verdict(left)]
    assert "follow" == me.verdict(replace(left, attempt=new_attempt(TERM, 2)))


def test_who_has_objected_to_a_plan_and_is_answered_knows_that_its_leader_is_alive():
    me, left = member(since="a later state"), plan(is_first=True)
    answer = replace(left, status="over", failure=REFUSED)
    assert "wait" == me.verdict(answer)
    me.seen.add(left.attempt.number)

    assert "follow" == me.verdict(answer)


def test_a_no_that_could_not_be_said_is_said_as_long_as_the_plan_stands():
    me, shown = member(session="5e55"), plan()
    me.seen.add(shown.attempt.number)
    me.unsaid.add(shown.attempt.number)

    assert "refuse" == me.verdict(shown)
    assert "wait" == me.verdict(replace(shown, failure=REFUSED))


def test_a_save_behind_training_counts_strictly_until_all_have_waited_for_theirs():
    me, strict = member(), []
    for is_behind in (True, True, False):
        me.begin(is_behind=is_behind)
        strict.append(me.attendance.is_strict)
        if len(strict) == 1:
            me.meet()
    me.begin(is_behind=True)

    assert [True, False, False, True] == [*strict, me.attendance.is_strict]


def test_who_has_joined_a_leader_follows_no_other():
    with pytest.raises(AbandonedError) as raised:
        member(session="5e55").verdict(plan(session="new"))

    assert "ConflictError" == raised.value.failure.kind


@pytest.mark.parametrize(
    ("ordinal", "failure", "is_seen", "verdict"),
    [
        (5, None, False, "follow"), (5, None, True, "wait"), (5, REFUSED, True, "wait"),
        (4, None, False, "refuse"), (4, None, True, "wait"), (4, REFUSED, False, "wait"),
    ],
)  # fmt: skip
def test_a_plan_of_this_save_is_followed_and_an_older_one_refused_once(ordinal, failure, is_seen, verdict):
    me, shown = member(session="5e55", ordinal=4), plan(ordinal=ordinal, failure=failure)
    if is_seen:
        me.seen.add(shown.attempt.number)

    assert verdict == me.verdict(shown)


def test_who_takes_part_in_a_save_takes_no_plan_of_another_for_it():
    me = member(session="5e55", ordinal=4)
    me.accept(plan(ordinal=5))

    assert "follow" == me.verdict(plan(ordinal=5, attempt=new_attempt(TERM, 2)))
    for last, kind in ((REFUSED, "StoreError"), (None, "IncompleteError")):
        with pytest.raises(AbandonedError) as raised:
            me.verdict(plan(ordinal=6, last=last))
        assert kind == raised.value.failure.kind


def test_of_a_save_that_is_two_behind_nobody_tells_why():
    require_same_save(plan(ordinal=5), 5, URL)
    with pytest.raises(AbandonedError, match="has given up the save"):
        require_same_save(plan(ordinal=7, last=REFUSED), 5, URL)


def test_a_worker_is_the_same_whatever_it_says_in_one_attempt():
    me, first, second = member(), plan(), plan()

    assert me.identify(first) == me.identify(first) != first.attempt
    assert me.identify(second) != me.identify(first)


def state(*, epoch=1, latest=None):
    return State(latest=latest, record=Record(write_id="0d", term="7e", epoch=epoch), last_preserved_timestamp=0.0)


def test_another_has_the_directory_where_it_was_claimed_after_ones_own_leader_had():
    me = member()
    assert not me.has_lost_to(state(epoch=9)), "that may be its own leader's claim"
    me.accept(plan(epoch=4))

    assert [False, True] == [me.has_lost_to(state(epoch=epoch)) for epoch in (4, 5)]
    assert not me.has_lost_to(None)


@pytest.mark.parametrize(
    ("joined", "shown", "latest", "kind", "text"),
    [
        (False, None, None, "IncompleteError", "has not begun to save"),
        (False, None, "ckpt-9", "ConflictError", "another job has taken it over"),
        (True, None, "ckpt-9", "IncompleteError", "has not begun to save"),
        (False, plan(since="later", is_first=False), "ckpt-9", "IncompleteError", "is not let in"),
    ],
    ids=["nobody came", "another job saved", "joined before", "late"],
)
def test_who_gives_up_says_why_as_far_as_it_can_tell(joined, shown, latest, kind, text):
    me = member()
    if joined:
        me.accept(plan())
        me.begin(is_behind=False)
    if shown is not None:
        me.note(replace(shown, attempt=new_attempt(TERM, 1)))
    failure = me.give_up(shown, state(latest=latest)).failure

    assert kind == failure.kind
    assert text in failure.message
    assert 1 == me.attendance.in_vain
