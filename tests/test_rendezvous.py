"""How a worker meets its leader, what makes it give up, and what it is told then: one step at a time.

What these steps come to together is in test_crews.py.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
from support.meeting import TERM, TIMEOUT, URL, World, failure_of, member, plan
from support.places import read_all

from ckpt_remote.ballot import Failure, Part, decode_part
from ckpt_remote.commit import STATE
from ckpt_remote.errors import ConflictError, CorruptError, StoreError, UnknownOutcomeError
from ckpt_remote.follower import refuse
from ckpt_remote.origin import new_attempt
from ckpt_remote.patience import Progress
from ckpt_remote.probe import PLAN
from ckpt_remote.rendezvous import await_outcome, find_plan, join, look_around, object_to, vote, watch
from ckpt_remote.verdicts import AbandonedError, SupersededError

LOST = StoreError("no answer", transient=True)


@pytest.fixture
def world():
    return World()


# Finding the plan.


def test_a_plan_that_is_there_is_found_at_once(world):
    world.show(shown := plan())
    me = member()

    assert (shown, 0.0, "5e55") == (world.run(find_plan(me)), world.now, me.session)


def test_a_plan_that_comes_later_is_waited_for(world):
    world.at(50.0, world.show, shown := plan())

    assert shown == world.run(find_plan(member()))
    assert 50.0 <= world.now < 51.5


@pytest.mark.parametrize(
    "other",
    [
        {"job": "another"}, {"size": 4}, {"since": "what another job found"}, {"status": "over"}, {"ordinal": 0},
        {"failure": Failure("ValueError", "of long ago"), "status": "over"},
    ],
    ids=str,
)  # fmt: skip
def test_who_is_new_takes_no_plan_that_may_be_of_another_job_or_save(world, other):
    world.show(plan(**other))
    world.at(10.0, world.show, shown := plan())

    assert shown == world.run(find_plan(member()))


def test_an_attempt_that_is_over_is_not_found_again_unless_it_says_why(world):
    first = plan()
    me = member(session="5e55", seen={first.attempt.number})
    me.accept(first)
    world.show(first)
    world.at(10.0, world.show, failed := replace(first, failure=Failure("ValueError", "because")))

    assert failed == world.run(find_plan(me))


def test_who_looks_for_a_plan_looks_less_and_less_often_and_at_least_every_second(world):
    with pytest.raises(AbandonedError):
        world.run(find_plan(member()))
    pauses = [after - before for before, after in pairwise(world.looks)]

    assert 0.1 > pauses[0]
    assert sorted(pauses) == pytest.approx(pauses)
    assert 1.0 == pytest.approx(max(pauses))
    assert TIMEOUT < len(world.looks) < TIMEOUT + 60


def test_a_leader_that_does_not_come_is_given_up_after_the_timeout(world):
    failure = failure_of(world, find_plan(member()))

    assert TIMEOUT < world.now < TIMEOUT + 2
    assert ("IncompleteError", True) == (failure.kind, failure.keep)
    assert "The leader, worker 0, has not begun to save" in failure.message


def test_where_another_has_claimed_the_directory_and_shows_no_plan_that_is_told_after_a_while(world):
    world.claim(2)
    failure = failure_of(world, find_plan(member(epoch=1, session="5e55")))

    assert "ConflictError" == failure.kind
    assert 30 < world.now < 32


def test_who_knows_that_another_has_claimed_the_directory_is_told_at_once_until_it_reads_the_state_again(world):
    world.claim(2)
    me = member(epoch=1, session="5e55")
    failure_of(world, find_plan(me))
    me.begin(is_behind=False)
    before = world.now
    assert "ConflictError" == failure_of(world, find_plan(me)).kind
    assert before == world.now

    me.start_over("", None)
    me.begin(is_behind=False)
    world.at(before + 9.0, world.show, shown := plan(epoch=3, ordinal=3))
    assert shown == world.run(find_plan(me))


@pytest.mark.parametrize(("claims", "kind"), [(1, "IncompleteError"), (2, "ConflictError")])
def test_the_claim_of_its_own_leader_is_not_anothers_and_one_between_that_and_its_plan_is(claims, kind, world):
    """Its manager was made before that claim; then the leader died."""
    me = member()
    world.claim(claims)
    world.show(plan(epoch=1))
    world.run(find_plan(me))
    me.begin(is_behind=False)
    world.remove(PLAN)

    assert kind == failure_of(world, find_plan(me)).kind


def test_who_has_followed_nobody_yet_takes_a_claim_for_that_of_its_own_leader_and_waits(world):
    world.claim(2)

    assert "IncompleteError" == failure_of(world, find_plan(member(epoch=1))).kind
    assert TIMEOUT < world.now < TIMEOUT + 2


@pytest.mark.parametrize(
    ("latest", "session", "kind"),
    [(None, None, "ConflictError"), ("ckpt-1", None, "IncompleteError"), (None, "5e55", "IncompleteError")],
    ids=["new", "known", "after a leader"],
)
def test_a_checkpoint_that_came_without_this_worker_is_of_another_job(latest, session, kind, world):
    """Its leader has read the state at about the same time, so it will find a conflict, and show no plan."""
    world.put(STATE, b'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n')

    assert kind == failure_of(world, find_plan(member(latest=latest, session=session))).kind
    assert TIMEOUT < world.now < TIMEOUT + 2


def test_a_claim_that_was_there_before_tells_nothing(world):
    world.claim(2)

    assert "IncompleteError" == failure_of(world, find_plan(member(epoch=2, session="5e55"))).kind


def test_who_tells_of_its_failure_does_not_mind_that_the_plan_is_gone_by_then(world):
    me = member(session="5e55")
    world.show(plan(status="over", failure=Failure("StoreError", "no room")))

    def remove(asked, perform):
        if asked.verb == "put" and asked.keys[0].endswith("/join-1"):
            world.remove(PLAN)
        return perform()

    world.hand = remove
    world.run(refuse(me, ValueError("because")))

    assert "Worker 1: because" == me.excuse.message


def test_a_leader_of_another_session_has_taken_over(world):
    world.show(plan(session="new"))

    assert "ConflictError" == failure_of(world, find_plan(member(session="5e55"))).kind


@pytest.mark.parametrize("does", ["looks for a plan", "watches", "waits"])
def test_a_plan_that_comes_up_when_its_leader_has_long_lost_the_directory_tells_nothing(does, world):
    me, progress = member(session="5e55", epoch=2), Progress()
    shown = plan(epoch=2)
    world.show(plan(session="dead", epoch=1, attempt=new_attempt(TERM, 7)))
    world.at(10.0, world.commit, shown)
    world.at(10.0, world.show, shown)
    world.at(20.0, progress.finish, 20.0)
    flows = {
        "looks for a plan": find_plan(me),
        "watches": watch(shown, progress, URL),
        "waits": await_outcome(shown, me, took=0.0),
    }
    world.run(flows[does])

    assert world.now >= 10.0


def test_a_plan_of_a_save_that_this_worker_is_through_with_is_none(world):
    me = member(session="5e55", ordinal=4)
    world.show(plan(ordinal=4))
    shown = plan(ordinal=5, attempt=new_attempt(TERM, 5))
    world.at(20.0, world.show, shown)

    assert shown == world.run(find_plan(me))


def test_whoever_has_left_saves_out_follows_the_leader_in_the_next(world):
    me = member(session="5e55", ordinal=2)
    for ordinal in (3, 7, 8):
        world.show(shown := plan(ordinal=ordinal, attempt=new_attempt(TERM, ordinal)))

        assert shown == world.run(find_plan(me))
        me.begin(is_behind=False)


def test_a_save_that_a_worker_has_taken_part_in_is_not_taken_for_the_next(world):
    """The leader has tried again before this worker could learn that it had failed."""
    me = member(session="5e55")
    world.show(plan())
    world.run(find_plan(me))
    world.show(plan(ordinal=2, attempt=new_attempt(TERM, 2), last=Failure("ValueError", "because")))

    assert "ValueError" == failure_of(world, find_plan(me)).kind


def test_a_failure_that_was_there_before_is_told_unless_the_next_save_begins_soon(world):
    """Whoever left a save out finds it failed, while the others begin another."""
    failed = plan(ordinal=3, status="over", failure=Failure("ValueError", "because"))
    following = plan(ordinal=4, attempt=new_attempt(TERM, 4))
    world.show(failed)
    world.at(1.0, world.show, following)
    assert following == world.run(find_plan(member(session="5e55", ordinal=2)))
    world.show(failed)
    begun = world.now

    assert failed == world.run(find_plan(member(session="5e55", ordinal=2)))
    assert 3 < world.now - begun < 4


@pytest.mark.parametrize(
    ("absent", "waits"), [((1,), [3, 6, 12, 24, 48, 96, 100]), ((), [3] * 7), ((2,), [3] * 7)], ids=str
)
def test_who_finds_that_it_was_missed_again_and_again_waits_longer_each_time(absent, waits, world):
    """Each is too late for the other, as after an evaluation on one of them. Whatever else fails is told soon."""
    me = member(session="5e55", ordinal=2)
    for ordinal, expected in enumerate(waits, 3):
        world.show(plan(ordinal=ordinal, status="over", failure=Failure("IncompleteError", "late", absent=absent)))
        begun = world.now
        world.run(find_plan(me))
        me.begin(is_behind=False)

        assert expected <= world.now - begun < expected + 1.1


def test_a_failure_of_a_save_that_has_failed_here_too_is_not_told_again(world):
    """The store refused this worker, which went on, before the leader could say that it was refused, too."""
    me = member(session="5e55", ordinal=2)
    me.begin(is_behind=False)
    failed = plan(ordinal=3, status="over", failure=Failure("StoreError", "403"))
    world.at(5.0, world.show, failed)
    world.at(9.0, world.show, shown := plan(ordinal=4, attempt=new_attempt(TERM, 4)))

    assert shown == world.run(find_plan(me))


# Whose save is it: who saves behind training may be a save ahead of the leader, or behind it.


def what_it_said(world, plan):
    key = plan.key("part", 1)
    said = read_all(world.place).get(key)
    return said and decode_part(said, key, path="x")[0].failure


def test_a_plan_of_a_save_that_has_failed_here_is_told_so_and_the_next_one_followed(world):
    me = member(session="5e55", ordinal=2)
    me.excuse = Failure("StoreError", "Worker 1: 403")
    me.begin(is_behind=False)
    world.show(left := plan(ordinal=3))
    world.at(9.0, world.show, shown := plan(ordinal=4, attempt=new_attempt(TERM, 4)))

    assert shown == world.run(find_plan(me))
    assert Failure("StoreError", "Worker 1: 403") == what_it_said(world, left)
    assert what_it_said(world, shown) is None


def test_so_is_every_attempt_at_it(world):
    me = member(session="5e55", ordinal=2)
    me.begin(is_behind=False)
    attempts = [plan(ordinal=3), plan(ordinal=3, attempt=new_attempt(TERM, 2))]
    world.show(attempts[0])
    world.at(5.0, world.show, attempts[1])
    world.at(9.0, world.show, shown := plan(ordinal=4, attempt=new_attempt(TERM, 4)))

    assert shown == world.run(find_plan(me))
    assert {"IncompleteError"} == {what_it_said(world, attempt).kind for attempt in attempts}


def test_a_no_that_does_not_arrive_is_said_when_the_plan_is_seen_again(world):
    shown, me = plan(), member()
    world.show(shown)
    world.run(find_plan(me))
    world.hand = failing_puts(4)
    world.run(object_to(shown, failure := Failure("StoreError", "Worker 1: 403"), me))
    assert what_it_said(world, shown) is None
    me.excuse = failure
    me.begin(is_behind=False)
    world.at(9.0, world.show, following := plan(ordinal=2, attempt=new_attempt(TERM, 2)))

    assert following == world.run(find_plan(me))
    assert failure == what_it_said(world, shown)


def test_a_save_that_failed_at_the_leader_unseen_is_told_by_the_plan_of_the_next(world):
    me = member(session="5e55", ordinal=2)
    shown = plan(ordinal=4, last=Failure("StoreError", "Worker 0: 403"))
    world.show(shown)
    assert Failure("StoreError", "Worker 0: 403") == failure_of(world, find_plan(me))
    me.begin(is_behind=False)

    assert shown == world.run(find_plan(me))


def test_who_is_told_that_it_was_missed_left_that_save_out_and_is_at_the_next(world):
    shown = plan(ordinal=4, last=Failure("IncompleteError", "Worker 1 has not come", absent=(1,)))
    world.show(shown)

    assert shown == world.run(find_plan(member(session="5e55", ordinal=2)))


def test_who_waited_in_vain_votes_down_what_comes_after_all_if_it_may_be_a_step_ahead(world):
    me = member(session="5e55", ordinal=2, is_behind=True)
    failure_of(world, find_plan(me))
    me.begin(is_behind=True)
    world.show(late := plan(ordinal=3))
    world.at(world.now + 9.0, world.show, shown := plan(ordinal=4, attempt=new_attempt(TERM, 4)))

    assert shown == world.run(find_plan(me))
    assert "Worker 1 had waited for this save" in what_it_said(world, late).message


def test_a_leader_that_has_left_a_save_out_is_followed_in_the_next(world):
    me = member(session="5e55", ordinal=2)
    failure_of(world, find_plan(me))
    me.begin(is_behind=False)
    world.show(shown := plan(ordinal=3))

    assert shown == world.run(find_plan(me))


def test_who_has_left_a_number_out_says_so_and_waits_for_its_own(world):
    me = member(session="5e55", ordinal=2)
    me.attendance.number, me.attendance.former = 40, 20
    world.show(left := plan(ordinal=3, number=30, former=20))
    world.at(9.0, world.show, shown := plan(ordinal=4, number=40, former=30, attempt=new_attempt(TERM, 4)))

    assert shown == world.run(find_plan(me))
    assert "worker 1 is at number 40 already" in what_it_said(world, left).message


def test_who_comes_too_late_for_its_number_is_told_and_the_plan_waits_for_it(world):
    me = member(session="5e55", ordinal=2)
    me.attendance.number, me.attendance.former = 30, 20
    world.show(shown := plan(ordinal=4, number=40, former=30))
    failure = failure_of(world, find_plan(me))
    assert ("IncompleteError", None) == (failure.kind, what_it_said(world, shown))
    me.begin(is_behind=False)
    me.attendance.number = 40

    assert shown == world.run(find_plan(me))


def test_a_number_that_the_leader_has_left_out_is_missed_and_the_plan_waits_for_the_next(world):
    me = member(session="5e55", ordinal=2)
    me.attendance.number, me.attendance.former = 30, 20
    world.show(shown := plan(ordinal=3, number=40, former=20, last=Failure("StoreError", "of number 20")))
    failure = failure_of(world, find_plan(me))
    assert ("IncompleteError", None) == (failure.kind, what_it_said(world, shown))
    assert "or the leader has left this save out" in failure.message
    me.begin(is_behind=False)
    me.attendance.number = 40

    assert shown == world.run(find_plan(me))


def test_a_dead_jobs_plan_that_its_worker_has_joined_does_not_keep_the_next_job_from_its_first_save(world):
    """They have the same name, and the next one's workers come before its leader."""
    me = member(since="a claimed state")
    dead = plan(session="dead", is_first=True)
    world.show(dead)
    world.vote(dead, 1, Part())
    world.at(5.0, world.show, shown := plan(is_first=True, since="a claimed state", attempt=new_attempt(TERM, 2)))

    assert shown == world.run(find_plan(me))


