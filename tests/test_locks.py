"""Locks on files: who has one, who may not, and that nobody waits for ever."""

import os
import threading

import pytest

from ckpt_remote import locks
from ckpt_remote.locks import FileLock

PATIENCE = 30.0  # seconds until a test that hangs is told so


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


@pytest.fixture
def make(path):
    made = []

    def make():
        made.append(FileLock(path, create=True))
        return made[-1]

    yield make
    for lock in made:
        if lock._file in locks._open:
            lock.close()


def test_one_has_it_alone_or_several_share_it(make):
    one, other = make(), make()
    assert one.share()
    assert other.share()
    assert not other.take()
    assert one.take(), "the other one has given up its share"
    assert not other.share()
    one.close()

    assert other.take()


def test_who_waits_has_it_as_soon_as_it_is_free(make):
    first, second = make(), make()
    first.take()
    waiting = threading.Thread(target=second.wait)
    waiting.start()
    first.close()
    waiting.join(PATIENCE)

    assert not make().take()


def test_a_wait_that_was_given_up_keeps_the_lock_from_nobody(make, monkeypatch):
    first, impatient, patient = make(), make(), make()
    first.take()
    with monkeypatch.context() as patch:
        patch.setattr(locks.Beside, "result", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            impatient.wait()
    impatient.close()
    first.close()
    waiting = threading.Thread(target=patient.wait, daemon=True)
    waiting.start()
    waiting.join(PATIENCE)

    assert not waiting.is_alive()
    assert not make().take()


def test_a_lock_that_was_given_back_is_free_whoever_has_inherited_the_open_file(make):
    lock = make()
    lock.take()
    inherited = os.dup(lock._file)
    lock.close()

    assert make().take()
    os.close(inherited)


def test_a_lock_knows_whether_its_file_is_still_the_one_of_that_name(make, path):
    lock = make()
    assert lock.stands(path)
    path.rename(path.with_name("elsewhere"))
    assert not lock.stands(path)
    path.touch()

    assert not lock.stands(path)
    assert lock.stands(path.with_name("elsewhere"))


def test_only_a_regular_file_of_this_user_is_locked_and_only_by_its_own_name(path, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        FileLock(path)
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="lock"):
        FileLock(path, create=True)
    assert not (tmp_path / "victim").exists()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PermissionError):
        FileLock(path)
    path.unlink()
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError):
        FileLock(path)


def test_what_cannot_be_locked_is_not_left_open(path):
    os.mkfifo(path)
    before = set(locks._open)
    with pytest.raises(PermissionError):
        FileLock(path)

    assert before == locks._open
