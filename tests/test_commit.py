"""The protocol, explored: writers take turns in every order, and responses get lost, on a model of a store."""

import dataclasses

import pytest
from support import schedules

from ckpt_remote import state as states
from ckpt_remote.bundle import Entry, Header, Index, decode_index, encode_index
from ckpt_remote.commit import commit, delete_retired, describe, foresee, publish, publish_state, rewrite
from ckpt_remote.errors import ConflictError, CorruptError, StoreError, UnknownOutcomeError
from ckpt_remote.flow import Delete, Get, Pause, Put, Remove
from ckpt_remote.origin import new_attempt, new_term, read_write_id
from ckpt_remote.state import Record, Retired, State, decode_state, encode_state
from ckpt_remote.store import Object, Version

URL = "s3://bucket/run"
TERM = new_term()
OURS = new_attempt(TERM, 1)


class Model(schedules.Model):
    """A store whose versions are digests, as S3's ETags are: equal bytes have equal versions. Nobody waits."""

    def __init__(self, objects=None):
        super().__init__(generations=False, objects={} if objects is None else objects)

    def perform(self, request):
        return None if isinstance(request, Pause) else super().perform(request)


class Writer:
    """A flow under way: `step` performs its next request, and may lose the response."""

    def __init__(self, flow):
        self.flow, self.outcome, self.request = flow, None, None
        try:
            self.request = next(flow)
        except StopIteration as stop:
            self.outcome = stop.value

    def step(self, model, *, lose):
        try:
            try:
                answer = model.perform(self.request)
                if lose:
                    raise StoreError("no response", transient=True)
            except (ConflictError, StoreError) as error:
                self.request = self.flow.throw(error)
            else:
                self.request = self.flow.send(answer)
        except StopIteration as stop:
            self.request, self.outcome = None, stop.value or "done"
        except (ConflictError, CorruptError, StoreError, UnknownOutcomeError) as error:
            self.request, self.outcome = None, error


def explore(make_world, losses):
    """Runs every order of the writers' requests with up to so many lost responses, and yields each end."""
    pending = [()]
    while pending:
        schedule = pending.pop()
        model, writers = make_world()
        for number, lose in schedule:
            writers[number].step(model, lose=lose)
        alive = [number for number, writer in enumerate(writers) if writer.request is not None]
        if not alive:
            yield model, writers
        for number in alive:
            pending.append((*schedule, (number, False)))
            if isinstance(writers[number].request, Put | Remove) and losses > sum(lose for _, lose in schedule):
                pending.append((*schedule, (number, True)))


def state(name, lineage=()):
    record = Record(write_id=f"id of {name}", term=TERM, epoch=1, lineage=lineage)
    return State(latest=name, entries=(states.Entry(name, 1.0),), record=record)


@pytest.mark.parametrize("losses", [0, 1, 2])
def test_of_two_writers_at_once_exactly_one_wins_and_knows_it(losses):
    def make_world():
        flows = [publish_state(state(f"ckpt-{n}"), None, url=URL) for n in (1, 2)]
        return Model(), [Writer(flow) for flow in flows]

    ends = 0
    for model, writers in explore(make_world, losses):
        ends += 1
        latest = decode_state(model.objects["checkpoint"].data, path="", directories=()).latest
        won = [f"ckpt-{n}" for n, writer in enumerate(writers, 1) if not isinstance(writer.outcome, Exception)]
        assert [latest] == won
        assert all(isinstance(w.outcome, ConflictError) for w in writers if isinstance(w.outcome, Exception))
    assert ends > losses


def test_a_lost_response_that_somebody_has_built_upon_is_a_save_that_landed():
    """The second writer reads what the first wrote, and goes on from it, while the first still waits for an answer."""

    def make_world():
        model = Model()
        flow = publish_state(state("ckpt-1"), None, url=URL)
        return model, [Writer(flow), Writer(_follower(model))]

    superseded = 0
    for _, (first, _) in explore(make_world, 1):
        assert not isinstance(first.outcome, Exception)
        superseded += first.outcome.version is None
    assert superseded


