"""A directory of a local disk as a store.

Promises: an object appears whole or not at all, and is on disk (file and directory synced) when a put
returns. Conditional puts are truly atomic between threads and processes: creation is a hard link, which the
kernel refuses where the name is taken, and every replacement or removal is made under a lock on the
directory. Plain users of the same path see plain files; what a killed put left unfinished goes with the next
store's first put there. It does not defend against programs that rewrite an
object in place, and a file system without hard links or locks is refused for conditional puts.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.store import faults, interface

__all__ = ["LocalStore"]

# Our unfinished files: the dot keeps them out of shells' globs, and listings leave them out.
_UNFINISHED = ".ckpt_remote-"
# How often a folder is made again that others remove because it is empty.
_PATIENCE = 20
_NOTHING_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_CANNOT = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EMLINK})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class LocalStore(interface.Store):
    """The directory `root`; it and its parents are made by the first put."""

    def __init__(self, root: str, url: str, engine: str) -> None:
        self._root = Path(root)
        self.url = url
        self.engine = engine
        self._swept: set[Path] = set()  # the folders that have been rid of what the dead left

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        request = faults.Request("read", self.url_of(key))
        with _translated(request), self._path(key).open("rb") as file:
            # Replacement makes a new inode, so the open file is one moment of the object.
            status = _regular(os.fstat(file.fileno()))
            return interface.Object(file.read(), _version(status))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        request = faults.Request("read", self.url_of(key))
        with _translated(request), self._path(key).open("rb", buffering=0) as file:
            size = _regular(os.fstat(file.fileno())).st_size
            if size < start + length:
                raise faults.corrupt(request, start, length, size)
            data = bytearray(length)
            _fill(file.fileno(), memoryview(data), start)
            return data

    def size(self, key: str) -> int:
        """As `Store.size`."""
        with _translated(faults.Request("look up", self.url_of(key))):
            return _regular(self._path(key).stat()).st_size

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`."""
        request = faults.Request("write", self.url_of(key))
        target = self._path(key)
        with _translated(request):
            _make_directory(target.parent)
            if target.parent not in self._swept:
                self._swept.add(target.parent)
                _sweep(target.parent)
            with _unfinished(target.parent, buffers) as (temporary, version):
                if mode == "create":
                    with _refusing(request, "hard links"):
                        os.link(temporary, target)
                else:
                    with _locked(request, target.parent, needed=mode != "overwrite"):
                        if isinstance(mode, interface.Version) and _current(target) != mode:
                            raise faults.conflict(request)
                        temporary.replace(target)
            _sync(target.parent)
        return version

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""
        folder = prefix.rpartition("/")[0]
        with _translated(faults.Request("list", self.url)):
            for path in _files(self._root / folder):
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):  # removed since the directory was read
                        yield interface.ObjectInfo(key, path.stat().st_size)

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`. Folders below the directory that are empty now go, too: stores of objects have none."""
        outcomes = {key: self._delete(key, path) for key, path in [(key, self._path(key)) for key in keys]}
        return {key: failure for key, failure in outcomes.items() if failure is not None}

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`: looked at and removed under the directory's lock."""
        request = faults.Request("delete", self.url_of(key))
        path = self._path(key)
        with contextlib.suppress(errors.NotFoundError), _translated(request):
            with _locked(request, path.parent, needed=True):
                if (current := _current(path)) is not None and current != version:
                    raise faults.conflict(request)
                path.unlink()
                _sync(path.parent)
            self._prune(path.parent)
        return True

    def require_container(self) -> None:
        """Nothing: a directory is made when it is first written to."""

    def _delete(self, key: str, path: Path) -> errors.CheckpointError | None:
        request = faults.Request("delete", self.url_of(key))
        try:
            with _translated(request), _locked(request, path.parent, needed=False):
                path.unlink()
                _sync(path.parent)
            self._prune(path.parent)
        except errors.NotFoundError:
            return None
        except errors.CheckpointError as error:
            return error
        return None

    def _prune(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # not empty
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    def _path(self, key: str) -> Path:
        return self._root / interface.check_key(key)


def _version(status: os.stat_result) -> interface.Version:
    return interface.Version(f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")


def _regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return status


def _current(path: Path) -> interface.Version | None:
    try:
        return _version(_regular(path.stat()))
    except _NOTHING_THERE:
        return None


def _fill(descriptor: int, rest: memoryview, offset: int) -> None:
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
            raise OSError(errno.EIO, "the file shrank while it was read")
        rest, offset = rest[count:], offset + count


def _files(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder, onerror=_raise_unless_missing):
        for name in names:
            if not name.startswith(_UNFINISHED):
                yield Path(directory, name)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, _NOTHING_THERE):
        raise error


@contextlib.contextmanager
def _unfinished(folder: Path, buffers: Sequence[Buffer]) -> Iterator[tuple[Path, interface.Version]]:
    """A complete, synced file under a name of our own, gone after the block unless it was renamed."""
    path, descriptor = _open_unfinished(folder)
    try:
        try:
            for buffer in buffers:
                rest = byte_view(buffer)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            # Inode numbers are reused at once and the kernel's time steps are milliseconds: a time of our
            # own, in nanoseconds, keeps the version of a replaced object from coming back.
            now = time.time_ns()
            os.utime(descriptor, ns=(now, now))
            os.fsync(descriptor)
            version = _version(os.fstat(descriptor))
            yield path, version
        finally:
            os.close(descriptor)
    finally:
        path.unlink(missing_ok=True)


def _open_unfinished(folder: Path) -> tuple[Path, int]:
    """A new file, locked as long as it is open, so that nobody takes it for a dead process's."""
    for attempt in itertools.count(1):
        path = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # the folder was empty, and somebody has deleted the last object in it
            if attempt == _PATIENCE:
                raise
            _make_directory(folder)
            continue
        with contextlib.suppress(OSError):  # no locks here: then nobody sweeps, either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():  # not swept between the two
            return path, descriptor
        os.close(descriptor)
    raise AssertionError("the count never ends")


def _sweep(folder: Path) -> None:
    """Removes the unfinished files of processes that are dead: the kernel has dropped their locks."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another sweeper was first, or the file is in use
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _make_directory(folder: Path) -> None:
    for _ in range(_PATIENCE):
        if folder.is_dir():
            return
        _make_directory(folder.parent)
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # made, or emptied and removed, by others
            folder.mkdir()
            _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(request: faults.Request, folder: Path, *, needed: bool) -> Iterator[None]:
    """Hold the directory's lock; without one, go on only where nothing is compared (not `needed`)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            with _refusing(request, "directory locks"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except errors.UnsupportedError:
            if needed:
                raise
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusing(request: faults.Request, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        raise errors.UnsupportedError(
            f"Cannot {request.verb} {request.url} safely: its file system has no {what} ({error.strerror}). "
            f"Save to a local disk, or to an object store through its own URL.",
            path=request.url,
        ) from error


@contextlib.contextmanager
def _translated(request: faults.Request) -> Iterator[None]:
    try:
        yield
    except errors.CheckpointError:
        raise
    except FileExistsError as error:
        raise faults.conflict(request) from error
    except _NOTHING_THERE as error:
        if request.verb != "write":
            raise faults.not_found(request) from error
        raise errors.StoreError(
            f"Cannot write {request.url}: {error.strerror} ({error.filename}). Check the path: its folder cannot "
            f"be made there, or is a file, or there is a folder of its name.",
            path=request.url,
        ) from error
    except PermissionError as error:
        raise faults.refused(request, f"{error.strerror}") from error
    except OSError as error:
        advice = "Free some space." if error.errno in _FULL else "Check the disk and the path."
        raise errors.StoreError(
            f"Cannot {request.verb} {request.url}: {error.strerror or error}. {advice}", path=request.url
        ) from error
