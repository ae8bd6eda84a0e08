"""Local folders that never outlive their use, not even when the process is killed.

    Lease    a folder below the temporary directory, or in memory, that stands as long as a process holds it
    Folder   a private one, for as long as something in this process needs it; all of them are in one lease

A lease is a lock on a file in the folder: those who use the folder share it, and only who has it alone removes the
folder. The kernel drops it with the process. Whoever starts next removes the folders that nobody holds: a crash
leaves nothing for long, and what a living process uses is never touched.

Promises: readable by this user only; gone when `Folder.remove` is called, when nothing refers to it, or when the
process ends; after a crash, when the next process on this machine makes its first folder.
"""

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

from ckpt_remote.locks import FileLock

__all__ = ["Folder", "Lease", "memory_directory", "mutex_path", "places", "sweep"]

_log = logging.getLogger(__name__)
_PREFIX = "ckpt_remote-"
_LOCK = "owner.lock"
_MUTEX = ".lock"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of our own inside it, readable by this user only)
# Half of what is free: the pages of a tmpfs are memory that training wants too.
_MEMORY_SHARE = 0.5

_mutex = threading.Lock()
_swept: set[int] = set()  # the processes, this one and those it was forked from, that have looked for leftovers
_owned: dict[tuple[int, Path], "Lease"] = {}  # (pid, parent) -> this process's folder


class Lease:
    """A folder that nobody removes as long as somebody holds it, in this process or in another of the same user.

    The last one to let go removes it; if that one is killed, whoever sweeps next does.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock: FileLock | None = lock
        self._process = os.getpid()
        self._mutex = threading.RLock()  # a finalizer may run within another one
        # As `atexit`, and at the end of multiprocessing's children, too, which know no `atexit`.
        self._at_exit = Finalize(None, self.release, exitpriority=0)

    @classmethod
    def create(cls, parent: Path) -> "Lease":
        """Makes a folder, and holds it.

        Raises:
            OSError: That is impossible there.
        """
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = FileLock(folder / f"{_LOCK}.new", create=True)
        lock.share()
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # never seen under this name without its lock
        return cls(folder, lock)

    @classmethod
    def join(cls, parent: Path, name: str) -> "Lease | None":
        """Holds a published folder, together with those who do; None if there is none, or it is being removed."""
        path = parent / f"{_PREFIX}{name}"
        try:
            if not _is_private(path):
                return None
            lock = FileLock(path / _LOCK)
        except OSError:
            return None
        if lock.share() and lock.stands(path / _LOCK):
            return cls(path, lock)
        lock.close()
        return None

    def publish(self, name: str) -> bool:
        """Lets others find the folder under a name, from one moment to the next.

        Returns:
            Whether it could be done. If not, the folder is as it was.
        """
        path = self.path.with_name(f"{_PREFIX}{name}")
        try:
            self.path.rename(path)
        except OSError:  # another one has the name
            return False
        self.path = path
        return True

    def release(self) -> None:
        """Lets go; does nothing the second time, and nothing in a forked child."""
        if os.getpid() != self._process:
            return
        with self._mutex:  # whoever comes second, at the end of the process, waits for the first
            lock, self._lock = self._lock, None
            if lock is not None:
                self._at_exit.cancel()
                try:
                    if lock.take() and lock.stands(self.path / _LOCK):
                        _dissolve(self.path)
                finally:
                    lock.close()


class Folder:
    """A private folder on local disk, removed when asked or when the object is no longer referred to.

    Args:
        parent: Where to put it; the temporary directory by default.

    Attributes:
        path: The folder.
    """

    path: Path
    _let_go: Callable[[], object]
    _finalizer: "weakref.finalize[..., object]"

    def __init__(self, parent: Path | None = None) -> None:
        path = Path(tempfile.mkdtemp(dir=_process_folder(parent or Path(tempfile.gettempdir()))))
        self._tie(path, partial(_remove_own, os.getpid(), path))

    def remove(self) -> None:
        """Removes the folder and everything in it; does nothing the second time."""
        self._finalizer()

    def remove_with(self, owner: object) -> None:
        """Ties the folder's life to another object's: it goes when `owner` does, whatever becomes of this one."""
        self._finalizer.detach()
        self._finalizer = weakref.finalize(owner, self._let_go)

    def _tie(self, path: Path, let_go: Callable[[], object]) -> None:
        self.path = path
        self._let_go = let_go
        self._finalizer = weakref.finalize(self, let_go)


def memory_directory(size: int) -> Path | None:
    """Where `size` bytes fit into memory-backed storage with room to spare; None where there is no such place."""
    _sweep_once()
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return None
    return _SHARED_MEMORY if size <= free * _MEMORY_SHARE and os.access(_SHARED_MEMORY, os.W_OK) else None


def places() -> tuple[Path, ...]:
    """Where folders may be: in memory, and in the temporary directory."""
    return (_SHARED_MEMORY, Path(tempfile.gettempdir()))


def mutex_path(name: str) -> Path:
    """A file to lock for as long as one does what only one process at a time may do about a name.

    Who has it removes it in the end; if that one is killed, whoever sweeps next does.
    """
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{name}{_MUTEX}"


def sweep(parent: Path) -> None:
    """Removes what dead processes of this user left behind."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or being removed by another process
            if path.suffix == _MUTEX:
                _sweep(path, path, path.unlink)
            elif _is_private(path):
                _sweep(path, path / _LOCK, partial(_dissolve, path))


def _sweep(path: Path, file: Path, remove: Callable[[], None]) -> None:
    lock = FileLock(file)
    try:
        if lock.take() and lock.stands(file):
            remove()
            _log.info("removed %s, which a process that is no more has left", path)
    finally:
        lock.close()


def _is_private(path: Path) -> bool:
    """Whether it is a folder of this user's; in a sticky directory nobody else can put another in its place then."""
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _dissolve(folder: Path) -> None:
    """Removes a folder whose lock one has alone."""
    # Under another name, so that this one is free at once, and nothing that still writes below it finds it.
    doomed = folder.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
    folder.rename(doomed)
    for path in doomed.iterdir():  # the lock last: without it nobody would remove the rest of what a crash leaves
        if path.name != _LOCK:
            _remove(path)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        _log.warning("the private folder %s could not be removed", path)


def _process_folder(parent: Path) -> Path:
    _sweep_once()
    with _mutex:
        # A forked child makes its own; the lock that its parent has still guards its parent's.
        key = (os.getpid(), parent)
        if key not in _owned or not _owned[key].path.is_dir():
            sweep(parent)
            _owned[key] = Lease.create(parent)
        return _owned[key].path


def _sweep_once() -> None:
    """Removes what the dead have left in the usual places, once in each process."""
    with _mutex:
        if os.getpid() in _swept:
            return
        _swept.add(os.getpid())
    for place in places():
        sweep(place)


def _remove_own(pid: int, folder: Path) -> None:
    if os.getpid() == pid:  # a forked child inherits its parent's finalizers
        _remove(folder)
