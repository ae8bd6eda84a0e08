"""Writes of one object are a second apart, and nobody else waits."""

import pytest
from support.clock import Time

from ckpt_remote import errors
from ckpt_remote.store.pace import Pace


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def pace(time: Time) -> Pace:
    return Pace(1.0, time.clock, time.sleep)


def test_a_write_begins_a_second_after_the_last_one_ended(time: Time, pace: Pace) -> None:
    with pace.turn("a"):
        time.now += 5.0  # it took long
    time.now += 0.25
    with pace.turn("a"):
        pass
    assert time.slept == [0.75]
    time.now += 1.0
    with pace.turn("a"):
        pass
    assert time.slept == [0.75]


def test_other_objects_wait_for_nothing(time: Time, pace: Pace) -> None:
    for name in ("a", "b", "c"):
        with pace.turn(name):
            pass
    assert time.slept == []


@pytest.mark.parametrize("failure", [errors.StoreError("x", transient=True), KeyboardInterrupt()])
def test_what_may_have_landed_counts(time: Time, pace: Pace, failure: BaseException) -> None:
    with pytest.raises(type(failure)), pace.turn("a"):
        raise failure
    with pace.turn("a"):
        pass
    assert time.slept == [1.0]


@pytest.mark.parametrize("failure", [errors.ConflictError("x"), errors.NotFoundError("x")])
def test_what_cannot_have_landed_does_not_count(time: Time, pace: Pace, failure: errors.CheckpointError) -> None:
    with pytest.raises(type(failure)), pace.turn("a"):
        raise failure
    with pace.turn("a"):
        pass
    assert time.slept == []


def test_it_remembers_no_more_than_it_needs(time: Time, pace: Pace) -> None:
    for number in range(5000):
        with pace.turn(str(number)):
            time.now += 0.01
    assert len(pace._written) <= 1024
    with pace.turn("4999"):
        pass
    assert time.slept == [1.0]


def test_ctrl_c_ends_the_wait(time: Time) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    pace = Pace(1.0, time.clock, interrupted)
    with pace.turn("a"):
        pass
    with pytest.raises(KeyboardInterrupt), pace.turn("a"):
        raise AssertionError("it was written")