def test_who_makes_its_manager_when_the_first_save_has_begun_says_so_and_both_know_at_once(world):
    """If the leader is dead, nobody answers, and its own may come yet."""
    me = member(since="a claimed state")
    world.show(shown := plan(is_first=True))
    answer = replace(shown, status="over", failure=Failure("IncompleteError", "it said so"))
    world.at(5.0, world.show, answer)

    assert answer == world.run(find_plan(me))
    assert world.now < 6
    assert "made its manager when worker 0 had begun" in what_it_said(world, shown).message


def test_a_failure_that_comes_while_one_looks_is_told_at_once(world):
    failed = plan(ordinal=3, status="failed", failure=Failure("ValueError", "because"))
    world.at(5.0, world.show, failed)

    assert failed == world.run(find_plan(member(session="5e55", ordinal=2)))
    assert world.now < 6


@pytest.mark.parametrize("before", [True, False], ids=["before it looked", "late"])
def test_who_comes_late_follows_a_leader_that_proves_to_be_alive(before, world):
    """Of a dead one a plan may be there, or come up late, but no second one."""
    me = member(since="a later state")
    left = plan(is_first=True)
    world.show(left) if before else world.at(5.0, world.show, left)
    world.run(look_around(me))
    assert "IncompleteError" == failure_of(world, find_plan(me)).kind
    me.begin(is_behind=False)
    world.show(shown := plan(is_first=True, ordinal=2, attempt=new_attempt(TERM, 2)))

    assert shown == world.run(find_plan(me))
    assert "5e55" == me.session


