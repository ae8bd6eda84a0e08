"""One fetch for all processes of a user on a host that want the same thing at the same time.

    fetch_once(url, content, fetch)
    ├── one process at a time     a file lock, which the kernel drops with the process
    ├── somebody's copy           is there: hold it, and trust it
    └── fetch(SharedFolder)       or else make one, and then give it its name: it is complete, or nobody finds it

Promises: the copy stands until the last one who holds it lets go, whoever made it; if the one who makes it fails or is
killed, the next who waits makes one of its own; nothing is shared with other users, and nothing between hosts that
have a temporary directory in common. Where nothing can be shared, everybody gets a copy of his own. Who waits
for a process that hangs, waits until Ctrl-C.
"""

import contextlib
import hashlib
import logging
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path

from ckpt_remote.locks import FileLock
from ckpt_remote.staging import Folder, Lease, mutex_path, places, sweep

__all__ = ["SharedFolder", "fetch_once"]

_log = logging.getLogger(__name__)
# Processes of a job do not start at the same moment, so a copy stays for the later ones, this many seconds, unless the
# process that fetched it ends or fetches something else.
_GRACE = 10.0
_CONTENT = "content"

_kept: list[tuple[threading.Timer, Lease]] = []  # what this process has fetched last, as long as it stays for others


class SharedFolder(Folder):
    """A folder that other processes may come to use; `remove` lets go of it, and the last one removes it.

    Args:
        parent: Where to put it; the temporary directory by default.
        lease: What holds it, where it is there already.
    """

    def __init__(self, parent: Path | None = None, *, lease: Lease | None = None) -> None:
        self._lease = lease or Lease.create(parent or places()[-1])
        self._tie(self._lease.path / _CONTENT, self._lease.release)
        if lease is None:
            self.path.mkdir(mode=0o700)

    @classmethod
    def find(cls, name: str) -> "SharedFolder | None":
        """The complete folder of that name, held; None if there is none."""
        leases = (Lease.join(place, name) for place in places())
        return next((cls(lease=lease) for lease in leases if lease is not None), None)

    def publish(self, name: str) -> None:
        """Lets others find the folder, which is complete and changes no more; where that fails, nobody finds it."""
        for path in self.path.rglob("*"):
            if path.is_file():
                path.chmod(0o400)
        if self._lease.publish(name):
            self.path = self._lease.path / _CONTENT
        else:
            _log.info("%s is there already, so %s stays private", name, self.path)


def fetch_once(url: str, content: bytes, fetch: Callable[[type[SharedFolder]], SharedFolder]) -> SharedFolder:
    """A folder with something in it that one process fetches, and all that want it at the same time use.

    Nobody but the one who fetched it checks it again. Its files can be read only. It is there as long as somebody
    needs it, and for some seconds after the fetch.

    Args:
        url: What it is.
        content: What tells it from anything else that has had, or will have, that URL.
        fetch: Makes a folder and fills it. Called by one process at a time; where it fails, the next one calls its own.

    Raises:
        BaseException: What `fetch` raised in this process.
    """
    # Not another host's, where they have the temporary directory in common: its memory is out of reach.
    known = (platform.node(), str(os.geteuid()), url)
    name = hashlib.blake2b("\0".join(known).encode() + b"\0" + content, digest_size=16).hexdigest()
    path = mutex_path(name)
    try:
        turn = _take_turn(path, url)
    except OSError as error:
        _log.warning("every process on this host fetches its own copy of %s: %s", url, error)
        return fetch(SharedFolder)
    try:
        # What nobody holds is not to be found: after a power failure it is not what it was. And the half of a copy that
        # somebody was killed over takes the room of a whole one.
        for place in places():
            sweep(place)
        return SharedFolder.find(name) or _fetch(name, fetch)
    finally:
        with contextlib.suppress(OSError):  # left there, it serves the next one, too
            path.unlink()
        turn.close()


def _take_turn(path: Path, url: str) -> FileLock:
    told = False
    while True:
        lock = FileLock(path, create=True)
        try:
            if not lock.take():
                if not told:
                    _log.info("another process on this host fetches %s: waiting for its copy", url)
                told = True
                lock.wait()
            if lock.stands(path):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()  # the one before has removed it


def _fetch(name: str, fetch: Callable[[type[SharedFolder]], SharedFolder]) -> SharedFolder:
    _let_go()
    folder = fetch(SharedFolder)
    folder.publish(name)
    _keep(name)
    return folder


def _keep(name: str) -> None:
    """Holds a copy beside those who use it, for processes that want it a little later."""
    for lease in (Lease.join(place, name) for place in places()):
        if lease is not None:
            timer = threading.Timer(_GRACE, lease.release)
            timer.daemon = True
            timer.start()
            _kept.append((timer, lease))


def _let_go() -> None:
    while _kept:
        timer, lease = _kept.pop()
        timer.cancel()
        lease.release()
