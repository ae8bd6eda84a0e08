"""What one writer knows of the state, what it doubts, and how it learns that the directory is another's."""

import dataclasses

import pytest
from support.schedules import Model
from support.sleeper import Sleeper, perform

from ckpt_remote.commit import STATE, publish_state
from ckpt_remote.errors import ConflictError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Put
from ckpt_remote.ownership import Ownership
from ckpt_remote.state import decode_state

URL = "s3://bucket/run"


@pytest.fixture(params=[False, True], ids=["digests", "generations"])
def model(request):
    return Model(generations=request.param)


def make(model, forgotten=None):
    """Whoever has read the state."""
    forgotten = [] if forgotten is None else forgotten
    known = Ownership(URL, (), clock=lambda: 1e9, forget=lambda: forgotten.append(True))
    perform(known.load(), model)
    return known


def own(model):
    """Whoever has claimed the directory."""
    known = make(model)
    perform(known.claim(), model)
    known.complete_claim()
    return known


def serial(model):
    return decode_state(model.objects[STATE].data, path="", directories=()).record.serial


def until_the_state_is_sent(flow, model):
    sleeper = Sleeper(flow, model)
    while not (isinstance(sleeper.request, Put) and sleeper.request.key == STATE):
        sleeper.step()
    return sleeper


def test_what_was_known_of_the_rest_is_forgotten_when_the_state_is_anothers(model):
    forgotten = []
    known = make(model, forgotten)
    forgotten.clear()
    assert not perform(known.load(), model)
    assert [] == forgotten
    own(model)

    assert perform(known.load(), model)
    assert [True] == forgotten
    assert 1 == known.record.epoch


def test_a_claim_is_told_whose_directory_it_was_and_what_the_store_can_do(model):
    first = own(model)
    second = make(model)
    former = perform(second.claim(), model)

    assert ((first.record.term, 1), 2) == ((former.term, former.epoch), second.record.epoch)
    assert second.exact


def test_a_claim_counts_when_all_that_belongs_to_it_has_passed(model):
    known = make(model)
    perform(known.claim(), model)
    assert not known.is_claimed
    known.complete_claim()
    assert known.is_claimed
    own(model)
    perform(known.load(), model)

    assert not known.is_claimed, "what it claimed is gone"


def test_who_has_read_an_older_state_writes_nothing_and_is_fenced(model):
    known = own(model)
    own(model)
    before = dict(model.objects)
    with pytest.raises(ConflictError):
        perform(known.write_record(highest=9), model)

    assert before == model.objects
    assert known.fenced
    assert not known.doubts
    with pytest.raises(ConflictError, match="another writer has gone on from there"):
        known.require()


def test_nothing_is_known_that_has_not_landed(model):
    known = own(model)
    record = known.record
    sleeper = until_the_state_is_sent(known.write_record(highest=9), model)
    assert record == known.record
    sleeper.finish()

    assert 9 == known.record.highest
    assert known.guard == model.objects[STATE].version


def test_what_is_amended_is_said_by_the_next_state_only(model):
    known = own(model)
    known.amend(highest=9)
    assert 9 != known.state.record.highest
    perform(known.write_record(), model)

    assert 9 == known.state.record.highest


def test_a_write_is_doubted_from_before_it_is_sent_until_it_has_landed(model):
    known = own(model)
    sleeper = until_the_state_is_sent(known.write_record(highest=9), model)
    assert 1 == len(known.doubts)
    sleeper.finish()

    assert not known.doubts


def test_a_write_that_was_refused_for_certain_is_not_doubted(model):
    known = own(model)
    sleeper = until_the_state_is_sent(known.write_record(highest=9), model)
    with pytest.raises(StoreError, match="403"):
        sleeper.flow.throw(StoreError("403"))

    assert not known.doubts
    assert not known.fenced


@pytest.mark.parametrize("landed", [False, True])
def test_after_a_write_that_was_cut_short_the_next_claim_goes_on_whether_it_landed_or_not(model, landed):
    known = own(model)
    before = serial(model)
    sleeper = until_the_state_is_sent(known.write_record(highest=9), model)
    if landed:
        model.perform(sleeper.request)
    with pytest.raises(KeyboardInterrupt):
        sleeper.flow.throw(KeyboardInterrupt)
    assert known.doubts
    perform(known.claim(), model)

    assert not known.doubts
    assert before + 1 + landed == serial(model)
    assert landed == (9 == known.record.highest)


def test_after_a_write_without_an_answer_another_owner_is_noticed_by_the_next_claim(model):
    known = own(model)
    sleeper = until_the_state_is_sent(known.write_record(highest=9), model)
    sleeper.flow.throw(lost := StoreError("no answer", transient=True))
    with pytest.raises(UnknownOutcomeError):
        sleeper.flow.throw(lost)
    own(model)
    before = dict(model.objects)
    assert known.doubts
    with pytest.raises(ConflictError):
        perform(known.claim(), model)

    assert before == model.objects
    assert not known.doubts


def test_a_state_that_another_has_gone_on_from_has_landed_and_is_ours_no_more(model):
    """Its answer was lost, and when it is looked for, what is there names it as what it was built on."""
    known = own(model)
    state = dataclasses.replace(known.state, record=known.follow_up(highest=9))
    sleeper = until_the_state_is_sent(known.write(publish_state(state, known.version, url=URL), state), model)
    model.perform(sleeper.request)
    own(model)
    sleeper.step()
    sleeper.finish()

    assert known.fenced
    assert 9 == known.record.highest
    with pytest.raises(ValueError, match="claimed"):
        _ = known.guard


def test_a_history_starts_over_where_the_state_is_ours_and_not_where_another_has_come_after_us(model, caplog):
    known = own(model)
    term = known.record.term
    perform(known.start_over(), model)
    assert term != known.record.term
    assert "is older than some of what lies there" in caplog.text
    own(model)
    with pytest.raises(ConflictError):
        perform(known.start_over(), model)
