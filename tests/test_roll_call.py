"""How long the leader waits for its workers, and what makes it give up: one step at a time.

What these steps come to together is in test_crews.py.
"""

import pytest
from support.meeting import TERM, TIMEOUT, URL, World, failure_of, plan

from ckpt_remote.ballot import Failure, Part
from ckpt_remote.commit import STATE
from ckpt_remote.origin import new_attempt
from ckpt_remote.patience import Progress
from ckpt_remote.roll_call import await_joins, gather
from ckpt_remote.verdicts import AbandonedError, DiffersError, FencedError, OccupiedError


@pytest.fixture
def world():
    return World()


# Gathering votes.


def gathering(world, shown, progress=None, present=None):
    if progress is None:
        progress = Progress()
        progress.finish(1.0)
    return gather(shown, progress, world.own(), timeout=TIMEOUT, present=set() if present is None else present, url=URL)


def test_the_leader_has_everybodys_vote_and_knows_whose_seals_they_have(world):
    shown = plan()
    first = world.vote(shown, 1, Part(index=b"1"))
    second = new_attempt(TERM, 1)
    world.at(30.0, world.vote, shown, 2, Part(index=b"2"), second)

    assert {1: (Part(index=b"1"), first), 2: (Part(index=b"2"), second)} == world.run(gathering(world, shown))
    assert 30 <= world.now < 31.5


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (Part(is_occupied=True), OccupiedError),
        (Part(manifest=b"what I have"), DiffersError),
        (Part(failure=Failure("StoreError", "Worker 2: no room")), AbandonedError),
    ],
    ids=["occupied", "differs", "failed"],
)
def test_one_no_ends_it_at_once_whoever_is_missing(world, part, error):
    shown = plan()
    world.at(3.0, world.vote, shown, 2, part)
    with pytest.raises(error) as raised:
        world.run(gathering(world, shown))

    assert world.now < 5
    assert part.failure == getattr(raised.value, "failure", None)


def test_a_worker_that_is_asked_what_it_has_may_say_it(world):
    shown = plan(status="asking")
    for rank in (1, 2):
        world.vote(shown, rank, Part(manifest=b"what I have"))

    assert {1, 2} == set(world.run(gathering(world, shown)))


def test_who_has_not_joined_in_time_is_named_as_one_who_has_not_come(world):
    shown = plan()
    world.vote(shown, 1, Part())
    failure = failure_of(world, gathering(world, shown))

    assert TIMEOUT < world.now < TIMEOUT + 2
    assert "IncompleteError" == failure.kind
    assert "worker 2 of 3 has not come in time" in failure.message


def test_the_leader_says_for_whom_it_waits_and_how_long_at_most(world, caplog):
    shown = plan(size=20)
    for rank in (1, 2, 5):
        world.vote(shown, rank, Part())
    failure_of(world, gathering(world, shown))

    who = "worker 3, 4, 6, 7, 8, 9, 10, 11 and 8 more of 20"
    assert f"ckpt-1 waits for {who}: 30 seconds, of {TIMEOUT:.0f} at most" in caplog.text


def test_while_its_own_share_goes_up_the_leader_cannot_say_how_long_it_waits(world, caplog):
    shown, progress = plan(), Progress()
    by = {rank: world.vote(shown, rank) for rank in (1, 2)}
    for rank, attempt in by.items():
        world.at(40.0, world.vote, shown, rank, Part(), attempt)
    world.run(gathering(world, shown, progress))

    assert caplog.messages == [f"{URL}/ckpt-1 waits for worker 1, 2 of 3: 30 seconds"]


def test_the_leader_remembers_who_has_joined(world):
    shown, present = plan(), set()
    world.vote(shown, 1)
    failure_of(world, gathering(world, shown, present=present))

    assert {1} == present


def test_who_has_joined_is_given_three_times_what_the_leaders_own_share_took_beside_the_timeout(world):
    shown, progress = plan(), Progress()
    world.vote(shown, 1, Part())
    world.vote(shown, 2)
    world.at(500.0, progress.finish, 500.0)
    failure = failure_of(world, gathering(world, shown, progress))

    assert 500 + TIMEOUT + 1500 < world.now < 500 + TIMEOUT + 1500 + 3
    assert "worker 2 of 3 has begun its share and not finished it in time" in failure.message


def test_while_the_leaders_own_share_goes_up_nobody_who_has_joined_is_given_up(world):
    shown, progress = plan(), Progress()
    for rank in (1, 2):
        by = world.vote(shown, rank)
        world.at(20 * TIMEOUT, world.vote, shown, rank, Part(), by)

    assert {1, 2} == set(world.run(gathering(world, shown, progress)))


def test_when_the_leaders_own_share_has_failed_nobody_is_waited_for(world):
    shown, progress = plan(), Progress()
    world.at(5.0, progress.call_off)
    world.run(gathering(world, shown, progress))

    assert world.now < 7


def test_a_vote_by_another_than_who_joined_is_told(world):
    shown = plan()
    world.vote(shown, 1, Part())
    world.put(shown.key("join", 1), new_attempt(TERM, 1).seal(shown.key("join", 1)))

    assert "Two processes act as worker 1" in failure_of(world, gathering(world, shown)).message


@pytest.mark.parametrize("happens", ["claim", "remove"])
def test_a_leader_that_has_lost_the_directory_blames_no_worker(happens, world):
    shown = plan()
    waiting = gathering(world, shown)
    world.at(30.0, world.claim) if happens == "claim" else world.at(30.0, world.remove, STATE)
    with pytest.raises(FencedError):
        world.run(waiting)

    assert 30 <= world.now < 31.5


def test_the_leader_looks_only_for_what_is_missing(world):
    shown, asked = plan(), []
    world.vote(shown, 1, Part())
    by = world.vote(shown, 2)
    world.at(50.0, world.vote, shown, 2, Part(), by)

    def note(request, perform):
        asked.extend(request.keys)
        return perform()

    world.hand = note
    world.run(gathering(world, shown))
    once = [shown.key("join", 1), shown.key("join", 2), shown.key("part", 1)]
    assert [1, 1, 1] == [asked.count(key) for key in once]
    assert asked.count(shown.key("part", 2)) > 10


# Telling everybody that nothing comes of it.


def test_who_is_missing_is_waited_for_until_all_have_heard(world):
    shown, present = plan(), {1}
    world.at(30.0, world.vote, shown, 2)
    world.run(await_joins(shown, timeout=TIMEOUT, present=present))

    assert {1, 2} == present
    assert 30 <= world.now < 33


def test_who_never_comes_is_not_waited_for_longer_than_the_timeout(world):
    present = {1}
    world.run(await_joins(plan(), timeout=TIMEOUT, present=present))

    assert {1} == present
    assert TIMEOUT < world.now < TIMEOUT + 2
