"""A store that does not keep its word is refused before anything depends on it; one that only stumbles is not."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from support.places import Place, read_all

from ckpt_remote import ConflictError, StoreError, UnsupportedError
from ckpt_remote.flow import run
from ckpt_remote.origin import SEAL_SIZE, new_attempt, new_term, read_seal
from ckpt_remote.probe import PROBES, check_store
from ckpt_remote.store import Policy, Retry, Version

OURS = new_attempt(new_term(), 3)
RETRY = Retry(Policy(attempts=4), sleep=lambda seconds: None)
PUTS = 4  # what a check of an honest store sends


def check(store, state=None):
    run(check_store(OURS, state, url="s3://bucket/run"), store, RETRY)


class Standing:
    """A store with something before it."""

    def __init__(self, store):
        self._store, self.puts = store, []

    def __getattr__(self, name):
        return getattr(self._store, name)

    @property
    def single(self):
        return self

    def put(self, key, buffers, mode):
        self.puts.append((key, mode))
        return self._store.put(key, buffers, mode)


class IgnoresEverything(Standing):
    def put(self, key, buffers, mode):
        return super().put(key, buffers, "overwrite")


class IgnoresCreate(Standing):
    def put(self, key, buffers, mode):
        return super().put(key, buffers, "overwrite" if mode == "create" else mode)


class IgnoresVersions(Standing):
    def put(self, key, buffers, mode):
        return super().put(key, buffers, mode if mode == "create" else "overwrite")


class RefusesTheRightVersion(Standing):
    """As a server that knows only unquoted ETags, and is sent quoted ones."""

    def put(self, key, buffers, mode):
        return super().put(key, buffers, Version(f'"{mode.token}"') if isinstance(mode, Version) else mode)


class RefusesToCreate(Standing):
    def put(self, key, buffers, mode):
        raise ConflictError("there is something already")


class HasNoConditions(Standing):
    def put(self, key, buffers, mode):
        raise UnsupportedError("this filesystem has no conditional requests")


LIARS = {
    IgnoresEverything: r"created an object where there was one already \(If-None-Match: \*\)",
    IgnoresCreate: r"created an object where there was one already \(If-None-Match: \*\)",
    IgnoresVersions: r"replaced an object of another version than the one it was told \(If-Match\)",
    RefusesTheRightVersion: "refused to replace an object of exactly the version that it has",
    RefusesToCreate: "refused to create an object of a name that nobody has",
    HasNoConditions: "no conditional requests",
}


@pytest.mark.parametrize(("liar", "deed"), LIARS.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_a_store_that_breaks_its_word_is_refused_with_what_it_did(liar, deed):
    place = Place.in_memory()
    with pytest.raises(UnsupportedError, match=deed):
        check(liar(place.store()))

    assert {} == read_all(place), "what was made to ask the questions is removed"


@pytest.mark.parametrize("liar", LIARS, ids=lambda it: it.__name__)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_manager_refuses_it_before_it_writes_anything(liar, used, monkeypatch):
    place, value = Place.in_memory(), tf.Variable(np.arange(4.0))
    if used:
        place.manager(tf.train.Checkpoint(value=value)).save()
    before = read_all(place)
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_remote.manager.open_store", lambda *arguments: liar(place.store()))
        manager = place.manager(tf.train.Checkpoint(value=value))
        for write in (manager.claim, manager.save):
            with pytest.raises(UnsupportedError):
                write()

    assert before == read_all(place)
    assert all(key.startswith(PROBES) for key, _ in manager._store.puts)


@pytest.mark.parametrize("liar", LIARS, ids=lambda it: it.__name__)
def test_whoever_only_reads_does_not_care(liar, monkeypatch):
    place, value = Place.in_memory(), tf.Variable(np.arange(4.0))
    place.manager(tf.train.Checkpoint(value=value)).save()
    monkeypatch.setattr("ckpt_remote.manager.open_store", lambda *arguments: liar(place.store()))

    assert f"{place.url}/ckpt-1" == place.manager(tf.train.Checkpoint(value=value)).restore_or_initialize()


def test_an_honest_store_passes_on_every_engine_and_keeps_nothing(place):
    store = place.store()
    check(store, store.put("checkpoint", [b"the state"], "create"))

    assert {"checkpoint": b"the state"} == read_all(place)


def test_the_questions_are_asked_on_one_object_of_a_name_of_its_own_with_the_seal_of_who_asks():
    place = Place.in_memory()
    seals = []

    class Watched(Standing):
        def put(self, key, buffers, mode):
            seals.append(read_seal(b"".join(buffers)[-SEAL_SIZE:], key))
            return super().put(key, buffers, mode)

    store = Watched(place.store())
    check(store)
    first = {key for key, _ in store.puts}
    check(store)
    second = {key for key, _ in store.puts} - first

    assert (1, 1) == (len(first), len(second))
    assert all(key.startswith("_ckpt_remote/probe-") for key in first | second)
    assert [OURS] * (2 * PUTS) == seals


class Stumbling(Standing):
    """One put goes wrong, once: the one whose number is given."""

    def __init__(self, store, number, fault, again=0):
        super().__init__(store)
        self._number, self._fault, self._again = number, fault, again

    def put(self, key, buffers, mode):
        number = len(self.puts)
        self.puts.append((key, mode))
        if not self._number <= number <= self._number + self._again:
            return self._store.put(key, buffers, mode)
        if self._fault == "not sent":
            raise StoreError("no answer", transient=True)
        self._store.put(key, buffers, mode)
        if self._fault == "lost":
            raise StoreError("no answer", transient=True)
        raise ConflictError("there is something already")  # sent twice below, and the second was refused


@pytest.mark.parametrize("again", [0, 1, 2])
@pytest.mark.parametrize("fault", ["not sent", "lost", "echo"])
@pytest.mark.parametrize("number", range(PUTS))
def test_a_lost_answer_or_an_echo_is_not_taken_for_a_broken_word(number, fault, again):
    place = Place.in_memory()
    check(Stumbling(place.store(), number, fault, again))

    assert {} == read_all(place)


@pytest.mark.parametrize("number", range(PUTS - 1))
@pytest.mark.parametrize("liar", [IgnoresCreate, IgnoresVersions, RefusesTheRightVersion], ids=lambda it: it.__name__)
def test_a_lost_answer_does_not_hide_a_broken_word(liar, number):
    place = Place.in_memory()
    with pytest.raises(UnsupportedError, match=LIARS[liar]):
        check(Stumbling(liar(place.store()), number, "lost"))


@pytest.mark.parametrize("number", range(PUTS))
def test_a_store_that_keeps_failing_is_an_error_of_the_store_and_not_of_its_word(number):
    with pytest.raises(StoreError, match="no answer"):
        check(Stumbling(Place.in_memory().store(), number, "not sent", again=50))


def test_a_refused_permission_is_told_as_it_is():
    class Forbids(Standing):
        def put(self, key, buffers, mode):
            raise StoreError("403 forbidden")

    with pytest.raises(StoreError, match="403 forbidden"):
        check(Forbids(Place.in_memory().store()))


class Collected(Standing):
    """Before the put of a given number, a rival claims the directory, and collects the probe."""

    def __init__(self, store, number):
        super().__init__(store)
        self._number = number

    def put(self, key, buffers, mode):
        if len(self.puts) == self._number:
            self._store.put("checkpoint", [b"the rival's"], "overwrite")
            self._store.delete([key])
        return super().put(key, buffers, mode)


@pytest.mark.parametrize("number", range(1, PUTS))
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_probe_that_a_rival_collects_meanwhile_is_a_broken_word_to_nobody(number, used):
    """Whether it is noticed here or at the write of the state, which the rival has changed."""
    place = Place.in_memory()
    store = place.store()
    state = store.put("checkpoint", [b"the state"], "create") if used else None
    with contextlib.suppress(ConflictError):
        check(Collected(store, number), state)

    assert {"checkpoint": b"the rival's"} == read_all(place)


@pytest.mark.parametrize("liar", list(LIARS)[:-1], ids=lambda it: it.__name__)
def test_a_rival_that_has_claimed_the_directory_is_told_first(liar):
    place = Place.in_memory()
    place.store().put("checkpoint", [b"the rival's"], "create")
    with pytest.raises(ConflictError, match="another writer"):
        check(liar(place.store()), None)

    assert {"checkpoint": b"the rival's"} == read_all(place)


def test_a_probe_that_is_collected_before_its_removal_has_passed():
    class CollectedAtTheEnd(Standing):
        def remove(self, key, version):
            self._store.delete([key])
            return self._store.remove(key, version)

    check(CollectedAtTheEnd(Place.in_memory().store()))


def test_a_probe_that_cannot_be_removed_is_left_and_costs_no_claim():
    class Keeps(Standing):
        def remove(self, key, version):
            raise StoreError("cannot delete")

    place = Place.in_memory()
    check(Keeps(place.store()))
    ((key, data),) = read_all(place).items()

    assert OURS == read_seal(data[-SEAL_SIZE:], key)


@pytest.mark.parametrize("forgetful", [True, False])
def test_a_store_that_ignores_conditions_on_deletions_only_is_served_with_a_warning(forgetful, caplog):
    class Forgetful(Standing):
        def remove(self, key, version):
            if forgetful:
                self._store.delete([key])
            else:
                self._store.remove(key, version)

    place = Place.in_memory()
    check(Forgetful(place.store()))

    assert {} == read_all(place)
    assert forgetful == ("s3://bucket/run ignores conditions on deletions (If-Match)" in caplog.text)