def _follower(model):
    while "checkpoint" not in model.objects:
        yield Pause(ConflictError("nothing there yet"))
        if not model.objects:
            return  # this order of events has nothing to follow
    current = yield Get("checkpoint")
    record = decode_state(current.data, path="", directories=()).record
    yield from publish_state(state("ckpt-2", record.followed_by()), current.version, url=URL)


def test_a_store_that_never_answers_leaves_the_outcome_unknown():
    writer = Writer(publish_state(state("ckpt-1"), None, url=URL))

    class Silent(Model):
        def perform(self, request):
            raise StoreError("no response", transient=True)

    while writer.request is not None:
        writer.step(Silent(), lose=False)
    assert isinstance(writer.outcome, UnknownOutcomeError)


def test_a_budget_that_is_spent_before_the_state_could_be_written_leaves_the_outcome_unknown():
    """What failed may yet land: it was sent, and nobody heard more of it."""

    class Impatient(Model):
        def perform(self, request):
            if isinstance(request, Put):
                raise StoreError("no response", transient=True)
            if isinstance(request, Pause):
                raise request.failure
            return super().perform(request)

    writer = Writer(publish_state(state("ckpt-1"), None, url=URL))
    while writer.request is not None:
        writer.step(Impatient(), lose=False)
    assert isinstance(writer.outcome, UnknownOutcomeError)


def test_a_conflict_with_ourselves_is_a_state_that_landed():
    """Something below has sent the request twice, and the second was refused because of the first."""

    class Echoing(Model):
        def perform(self, request):
            answer = super().perform(request)
            if isinstance(request, Put):
                raise ConflictError("exists")
            return answer

    model = Echoing()
    published = run_to_end(publish_state(state("ckpt-1"), None, url=URL), model)
    assert model.objects["checkpoint"].version == published.version


def test_a_state_that_could_not_be_told_from_another_writers_is_not_written():
    with pytest.raises(ValueError, match="record"):
        next(publish_state(State(latest="ckpt-1"), None, url=URL))


def test_a_refusal_for_good_is_not_repeated():
    flow = publish_state(state("ckpt-1"), None, url=URL)
    next(flow)
    with pytest.raises(StoreError, match="forbidden"):
        flow.throw(StoreError("forbidden"))


def test_the_index_is_published_before_the_state():
    requests, model = [], Model()
    model.objects["checkpoint"] = Object(b"", Version("claimed"))
    writer = Writer(commit(NEW, b"index", state("ckpt-1"), Version("claimed"), created=CREATED, attempt=OURS, url=URL))
    while writer.request is not None:
        requests.append(writer.request.key)
        writer.step(model, lose=False)

    assert ["ckpt-1.index", "checkpoint"] == requests


GUARD = Version("the state that this writer has claimed")


def claimed(**objects):
    return Model({"checkpoint": Object(b"", GUARD), **objects})


def test_an_index_left_by_an_earlier_attempt_is_replaced_only_as_it_was_read():
    model = claimed()
    old = model.perform(Put("ckpt-1.index", (b"old",), "create"))
    writer = Writer(publish("ckpt-1.index", b"new", guard=GUARD, url=URL))
    modes = []
    while writer.request is not None:
        if isinstance(writer.request, Put):
            modes.append(writer.request.mode)
        writer.step(model, lose=False)

    assert b"new" == model.objects["ckpt-1.index"].data
    assert ["create", old] == modes


def test_a_writer_that_is_fenced_replaces_no_index_however_late_it_wakes_up():
    """It is stopped before each request in turn, while a new owner claims the directory and saves that number."""
    for stopped_before in range(4):
        model = claimed()
        model.perform(Put("ckpt-1.index", (b"old",), "create"))
        zombie = Writer(publish("ckpt-1.index", b"the zombie's", guard=GUARD, url=URL))
        for _ in range(stopped_before):
            zombie.step(model, lose=False)
        model.objects["checkpoint"] = Object(b"claimed", Version("another"))
        before = model.objects["ckpt-1.index"]
        model.objects["ckpt-1.index"] = Object(b"the owner's", Version("owner"))
        while zombie.request is not None:
            zombie.step(model, lose=False)

        assert before.data in (b"old", b"the zombie's")
        assert b"the owner's" == model.objects["ckpt-1.index"].data
        assert isinstance(zombie.outcome, ConflictError)


