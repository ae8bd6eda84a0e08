"""The protocol holds in every schedule that chance finds, and each of its rules is needed.

`make test` runs a few thousand schedules and looks for each mutant; `make soak` a hundred thousand.
"""

import dataclasses
import os
from collections.abc import Callable

import pytest
from support import schedules
from support.exploration import explore, hunt
from support.schedules import World

from ckpt_remote import collector, commit, directory, garbage, ownership
from ckpt_remote.errors import ConflictError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Delete, Get, Put
from ckpt_remote.state import encode_state

SCHEDULES = int(os.environ.get("CKPT_REMOTE_SCHEDULES", "2500"))
MUTANT_SCHEDULES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_schedule_breaks_a_promise(capsys):
    outcome = explore(World, range(SCHEDULES))
    with capsys.disabled():
        print(f"\n{outcome}")

    assert [] == outcome.violations
    assert [] == outcome.missing(
        "before", "after", "late", "crash", "sleep", "fenced", "unknown", "collision", "refused late", "read"
    )


# The mutants: each takes one rule away.


def the_state_is_overwritten(monkeypatch):
    def publish_state(state, version, *, url):
        current = yield Get(commit.STATE)
        return (yield from real(state, current and current.version, url=url))

    real = commit.publish_state
    monkeypatch.setattr(commit, "publish_state", publish_state)
    monkeypatch.setattr(ownership, "publish_state", publish_state)


def a_conflict_is_believed(monkeypatch):
    def publish_state(state, version, *, url):
        while True:
            try:
                return commit.Published((yield Put(commit.STATE, (encode_state(state),), version or "create")))
            except StoreError:
                continue

    monkeypatch.setattr(commit, "publish_state", publish_state)
    monkeypatch.setattr(ownership, "publish_state", publish_state)


def the_unknown_is_taken_for_a_failure(monkeypatch):
    def publish_state(state, version, *, url):
        try:
            return (yield from real(state, version, url=url))
        except UnknownOutcomeError as error:
            raise StoreError("it failed, surely") from error

    real = commit.publish_state
    monkeypatch.setattr(commit, "publish_state", publish_state)


def the_index_is_replaced_without_a_look_at_the_state(monkeypatch):
    def no_guard(*_):
        return
        yield

    monkeypatch.setattr(commit, "_require_guard", no_guard)


def the_intention_to_replace_is_not_recorded(monkeypatch):
    def nothing(self, path):
        return
        yield

    monkeypatch.setattr(directory.Directory, "_intend", nothing)


def a_half_done_replacement_is_not_ended(monkeypatch):
    def nothing(self):
        self._ownership.amend(replaced=None)
        return
        yield

    monkeypatch.setattr(directory.Directory, "_end_replacement", nothing)


def the_state_is_written_before_the_index(monkeypatch):
    def early(objects, index, state, version, *, url, **rest):
        published = yield from commit.publish_state(state, version, url=url)
        if published.version is not None:
            yield from commit.publish(objects.index, index, guard=published.version, url=url)
        return published

    monkeypatch.setattr(directory, "commit", early)


def indexes_are_deleted_by_name(monkeypatch):
    monkeypatch.setattr(commit, "Remove", lambda key, version: Delete((key,)))


def names_are_used_again(monkeypatch):
    monkeypatch.setattr(directory.Target, "counts", lambda self, shards: iter(range(shards, shards + 8)))


def what_is_retired_is_deleted_before_the_state_says_so(monkeypatch):
    def eager(self, *arguments):
        state = yield from real(self, *arguments)
        for retired in state.record.retired:
            yield Delete((retired.index,))
        return state

    real = directory.Directory._next
    monkeypatch.setattr(directory.Directory, "_next", eager)


def garbage_is_deleted_without_a_record(monkeypatch):
    def hasty(self):
        yield from real(self)
        for retired in self.noted:
            yield Delete((retired.index, *retired.data))
        self.forget()

    real = collector.Collector.note_garbage
    monkeypatch.setattr(collector.Collector, "note_garbage", hasty)


def what_has_no_seal_is_collected(monkeypatch):
    def everything(self, infos):
        return {info.key for info in infos}
        yield

    monkeypatch.setattr(garbage._Search, "ours", everything)


def what_is_listed_is_collected(monkeypatch):
    def unlisted(prefixes, *, listed, **known):
        return (yield from real(prefixes, listed=(), **known))

    real = collector.find_garbage
    monkeypatch.setattr(collector, "find_garbage", unlisted)


def an_index_is_put_back_byte_for_byte(monkeypatch):
    monkeypatch.setattr(commit, "_under_new_write_id", lambda index, key, attempt: index.data)


def a_failed_save_takes_back_what_another_owns(monkeypatch):
    def eager(objects, index, state, version, *, url, **rest):
        put = yield from commit.publish(objects.index, index, guard=version, url=url)
        try:
            published = yield from commit.publish_state(state, version, url=url)
        except (ConflictError, StoreError, UnknownOutcomeError):
            yield Delete((objects.index, *objects.data))
            raise
        return dataclasses.replace(published, index=put.after.version)

    monkeypatch.setattr(directory, "commit", eager)


def a_claim_changes_nothing(monkeypatch):
    def idle(self, name):
        if self._ownership.version is None:
            yield from real(self, name)
        self._ownership.require()

    real = directory.Directory.claim
    monkeypatch.setattr(directory.Directory, "claim", idle)


def the_highest_number_is_forgotten(monkeypatch):
    def forgetful(record, home, **changes):
        return dataclasses.replace(real(record, home, **changes), highest=0)

    real = ownership.follow_up
    monkeypatch.setattr(ownership, "follow_up", forgetful)


def an_object_of_another_is_taken_for_ours(monkeypatch):
    def trusting(key, buffers, attempt):
        try:
            yield from real(key, buffers, attempt)
        except ConflictError:
            return

    real = schedules.create
    monkeypatch.setattr(schedules, "create", trusting)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    the_state_is_overwritten,
    a_conflict_is_believed,
    the_unknown_is_taken_for_a_failure,
    the_index_is_replaced_without_a_look_at_the_state,
    the_intention_to_replace_is_not_recorded,
    a_half_done_replacement_is_not_ended,
    the_state_is_written_before_the_index,
    indexes_are_deleted_by_name,
    names_are_used_again,
    what_is_retired_is_deleted_before_the_state_says_so,
    garbage_is_deleted_without_a_record,
    what_has_no_seal_is_collected,
    what_is_listed_is_collected,
    an_index_is_put_back_byte_for_byte,
    a_failed_save_takes_back_what_another_owns,
    a_claim_changes_nothing,
    the_highest_number_is_forgotten,
    an_object_of_another_is_taken_for_ours,
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_without_any_one_of_its_rules_the_protocol_breaks(mutant, monkeypatch, capsys):
    mutant(monkeypatch)
    with capsys.disabled():
        violations = hunt(mutant.__name__, World, MUTANT_SCHEDULES)

    assert violations
