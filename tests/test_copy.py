"""A data object's local copy: what arrives, in whatever order, is checked once, when it is whole."""

import errno
import os
import random
import threading
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import Place

from ckpt_remote.bundle import Entry, crc32c, mask
from ckpt_remote.copy import Copy
from ckpt_remote.errors import CorruptError

KEY, UINT8 = "ckpt-1.data-00000-of-00001", 4
CONTENT = random.Random(0).randbytes(1000)


@pytest.fixture(autouse=True)
def _short_ranges(monkeypatch):
    monkeypatch.setattr("ckpt_remote.copy.RANGE", 64)


def entry(start, stop):
    return f"v{start}", Entry(UINT8, (stop - start,), 0, start, stop - start, mask(crc32c(CONTENT[start:stop])))


def copy_of(folder, *spans, content=CONTENT):
    """The copy of an object each of whose spans is a tensor, and the sizes of what arrives."""
    store, moved = Place.in_memory().store(), []
    if content is not None:
        store.put(KEY, [content], "create")
    spans = [range(*span) for span in spans]
    entries = [entry(span.start, span.stop) for span in spans]
    local = folder / KEY
    return Copy(store=store, key=KEY, local=local, spans=spans, entries=entries, moved=moved.append), moved


def bring(copy, order=lambda pieces: pieces):
    copy.begin()
    for piece in order(list(copy.pieces())):
        piece()


@settings(deadline=None, max_examples=50)
@given(bounds=st.sets(st.integers(0, 1000), min_size=2, max_size=8), data=st.data())
def test_what_is_wanted_arrives_once_in_any_order_and_nothing_else(bounds, data, tmp_path_factory):
    bounds = sorted(bounds)[: len(bounds) // 2 * 2]
    spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    copy, moved = copy_of(tmp_path_factory.mktemp("copy"), *spans)
    bring(copy, lambda pieces: data.draw(st.permutations(pieces)))
    found = copy.local.read_bytes()

    assert [CONTENT[start:stop] for start, stop in spans] == [found[start:stop] for start, stop in spans]
    assert sum(stop - start for start, stop in spans) == sum(moved)
    assert max(moved) <= 64


def test_it_is_checked_when_the_last_range_is_there_whichever_that_is(tmp_path):
    damaged = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    copy, moved = copy_of(tmp_path, (0, 300), (400, 1000), content=damaged)
    copy.begin()
    pieces = list(copy.pieces())
    for piece in pieces[:0:-1]:
        piece()
    with pytest.raises(CorruptError, match=r"data-00000-of-00001 is damaged: 'v0', its 300 bytes from 0 on"):
        pieces[0]()

    assert 900 == sum(moved)


def test_an_empty_tensor_needs_its_object(tmp_path):
    bring(copy_of(tmp_path, (1000, 1000))[0])
    with pytest.raises(CorruptError, match="is missing"):
        bring(copy_of(tmp_path, (1000, 1000), content=None)[0])


def test_an_object_that_is_not_as_long_as_promised_takes_no_room_and_keeps_nobody_waiting(tmp_path):
    copy, _ = copy_of(tmp_path, (0, 2**62))
    waiting = []

    def wait():
        try:
            next(copy.pieces())()
        except CorruptError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(CorruptError, match="it ends after 1000 bytes"):
        copy.begin()
    thread.join(60.0)

    assert 1 == len(waiting)
    assert not copy.local.exists()


def test_a_full_disk_shows_before_the_rest_is_fetched(tmp_path):
    copy, moved = copy_of(tmp_path, (0, 1000))
    with (
        mock.patch.object(os, "posix_fallocate", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space")), create=True),
        pytest.raises(OSError, match="No space"),
    ):
        copy.begin()

    assert [1000 % 64] == moved
