"""A private file of known size that arrives in pieces, in any order, and is read as memory.

Promises: it has no name, so nothing of it outlives its use, not even when the process is killed; the room for all of
it is taken before the first piece is written; what is written is at once in every view, without counting as the
process's own memory.

It lies where temporary files lie: on disk, unless `TMPDIR` is memory itself.
"""

import mmap
import os
import tempfile
import weakref

from ckpt_remote.buffers import Buffer, byte_view
from ckpt_remote.errors import StoreError

__all__ = ["Spool", "write_at"]


class Spool:
    """A file without a name, that goes with this object; its views stay.

    Args:
        size: How many bytes it has.

    Raises:
        StoreError: There is no room for them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        try:
            with tempfile.TemporaryFile() as file:
                if size and hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
                # Nothing can be mapped of an empty file.
                content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _failure(size, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        self._content = memoryview(content)

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes from `offset` on, now and in future."""
        return self._content[offset : offset + size]

    def write(self, offset: int, data: Buffer) -> None:
        """Puts `data` at `offset`. Threads may do so at the same time.

        Raises:
            StoreError: The file system failed.
        """
        try:
            write_at(self._descriptor, offset, data)
        except OSError as error:
            raise _failure(self._size, error) from error


def write_at(descriptor: int, offset: int, data: Buffer) -> None:
    """Writes all of `data` into a file at `offset`. Threads may do so at the same time."""
    left = byte_view(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _failure(size: int, error: OSError) -> StoreError:
    return StoreError(
        f"Cannot save: the private file of {size / 1e6:.1f} MB in {tempfile.gettempdir()}, for the values of other "
        f"tasks, failed ({error.strerror}). Make room there, or set TMPDIR to a place that has it."
    )
