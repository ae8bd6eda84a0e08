"""Where a writer expects garbage, what it notes of it, and how little it touches."""

import logging

import pytest
from support.schedules import Model
from support.sleeper import Sleeper, perform

from ckpt_remote.bundle import Entry, Header, Index, encode_index
from ckpt_remote.collector import Collector
from ckpt_remote.commit import STATE
from ckpt_remote.errors import StoreError
from ckpt_remote.flow import Delete, Get, List, Put, Remove
from ckpt_remote.ownership import Ownership
from ckpt_remote.probe import CONTROL, PLAN, PROBES
from ckpt_remote.upload import create

URL = "s3://bucket/run"
JOIN = f"{CONTROL}abc/join-1"


@pytest.fixture
def model():
    return Model(generations=True)


def own(model):
    known = Ownership(URL, (), clock=lambda: 1e9, forget=lambda: None)
    perform(known.load(), model)
    perform(known.claim(), model)
    known.complete_claim()
    return known


@pytest.fixture
def owner(model):
    return own(model)


@pytest.fixture
def collector(owner):
    return Collector(owner, URL)


def dead(owner, model, *keys):
    """What an attempt wrote that is over."""
    for key in keys:
        perform(create(key, [b"x"], owner.attempt()), model)


def requests_of(flow, model):
    """What is asked, in order."""
    sleeper, asked = Sleeper(flow, model), []
    while sleeper.request is not None:
        asked.append(sleeper.request)
        sleeper.step()
    return asked


def test_where_nothing_is_suspected_nothing_is_asked(collector, model):
    assert [] == requests_of(collector.note_garbage(), model)


def test_a_suspicion_is_looked_into_once(collector, model):
    collector.suspect("ckpt-7.")

    assert [List("ckpt-7.")] == requests_of(collector.note_garbage(), model)
    assert [] == requests_of(collector.note_garbage(), model)


def test_what_the_state_lists_by_now_is_no_longer_suspected(collector, model):
    collector.suspect("ckpt-7.")
    collector.clear("ckpt-7.")

    assert [] == requests_of(collector.note_garbage(), model)


def test_of_a_checkpoint_what_is_dead_is_noted_and_left_until_the_state_has_it(collector, owner, model):
    dead(owner, model, "ckpt-7.data-00000-of-00001")
    collector.suspect("ckpt-7.")
    before = dict(model.objects)
    perform(collector.note_garbage(), model)

    assert before == model.objects
    assert [("ckpt-7.data-00000-of-00001",)] == [garbage.data for garbage in collector.noted]
    collector.clear("ckpt-7.")
    assert () == collector.noted


@pytest.mark.parametrize("has_index", [False, True])
def test_what_is_noted_already_is_not_noted_twice(collector, owner, model, has_index):
    dead(owner, model, "ckpt-7.data-00000-of-00001")
    if has_index:
        index = Index(
            Header(num_shards=1, write_id=owner.attempt().write_id("ckpt-7.index")), {b"t": Entry(4, (1,), size=1)}
        )
        model.perform(Put("ckpt-7.index", (encode_index(index),), "create"))
    for _ in range(2):
        collector.suspect("ckpt-7.")
        perform(collector.note_garbage(), model)

    assert 1 == len(collector.noted)


def test_who_inherits_a_directory_looks_where_its_former_owner_may_have_left_something(collector, owner, model):
    dead(owner, model, f"{PROBES}0123", "ckpt-7.data-00000-of-00001", "other-7.data-00000-of-00001")
    former = owner.record
    perform(owner.write_record(), model)
    collector.inherit(former, "ckpt")
    perform(collector.note_garbage(), model)

    assert f"{PROBES}0123" not in model.objects
    assert ["ckpt-7"] == [garbage.path for garbage in collector.noted]


def test_a_store_that_cannot_be_listed_costs_space_only(collector, caplog):
    collector.suspect("ckpt-7.")
    flow = collector.note_garbage()
    next(flow)
    with pytest.raises(StopIteration):
        flow.throw(StoreError("403"))

    assert () == collector.noted
    assert "cannot be listed: 403" in caplog.text


# The plan: the one name of what workers tell each other that is used again.


def test_a_dead_plan_costs_two_looks_and_a_removal_of_exactly_what_was_read(collector, owner, model):
    dead(owner, model, PLAN, JOIN)
    version = model.objects[PLAN].version

    expected = [Get(PLAN), Get(STATE), Remove(PLAN, version), Delete((JOIN,))]
    assert expected == requests_of(collector.delete_control((JOIN, PLAN)), model)
    assert {STATE} == model.objects.keys()


def test_a_plan_that_is_gone_costs_one_look(collector, model):
    assert [Get(PLAN)] == requests_of(collector.delete_control((PLAN,)), model)


def test_the_plan_of_a_directory_that_is_anothers_by_now_stays_and_that_is_no_failure(collector, owner, model):
    dead(owner, model, PLAN, JOIN)
    own(model)
    perform(collector.delete_control((JOIN, PLAN)), model)

    assert PLAN in model.objects
    assert JOIN not in model.objects, "what is not used again is dead whoever owns the directory"
    assert not owner.fenced


def test_a_plan_that_was_replaced_since_the_look_stays_and_that_is_no_failure(collector, owner, model, caplog):
    caplog.set_level(logging.INFO)
    dead(owner, model, PLAN)
    sleeper = Sleeper(collector.delete_control((PLAN,)), model)
    sleeper.step()
    model.perform(Put(PLAN, (b"the next one",), model.objects[PLAN].version))
    sleeper.finish()

    assert b"the next one" == model.objects[PLAN].data
    assert "is left to the next owner" in caplog.text


def test_a_plan_that_cannot_be_read_costs_space_only(collector, owner, model):
    dead(owner, model, JOIN)
    flow = collector.delete_control((JOIN, PLAN))
    assert Get(PLAN) == next(flow)

    assert Delete((JOIN,)) == flow.throw(StoreError("503"))