def test_who_comes_later_than_the_first_checkpoint_follows_nobody(world):
    """The leader may be one of before a restart that wakes up late."""
    me = member(since="a later state")
    world.run(look_around(me))
    for ordinal in (2, 3):
        world.show(plan(ordinal=ordinal, attempt=new_attempt(TERM, ordinal)))
        failure = failure_of(world, find_plan(me))
        assert "IncompleteError" == failure.kind
    assert "Worker 1 of 3 is not let in" in failure.message


def test_a_plan_that_is_damaged_is_corrupt(world):
    world.put(PLAN, b"damaged")
    with pytest.raises(CorruptError, match=f"{URL}/{PLAN}"):
        world.run(find_plan(member()))


# Joining.


def test_who_joins_says_whose_seals_its_objects_have(world):
    world.show(shown := plan())
    attempt = world.run(join(shown, member(2)))

    assert attempt.seal(shown.key("join", 2)) == read_all(world.place)[shown.key("join", 2)]
    assert attempt != shown.attempt


def test_two_processes_that_act_as_one_worker_are_told(world):
    world.show(shown := plan())
    world.run(join(shown, member(2)))
    failure = failure_of(world, join(shown, member(2)))

    assert ("ConflictError", True) == (failure.kind, failure.keep)
    assert "Two processes act as worker 2" in failure.message