NEW = Retired(path="ckpt-1", write_id="new", used=1, of=7)
CREATED = {NEW.data[0]: Version("d")}


class Ending(Model):
    """A store that answers the writes of the state with one error after the other."""

    def __init__(self, errors, **objects):
        super().__init__({"checkpoint": Object(b"", GUARD), NEW.data[0]: Object(b"new", Version("d")), **objects})
        self.errors = list(errors)
        self.rival = Object(encode_state(State(latest="ckpt-5")), Version("another"))

    def perform(self, request):
        if not (isinstance(request, Put) and request.key == "checkpoint"):
            return super().perform(request)
        error = self.errors.pop(0)
        if isinstance(error, ConflictError):
            self.objects["checkpoint"] = self.rival
        raise error


def commit_on(model):
    return run_to_end(commit(NEW, b"new", state("ckpt-1"), GUARD, created=CREATED, attempt=OURS, url=URL), model)


SEALED = new_attempt(TERM, 1).write_id("ckpt-1.index")


@pytest.mark.parametrize("write_id", [SEALED, "", "a nonce"], ids=["ours", "stock", "put back before"])
def test_a_state_that_is_refused_leaves_the_listed_index_and_takes_the_new_data_back(write_id):
    error, old = StoreError("refused"), indexed(write_id, 3, used=2)
    model = Ending([error], **{"ckpt-1.index": old})

    assert error is commit_on(model)
    left = decode_index(model.objects["ckpt-1.index"].data)
    assert decode_index(old.data).entries == left.entries
    assert left.header.write_id not in (write_id, "new"), "S3's version is a digest: no old bytes again"
    assert_sealed_as_before(old, model.objects["ckpt-1.index"], OURS)
    assert {"checkpoint", "ckpt-1.index"} == model.objects.keys()


def assert_sealed_as_before(before, after, attempt):
    """What was not ours must not look like garbage of ours one day."""
    old, new = (read_write_id(decode_index(it.data).header.write_id, "ckpt-1.index") for it in (before, after))
    assert new == (attempt if old else None)


def test_a_state_that_is_refused_takes_a_new_index_back_too():
    model = Ending([StoreError("refused")])

    assert isinstance(commit_on(model), StoreError)
    assert {"checkpoint"} == model.objects.keys()


def test_data_that_another_has_overwritten_are_not_taken_back():
    """As a stock manager does, which knows no conditions."""
    model = Ending([StoreError("refused")])
    model.objects[NEW.data[0]] = Object(b"a stock manager's", Version("another"))
    commit_on(model)

    assert b"a stock manager's" == model.objects[NEW.data[0]].data


def test_a_lost_race_takes_its_own_back_and_touches_nothing_of_the_winner():
    model = Ending([ConflictError("lost")])

    assert isinstance(commit_on(model), ConflictError)
    assert {"checkpoint": model.rival} == model.objects


def test_a_race_that_is_lost_before_the_index_is_there_takes_the_data_back():
    model = Ending([])
    model.objects["checkpoint"] = model.rival
    model.objects["ckpt-1.index"] = theirs = indexed("theirs", 3, used=2)

    assert isinstance(commit_on(model), ConflictError)
    assert {"checkpoint": model.rival, "ckpt-1.index": theirs} == model.objects


def test_a_lost_race_puts_an_unlisted_index_back():
    old = indexed("old", 3, used=2)
    model = Ending([ConflictError("lost")], **{"ckpt-1.index": old})

    assert isinstance(commit_on(model), ConflictError)
    assert decode_index(old.data).entries == decode_index(model.objects["ckpt-1.index"].data).entries
    assert {"checkpoint", "ckpt-1.index"} == model.objects.keys()


