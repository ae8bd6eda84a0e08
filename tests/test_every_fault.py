"""Every single fault and every pair of faults, at every request of a save: the manager keeps its promises.

The store is a model of one; the manager and all below it are real. With one fault everything is, TensorFlow included;
with two, TensorFlow's own work is done once and remembered. `make soak` adds kinds of faults, and managers that try
twice: CKPT_REMOTE_FAULTS=all.
"""

import os
import time

import pytest
from support.exploration import quiet
from support.fault_search import ALL, FEWER, search_pairs, search_singles, stage
from support.faulted import Fault

from ckpt_remote import collector, numbering, ownership

THOROUGH = os.environ.get("CKPT_REMOTE_FAULTS") == "all"
SETTINGS = [(ALL, 1, False), (ALL, 2, False), (ALL, 1, True)] if THOROUGH else [(FEWER, 1, False)]


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


@pytest.fixture
def report(capsys):
    start = time.monotonic()

    def tell(what, outcome):
        with capsys.disabled():
            print(f"\n{what}: {outcome}, {time.monotonic() - start:.1f} s")

    return tell


@pytest.mark.slow
def test_no_single_fault_breaks_a_promise(report):
    outcome = search_singles(genuine=True, attempts=1)
    report("single faults, TensorFlow's own work included", outcome)

    assert [] == outcome.violations
    for what in ("saved", "failed", "unknown", "crash", "refused late", "no start"):
        assert outcome.happened[what], f"no run had {what}"


@pytest.mark.slow
@pytest.mark.parametrize("generations", [False, True], ids=["digests", "generations"])
@pytest.mark.parametrize("attempts", [2, 6])
def test_no_single_fault_breaks_a_promise_when_requests_are_repeated(attempts, generations, report):
    outcome = search_singles(genuine=False, attempts=attempts, generations=generations)
    report(f"single faults, {attempts} attempts", outcome)

    assert [] == outcome.violations


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kinds", "attempts", "generations"), SETTINGS, ids=lambda value: "" if isinstance(value, tuple) else str(value)
)
def test_no_pair_of_faults_breaks_a_promise(kinds, attempts, generations, report):
    outcome = search_pairs(kinds, attempts=attempts, generations=generations)
    report(f"pairs of faults, {attempts} attempts", outcome)

    assert [] == outcome.violations
    assert outcome.runs > 10_000


def test_a_fault_comes_where_the_plan_says():
    with stage(genuine=False, attempts=1) as made:
        undisturbed = made.run({})
        visible = max(number for number, asked in enumerate(undisturbed.exposed) if asked.writes)
        disturbed = made.run({visible: Fault.CRASH})

    assert [] == made.outcome.violations
    assert 0 == undisturbed.outcomes["crash"] == disturbed.outcomes["crash"] - 1


def the_counter_keeps_what_failed(monkeypatch):
    monkeypatch.setattr(numbering.SaveCounter, "rollback", lambda self: None)


def garbage_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(collector.Collector, "note_garbage", _nothing)


def doubts_are_forgotten(monkeypatch):
    monkeypatch.setattr(ownership.Ownership, "_doubt", lambda self, state: None)


def _nothing(*_, **__):
    return
    yield


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [the_counter_keeps_what_failed, garbage_is_not_looked_for, doubts_are_forgotten],
    ids=lambda mutant: mutant.__name__,
)  # fmt: skip
def test_single_faults_find_what_is_missing(mutant, monkeypatch):
    mutant(monkeypatch)

    assert search_singles(genuine=False, attempts=1).violations
