"""Private local folders that never outlive their use, not even when the process is killed.

Each process owns one folder under the temporary directory, held by a lock that the kernel drops with the process.
Whoever starts next removes the folders whose lock is free: a crash leaves nothing for long, and a living
process's folder is never touched.

Promises: readable by this user only; gone when `Folder.remove` is called, when nothing refers to it, or when the
process ends; after a crash, when the next process on this machine makes its first folder.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path

__all__ = ["Folder", "memory_directory"]

_log = logging.getLogger(__name__)
_PREFIX = "ckpt_remote-"
_LOCK = "owner.lock"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of our own inside it, readable by this user only)
# Half of what is free: the pages of a tmpfs are memory that training wants too.
_MEMORY_SHARE = 0.5

_mutex = threading.Lock()
_swept: set[int] = set()  # the processes, this one and those it was forked from, that have looked for leftovers
_owned: dict[tuple[int, Path], tuple[Path, int]] = {}  # (pid, parent) -> (this process's folder, its lock)


class Folder:
    """A private folder on local disk, removed when asked or when the object is no longer referred to.

    Args:
        parent: Where to put it; the temporary directory by default.

    Attributes:
        path: The folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(dir=_process_folder(parent or Path(tempfile.gettempdir()))))
        self._finalizer: weakref.finalize[..., object] = weakref.finalize(self, _remove_own, os.getpid(), self.path)

    def remove(self) -> None:
        """Removes the folder and everything in it; does nothing the second time."""
        self._finalizer()

    def remove_with(self, owner: object) -> None:
        """Ties the folder's life to another object's: it goes when `owner` does, whatever becomes of this one."""
        self._finalizer.detach()
        self._finalizer = weakref.finalize(owner, _remove_own, os.getpid(), self.path)


def memory_directory(size: int) -> Path | None:
    """Where `size` bytes fit into memory-backed storage with room to spare; None where there is no such place."""
    _sweep_once()
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return None
    return _SHARED_MEMORY if size <= free * _MEMORY_SHARE and os.access(_SHARED_MEMORY, os.W_OK) else None


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _log.warning("the private folder %s could not be removed", path)


def _process_folder(parent: Path) -> Path:
    _sweep_once()
    with _mutex:
        # A forked child makes its own; the lock that it inherited still guards its parent's.
        key = (os.getpid(), parent)
        if key not in _owned or not _owned[key][0].is_dir():
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # never seen under this name without its lock
            _owned[key] = folder, lock
            atexit.register(_remove_own, os.getpid(), folder)
        return _owned[key][0]


def _sweep_once() -> None:
    """Removes what the dead have left in the usual places, once in each process."""
    with _mutex:
        if os.getpid() in _swept:
            return
        _swept.add(os.getpid())
    for place in (Path(tempfile.gettempdir()), _SHARED_MEMORY):
        _sweep(place)


def _remove_own(pid: int, folder: Path) -> None:
    if os.getpid() == pid:  # a forked child inherits its parent's finalizers
        _remove(folder)


def _sweep(parent: Path) -> None:
    """Removes what dead processes of this user left behind."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or being removed by another process
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(lock)