@pytest.mark.parametrize(
    "rival", [encode_state(State(latest="ckpt-1")), b"what is this?"], ids=["lists it", "cannot be read"]
)
def test_a_lost_race_leaves_what_the_state_may_list(rival):
    """A stock manager that went on from our state lists our checkpoint, and dropped our write id."""
    model = Ending([ConflictError("lost")])
    model.rival = Object(rival, Version("another"))

    assert isinstance(commit_on(model), ConflictError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_a_lost_race_for_a_listed_number_says_that_it_was_replaced_and_leaves_its_data():
    """Its index made the new values visible, and who took over went on from them, under a new write id."""
    model = Ending([ConflictError("lost")], **{"ckpt-1.index": indexed("old", 3, used=2)})

    outcome = run_to_end(replacing(model), model)
    assert (ConflictError, True) == (type(outcome), "ckpt-1 was replaced before that" in str(outcome))
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_where_deletions_are_not_exact_nothing_is_taken_back():
    """One that lands late would delete what the next save writes under the same name."""
    for errors in ([StoreError("refused")], [ConflictError("lost")]):
        model = Ending(errors)
        flow = commit(NEW, b"new", state("ckpt-1"), GUARD, created=None, attempt=OURS, url=URL)

        assert isinstance(run_to_end(flow, model), StoreError | ConflictError)
        assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_a_swap_of_a_listed_index_that_is_reported_as_lost_leaves_its_data_to_the_winner():
    """It had landed, and the client sent it twice; who took over gave it a new write id, and it names our data."""
    model = Ending([], **{"ckpt-1.index": indexed("new, settled by the winner", 7, used=1)})
    model.objects["checkpoint"] = model.rival

    assert isinstance(run_to_end(replacing(model), model), ConflictError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


@pytest.mark.parametrize("overtaken", ["at the index", "at the state"])
def test_a_lost_race_whose_index_may_land_late_keeps_its_data(overtaken):
    model = Ending([ConflictError("lost")])
    writer = Writer(commit(NEW, b"new", state("ckpt-1"), GUARD, created=CREATED, attempt=OURS, url=URL))
    writer.step(model, lose=True)
    if overtaken == "at the index":
        del model.objects["ckpt-1.index"]
        model.objects["checkpoint"] = model.rival
    while writer.request is not None:
        writer.step(model, lose=False)

    assert isinstance(writer.outcome, ConflictError)
    assert NEW.data[0] in model.objects


def test_a_refusal_after_a_lost_answer_is_an_unknown_outcome_and_takes_nothing_back():
    model = Ending([StoreError("no answer", transient=True), StoreError("refused")])

    assert isinstance(commit_on(model), UnknownOutcomeError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_an_index_that_may_land_late_keeps_its_data():
    model = Ending([StoreError("refused")])
    writer = Writer(commit(NEW, b"new", state("ckpt-1"), GUARD, created=CREATED, attempt=OURS, url=URL))
    writer.step(model, lose=True)
    while writer.request is not None:
        writer.step(model, lose=False)

    assert isinstance(writer.outcome, StoreError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


class Mute(Ending):
    """A store that answers no write of an index, whether it lands or not, and whose budget is soon spent."""

    def perform(self, request):
        if isinstance(request, Pause):
            raise request.failure
        if isinstance(request, Put) and request.key == "ckpt-1.index":
            raise StoreError("no answer", transient=True)
        return super().perform(request)


def replacing(model):
    return commit(NEW, b"new", state("ckpt-1"), GUARD, created=CREATED, attempt=OURS, url=URL, replaces=True)


def test_a_listed_number_whose_index_was_taken_back_has_not_changed():
    old = indexed("old", 3, used=2)
    model = Ending([StoreError("refused")], **{"ckpt-1.index": old})

    assert isinstance(run_to_end(replacing(model), model), StoreError)
    assert decode_index(old.data).entries == decode_index(model.objects["ckpt-1.index"].data).entries


def test_a_listed_number_whose_index_may_have_changed_is_an_unknown_outcome():
    """Its index alone makes new values visible: the state names it already."""
    model = Mute([], **{"ckpt-1.index": indexed("old", 3, used=2)})
    before = dict(model.objects)
    assert isinstance(run_to_end(replacing(model), model), UnknownOutcomeError)
    assert before == model.objects

    model = Mute([])
    assert isinstance(commit_on(model), StoreError), "and one that no state lists is visible to nobody"


def test_a_listed_number_whose_index_cannot_be_taken_back_is_an_unknown_outcome():
    model = Ending([StoreError("refused")], **{"ckpt-1.index": indexed("old", 3, used=2)})
    writer = Writer(replacing(model))
    while writer.request is not None:
        if isinstance(writer.request, Put) and writer.request.buffers not in ((b"new",), (b"",)):
            model.objects["ckpt-1.index"] = dataclasses.replace(model.objects["ckpt-1.index"], version=Version("else"))
        writer.step(model, lose=False)

    assert isinstance(writer.outcome, UnknownOutcomeError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_a_listed_number_whose_index_may_land_late_is_an_unknown_outcome():
    model = Ending([StoreError("refused")], **{"ckpt-1.index": indexed("old", 3, used=2)})
    writer = Writer(replacing(model))
    while not isinstance(writer.request, Put) or writer.request.mode == "create":
        writer.step(model, lose=False)
    writer.step(model, lose=True)
    while writer.request is not None:
        writer.step(model, lose=False)

    assert isinstance(writer.outcome, UnknownOutcomeError)
    assert (b"new", {"checkpoint", "ckpt-1.index", NEW.data[0]}) == (
        model.objects["ckpt-1.index"].data,
        model.objects.keys(),
    )


def test_taking_back_spares_an_index_that_somebody_has_replaced_since():
    model = Ending([StoreError("refused")])
    writer = Writer(commit(NEW, b"new", state("ckpt-1"), GUARD, created=CREATED, attempt=OURS, url=URL))
    while not isinstance(writer.request, Remove):
        writer.step(model, lose=False)
    model.objects["ckpt-1.index"] = Object(b"another's", Version("another"))
    while writer.request is not None:
        writer.step(model, lose=False)

    assert b"another's" == model.objects["ckpt-1.index"].data
    assert NEW.data[0] in model.objects, "nobody has looked whether the other index uses it"


def run_to_end(flow, model):
    writer = Writer(flow)
    while writer.request is not None:
        writer.step(model, lose=False)
    return writer.outcome


def indexed(write_id, count, used=0, files=()):
    entries = {b"t%d" % shard: Entry(4, (), shard=shard, size=1) for shard in range(used)}
    index = Index(Header(num_shards=count, write_id=write_id, files=files), entries)
    return Object(encode_index(index), Version(write_id))


def new_owner(flow):
    """Somebody else claims the directory, and then does what `flow` says under the new state."""
    record = Record(write_id="the new owner's", term=TERM, epoch=2)
    published = yield from publish_state(State(latest="ckpt-1", record=record), GUARD, url=URL)
    return (yield from flow(published.version))


@pytest.mark.parametrize("losses", [0, 1])
def test_a_zombie_that_checked_the_state_and_paused_cannot_replace_an_index_that_the_new_owner_has_rewritten(losses):
    """Else a reader, or the new owner itself, has restored one thing, and finds another there afterwards."""
    old, zombies, key = indexed(SEALED, 3, used=2), indexed(OURS.write_id("ckpt-1.index"), 4, used=1), "ckpt-1.index"
    theirs = new_attempt(TERM, 2)

    def make_world():
        zombie = publish(key, zombies.data, guard=GUARD, url=URL)
        owner = new_owner(lambda guard: rewrite(key, theirs, guard=guard, url=URL))
        return claimed(**{key: old}), [Writer(zombie), Writer(owner)]

    seen = set()
    for model, (zombie, owner) in explore(make_world, losses):
        left = decode_index(model.objects[key].data)
        assert owner.outcome == model.objects[key], "what the owner was told is what is there, for good"
        assert theirs == read_write_id(left.header.write_id, key)
        landed = left.entries == decode_index(zombies.data).entries
        assert landed or left.entries == decode_index(old.data).entries
        assert landed or isinstance(zombie.outcome, ConflictError)
        seen.add(landed)
    assert {True, False} == seen


@pytest.mark.parametrize("write_id", [SEALED, "", "a nonce"], ids=["ours", "stock", "rewritten before"])
def test_rewriting_changes_nothing_but_the_write_id(write_id):
    before = indexed(write_id, 3, used=2, files=("-Saver",))
    model = claimed(**{"ckpt-1.index": before})
    after = run_to_end(rewrite("ckpt-1.index", OURS, guard=GUARD, url=URL), model)
    old, new = decode_index(before.data), decode_index(after.data)

    assert after == model.objects["ckpt-1.index"]
    assert old.entries == new.entries
    assert old.header == dataclasses.replace(new.header, write_id=old.header.write_id) != new.header
    assert_sealed_as_before(before, after, OURS)


def test_an_index_is_rewritten_only_by_the_owner_only_if_it_is_there_and_only_if_it_is_whole():
    old = indexed("old", 3)
    for model, outcome in (
        (Model({"checkpoint": Object(b"", Version("another"))}), "done"),
        (Model({"checkpoint": Object(b"", Version("another")), "ckpt-1.index": old}), ConflictError),
        (Model({"ckpt-1.index": old}), ConflictError),
        (claimed(**{"ckpt-1.index": Object(b"garbage", Version("1"))}), CorruptError),
    ):
        before = dict(model.objects)
        ended = run_to_end(rewrite("ckpt-1.index", OURS, guard=GUARD, url=URL), model)
        assert ended == outcome or isinstance(ended, outcome)
        assert before == model.objects


def test_what_a_checkpoint_consists_of_is_read_from_its_index():
    model = Model({"deep/ckpt-1.index": indexed("a", 70, used=2, files=("-Saver", "-Saver.note"))})

    assert (
        Retired(path="deep/ckpt-1", write_id="a", used=2, of=70, files=("deep/ckpt-1-Saver", "deep/ckpt-1-Saver.note")),
        Version("a"),
    ) == run_to_end(describe("deep/ckpt-1", url=URL), model)
    assert "done" == run_to_end(describe("ckpt-2", url=URL), model)


RETIRED = Retired(path="ckpt-1", write_id="old", used=2, of=2, files=("ckpt-1.note",))


def retired_world(**objects):
    content = {key: Object(b"old", Version("d")) for key in RETIRED.data}
    return claimed(**{"ckpt-1.index": indexed("old", 2, used=2, files=(".note",)), **content, **objects})


def delete(retired=RETIRED, known=None):
    return delete_retired(retired, known, guard=GUARD, url=URL)


@pytest.mark.parametrize("known", [None, Version("old"), Version("put back since")], ids=str)
def test_a_retired_checkpoint_goes_by_exact_names_and_nothing_else_with_it(known):
    others = {
        key: Object(b"another's", Version("1"))
        for key in ("ckpt-10.index", "ckpt-1.data-00002-of-00002", "ckpt-1.data-00000-of-00003", "ckpt-1.txt")
    }
    model = retired_world(**others)

    assert "done" == run_to_end(delete(known=known), model)
    assert {"checkpoint", *others} == model.objects.keys()


@pytest.mark.parametrize("known", [None, Version("old")], ids=str)
def test_the_index_goes_first_so_that_nothing_ever_looks_whole_that_is_not(known):
    model, changes = retired_world(), []
    writer = Writer(delete(known=known))
    while writer.request is not None:
        if isinstance(writer.request, Delete | Remove):
            changes.append(writer.request)
        writer.step(model, lose=False)

    assert Remove("ckpt-1.index", Version("old")) == changes[0]
    assert [Remove("ckpt-1.note", Version("d")), Delete(RETIRED.objects)] == changes[1:]


def test_data_without_an_index_is_deleted_too_where_an_earlier_deletion_was_cut_off():
    model = retired_world()
    del model.objects["ckpt-1.index"]

    assert "done" == run_to_end(delete(), model)
    assert {"checkpoint"} == model.objects.keys()


@pytest.mark.parametrize("known", [None, Version("old")], ids=str)
def test_a_newer_index_at_a_retired_number_keeps_itself_and_its_data(known):
    model = retired_world(**{"ckpt-1.index": indexed("new", 5, used=1, files=(".note",))})
    model.objects["ckpt-1.data-00000-of-00005"] = Object(b"new data", Version("2"))
    run_to_end(delete(known=known), model)

    assert {"checkpoint", "ckpt-1.index", "ckpt-1.data-00000-of-00005", "ckpt-1.note"} == model.objects.keys()


def test_data_that_a_newer_index_shares_with_a_retired_one_stays():
    model = retired_world(**{"ckpt-1.index": indexed("new", 2, used=1)})
    run_to_end(delete(), model)

    assert {"checkpoint", "ckpt-1.index", "ckpt-1.data-00000-of-00002"} == model.objects.keys()


def test_an_intention_that_means_no_index_leaves_the_one_there_and_what_it_uses():
    """Data of an attempt that died beside a listed checkpoint."""
    dead = Retired(path="ckpt-1", write_id=None, used=1, of=70001)
    model = retired_world(**{dead.data[0]: Object(b"dead", Version("1"))})
    run_to_end(delete(dead), model)

    assert {"checkpoint", "ckpt-1.index", *RETIRED.data} == model.objects.keys()


def test_nothing_is_deleted_beside_an_index_that_cannot_be_read():
    model = retired_world(**{"ckpt-1.index": Object(b"garbage", Version("1"))})
    before = dict(model.objects)

    assert isinstance(run_to_end(delete(), model), CorruptError)
    assert before == model.objects


@pytest.mark.parametrize("known", [None, Version("old")], ids=str)
def test_a_zombie_that_deletes_what_was_retired_deletes_nothing_that_the_new_owner_has_saved_since(known):
    """The new owner saves the same number again: the names of its index and its side file are used again."""
    new = indexed("new", 5, used=1, files=(".note",))
    data = "ckpt-1.data-00000-of-00005"

    def save(guard):
        yield Put(data, (b"new data",), "create")
        yield from publish("ckpt-1.note", b"new note", guard=guard, url=URL)
        return (yield from publish("ckpt-1.index", new.data, guard=guard, url=URL))

    ends = 0
    for model, (_, owner) in explore(
        lambda: (retired_world(), [Writer(delete(known=known)), Writer(new_owner(save))]), 0
    ):
        ends += 1
        assert not isinstance(owner.outcome, Exception)
        assert new.data == model.objects["ckpt-1.index"].data
        assert (b"new note", b"new data") == (model.objects["ckpt-1.note"].data, model.objects[data].data)
    assert ends > 100


@pytest.mark.parametrize(
    "objects",
    [
        {}, {"ckpt-1.index": None}, {"ckpt-1.data-00000-of-00002": None}, {"ckpt-1.note": None},
        {"ckpt-1.index": indexed("new", 5, used=1, files=(".note",))}, {"ckpt-1.index": indexed("new", 2, used=1)},
        {"ckpt-1.index": Object(b"garbage", Version("1"))},
    ],
    ids=["whole", "no index", "no data", "no side file", "newer index", "newer index that shares", "damaged index"],
)  # fmt: skip
@pytest.mark.parametrize("retired", [RETIRED, dataclasses.replace(RETIRED, write_id=None)], ids=["", "data only"])
def test_what_a_deletion_will_delete_is_foreseen_exactly(retired, objects):
    model = retired_world(**objects)
    model.objects = {key: content for key, content in model.objects.items() if content is not None}
    before = set(model.objects)
    foreseen = run_to_end(foresee(retired, before, url=URL), model)
    run_to_end(delete(retired), model)

    assert before - model.objects.keys() == (set() if foreseen == "done" else foreseen)


def test_what_could_not_be_deleted_is_told_by_key():
    model = retired_world()
    perform, error = model.perform, StoreError("refused")
    model.perform = lambda request: {"a key": error} if isinstance(request, Delete) else perform(request)

    assert {"a key": error} == run_to_end(delete(), model)


def test_a_refusal_that_cannot_be_is_no_proof_after_a_lost_answer():
    """The first put may still land, whatever the second is told."""
    model = Model({"checkpoint": Object(b"", GUARD)})
    flow = publish_state(state("ckpt-2"), GUARD, url=URL)
    assert isinstance(next(flow), Put)
    assert Get("checkpoint") == flow.throw(StoreError("silence", transient=True))
    assert isinstance(flow.send(model.objects["checkpoint"]), Pause)
    assert isinstance(next(flow), Put)
    assert Get("checkpoint") == flow.throw(ConflictError("no"))
    pause = flow.send(model.objects["checkpoint"])
    with pytest.raises(UnknownOutcomeError):
        flow.throw(pause.failure)
