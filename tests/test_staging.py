"""Local folders: private, and gone when nothing needs them."""

import gc
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ckpt_remote import staging
from ckpt_remote.locks import FileLock
from ckpt_remote.staging import Folder, Lease, memory_directory, mutex_path, sweep


def test_a_folder_is_private_and_goes_when_asked(tmp_path):
    folder = Folder(tmp_path)
    (folder.path / "deep").mkdir()

    assert 0o700 == stat.S_IMODE(folder.path.stat().st_mode) == stat.S_IMODE(folder.path.parent.stat().st_mode)
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_a_folder_goes_with_the_object_that_it_was_tied_to(tmp_path):
    class Owner:
        pass

    owner, folder = Owner(), Folder(tmp_path)
    path = folder.path
    folder.remove_with(owner)
    del folder
    gc.collect()
    assert path.exists()

    del owner
    gc.collect()
    assert not path.exists()


def test_a_folder_of_another_kind_or_user_is_left_alone(tmp_path):
    (tmp_path / "ckpt_remote-without-a-lock").mkdir()
    (tmp_path / "ckpt_remote-file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / staging._LOCK).touch()
    (tmp_path / "ckpt_remote-link").symlink_to(tmp_path / "elsewhere")
    Folder(tmp_path)

    assert {"ckpt_remote-without-a-lock", "ckpt_remote-file", "elsewhere", "ckpt_remote-link"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert (tmp_path / "elsewhere" / staging._LOCK).exists()


def test_a_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    abandoned(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(staging, "FileLock", lambda path: pytest.fail(f"{path} was opened"))
    sweep(tmp_path)

    assert 1 == len(list(tmp_path.iterdir()))


def abandoned(parent):
    """What a process leaves that is killed."""
    lease = Lease.create(parent)
    (lease.path / "half").write_bytes(b"a cop")
    lease._lock.close()
    lease._at_exit.cancel()
    return lease.path


def test_a_published_folder_is_found_and_goes_with_the_last_one_who_holds_it(tmp_path):
    maker = Lease.create(tmp_path)
    assert Lease.join(tmp_path, "name") is None
    assert maker.publish("name")
    (maker.path / "file").touch()
    joined = Lease.join(tmp_path, "name")
    assert maker.path == joined.path
    maker.release()
    maker.release()
    sweep(tmp_path)
    assert (joined.path / "file").exists()
    joined.release()

    assert [] == list(tmp_path.iterdir())


def test_a_folder_that_is_being_removed_is_not_found(tmp_path):
    path = abandoned(tmp_path)
    remover = FileLock(path / staging._LOCK)
    remover.take()

    assert Lease.join(tmp_path, path.name.removeprefix(staging._PREFIX)) is None
    remover.close()


def test_a_folder_that_was_removed_while_one_looked_is_not_found(tmp_path, monkeypatch):
    maker = Lease.create(tmp_path)
    assert maker.publish("name")

    class Slow(FileLock):
        def share(self):
            maker.release()
            return super().share()

    monkeypatch.setattr(staging, "FileLock", Slow)

    assert Lease.join(tmp_path, "name") is None


def test_two_folders_do_not_get_the_same_name(tmp_path):
    one, other = Lease.create(tmp_path), Lease.create(tmp_path)
    assert one.publish("name")
    assert not other.publish("name")
    assert one.path.is_dir()
    other.release()

    assert [one.path] == list(tmp_path.iterdir())
    one.release()


def test_a_removal_that_was_cut_short_is_finished_by_the_next_process(tmp_path, monkeypatch):
    path = abandoned(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_remove", lambda path: sys.exit(f"killed at {path}"))
        with pytest.raises(SystemExit, match="half"):
            sweep(tmp_path)
    assert not path.exists()
    assert 1 == len(list(tmp_path.iterdir()))
    sweep(tmp_path)

    assert [] == list(tmp_path.iterdir())


def test_a_sweep_that_was_overtaken_does_not_remove_what_has_come_in_the_place(tmp_path, monkeypatch):
    path = abandoned(tmp_path)
    later = []

    class Slow(FileLock):
        def take(self):
            """Somebody else has swept in the meantime, and made another one of that name."""
            monkeypatch.setattr(staging, "FileLock", FileLock)
            sweep(tmp_path)
            later.append(Lease.create(tmp_path))
            assert later[0].publish(path.name.removeprefix(staging._PREFIX))
            return super().take()

    monkeypatch.setattr(staging, "FileLock", Slow)
    sweep(tmp_path)

    assert path == later[0].path
    assert path.is_dir()
    later[0].release()


def test_a_mutex_that_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mutex_path("left").touch()
    living = FileLock(mutex_path("living"), create=True)
    living.take()
    sweep(tmp_path)

    assert [mutex_path("living")] == list(tmp_path.iterdir())
    living.close()


PROGRAM = (
    "import sys; from pathlib import Path; from ckpt_remote.staging import Folder\n"
    "folder = Folder(Path(sys.argv[1])); print(folder.path, flush=True); sys.stdin.read()"
)


def start(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_the_next_one_removes_and_a_living_ones_it_does_not(tmp_path):
    (killed, left), (living, kept) = start(tmp_path), start(tmp_path)
    killed.kill()
    killed.communicate()
    assert left.exists()
    third, _ = start(tmp_path)
    try:
        assert not left.parent.exists()
        assert kept.exists()
    finally:
        for process in (living, third):
            process.communicate()
    assert [] == list(tmp_path.iterdir()), "a process that ends takes its folder along"


def test_a_forked_child_neither_uses_nor_removes_its_parents_folder(tmp_path):
    parents = Folder(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from ckpt_remote.staging import Folder\n"
        "parent = Folder(Path(sys.argv[1])); child = os.fork()\n"
        "if not child:\n"
        "    own = Folder(Path(sys.argv[1])); sys.exit(0 if own.path.parent != parent.path.parent else 1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "sys.exit(status or (0 if parent.path.exists() else 2))"
    )

    assert 0 == subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode
    assert parents.path.exists()


def test_a_forked_child_that_lets_go_touches_nothing_of_its_parents_and_no_file_of_its_own(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from ckpt_remote.staging import Lease\n"
        "lease = Lease.create(Path(sys.argv[1])); child = os.fork()\n"
        "if not child:\n"
        "    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(9)]; lease.release()\n"
        "    [os.close(file) for file in files]; os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not lease.path.exists())"
    )

    assert 0 == subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode


def test_memory_is_used_only_where_there_is_room():
    assert memory_directory(2**60) is None


def test_the_temporary_directory_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert tmp_path == Folder().path.parent.parent


@pytest.mark.parametrize("size", [0, 1])
def test_a_small_copy_fits_into_memory_where_the_system_has_such_a_place(size):
    assert memory_directory(size) in (staging._SHARED_MEMORY, None)
