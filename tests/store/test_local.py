"""What only a disk can get wrong: processes, leftovers, links, a full disk."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from store.conformance import increments

from ckpt_remote import errors
from ckpt_remote.store import Store, Version, local, open_store

CREATE = """
import sys
from ckpt_remote import errors
from ckpt_remote.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    key = line.strip()
    try:
        store.put(key, [sys.argv[2].encode()], "create")
        print("won", flush=True)
    except errors.ConflictError:
        print("lost", flush=True)
"""
COUNT = """
import sys
from ckpt_remote.store import open_store
from store.conformance import increments
increments(open_store(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(folder) as store:
        yield store


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_of_creators_in_several_processes_one_wins(folder: Path, store: Store) -> None:
    rivals = [start(CREATE, folder, number) for number in range(4)]
    assert ["ready\n"] * 4 == [rival.stdout.readline() for rival in rivals]
    for round_ in range(25):
        for rival in rivals:
            rival.stdin.write(f"key-{round_}\n")
            rival.stdin.flush()
        outcomes = [rival.stdout.readline().strip() for rival in rivals]
        assert sorted(outcomes) == ["lost", "lost", "lost", "won"]
        assert store.read(f"key-{round_}").data == b"%d" % outcomes.index("won")
    for rival in rivals:
        rival.communicate()
        assert rival.returncode == 0


def test_no_increment_of_several_processes_is_lost(folder: Path, store: Store) -> None:
    store.put("counter", [b"0"], "create")
    rivals = [start(COUNT, folder, 40) for _ in range(3)]
    increments(store, 40)
    for rival in rivals:
        rival.communicate()
        assert rival.returncode == 0
    assert store.read("counter").data == b"160"


def test_equal_bytes_written_at_once_are_different_versions(store: Store) -> None:
    assert len({store.put("key", [b"same"], "overwrite") for _ in range(100)}) == 100


def test_versions_do_not_rest_on_the_kernels_clock(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels' clocks stand still for milliseconds, and inode numbers are reused: two writes would look alike."""
    monkeypatch.setattr(local.time, "time_ns", lambda: 1_234_567_890_123_456_789)
    store.put("key", [b"1"], "create")
    assert (folder / "key").stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_no_unfinished_file_is_left_or_listed(store: Store, folder: Path) -> None:
    old = store.put("key", [b"1"], "create")
    for mode in ("create", Version("other")):
        with pytest.raises(errors.ConflictError):
            store.put("key", [b"2"], mode)
    with pytest.raises(TypeError):
        store.put("other", [b"fine", "no bytes"], "overwrite")
    store.put("key", [b"3"], old)
    assert [folder / "key"] == list(folder.iterdir())
    (folder / ".ckpt_remote-0123").write_bytes(b"left by a killed process")
    assert ["key"] == [info.key for info in store.list()]


def test_a_full_disk_is_named_and_leaves_the_old_object(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("key", [b"old"], "create")

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StoreError, match=r"key: No space left on device.*Free some space") as caught:
        store.put("key", [b"new"], "overwrite")
    assert not caught.value.transient
    assert store.read("key").data == b"old"
    assert [folder / "key"] == list(folder.iterdir())


def test_file_and_directory_are_on_disk_before_a_put_returns(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), (folder / "a/key").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put("a/key", [b"1"], "create")
    content = [name for name, _ in synced if Path(name).name.startswith(".ckpt_remote-")]
    assert content
    assert (str(folder), False) in synced  # the directory that holds the new directory
    assert synced[-1] == (str(folder / "a"), True)


@pytest.mark.parametrize(("missing", "mode"), [("link", "create"), ("flock", Version("1"))])
def test_a_file_system_without_links_or_locks_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, missing: str, mode: Version
) -> None:
    def unsupported(*_: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os if missing == "link" else local.fcntl, missing, unsupported)
    with pytest.raises(errors.UnsupportedError, match=r"key safely.*object store"):
        store.put("key", [b"1"], mode)
    store.put("key", [b"1"], "overwrite")
    assert {} == store.delete(["key"])


def test_a_deletion_that_fails_is_reported_by_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("kept", "gone"):
        store.put(key, [b""], "create")
    unlink = Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "kept":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    failures = store.delete(["kept", "gone"])
    assert {"kept"} == set(failures)
    assert isinstance(failures["kept"], errors.StoreError)
    assert ["kept"] == [info.key for info in store.list()]


def test_a_name_that_a_directory_has_cannot_be_written(store: Store) -> None:
    store.put("a/b", [b"1"], "create")
    with pytest.raises(errors.StoreError, match="a folder of its name"):
        store.put("a", [b"2"], "overwrite")
    with pytest.raises(errors.StoreError, match="or is a file"):
        store.put("a/b/c", [b"2"], "overwrite")
    assert store.read("a/b").data == b"1"


def test_urls_stay_as_the_user_spells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("run").url == f"{tmp_path}/run"
    assert open_store(f"{tmp_path}/run/").url == f"{tmp_path}/run"
    assert open_store(f"file://{tmp_path}/run/").url == f"file://{tmp_path}/run"
    assert open_store("~/run").url == f"{tmp_path}/run"
    assert open_store("/").url_of("a") == "/a"


DIE = """
import os, signal, sys
from ckpt_remote.store import open_store
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).put("key", [b"half"], "create")
"""


def test_what_a_killed_put_left_goes_with_the_next_put_and_what_is_under_way_stays(folder: Path) -> None:
    folder.mkdir()
    killed = start(DIE, folder)
    killed.communicate()
    assert -9 == killed.returncode
    assert 1 == len(list(folder.iterdir()))
    under_way, descriptor = local._open_unfinished(folder)
    with open_store(folder) as store:
        store.put("other", [b""], "create")
    os.close(descriptor)

    assert {under_way.name, "other"} == {path.name for path in folder.iterdir()}


def test_folders_that_deletes_have_emptied_go_and_the_directory_stays(folder: Path, store: Store) -> None:
    version = store.put("a/b/c", [b""], "create")
    store.put("a/d", [b""], "create")
    store.remove("a/b/c", version)
    assert {"a"} == {path.name for path in folder.iterdir()}
    assert {"d"} == {path.name for path in (folder / "a").iterdir()}
    store.delete(["a/d"])

    assert [] == list(folder.iterdir())


def test_a_folder_that_goes_while_it_is_written_to_is_made_again(folder: Path) -> None:
    def churn(number: int) -> None:
        with open_store(folder) as store:
            for round_ in range(40):
                version = store.put(f"sub/{number}-{round_}", [b""], "create")
                store.remove(f"sub/{number}-{round_}", version)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert [] == list(folder.iterdir())
