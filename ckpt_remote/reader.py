"""Read checkpoints: what is in one, and all of it into a local folder, in parallel.

    open_checkpoint(store, path)      <path>.index, read whole and checked
    fetch(stored, folder)
    └── each data object in ranges, many at a time, written at their place in a local file
        └── then the checksum of every tensor, from that file, before TensorFlow sees it

Promises: what `fetch` leaves in the folder is a complete checkpoint whose every tensor has passed its checksum, or it
raises; memory is bounded by the ranges in flight. It needs no TensorFlow.
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckpt_remote.buffers import byte_view
from ckpt_remote.bundle import (
    Entry,
    Index,
    decode_index,
    decode_slice_key,
    index_name,
    is_intact,
    is_slice_key,
    shard_name,
    tensor_name,
)
from ckpt_remote.errors import CorruptError, NotFoundError
from ckpt_remote.parallel import run_all
from ckpt_remote.store import Store

__all__ = ["Stored", "fetch", "open_checkpoint"]

_RANGE = 8 * 2**20
_STREAMS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A checkpoint on a store, as its index describes it.

    Attributes:
        store: The directory that it is in.
        path: Its prefix in there.
        index: What is in it.
        encoded: The index as it was read.
    """

    store: Store
    path: str
    index: Index
    encoded: bytes

    @property
    def url(self) -> str:
        """The prefix, for messages."""
        return self.store.url_of(self.path)

    @property
    def data(self) -> dict[str, int]:
        """The key of each data object that holds something, and how many bytes of it are used."""
        sizes: dict[int, int] = {}
        for entry in self.index.entries.values():
            if not entry.slices:
                sizes[entry.shard] = max(sizes.get(entry.shard, 0), entry.offset + entry.size)
        count = self.index.header.num_shards
        return {shard_name(self.path, shard, count): sizes[shard] for shard in sorted(sizes)}

    @property
    def files(self) -> tuple[str, ...]:
        """The keys of the side files of registered savers."""
        return tuple(f"{self.path}{suffix}" for suffix in self.index.header.files)


def open_checkpoint(store: Store, path: str) -> Stored:
    """Reads the index of a checkpoint.

    Raises:
        NotFoundError: There is no such checkpoint.
        CorruptError: The index is damaged.
    """
    key = index_name(path)
    try:
        encoded = store.read(key).data
    except NotFoundError as error:
        store.require_container()
        raise NotFoundError(
            f"There is no checkpoint {store.url_of(path)}: it has no index, {store.url_of(key)}. Check the path: a "
            "checkpoint is named by its prefix, as 'run/ckpt-7', not by its directory or one of its files.",
            path=store.url_of(path),
        ) from error
    return Stored(store=store, path=path, index=decode_index(encoded, path=store.url_of(key)), encoded=encoded)


def fetch(stored: Stored, folder: Path) -> Path:
    """Copies a checkpoint into an empty local folder, checked.

    Returns:
        The local prefix.

    Raises:
        CorruptError: A data object is missing or short, or a tensor fails its checksum; the message names it.
    """
    prefix = folder / stored.path.rpartition("/")[2]
    prefix.with_name(index_name(prefix.name)).write_bytes(stored.encoded)
    local = {key: folder / key.rpartition("/")[2] for key in stored.data}
    # The end of every object first: an index that promises more than is there costs neither time nor space.
    starts = {key: max(0, size - 1) // _RANGE * _RANGE for key, size in stored.data.items()}
    _all(
        partial(_fetch_range, stored.store, key, starts[key], size - starts[key], local[key])
        for key, size in stored.data.items()
    )
    for key, size in stored.data.items():
        _allocate(local[key], size)
    rest = (
        partial(_fetch_range, stored.store, key, start, _RANGE, local[key])
        for key in stored.data
        for start in range(0, starts[key], _RANGE)
    )
    files = (
        partial(_fetch_file, stored.store, key, Path(f"{prefix}{key.removeprefix(stored.path)}"))
        for key in stored.files
    )
    _all((*rest, *files))
    _all(partial(_verify_shard, *shard) for shard in _shards(stored, folder))
    return prefix


def _all(tasks: Iterable[Callable[[], None]]) -> None:
    run_all(list(tasks), threads=_STREAMS, name="ckpt_remote-fetch")


def _fetch_range(store: Store, key: str, start: int, size: int, local: Path) -> None:
    try:
        data = store.read_range(key, start, size)
    except NotFoundError as error:
        raise _missing(store.url_of(key)) from error
    file = os.open(local, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        view = byte_view(data)
        while view:
            written = os.pwrite(file, view, start)
            view, start = view[written:], start + written
    finally:
        os.close(file)


def _allocate(local: Path, size: int) -> None:
    """Takes the room now, so that a full disk or memory shows before the transfer and not in the middle."""
    if size and hasattr(os, "posix_fallocate"):  # macOS has none
        with local.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _fetch_file(store: Store, key: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        local.write_bytes(store.read(key).data)
    except NotFoundError as error:
        raise _missing(store.url_of(key)) from error


def _missing(url: str) -> CorruptError:
    return CorruptError(f"{url} is missing, so the checkpoint is damaged. Restore an older one.", path=url)


def _shards(stored: Stored, folder: Path) -> Iterator[tuple[Path, list[tuple[bytes, Entry]], str]]:
    """Each data object's local copy, the entries in it, and its URL."""
    shards: dict[int, list[tuple[bytes, Entry]]] = {}
    for key, entry in stored.index.entries.items():
        if not entry.slices:
            shards.setdefault(entry.shard, []).append((key, entry))
    for shard, entries in shards.items():
        name = shard_name(stored.path, shard, stored.index.header.num_shards)
        yield folder / name.rpartition("/")[2], entries, stored.store.url_of(name)


def _verify_shard(local: Path, entries: Sequence[tuple[bytes, Entry]], url: str) -> None:
    with local.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
    for key, entry in entries:
        if not is_intact(entry, content[entry.offset : entry.offset + entry.size]):
            name = decode_slice_key(key)[0] if is_slice_key(key) else tensor_name(key)
            raise CorruptError(
                f"{url} is damaged: {name!r}, its {entry.size} bytes from {entry.offset} on, fail their checksum; "
                "nothing was restored. Restore an older checkpoint.",
                path=url,
            )
