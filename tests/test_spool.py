"""A file that arrives in pieces and is read as memory."""

import resource
import tempfile
from pathlib import Path

import pytest

from ckpt_remote import StoreError
from ckpt_remote.spool import Spool


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_view_shows_what_arrives_later_and_stays_when_the_rest_goes():
    spool = Spool(10)
    view = spool.view(2, 6)
    before = bytes(view)
    spool.write(5, b"def")
    spool.write(2, memoryview(b"abc"))
    del spool

    assert (bytes(6), b"abcdef") == (before, bytes(view))


def test_it_has_no_name_by_which_it_could_stay_behind(temporary):
    spool = Spool(10)

    assert [] == list(temporary.iterdir())
    spool.write(9, b"x")


def test_an_empty_one_has_empty_views():
    assert b"" == bytes(Spool(0).view(0, 0))


def test_its_descriptor_goes_with_it():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        Spool(10)

    assert before == len(list(Path("/proc/self/fd").iterdir()))


def test_where_there_is_no_room_it_says_so_before_anything_is_written():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StoreError, match=r"2\.1 MB in .*TMPDIR"):
            Spool(2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_there_is_no_temporary_directory_it_says_so(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))

    with pytest.raises(StoreError, match="No such file or directory"):
        Spool(1)
