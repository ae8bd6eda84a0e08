"""fsspec's `memory://` as a store, for tests and notebooks.

Promises: the objects are those that plain fsspec users of the same URL see; every write makes a new version,
also theirs. Everything happens under one lock of the process, so conditional puts are atomic between threads.
It is one process's
memory: nothing is shared with another, and nothing outlives it.
"""

import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, join
from ckpt_remote.store import faults, interface

__all__ = ["MemoryStore"]

_lock = threading.RLock()
# fsspec makes a new file object for every write: its serial number tells writes apart, equal bytes or not.
_serials: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
_next_serial = itertools.count(1)


class MemoryStore(interface.Store):
    """The directory `root` of a `MemoryFileSystem`."""

    def __init__(self, filesystem: Any, root: str, url: str, engine: str) -> None:
        self._filesystem = filesystem
        self._root = root
        self.url = url
        self.engine = engine

    def read(self, key: str) -> interface.Object:
        """As `Store.read`."""
        with _lock:
            file = self._file("read", key)
            return interface.Object(file.getvalue(), _version(file))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As `Store.read_range`."""
        interface.check_range(start, length)
        with _lock:
            file = self._file("read", key)
            if file.size < start + length:
                raise faults.corrupt(faults.Request("read", self.url_of(key)), start, length, file.size)
            with file.getbuffer() as view:
                return bytes(view[start : start + length])

    def size(self, key: str) -> int:
        """As `Store.size`."""
        with _lock:
            size: int = self._file("look up", key).size
            return size

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`."""
        request = faults.Request("write", self.url_of(key))
        path = self._path(key)
        data = join(buffers)
        with _lock:
            file = self._filesystem.store.get(path)
            if mode == "create" and file is not None:
                raise faults.conflict(request)
            if isinstance(mode, interface.Version) and (file is None or _version(file) != mode):
                raise faults.conflict(request)
            try:
                self._filesystem.pipe_file(path, data)
            except OSError as error:
                raise errors.StoreError(
                    f"Cannot write {request.url}: a directory has its name, or a file has its directory's.",
                    path=request.url,
                ) from error
            return _version(self._filesystem.store[path])

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""
        start = f"{self._root}/"
        with _lock:
            found = [
                interface.ObjectInfo(path[len(start) :], file.size)
                for path, file in tuple(self._filesystem.store.items())
                if path.startswith(start + prefix)
            ]
        yield from found

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`; nothing can fail."""
        paths = [self._path(key) for key in keys]
        with _lock:
            for path in paths:
                self._filesystem.store.pop(path, None)
        return {}

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`."""
        path = self._path(key)
        with _lock:
            file = self._filesystem.store.get(path)
            if file is not None and _version(file) != version:
                raise faults.conflict(faults.Request("delete", self.url_of(key)))
            self._filesystem.store.pop(path, None)
        return True

    def require_container(self) -> None:
        """Nothing: memory has no buckets."""

    def _path(self, key: str) -> str:
        return f"{self._root}/{interface.check_key(key)}"

    def _file(self, verb: str, key: str) -> Any:
        file = self._filesystem.store.get(self._path(key))
        if file is None:
            raise faults.not_found(faults.Request(verb, self.url_of(key)))
        return file


def _version(file: Any) -> interface.Version:
    serial = _serials.setdefault(file, next(_next_serial))
    # An append changes the same file object in place.
    return interface.Version(f"{serial}-{file.size}-{file.modified.timestamp()}")
