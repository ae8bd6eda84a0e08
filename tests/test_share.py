"""A share goes up while something else is looked after: whichever fails ends the other, and nothing stays."""

import _thread
import threading
import time

import numpy as np
import pytest
from support.places import Place, read_all
from support.watched import Watched

from ckpt_remote.bundle import crc32c, mask
from ckpt_remote.errors import ConflictError, StoreError
from ckpt_remote.flow import Get, Wait
from ckpt_remote.origin import SEAL_SIZE, new_attempt, new_term, read_seal
from ckpt_remote.plan import Tensor
from ckpt_remote.share import Share, write_share
from ckpt_remote.store import Policy, Retry

PATIENCE = 30.0  # seconds until a test that hangs is told so
FLOAT = 1
OURS = new_attempt(new_term(), 1)
RETRY = Retry(Policy(attempts=1))
TENSORS = [
    Tensor(key=f"t{n}", dtype=FLOAT, shape=(9,), data=np.full(9, n, np.float32).view(np.uint8)) for n in range(3)
]


class OtherError(Exception):
    """What goes on beside has failed."""


def share(*, exact=True):
    shards = tuple((tensor,) for tensor in TENSORS)
    return Share(path="ckpt-7", of=99, first=40, shards=shards, attempt=OURS, compared=tuple(TENSORS), exact=exact)


def name(number):
    return f"ckpt-7.data-{40 + number:05d}-of-00099"


def write(place, beside, *, hand=lambda asked, perform: perform(), exact=True):
    return write_share(Watched(place.store(), hand), share(exact=exact), beside, retry=RETRY)


def until_over(progress):
    """As the flows of workers do: goes on as long as there is something to wait for."""
    while not progress.is_over:
        yield Wait(0.005)
    return progress.took


def until_called_off(progress):
    """As the leader does, who waits for the others when its own share is done."""
    while progress.took != float("inf"):
        yield Wait(0.005)


def besides():
    return [thread for thread in threading.enumerate() if thread.name == "ckpt_remote-beside"]


def assert_the_other_has_ended():
    for thread in besides():
        thread.join(PATIENCE)
    assert [] == besides()


class Held:
    """A hand that lets the first shard pass, and holds the others up until the test ends.

    Attributes:
        passed: Whether the first is there.
        released: Whether the others may go on.
    """

    def __init__(self):
        self.passed, self.released = threading.Event(), threading.Event()

    def __call__(self, asked, perform):
        if asked.verb == "put" and asked.keys != (name(0),):
            assert self.released.wait(PATIENCE)
        answer = perform()
        if asked.verb == "put":
            self.passed.set()
        return answer


@pytest.fixture
def held():
    held = Held()
    yield held
    held.released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ckpt_remote-"):
            thread.join(PATIENCE)


def test_a_share_is_written_under_its_names_and_the_other_flow_is_told_when_and_asked_what():
    place = Place.in_memory()
    written, took = write(place, until_over)
    found = read_all(place)

    assert [name(number) for number in range(3)] == sorted(found)
    assert all(OURS == read_seal(data[-SEAL_SIZE:], key) for key, data in found.items())
    assert [bytes(tensor.data) for tensor in TENSORS] == [found[name(n)][:-SEAL_SIZE] for n in range(3)]
    assert tuple(crc32c(tensor.data) for tensor in TENSORS) == written.checksums
    assert tuple((mask(crc32c(tensor.data)),) for tensor in TENSORS) == written.uploaded.checksums
    assert set(found) == set(written.uploaded.created)
    assert 0 < took < PATIENCE


def test_the_other_flow_goes_on_while_the_share_goes_up(held):
    """It sees the first object, and only then do the others go up."""
    place = Place.in_memory()

    def look(progress):
        while (found := (yield Get(name(0)))) is None:
            yield Wait(0.005)
        held.released.set()
        return len(found.data)

    assert TENSORS[0].size + SEAL_SIZE == write(place, look, hand=held)[1]


def test_who_has_nothing_to_write_looks_after_the_other_all_the_same():
    nothing = Share(path="ckpt-7", of=1, first=0, shards=(), attempt=OURS, compared=(), exact=True)
    written, took = write_share(Place.in_memory().store(), nothing, until_over, retry=RETRY)

    assert ((), (), {}) == (written.checksums, written.uploaded.checksums, dict(written.uploaded.created))
    assert took < PATIENCE


def test_if_the_other_fails_the_upload_ends_at_once_and_what_was_created_is_taken_back(held):
    place = Place.in_memory()

    def fail(progress):
        while not held.passed.is_set():
            yield Wait(0.005)
        failed.append(time.monotonic())
        raise OtherError

    failed = []
    with pytest.raises(OtherError):
        write(place, fail, hand=held)

    assert time.monotonic() - failed[0] < 5  # it says within a second; machines are busy
    assert not held.released.is_set()
    assert {} == read_all(place)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "not exact"])
def test_if_the_other_fails_when_all_is_written_that_is_taken_back_where_the_store_deletes_exactly(exact):
    place = Place.in_memory()

    def fail(progress):
        yield from until_over(progress)
        raise OtherError

    with pytest.raises(OtherError):
        write(place, fail, exact=exact)
    assert (0 if exact else 3) == len(read_all(place))


@pytest.mark.parametrize("beside", [until_over, until_called_off])
def test_if_the_upload_fails_the_other_ends_and_what_was_created_is_taken_back(beside):
    place = Place.in_memory()
    created, seen = threading.Event(), []

    def refuse(asked, perform):
        if asked.keys == (name(1),):
            assert created.wait(PATIENCE)
            raise StoreError("403 refused")
        answer = perform()
        if asked.keys == (name(0),) and asked.verb == "put":
            created.set()
        return answer

    def watched(progress):
        yield from beside(progress)
        seen.append(progress.took)

    with pytest.raises(StoreError, match="refused"):
        write(place, watched, hand=refuse)
    assert_the_other_has_ended()
    assert [float("inf")] == seen
    assert {} == read_all(place)


def test_an_object_in_the_way_is_a_conflict_and_is_left():
    place = Place.in_memory()
    place.store().put(name(2), [b"somebody else's"], "create")
    with pytest.raises(ConflictError):
        write(place, until_called_off)

    assert_the_other_has_ended()
    assert {name(2): b"somebody else's"} == read_all(place)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_upload_and_the_other(held):
    def interrupt(progress):
        while not held.passed.is_set():
            yield Wait(0.005)
        _thread.interrupt_main()
        yield from until_called_off(progress)

    with pytest.raises(KeyboardInterrupt):
        write(Place.in_memory(), interrupt, hand=held)
    assert not held.released.is_set()
    assert_the_other_has_ended()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_when_all_is_written_ends_the_other():
    stop = threading.Event()

    def interrupt(progress):
        yield from until_over(progress)
        _thread.interrupt_main()
        while progress.took != float("inf") and not stop.is_set():
            yield Wait(0.005)

    with pytest.raises(KeyboardInterrupt):
        write(Place.in_memory(), interrupt)
    try:
        (thread,) = besides()
        thread.join(2.0)
        assert not thread.is_alive()
    finally:
        stop.set()
        assert_the_other_has_ended()
