"""What one writer knows of a directory, and what a writer that sleeps in the middle of a save can still do: nothing."""

import random

import pytest
from support.schedules import Model
from support.sleeper import Sleeper, perform

from ckpt_remote.bundle import Entry, Header, Index, crc32c, decode_index, encode_index, index_name, mask, shard_name
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import ConflictError
from ckpt_remote.flow import Delete, Get, Put, Remove
from ckpt_remote.state import Retired, decode_state
from ckpt_remote.store import Version
from ckpt_remote.upload import create

URL = "s3://bucket/run"
KEEP_ALL = Retention(max_to_keep=None, keep_checkpoint_every_n_hours=None)


def make_directory(model):
    known = Directory(URL, chance=random.Random(0))
    perform(known.load(), model)
    return known


def save(known, path, value, retention=KEEP_ALL):
    """A whole save, as the manager composes it."""
    yield from known.claim("ckpt")
    target = yield from known.begin(path)
    count = next(target.counts(1))
    key = shard_name(path, 0, count)
    created = {key: (yield from create(key, [value], target.attempt))}
    write_id = target.attempt.write_id(index_name(path))
    entries = {b"t": Entry(4, (len(value),), size=len(value), crc32c=mask(crc32c(value)))}
    index = encode_index(Index(Header(num_shards=count, write_id=write_id), entries))
    objects = Retired(path=path, write_id=write_id, used=1, of=count)
    yield from known.publish(index, objects, created, target, retention)
    yield from known.delete_retired()


def read(path, model):
    index = decode_index(model.objects[index_name(path)].data)
    (entry,) = index.entries.values()
    return model.objects[shard_name(path, 0, index.header.num_shards)].data[: entry.size]


def listed(model):
    return [entry.path for entry in decode_state(model.objects["checkpoint"].data, path="", directories=()).entries]


def requests_of_a_save_again():
    model = Model(generations=False)
    known = make_directory(model)
    perform(save(known, "ckpt-1", b"old"), model)
    sleeper, count = Sleeper(save(known, "ckpt-1", b"new"), model), 0
    while sleeper.request is not None:
        sleeper.step()
        count += 1
    return count


@pytest.mark.parametrize("generations", [False, True], ids=["digests", "generations"])
@pytest.mark.parametrize("awake", range(requests_of_a_save_again()))
def test_a_zombie_that_checked_its_epoch_cannot_replace_what_the_new_owner_restored_from(awake, generations):
    """It falls asleep before each of its requests in turn, while it saves a number again that the state lists."""
    model = Model(generations=generations)
    zombie = make_directory(model)
    perform(save(zombie, "ckpt-1", b"old"), model)
    sleeper = Sleeper(save(zombie, "ckpt-1", b"new"), model)
    for _ in range(awake):
        sleeper.step()

    owner = make_directory(model)
    perform(owner.claim("ckpt"), model)
    restored, index = read("ckpt-1", model), model.objects["ckpt-1.index"]
    refusal = None
    if sleeper.request is not None:
        try:
            sleeper.finish()
        except ConflictError as error:
            refusal = str(error)
        else:
            assert restored == b"new", "only a save that had landed may pass"

    assert refusal is None or restored == (b"new" if "was replaced before that" in refusal else b"old")
    assert restored in (b"old", b"new")
    assert index == model.objects["ckpt-1.index"]
    assert restored == read("ckpt-1", model)
    perform(save(owner, "ckpt-2", b"next"), model)
    assert ["ckpt-1", "ckpt-2"] == listed(model)
    used = {"checkpoint", *(key for path in listed(model) for key in keys_of(path, model))}
    assert used == model.objects.keys()


def keys_of(path, model):
    return index_name(path), shard_name(path, 0, decode_index(model.objects[index_name(path)].data).header.num_shards)


def test_a_fresh_number_has_the_true_count_and_one_that_was_used_a_drawn_one():
    model = Model(generations=False)
    known = make_directory(model)
    keep_one = Retention(max_to_keep=1, keep_checkpoint_every_n_hours=None)
    perform(save(known, "ckpt-5", b"x", keep_one), model)
    assert "ckpt-5.data-00000-of-00001" in model.objects
    perform(save(known, "ckpt-6", b"x", keep_one), model)
    assert "ckpt-6.data-00000-of-00001" in model.objects
    perform(save(known, "ckpt-5", b"x", keep_one), model)

    assert not any(key.startswith("ckpt-5.data") and key.endswith("-of-00001") for key in model.objects)
    following = make_directory(model)
    perform(save(following, "ckpt-6", b"x", keep_one), model)
    assert "ckpt-6.data-00000-of-00001" not in model.objects, "the next owner knows the highest number, too"


