"""TensorFlow's retention rule at its edges; the rest is compared with TensorFlow in the manager's differential test."""

import pytest

from ckpt_remote.retention import sweep
from ckpt_remote.state import Entry

HOUR = 3600.0


def decide(times, *, keep, hours=None, preserved=0.0):
    entries = [Entry(f"ckpt-{number}", time) for number, time in enumerate(times, 1)]
    decision = sweep(entries, preserved, max_to_keep=keep, keep_checkpoint_every_n_hours=hours)
    return [[entry.path for entry in kind] for kind in (decision.active, decision.preserved, decision.retired)]


def test_without_a_limit_everything_stays():
    assert [["ckpt-1", "ckpt-2"], [], []] == decide([1.0, 2.0], keep=None, hours=1)


def test_the_oldest_beyond_the_limit_are_retired():
    assert [["ckpt-3"], [], ["ckpt-1", "ckpt-2"]] == decide([1.0, 2.0, 3.0], keep=1)


@pytest.mark.parametrize(("age", "kept"), [(HOUR, True), (HOUR - 0.001, False)])
def test_exactly_the_hours_are_enough_to_be_preserved(age, kept):
    assert kept == (["ckpt-1"] == decide([age, 2 * HOUR], keep=1, hours=1)[1])


def test_each_preserved_checkpoint_starts_the_hours_anew():
    times = [HOUR, 1.5 * HOUR, 2 * HOUR, 2.5 * HOUR, 9 * HOUR]

    assert [["ckpt-5"], ["ckpt-1", "ckpt-3"], ["ckpt-2", "ckpt-4"]] == decide(times, keep=1, hours=1)


def test_zero_hours_preserve_nothing_as_with_tensorflow():
    assert [["ckpt-2"], [], ["ckpt-1"]] == decide([HOUR, 2 * HOUR], keep=1, hours=0)
