"""The protocol, explored: writers take turns in every order, and responses get lost, on a model of a store."""

from dataclasses import dataclass, field

import pytest

from ckpt_remote import state as states
from ckpt_remote.bundle import Entry, Header, Index, decode_index, encode_index
from ckpt_remote.commit import Delete, Get, Pause, Put, commit, delete_retired, publish, publish_state
from ckpt_remote.errors import ConflictError, CorruptError, StoreError, UnknownOutcomeError
from ckpt_remote.state import Record, Retired, State, decode_state
from ckpt_remote.store import Object, Version

URL = "s3://bucket/run"
ATTEMPTS = 6


@dataclass
class Model:
    """A store: objects with versions; equal bytes have equal versions, as S3's ETags do."""

    objects: dict = field(default_factory=dict)

    def perform(self, request):
        match request:
            case Get(key):
                return self.objects.get(key)
            case Put(key, data, mode):
                current = self.objects.get(key)
                if mode == "create" and current is not None:
                    raise ConflictError("exists")
                if isinstance(mode, Version) and (current is None or current.version != mode):
                    raise ConflictError("changed")
                self.objects[key] = Object(data, Version(str(hash(data))))
                return self.objects[key].version
            case Delete(keys):
                for key in keys:
                    self.objects.pop(key, None)
                return {}
            case Pause():
                return None
        raise AssertionError(request)


class Writer:
    """A flow under way: `step` performs its next request, and may lose the response."""

    def __init__(self, flow):
        self.flow, self.outcome = flow, None
        self.request = next(flow)

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
        except (ConflictError, StoreError, UnknownOutcomeError) as error:
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
            if isinstance(writers[number].request, Put) and losses > sum(lose for _, lose in schedule):
                pending.append((*schedule, (number, True)))


def state(name, lineage=()):
    return State(
        latest=name, entries=(states.Entry(name, 1.0),), record=Record(write_id=f"id of {name}", lineage=lineage)
    )


@pytest.mark.parametrize("losses", [0, 1, 2])
def test_of_two_writers_at_once_exactly_one_wins_and_knows_it(losses):
    def make_world():
        flows = [publish_state(state(f"ckpt-{n}"), None, url=URL, attempts=ATTEMPTS) for n in (1, 2)]
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
        flow = publish_state(state("ckpt-1"), None, url=URL, attempts=ATTEMPTS)
        return model, [Writer(flow), Writer(_follower(model))]

    superseded = 0
    for _, (first, _) in explore(make_world, 1):
        assert not isinstance(first.outcome, Exception)
        superseded += first.outcome.version is None
    assert superseded


def _follower(model):
    while "checkpoint" not in model.objects:
        yield Pause(1)
        if not model.objects:
            return  # this order of events has nothing to follow
    current = yield Get("checkpoint")
    record = decode_state(current.data, path="", directories=()).record
    yield from publish_state(state("ckpt-2", record.followed_by()), current.version, url=URL, attempts=ATTEMPTS)


def test_a_store_that_never_answers_leaves_the_outcome_unknown():
    writer = Writer(publish_state(state("ckpt-1"), None, url=URL, attempts=ATTEMPTS))

    class Silent(Model):
        def perform(self, request):
            if not isinstance(request, Pause):
                raise StoreError("no response", transient=True)

    while writer.request is not None:
        writer.step(Silent(), lose=False)
    assert isinstance(writer.outcome, UnknownOutcomeError)


def test_a_refusal_for_good_is_not_repeated():
    flow = publish_state(state("ckpt-1"), None, url=URL, attempts=ATTEMPTS)
    next(flow)
    with pytest.raises(StoreError, match="forbidden"):
        flow.throw(StoreError("forbidden"))


def test_the_index_is_published_before_the_state():
    requests, model = [], Model()
    model.objects["checkpoint"] = Object(b"", Version("claimed"))
    writer = Writer(commit(NEW, b"index", state("ckpt-1"), Version("claimed"), url=URL, attempts=ATTEMPTS))
    while writer.request is not None:
        requests.append(writer.request.key)
        writer.step(model, lose=False)

    assert ["ckpt-1.index", "checkpoint"] == requests


GUARD = Version("the state that this writer has claimed")


def claimed(**objects):
    return Model({"checkpoint": Object(b"", GUARD), **objects})


def test_an_index_left_by_an_earlier_attempt_is_replaced_only_as_it_was_read():
    model = claimed()
    model.perform(Put("ckpt-1.index", b"old", "create"))
    writer = Writer(publish("ckpt-1.index", b"new", guard=GUARD, url=URL, attempts=ATTEMPTS))
    modes = []
    while writer.request is not None:
        if isinstance(writer.request, Put):
            modes.append(writer.request.mode)
        writer.step(model, lose=False)

    assert b"new" == model.objects["ckpt-1.index"].data
    assert ["create", Version(str(hash(b"old")))] == modes