def test_the_steady_state_costs_two_small_requests_and_two_to_delete():
    model, asked = Model(generations=False), []
    known = make_directory(model)
    keep_one = Retention(max_to_keep=1, keep_checkpoint_every_n_hours=None)
    perform(save(known, "ckpt-1", b"x", keep_one), model)
    perform(save(known, "ckpt-2", b"x", keep_one), model)
    sleeper = Sleeper(save(known, "ckpt-3", b"x", keep_one), model)
    while sleeper.request is not None:
        asked.append((type(sleeper.request).__name__, getattr(sleeper.request, "key", "")))
        sleeper.step()

    assert [
        ("Put", "ckpt-3.data-00000-of-00001"),
        ("Put", "ckpt-3.index"),
        ("Put", "checkpoint"),
        ("Remove", "ckpt-2.index"),
        ("Delete", ""),
    ] == asked


def test_a_forked_child_claims_for_itself(monkeypatch):
    model = Model(generations=False)
    known = make_directory(model)
    perform(known.claim("ckpt"), model)
    before = model.objects["checkpoint"]
    perform(known.claim("ckpt"), model)
    assert before == model.objects["checkpoint"]
    monkeypatch.setattr("os.getpid", lambda: -1)
    perform(known.claim("ckpt"), model)

    assert before != model.objects["checkpoint"]


def test_a_stock_managers_state_starts_a_new_term_and_explains_nothing_of_the_old_one():
    model = Model(generations=False)
    known = make_directory(model)
    perform(save(known, "ckpt-1", b"x"), model)
    perform(create("ckpt-9.data-00000-of-00001", [b"lost"], known.attempt()), model)
    stock = b'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n'
    model.objects.pop("checkpoint")
    model.perform(Put("checkpoint", (stock,), "create"))
    following = make_directory(model)
    perform(save(following, "ckpt-2", b"x"), model)

    assert "ckpt-9.data-00000-of-00001" in model.objects
    assert () == perform(following.collect(dry_run=True), model)


def test_collecting_needs_the_directory_and_a_rival_wins_it():
    model = Model(generations=False)
    known, rival = make_directory(model), make_directory(model)
    perform(save(known, "ckpt-1", b"x"), model)
    perform(create("ckpt-9.data-00000-of-00001", [b"lost"], known.attempt()), model)
    with pytest.raises(ConflictError):
        perform(rival.claim("ckpt"), model)
    model.objects["checkpoint"] = model.objects["checkpoint"].__class__(b"another's", Version("another"))
    with pytest.raises(ConflictError):
        perform(known.collect(dry_run=False), model)

    assert "ckpt-9.data-00000-of-00001" in model.objects


def test_only_what_the_state_says_is_deleted_by_name():
    """All else by version: names may be used again as soon as the deletion has landed."""
    model = Model(generations=False)
    known = make_directory(model)
    keep_one = Retention(max_to_keep=1, keep_checkpoint_every_n_hours=None)
    perform(save(known, "ckpt-1", b"x", keep_one), model)
    sleeper = Sleeper(save(known, "ckpt-2", b"x", keep_one), model)
    while sleeper.request is not None:
        if isinstance(sleeper.request, Delete):
            state = decode_state(model.perform(Get("checkpoint")).data, path="", directories=())
            assert set(sleeper.request.keys) <= {key for retired in state.record.retired for key in retired.data}
        sleeper.step()


def records(model):
    return decode_state(model.objects["checkpoint"].data, path="", directories=()).record


def test_an_older_state_that_was_put_back_makes_nothing_garbage_that_came_after_it(caplog):
    model = Model(generations=False)
    known = make_directory(model)
    for number in (1, 2, 3, 4):
        perform(save(known, f"ckpt-{number}", b"x"), model)
        if number == 2:
            older = model.objects["checkpoint"]
    newer = {key: model.objects[key] for path in ("ckpt-3", "ckpt-4") for key in keys_of(path, model)}
    model.objects["checkpoint"] = older

    following = make_directory(model)
    perform(save(following, "ckpt-9", b"x"), model)
    perform(save(make_directory(model), "ckpt-10", b"x"), model)
    assert ["ckpt-1", "ckpt-2", "ckpt-9", "ckpt-10"] == listed(model)
    assert newer.items() <= model.objects.items()
    assert () == perform(make_directory(model).collect(dry_run=True), model)
    assert "is older than some of what lies there" in caplog.text


