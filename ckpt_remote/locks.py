"""Locks on files, between the processes of one user on one host.

Promises: the kernel drops a lock with the process that has it, however that ends, and a forked child has no part in
its parent's; only regular files of this user are locked, and no symbolic link is followed; whoever waits does so
without polling, and Ctrl-C ends the wait. A lock says nothing of the name that the file was opened by: once it is
had, `FileLock.stands` tells whether the file is still there.
"""

import errno
import fcntl
import os
import stat
from functools import partial
from pathlib import Path

from ckpt_remote.parallel import Beside

__all__ = ["FileLock"]

_open: set[int] = set()  # what a forked child has to close: a lock is free when nobody has its file open any more


class FileLock:
    """A file that is open to be locked. Two of them exclude each other in one process, too.

    Args:
        path: The file.
        create: Whether to make it where there is none.

    Raises:
        FileNotFoundError: There is none.
        PermissionError: It is another user's.
        OSError: It cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._file = os.open(path, flags, 0o600)
        _open.add(self._file)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            self.close()
            raise PermissionError(errno.EACCES, "not a regular file of this user", str(path))

    def share(self) -> bool:
        """Locks the file together with others that share it; False if somebody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def take(self) -> bool:
        """Locks the file alone; False if somebody else has it, and then a share that this one had is given up, too."""
        fcntl.flock(self._file, fcntl.LOCK_UN)  # some systems keep the share when the rest fails, and some do not
        return self._try(fcntl.LOCK_EX)

    def wait(self) -> None:
        """Locks the file alone, as soon as nobody else has it."""
        if not self.take():
            own = os.dup(self._file)  # the lock belongs to the open file, however many descriptors that has
            _open.add(own)
            # In a thread: a signal that arrives just before an endless wait would not end it.
            Beside(partial(_wait, own), name="ckpt_remote-lock").result()

    def stands(self, path: Path) -> bool:
        """Whether the file is what `path` names now. As long as only who has it alone removes it, that remains so."""
        try:
            return os.path.samestat(os.fstat(self._file), path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Gives the lock back."""
        _open.discard(self._file)
        fcntl.flock(self._file, fcntl.LOCK_UN)  # whoever else may have inherited the open file
        os.close(self._file)

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self._file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _wait(file: int) -> None:
    """Waits on a descriptor of its own: if the one who wanted the lock has closed his, it goes as soon as it comes."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        _open.discard(file)
        os.close(file)


def _close_inherited() -> None:
    for file in _open:
        os.close(file)
    _open.clear()


os.register_at_fork(after_in_child=_close_inherited)