def test_a_join_of_which_the_answer_is_lost_is_ones_own(world):
    world.show(shown := plan())
    world.hand = losing_the_answer_of_the_first_put()
    attempt = world.run(join(shown, member()))

    assert attempt.seal(shown.key("join", 1)) == read_all(world.place)[shown.key("join", 1)]


def losing_the_answer_of_the_first_put():
    lost = []

    def hand(asked, perform):
        answer = perform()
        if asked.verb == "put" and not lost:
            lost.append(asked)
            raise LOST
        return answer

    return hand


def test_a_join_that_the_leader_has_removed_already_is_of_an_attempt_that_is_over(world):
    def echo(asked, perform):
        """The client has sent it twice; in between, the leader has seen it and gone on."""
        if asked.verb == "put":
            raise ConflictError("there is something")
        return perform()

    world.hand = echo
    with pytest.raises(SupersededError):
        world.run(join(plan(), member()))


@pytest.mark.parametrize("shown", [None, plan(attempt=new_attempt(TERM, 2))], ids=["none", "another"])
def test_a_join_that_lands_when_the_attempt_is_over_is_of_no_use(shown, world):
    """All that was said about it is gone by then; so would be whatever this worker says now."""
    if shown is not None:
        world.show(shown)
    with pytest.raises(SupersededError):
        world.run(join(plan(), member()))


