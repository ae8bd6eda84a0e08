"""Read checkpoints: what is in one, and all of it into a local folder, in parallel.

    open_checkpoint(store, path)      <path>.index, read whole and checked
    restrict(stored, restriction)     what a program has objects for, and nothing else
    fetch(stored, folder)
    └── a Copy of each data object, all at the same time

Promises: what `fetch` leaves in the folder is a complete checkpoint whose every tensor has passed its checksum, or it
raises; memory is bounded by the ranges in flight. It needs no TensorFlow.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from ckpt_remote.bundle import (
    OBJECT_GRAPH,
    Entry,
    Index,
    decode_index,
    decode_slice_key,
    decode_strings,
    encode_index,
    encode_strings,
    index_name,
    is_slice_key,
    owner_of,
    shard_name,
    tensor_key,
    tensor_name,
)
from ckpt_remote.copy import Copy, missing
from ckpt_remote.errors import CorruptError, NotFoundError
from ckpt_remote.parallel import run_all
from ckpt_remote.progress import enter
from ckpt_remote.store import Store

__all__ = ["STREAMS", "Stored", "fetch", "open_checkpoint", "restrict"]

_GRAPH = tensor_key(OBJECT_GRAPH)
# Bytes that nobody wants are fetched along rather than pay for another request.
_GAP = 256 * 2**10
STREAMS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A checkpoint on a store, as its index describes it.

    Attributes:
        store: The directory that it is in.
        path: Its prefix in there.
        index: What is in it.
        encoded: The index as the local copy gets it.
        graph: What the local copy gets behind the end of a data object, and the key of that: an object graph that
            says what of the checkpoint is wanted.
    """

    store: Store
    path: str
    index: Index
    encoded: bytes
    graph: tuple[str, bytes] | None = None

    @property
    def url(self) -> str:
        """The prefix, for messages."""
        return self.store.url_of(self.path)

    def shard(self, number: int) -> str:
        """The key of a data object."""
        return shard_name(self.path, number, self.index.header.num_shards)

    @property
    def data(self) -> dict[str, list[range]]:
        """The key of each data object that holds something, and which bytes of it, in their order."""
        spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for entry in self.index.entries.values():
            if not entry.slices:
                spans[entry.shard].append((entry.offset, entry.offset + entry.size))
        return {self.shard(number): _joined(spans[number]) for number in sorted(spans)}

    @property
    def size(self) -> int:
        """How many bytes of data there are to fetch."""
        return sum(span.stop - span.start for spans in self.data.values() for span in spans)

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


def restrict(stored: Stored, restriction: Callable[[bytes], tuple[bytes, Container[str]]]) -> Stored:
    """The part of a checkpoint that is wanted; all of a name-based one, as only TensorFlow knows which names it wants.

    Args:
        stored: The checkpoint.
        restriction: Given the object graph, returns one that says what is wanted, and the owners of that.

    Raises:
        CorruptError: The object graph is missing or damaged.
    """
    entry = stored.index.entries.get(_GRAPH)
    if entry is None:
        return stored
    graph, owners = restriction(_read_graph(stored, entry))
    entries = {key: entry for key, entry in stored.index.entries.items() if owner_of(_name(key)) in owners}
    part = replace(stored, index=Index(stored.index.header, entries))
    host = stored.shard(entry.shard)
    data, checksum = encode_strings([graph])
    spans = part.data.get(host)
    graph_entry = replace(entry, offset=spans[-1].stop if spans else 0, size=len(data), crc32c=checksum)
    index = Index(stored.index.header, dict(sorted({**entries, _GRAPH: graph_entry}.items())))
    return replace(part, encoded=encode_index(index), graph=(host, data))


def fetch(stored: Stored, folder: Path) -> Path:
    """Copies a checkpoint into an empty local folder, checked.

    Returns:
        The local prefix.

    Raises:
        CorruptError: A data object is missing or short, or a tensor fails its checksum; the message names it.
    """
    prefix = folder / stored.path.rpartition("/")[2]
    prefix.with_name(index_name(prefix.name)).write_bytes(stored.encoded)
    copies = list(_copies(stored, folder, enter(stored.url, "fetch", stored.size)))
    files = [
        partial(_fetch_file, stored.store, key, Path(f"{prefix}{key.removeprefix(stored.path)}"))
        for key in stored.files
    ]
    tasks: Iterator[Callable[[], None]] = chain(
        (copy.begin for copy in copies), *(copy.pieces() for copy in copies), files
    )
    run_all(tasks, threads=STREAMS, name="ckpt_remote-fetch")
    if stored.graph is not None:
        host, data = stored.graph
        with (folder / host.rpartition("/")[2]).open("ab") as file:
            file.write(data)
    return prefix


def _joined(spans: list[tuple[int, int]]) -> list[range]:
    """Spans in their order, as few as make sense."""
    joined: list[range] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1].stop + _GAP:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, stop))
        else:
            joined.append(range(start, stop))
    return joined


def _name(key: bytes) -> str:
    return decode_slice_key(key)[0] if is_slice_key(key) else tensor_name(key)


def _read_graph(stored: Stored, entry: Entry) -> bytes:
    key = stored.shard(entry.shard)
    url = stored.store.url_of(key)
    try:
        data = stored.store.read_range(key, entry.offset, entry.size)
        return decode_strings(data, 1, entry.crc32c)[0]
    except NotFoundError as error:
        raise missing(url) from error
    except CorruptError as error:
        raise CorruptError(
            f"{url} is damaged: {OBJECT_GRAPH!r}: {error}; nothing was restored. Restore an older checkpoint.", path=url
        ) from error


def _fetch_file(store: Store, key: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        local.write_bytes(store.read(key).data)
    except NotFoundError as error:
        raise missing(store.url_of(key)) from error


def _copies(stored: Stored, folder: Path, moved: Callable[[int], object]) -> Iterator[Copy]:
    """The local copy of each data object that holds something."""
    entries: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for tensor, entry in stored.index.entries.items():
        if not entry.slices:
            entries[stored.shard(entry.shard)].append((_name(tensor), entry))
    for key, spans in stored.data.items():
        yield Copy(
            store=stored.store,
            key=key,
            local=folder / key.rpartition("/")[2],
            spans=spans,
            entries=entries[key],
            moved=moved,
        )