def test_what_looks_like_an_older_state_to_a_writer_that_is_fenced_is_its_successors_work():
    model = Model(generations=False)
    perform(save(make_directory(model), "ckpt-1", b"x"), model)
    zombie = make_directory(model)
    perform(zombie.claim("ckpt"), model)
    successor = make_directory(model)
    for path in ("ckpt-2", "ckpt-3"):
        perform(save(successor, path, b"x"), model)
    model.objects.pop("ckpt-3.data-00000-of-00001")
    before = dict(model.objects)
    with pytest.raises(ConflictError):
        perform(zombie.begin("ckpt-2"), model)

    assert before == model.objects


def test_a_copy_of_a_directory_has_a_history_of_its_own():
    model = Model(generations=False)
    known = make_directory(model)
    perform(save(known, "ckpt-1", b"x"), model)
    term = records(model).term
    copy = Model(generations=False, objects=dict(model.objects))
    moved = Directory("s3://bucket/run2", chance=random.Random(0))
    perform(moved.load(), copy)
    perform(save(moved, "ckpt-2", b"x"), copy)
    perform(save(known, "ckpt-2", b"y"), model)
    perform(save(known, "ckpt-3", b"y"), model)
    for key in keys_of("ckpt-3", model):
        copy.objects[key] = model.objects[key]

    assert (term, URL) == (records(model).term, records(model).home)
    assert term != records(copy).term
    again = Directory("s3://bucket/run2", chance=random.Random(1))
    perform(again.load(), copy)
    perform(save(again, "ckpt-4", b"x"), copy)
    assert read("ckpt-3", copy) == b"y"
    assert () == perform(again.collect(dry_run=True), copy)


@pytest.mark.parametrize("ours", [False, True])
def test_replacing_what_no_state_lists_is_said_unless_it_died_with_one_of_our_own_saves(ours, caplog):
    model = Model(generations=False)
    known = make_directory(model)
    perform(save(known, "ckpt-1", b"x"), model)
    write_id = known.attempt().write_id("ckpt-2.index") if ours else ""
    model.perform(Put("ckpt-2.index", (encode_index(Index(Header(num_shards=1, write_id=write_id), {})),), "create"))
    perform(save(known, "ckpt-2", b"y"), model)

    assert ours != ("ckpt-2.index was there already" in caplog.text)


class Heedless(Model):
    """A store that ignores conditions on deletes."""

    def perform(self, request):
        if isinstance(request, Remove):
            self.objects.pop(request.key, None)
            return None
        return super().perform(request)


def test_an_owner_that_comes_back_knows_nothing_of_the_indexes_it_wrote_before():
    """What its successor has replaced is not deleted by what it remembers, even where nothing stops the delete."""
    model = Heedless(generations=False)
    first, second = make_directory(model), make_directory(model)
    perform(save(first, "ckpt-1", b"first"), model)
    perform(second.load(), model)
    perform(save(second, "ckpt-1", b"second"), model)
    perform(first.load(), model)
    perform(save(first, "ckpt-2", b"third"), model)

    assert ["ckpt-1", "ckpt-2"] == listed(model)
    assert b"second" == read("ckpt-1", model)
    assert {"checkpoint", *keys_of("ckpt-1", model), *keys_of("ckpt-2", model)} == model.objects.keys()


def test_an_owner_that_comes_back_retires_what_its_successor_has_replaced_as_it_is_now():
    model = Model(generations=False)
    first, second = make_directory(model), make_directory(model)
    perform(save(first, "ckpt-1", b"first"), model)
    perform(second.load(), model)
    perform(save(second, "ckpt-1", b"second"), model)
    perform(first.load(), model)
    perform(save(first, "ckpt-2", b"third", Retention(max_to_keep=1, keep_checkpoint_every_n_hours=None)), model)

    assert {"checkpoint", *keys_of("ckpt-2", model)} == model.objects.keys()