def test_a_writer_that_is_fenced_replaces_no_index_however_late_it_wakes_up():
    """It is stopped before each request in turn, while a new owner claims the directory and saves that number."""
    for stopped_before in range(4):
        model = claimed()
        model.perform(Put("ckpt-1.index", b"old", "create"))
        zombie = Writer(publish("ckpt-1.index", b"the zombie's", guard=GUARD, url=URL, attempts=ATTEMPTS))
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


class Ending(Model):
    """A store that answers the writes of the state with one error after the other."""

    def __init__(self, errors, **objects):
        super().__init__({"checkpoint": Object(b"", GUARD), NEW.data[0]: Object(b"new", Version("d")), **objects})
        self.errors = list(errors)

    def perform(self, request):
        if not (isinstance(request, Put) and request.key == "checkpoint"):
            return super().perform(request)
        error = self.errors.pop(0)
        if isinstance(error, ConflictError):
            self.objects["checkpoint"] = Object(b"another's", Version("another"))
        raise error


def commit_on(model):
    writer = Writer(commit(NEW, b"new", state("ckpt-1"), GUARD, url=URL, attempts=ATTEMPTS))
    while writer.request is not None:
        writer.step(model, lose=False)
    return writer.outcome


@pytest.mark.parametrize("error", [ConflictError("lost"), StoreError("refused")], ids=["conflict", "refused"])
def test_a_state_that_does_not_change_leaves_the_listed_index_and_takes_the_new_data_back(error):
    old = indexed("old", 3, used=2)
    model = Ending([error], **{"ckpt-1.index": old})

    assert error is commit_on(model) or isinstance(error, ConflictError)
    left = decode_index(model.objects["ckpt-1.index"].data)
    assert decode_index(old.data).entries == left.entries
    assert left.header.write_id not in ("old", "new"), "the old version must not come back: S3's is a digest"
    assert {"checkpoint", "ckpt-1.index"} == model.objects.keys()


def test_a_refusal_after_a_lost_answer_is_an_unknown_outcome_and_takes_nothing_back():
    model = Ending([StoreError("no answer", transient=True), StoreError("refused")])

    assert isinstance(commit_on(model), UnknownOutcomeError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def test_an_index_that_may_land_late_keeps_its_data():
    model = Ending([StoreError("refused")])
    writer = Writer(commit(NEW, b"new", state("ckpt-1"), GUARD, url=URL, attempts=ATTEMPTS))
    writer.step(model, lose=True)
    while writer.request is not None:
        writer.step(model, lose=False)

    assert isinstance(writer.outcome, StoreError)
    assert {"checkpoint", "ckpt-1.index", NEW.data[0]} == model.objects.keys()


def run_to_end(flow, model):
    writer = Writer(flow)
    while writer.request is not None:
        writer.step(model, lose=False)
    return writer.outcome


def indexed(write_id, count, used=0):
    entries = {b"t%d" % shard: Entry(4, (), shard=shard, size=1) for shard in range(used)}
    index = Index(Header(num_shards=count, write_id=write_id), entries)
    return Object(encode_index(index), Version(write_id))


def test_a_retired_checkpoint_goes_index_first_and_by_exact_names():
    model = Model({"ckpt-1.index": indexed("a", 2), "ckpt-1.data-00000-of-00002": None, "ckpt-10.index": None})
    flow = delete_retired(Retired(path="ckpt-1", write_id="a", used=0, of=2), url=URL)
    assert Get("ckpt-1.index") == next(flow)
    assert Delete(("ckpt-1.index",)) == flow.send(model.objects["ckpt-1.index"])


def test_a_newer_index_at_a_retired_number_keeps_itself_and_its_data():
    retired = Retired(path="ckpt-1", write_id="old", used=1, of=1)
    model = Model(
        {
            "ckpt-1.index": indexed("new", 2),
            "ckpt-1.data-00000-of-00001": Object(b"old data", Version("1")),
            "ckpt-1.data-00000-of-00002": Object(b"new data", Version("2")),
        }
    )
    run_to_end(delete_retired(retired, url=URL), model)

    assert {"ckpt-1.index", "ckpt-1.data-00000-of-00002"} == model.objects.keys()


def test_data_that_a_newer_index_shares_with_a_retired_one_stays():
    keys = ["ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002"]
    model = Model({"ckpt-1.index": indexed("new", 2, used=1), **dict.fromkeys(keys, Object(b"", Version("1")))})
    run_to_end(delete_retired(Retired(path="ckpt-1", write_id="old", used=2, of=2), url=URL), model)

    assert {"ckpt-1.index", keys[0]} == model.objects.keys()


def test_nothing_is_deleted_beside_an_index_that_cannot_be_read():
    objects = {
        "ckpt-1.index": Object(b"garbage", Version("1")),
        "ckpt-1.data-00000-of-00001": Object(b"", Version("2")),
    }
    model = Model(dict(objects))
    flow = delete_retired(Retired(path="ckpt-1", write_id="a", used=1, of=1), url=URL)
    with pytest.raises(CorruptError):
        run_to_end(flow, model)

    assert objects == model.objects
