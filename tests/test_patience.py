"""How long is waited between two looks, and for whom."""

import threading
import time
from itertools import accumulate

import pytest

from ckpt_remote.patience import Pauses, Progress, Reminders


def pauses(workers=0, count=100, **named):
    steps = Pauses(workers, **named)
    return [steps.next() for _ in range(count)]


def test_at_first_one_looks_soon_and_then_less_and_less_often_and_at_least_every_second():
    waits = pauses()

    assert 0.02 == waits[0]
    assert sorted(waits) == waits
    assert 1.0 == waits[-1] == max(waits)


def test_a_look_comes_late_by_a_small_part_of_what_was_waited():
    waits = pauses()
    for pause, waited in zip(waits[1:], accumulate(waits), strict=False):
        assert pause <= max(0.02, 0.11 * waited)


def test_who_looks_at_many_workers_looks_less_often_at_first_and_as_often_at_last():
    assert pytest.approx(0.02 + 0.002 * 64) == pauses(64)[0]
    assert 1.0 == pauses(64)[-1]


def test_who_is_busy_looks_less_often():
    assert 0.2 == pauses(busy=True)[0]


def test_a_share_is_over_when_it_is_durable_or_has_failed():
    going, durable, failed = Progress(), Progress(), Progress()
    durable.finish(2.0)
    failed.call_off()

    assert (False, True, True) == (going.is_over, durable.is_over, failed.is_over)
    assert (None, 2.0, float("inf")) == (going.took, durable.took, failed.took)


def test_who_sleeps_while_a_share_goes_up_is_woken_when_that_is_over():
    progress = Progress()
    sleeper = threading.Thread(target=progress.sleep, args=(60.0,))
    sleeper.start()
    progress.finish(0.0)
    sleeper.join(10.0)

    assert not sleeper.is_alive()


def test_after_that_a_pause_is_a_pause():
    progress = Progress()
    progress.finish(0.0)
    start = time.monotonic()
    progress.sleep(0.02)

    assert time.monotonic() - start >= 0.02


def test_a_long_wait_is_said_after_half_a_minute_and_then_whenever_it_has_doubled():
    reminders = Reminders()

    assert [30, 60, 120, 240] == [second for second in range(300) if reminders.is_due(second)]
