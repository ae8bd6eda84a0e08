"""A data object's local copy, as it arrives in ranges, many at a time, and is checked when it is whole.

    Copy.begin       its last range, and then the room for the rest
    Copy.pieces      the others, in any order; whoever brings the last one
    └── checks every tensor in it

Promises: an index that promises more than is there takes no room; a full disk or memory shows before the transfer of
the object, and not in the middle; what `pieces` leaves has passed its checksums, or it raises. Memory is bounded by the
ranges in flight.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ckpt_remote.bundle import Entry, is_intact
from ckpt_remote.errors import CorruptError, NotFoundError
from ckpt_remote.spool import write_at
from ckpt_remote.store import Store

__all__ = ["RANGE", "Copy", "missing"]

RANGE = 8 * 2**20
"""Bytes of one request."""


@dataclass(slots=True, kw_only=True)
class Copy:
    """One data object's.

    Attributes:
        store: Where the object is.
        key: Its name there.
        local: The file.
        spans: Which of its bytes are wanted, in their order.
        entries: The tensors in it, by name.
        moved: Told of the bytes of each range.
    """

    store: Store
    key: str
    local: Path
    spans: Sequence[range]
    entries: Sequence[tuple[str, Entry]]
    moved: Callable[[int], object]
    _has_room: Future[None] = field(default_factory=Future)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = 0

    def begin(self) -> None:
        """Fetches the end, and takes the room for all of it."""
        try:
            self._fetch(self._end)
            _allocate(self.local, self.spans)
            self._left = 1 + sum(1 for _ in self._rest())
        except BaseException as error:
            self._has_room.set_exception(error)
            raise
        self._has_room.set_result(None)
        self._arrived()

    def pieces(self) -> Iterator[Callable[[], None]]:
        """What fetches the rest: each may be called in a thread of its own, once `begin` has been called in one."""
        return (partial(self._bring, span) for span in self._rest())

    def _bring(self, span: range) -> None:
        self._has_room.result()
        self._fetch(span)
        self._arrived()

    def _arrived(self) -> None:
        with self._lock:
            self._left -= 1
            is_whole = not self._left
        if is_whole:
            self._check()

    @property
    def _end(self) -> range:
        """The last range."""
        span = self.spans[-1]
        return range(span.start + max(0, len(span) - 1) // RANGE * RANGE, span.stop)

    def _rest(self) -> Iterator[range]:
        """The ranges before it; nobody knows how many as long as it is not known to be there."""
        for span in self.spans:
            stop = min(span.stop, self._end.start)
            for start in range(span.start, stop, RANGE):
                yield range(start, min(start + RANGE, stop))

    def _fetch(self, span: range) -> None:
        try:
            data = self.store.read_range(self.key, span.start, len(span))
        except NotFoundError as error:
            raise missing(self.store.url_of(self.key)) from error
        file = os.open(self.local, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_at(file, span.start, data)
        finally:
            os.close(file)
        self.moved(len(span))

    def _check(self) -> None:
        with self.local.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
        for name, entry in self.entries:
            if not is_intact(entry, content[entry.offset : entry.offset + entry.size]):
                url = self.store.url_of(self.key)
                raise CorruptError(
                    f"{url} is damaged: {name!r}, its {entry.size} bytes from {entry.offset} on, fail their checksum; "
                    "nothing was restored. Restore an older checkpoint.",
                    path=url,
                )


def missing(url: str) -> CorruptError:
    """The object is not there."""
    return CorruptError(f"{url} is missing, so the checkpoint is damaged. Restore an older one.", path=url)


def _allocate(local: Path, spans: Sequence[range]) -> None:
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with local.open("r+b") as file:
            for span in filter(None, spans):
                os.posix_fallocate(file.fileno(), span.start, len(span))