# Watching while one's own share goes up.


def test_who_watches_ends_when_its_share_is_done(world):
    progress = Progress()
    world.show(shown := plan())
    world.at(40.0, progress.finish, 40.0)

    world.run(watch(shown, progress, URL))
    assert 40.0 <= world.now < 41.5


@pytest.mark.parametrize(
    ("changes", "kind", "keep"),
    [
        ({"failure": Failure("StoreError", "no room", keep=True)}, "StoreError", True),
        ({"session": "new"}, "ConflictError", True),
        ({"ordinal": 2, "last": Failure("StoreError", "no room")}, "StoreError", False),
        ({"ordinal": 3, "last": Failure("StoreError", "no room")}, "IncompleteError", True),
        ({"ordinal": 2}, "IncompleteError", True),
    ],
    ids=["failed", "taken over", "the next", "the next but one", "given up"],
)
def test_who_watches_learns_within_seconds_that_nothing_comes_of_it(world, changes, kind, keep):
    shown = plan()
    world.show(shown)
    world.at(300.0, world.show, replace(shown, **changes))
    failure = failure_of(world, watch(shown, Progress(), URL))

    assert 300.0 <= world.now < 301.5
    assert (kind, keep) == (failure.kind, failure.keep)


def test_who_watches_learns_of_another_attempt_at_the_same_save(world):
    shown = plan()
    world.at(5.0, world.show, replace(shown, attempt=new_attempt(TERM, 1)))
    with pytest.raises(SupersededError):
        world.run(watch(shown, Progress(), URL))


