"""Local folders: private, and gone when nothing needs them."""

import gc
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ckpt_remote import staging
from ckpt_remote.staging import Folder, memory_directory


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
        "status = os.waitpid(child, 0)[1]; sys.exit(status or (0 if parent.path.exists() else 2))"
    )

    assert 0 == subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode
    assert parents.path.exists()


def test_memory_is_used_only_where_there_is_room():
    assert memory_directory(2**60) is None


def test_the_temporary_directory_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert tmp_path == Folder().path.parent.parent


@pytest.mark.parametrize("size", [0, 1])
def test_a_small_copy_fits_into_memory_where_the_system_has_such_a_place(size):
    assert memory_directory(size) in (staging._SHARED_MEMORY, None)
