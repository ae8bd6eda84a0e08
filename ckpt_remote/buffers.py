"""Contiguous bytes, whoever owns them: what tensors, shards and objects are handed on as, without copying.

It only looks at memory: whoever makes a buffer keeps it alive and unchanged while it is in use.
"""

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

__all__ = ["Buffer", "byte_view", "join", "total_size"]

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
"""Contiguous bytes, read only or writable; a memoryview or an array is one-dimensional and of unsigned bytes."""


def byte_view(buffer: Buffer) -> memoryview:
    """The same bytes as a memoryview, not copied."""
    return memoryview(cast("bytes", buffer))  # NumPy's stubs know the buffer protocol only from Python 3.12 on


def total_size(buffers: Sequence[Buffer]) -> int:
    """How many bytes `buffers` hold together."""
    return sum(byte_view(buffer).nbytes for buffer in buffers)


def join(buffers: Sequence[Buffer]) -> bytes:
    """`buffers` as one `bytes`: copied once, or not at all where there is one `bytes` already."""
    if len(buffers) == 1 and isinstance(buffers[0], bytes):
        return buffers[0]
    return b"".join(byte_view(buffer) for buffer in buffers)