def test_a_plan_that_is_gone_for_a_moment_tells_nothing(world):
    """Only a state can say that all is over."""
    progress = Progress()
    world.at(9.0, progress.call_off)

    world.run(watch(plan(), progress, URL))
    assert world.looks


# Voting.


def test_a_vote_is_there_sealed(world):
    shown, part, me = plan(), Part(index=b"i"), member()
    world.run(vote(shown, part, me))
    key = shown.key("part", 1)

    assert (part, me.identify(shown)) == decode_part(read_all(world.place)[key], key, path="x")


def test_a_vote_of_which_the_answer_is_lost_counts_once(world):
    shown = plan()
    world.hand = losing_the_answer_of_the_first_put()

    world.run(vote(shown, Part(index=b"i"), member()))
    assert [shown.key("part", 1)] == list(read_all(world.place))


def test_a_vote_of_another_process_is_told(world):
    shown = plan()
    world.vote(shown, 1, Part(index=b"other"))

    assert "Two processes" in failure_of(world, vote(shown, Part(), member())).message


def failing_puts(count):
    """So many puts do not arrive."""
    failed = []

    def hand(asked, perform):
        if asked.verb == "put" and len(failed) < count:
            failed.append(asked)
            raise LOST
        return perform()

    return hand


def test_a_vote_that_does_not_arrive_is_followed_by_a_no_so_that_all_know(world):
    shown = plan()
    world.hand = failing_puts(2)
    with pytest.raises(StoreError, match="no answer"):
        world.run(vote(shown, Part(index=b"i"), member()))
    cast, _ = decode_part(read_all(world.place)[shown.key("part", 1)], shown.key("part", 1), path="x")

    assert ("StoreError", "Worker 1: no answer") == (cast.failure.kind, cast.failure.message)


def test_a_vote_that_landed_late_stands_whatever_the_worker_thinks(world):
    """Both times no answer came, and the second time the first vote was there."""
    shown, me, puts = plan(), member(), []

    def late(asked, perform):
        if asked.verb != "put":
            return perform()
        puts.append(asked)
        if len(puts) <= 2:
            raise LOST
        world.vote(shown, 1, Part(index=b"i"), by=me.identify(shown))
        return perform()

    world.hand = late
    world.run(vote(shown, Part(index=b"i"), me))
    assert b"i" == decode_part(read_all(world.place)[shown.key("part", 1)], shown.key("part", 1), path="x")[0].index


def test_if_the_checkpoint_is_visible_the_vote_was_counted(world):
    """The leader has removed it by then, and the no comes too late to matter."""
    shown = plan()
    world.commit(shown)
    world.hand = failing_puts(2)

    world.run(vote(shown, Part(index=b"i"), member()))


def test_who_gets_no_answer_at_all_does_not_know(world):
    world.hand = failing_puts(99)
    with pytest.raises(UnknownOutcomeError, match=r"this worker, 1, could not say .* \(no answer\)"):
        world.run(vote(plan(), Part(index=b"i"), member()))


# Waiting for the outcome.


def test_the_outcome_is_what_the_state_says(world):
    shown = plan()
    world.show(shown)
    world.at(20.0, world.commit, shown)
    world.at(60.0, world.remove, PLAN)

    world.run(await_outcome(shown, member(), took=1.0))
    assert 20.0 <= world.now < 21.5


def test_a_later_save_tells_that_this_one_was_committed_if_the_state_remembers_it(world):
    """The leader may be ahead when a slow worker looks."""
    shown = plan()
    world.commit(shown, "1e", "1f")
    world.show(plan(ordinal=2))

    world.run(await_outcome(shown, member(), took=1.0))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"failure": Failure("ValueError", "different")}, "ValueError"),
        ({"session": "new"}, "ConflictError"),
        ({"ordinal": 2, "attempt": new_attempt(TERM, 2)}, "IncompleteError"),
    ],
    ids=["failed", "taken over", "given up"],
)
def test_who_waits_learns_that_nothing_comes_of_it(world, changes, kind):
    shown = plan()
    world.at(7.0, world.show, replace(shown, **changes))

    assert kind == failure_of(world, await_outcome(shown, member(), took=1.0)).kind


@pytest.mark.parametrize("stands", [True, False])
def test_who_waits_learns_that_the_state_has_gone_on_without_the_checkpoint(stands, world):
    """Another job has claimed the directory; if the leader is dead, nobody will say so."""
    shown = plan()
    if stands:
        world.show(shown)
    world.write_state(shown, "0f")
    failure = failure_of(world, await_outcome(shown, member(), took=1.0))

    assert ("IncompleteError", True) == (failure.kind, failure.keep)
    assert "the state was written otherwise before it could be" in failure.message
    assert 5 < world.now < 6


def test_who_waits_long_behind_others_is_not_told_what_nobody_can_know(world):
    """The state remembers only so many of its writes."""
    shown = plan()
    world.write_state(shown, *(f"{number:04x}" for number in range(40)))
    with pytest.raises(UnknownOutcomeError):
        world.run(await_outcome(shown, member(), took=1.0))


def test_who_waits_learns_of_another_attempt(world):
    shown = plan()
    world.at(7.0, world.show, replace(shown, attempt=new_attempt(TERM, 1)))
    with pytest.raises(SupersededError):
        world.run(await_outcome(shown, member(), took=1.0))


def test_a_leader_that_died_before_it_took_its_plan_down_is_not_waited_for(world):
    """Nor one whose plan a late duplicate of its own request has put up again."""
    shown = plan()
    world.show(shown)
    world.at(3.0, world.commit, shown)

    world.run(await_outcome(shown, member(), took=1.0))
    assert 5.0 <= world.now < 6.0


def test_who_waits_long_says_so(world, caplog):
    shown = plan()
    world.show(shown)
    with pytest.raises(UnknownOutcomeError):
        world.run(await_outcome(shown, member(), took=0.0))
    assert "Worker 1 has done its part of s3://bucket/run/ckpt-1, and waits 3" in caplog.text
    caplog.clear()
    world.remove(PLAN)

    failure_of(world, find_plan(member()))
    assert "Worker 1 has waited 3" in caplog.text


@pytest.mark.parametrize("took", [0.0, 50.0])
def test_a_leader_that_never_tells_leaves_the_outcome_unknown(world, took):
    """It waits longer than the leader may: twice the timeout, and three times as long as the share took."""
    world.show(shown := plan())
    with pytest.raises(UnknownOutcomeError, match=r"Cannot tell whether s3://bucket/run/ckpt-1 was saved: worker 1"):
        world.run(await_outcome(shown, member(), took=took))

    assert 2 * TIMEOUT + 3 * took < world.now < 2 * TIMEOUT + 3 * took + 2


def test_a_store_that_stumbles_while_one_waits_is_asked_again(world):
    shown = plan()
    world.commit(shown)

    def down(asked, perform):
        if world.now < 90:
            raise LOST
        return perform()

    world.hand = down
    world.run(await_outcome(shown, member(), took=0.0))
    assert 90 <= world.now < 95


def test_a_store_that_never_answers_leaves_the_outcome_unknown_and_is_the_cause(world):
    world.hand = failing_everything
    with pytest.raises(UnknownOutcomeError) as raised:
        world.run(await_outcome(plan(), member(), took=0.0))

    assert isinstance(raised.value.__cause__, StoreError)


def failing_everything(asked, perform):
    raise LOST
