r"""The `checkpoint` file: parse it, check it, print it.

The file is TensorFlow's `CheckpointState` in protobuf's text format (checkpoint_state.proto; written by
`tf.train.update_checkpoint_state`). What this library adds rides in one comment line at its top, which TensorFlow's
parser skips, so that everything changes in one write::

    # ckpt_remote 8f1c02aa {"v":1,"write_id":"…","term":"…","epoch":2,"highest":3,"lineage":[…],…}
    model_checkpoint_path: "ckpt-3"
    all_model_checkpoint_paths: "ckpt-2"
    all_model_checkpoint_paths: "ckpt-3"
    all_model_checkpoint_timestamps: 1762345600.5
    all_model_checkpoint_timestamps: 1762345700.25
    last_preserved_timestamp: 1762345500.0

The number is the crc32c of all that follows it. A file without the comment is a stock manager's, and is accepted.

Promises: what TensorFlow prints is parsed to the same values, and what we print TensorFlow parses to the same values,
field for field and line for line; every path is inside the directory; anything unreadable, damaged or pointing
elsewhere is `CorruptError`, never "no checkpoints yet". It does no I/O and decides nothing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_remote.bundle import MAX_SHARDS, crc32c, index_name, shard_name
from ckpt_remote.errors import CorruptError, UnsupportedError
from ckpt_remote.textproto import parse_fields, quote

__all__ = ["Entry", "Record", "Retired", "State", "decode_state", "encode_state"]

_MARK = "# ckpt_remote "
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TERM = re.compile(r"[0-9a-f]{16}")
_FORMAT = 1
# A directory that is claimed and has no checkpoint yet. TensorFlow knows no such field, and so takes the file for none;
# a file without any field would be an error to it.
_CLAIMED = "no_checkpoints_yet"
_LARGEST = 16 * 2**20  # bytes; a state of a hundred thousand checkpoints is smaller
_LINEAGE = 32  # as many writers may build on a write before its author has read back that it landed


@dataclass(frozen=True, slots=True)
class Entry:
    """A managed checkpoint.

    Attributes:
        path: The prefix, relative to the directory, as in "ckpt-7".
        timestamp: When it was saved, in seconds since the epoch.
    """

    path: str
    timestamp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """What a checkpoint, or an attempt at one, consists of. In the state: an intention to delete exactly that.

    Attributes:
        path: The prefix of the checkpoint.
        write_id: That of its index, so that an index written since is left alone; empty for a stock checkpoint, None
            where no index is meant.
        used: The number after that of its last data object.
        of: The count in their names.
        first: The number of its first data object.
        files: Side files of registered savers.
    """

    path: str
    write_id: str | None
    used: int
    of: int
    first: int = 0
    files: tuple[str, ...] = ()

    @property
    def objects(self) -> tuple[str, ...]:
        """The keys of its data objects."""
        return tuple(shard_name(self.path, shard, self.of) for shard in range(self.first, self.used))

    @property
    def data(self) -> tuple[str, ...]:
        """The keys of everything but the index."""
        return (*self.objects, *self.files)

    @property
    def index(self) -> str:
        """The key of the index."""
        return index_name(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What this library adds to the file.

    Attributes:
        write_id: Names this very write, so that its author can recognise it after a lost response.
        term: Names the history of the directory, unbroken since a manager first claimed it.
        epoch: How often a manager has claimed the directory in this term.
        home: Where the directory is; a copy of it elsewhere has a history of its own.
        serial: How often the state has been written in this term.
        highest: The highest number that a checkpoint has had. At it or below, deletes by name may still be under way.
        lineage: The write ids before it, newest first.
        preserved: Checkpoints that left the list and are kept for good, oldest first.
        retired: What is still to be deleted.
        replaced: The listed checkpoint whose number is being saved again, as it was before.
    """

    write_id: str
    term: str
    epoch: int
    home: str = ""
    serial: int = 0
    highest: int = 0
    lineage: tuple[str, ...] = ()
    preserved: tuple[str, ...] = ()
    retired: tuple[Retired, ...] = ()
    replaced: Retired | None = None

    def followed_by(self) -> tuple[str, ...]:
        """The lineage of the write that builds on this one."""
        return (self.write_id, *self.lineage)[:_LINEAGE] if self.write_id else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One version of the `checkpoint` file.

    Attributes:
        latest: The newest checkpoint; None when a manager has claimed the directory and saved nothing yet.
        entries: The managed checkpoints, oldest first.
        last_preserved_timestamp: Seconds since the epoch.
        record: What this library added; None in a stock manager's file.
    """

    latest: str | None
    entries: tuple[Entry, ...] = ()
    last_preserved_timestamp: float = 0.0
    record: Record | None = field(default=None)

    @property
    def paths(self) -> frozenset[str]:
        """Every checkpoint that is listed or preserved."""
        preserved = self.record.preserved if self.record else ()
        return frozenset((*preserved, *(entry.path for entry in self.entries), *([self.latest] if self.latest else ())))


def encode_state(state: State) -> bytes:
    """Prints a state as TensorFlow would, below our comment line if it has a record.

    Raises:
        UnsupportedError: It is larger than `decode_state` reads.
    """
    lines = []
    if state.latest is not None:
        lines.append(f"model_checkpoint_path: {quote(state.latest)}")
    else:
        lines.append(f"{_CLAIMED}: 1")
    lines += [f"all_model_checkpoint_paths: {quote(entry.path)}" for entry in state.entries]
    lines += [f"all_model_checkpoint_timestamps: {entry.timestamp!r}" for entry in state.entries]
    if state.last_preserved_timestamp:  # proto3 leaves out what is zero
        lines.append(f"last_preserved_timestamp: {state.last_preserved_timestamp!r}")
    text = "".join(f"{line}\n" for line in lines)
    if state.record is None:
        return text.encode()
    rest = f"{_encode_record(state.record)}\n{text}".encode()
    if len(rest) > _LARGEST - len(_MARK) - 9:
        raise UnsupportedError(
            f"Cannot write a state of {len(rest)} bytes, which nobody would read: {len(state.entries)} checkpoints are "
            "too many for one directory. Give max_to_keep, or save to another directory."
        )
    return f"{_MARK}{crc32c(rest):08x} ".encode() + rest


def decode_state(data: bytes, *, path: str, directories: Sequence[str]) -> State:
    """Parses and checks a `checkpoint` file.

    Args:
        data: The whole file.
        path: Its URL, for messages.
        directories: The ways to write the directory it is in; absolute paths below one of them become relative.

    Returns:
        The state, with every path relative and inside the directory.

    Raises:
        CorruptError: It cannot be read, fails its checksum, or names something outside the directory.
        UnsupportedError: A newer version of this library wrote it.
    """
    try:
        record, body = _decode_record(_bounded(data).decode(), path)
        return _decode_body(body, record, directories)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, CorruptError):
            raise
        message = (
            f"Cannot read the checkpoint state {path}: {error}; nothing was changed or deleted. Restore the file from "
            "a version or copy, or write one that names the checkpoint you want, as TensorFlow does."
        )
        raise CorruptError(message, path=path) from error


def _encode_record(record: Record) -> str:
    value = {
        "v": _FORMAT,
        "write_id": record.write_id,
        "term": record.term,
        "epoch": record.epoch,
        "home": record.home,
        "serial": record.serial,
        "highest": record.highest,
        "lineage": record.lineage,
        "preserved": record.preserved,
        "retired": [_listed(retired) for retired in record.retired],
        "replaced": record.replaced and _listed(record.replaced),
    }
    return json.dumps(value, separators=(",", ":"))


def _listed(retired: Retired) -> list[object]:
    return [retired.path, retired.write_id, retired.first, retired.used, retired.of, *retired.files]


def _decode_record(text: str, path: str) -> tuple[Record | None, str]:
    if not text.startswith(_MARK):
        return None, text
    line, _, body = text.removeprefix(_MARK).partition("\n")
    checksum, _, record = line.partition(" ")
    rest = f"{record}\n{body}".encode()
    if f"{crc32c(rest):08x}" != checksum:
        raise CorruptError(
            f"The checkpoint state {path} fails its checksum: it was damaged, or edited by hand; nothing was changed "
            "or deleted. Put a copy back; or, if what it says is complete and right, delete its first line.",
            path=path,
        )
    value: dict[str, Any] = json.loads(record)
    if value["v"] != _FORMAT:
        raise UnsupportedError(
            f"The checkpoint state {path} has format {value['v']}, and this version of ckpt_remote knows {_FORMAT}: "
            "update ckpt_remote.",
            path=path,
        )
    return (
        Record(
            write_id=_text(value["write_id"]),
            term=_term(value["term"]),
            epoch=_count(value["epoch"]),
            home=_text(value["home"]),
            serial=_count(value["serial"]),
            highest=_count(value["highest"]),
            lineage=tuple(_text(write_id) for write_id in value["lineage"]),
            preserved=tuple(_inside(p, ()) for p in value["preserved"]),
            retired=tuple(_decode_retired(*retired) for retired in value["retired"]),
            replaced=None if value["replaced"] is None else _decode_retired(*value["replaced"]),
        ),
        body,
    )


def _decode_retired(path: str, write_id: str | None, *rest: Any) -> Retired:
    first, used, of, *files = rest
    if not 0 <= _count(first) <= _count(used) <= _count(of) <= MAX_SHARDS:
        raise ValueError(f"it is to delete the data objects from {first} to {used} of {of}")
    if not all(_inside(file, ()).startswith(path) for file in files):
        raise ValueError(f"it is to delete files that are not of {path!r}")
    return Retired(
        path=_inside(path, ()),
        write_id=None if write_id is None else _text(write_id),
        first=first,
        used=used,
        of=of,
        files=tuple(files),
    )


def _bounded(data: bytes) -> bytes:
    if len(data) > _LARGEST:
        raise ValueError(f"it has {len(data)} bytes, and no state is that large")
    return data


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it has {value!r} where a text belongs")
    return value


def _term(value: object) -> str:
    if not _TERM.fullmatch(_text(value)):
        raise ValueError(f"it has {value!r} where a term belongs")
    return _text(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(f"it has {value!r} where a number belongs")
    return value


def _decode_body(body: str, record: Record | None, directories: Sequence[str]) -> State:
    fields = _Fields()
    for name, value in parse_fields(body):
        fields.add(name, value)
    latest = _inside(fields.latest, directories) if fields.latest else None
    if (latest is None) != (fields.claimed and record is not None):
        raise ValueError("it names no checkpoint")
    paths = [_inside(path, directories) for path in fields.paths]
    # As TensorFlow's manager does with a file that has no timestamps.
    timestamps = fields.timestamps or [fields.last_preserved] * len(paths)
    if len(timestamps) != len(paths):
        raise ValueError(f"it lists {len(paths)} checkpoints and {len(timestamps)} timestamps")
    return State(
        latest=latest,
        # A path given twice is one checkpoint, as in TensorFlow's manager.
        entries=tuple(Entry(p, t) for p, t in dict(zip(paths, timestamps, strict=True)).items()),
        last_preserved_timestamp=fields.last_preserved,
        record=record,
    )


@dataclass(slots=True)
class _Fields:
    """The fields of CheckpointState (checkpoint_state.proto)."""

    latest: str = ""
    paths: list[str] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)
    last_preserved: float = 0.0
    claimed: bool = False
    seen: set[str] = field(default_factory=set)

    def add(self, name: str, value: str | float) -> None:
        match name, value:
            case "model_checkpoint_path", str():
                self._once(name)
                self.latest = value
            case "all_model_checkpoint_paths", str():
                self.paths.append(value)
            case "all_model_checkpoint_timestamps", float():
                self.timestamps.append(value)
            case name, 1.0 if name == _CLAIMED:
                self.claimed = True
            case "last_preserved_timestamp", float():
                self._once(name)
                self.last_preserved = value
            case _:
                raise ValueError(f"CheckpointState has no field {name!r} with such a value")

    def _once(self, name: str) -> None:
        if name in self.seen:
            raise ValueError(f"{name} is given twice")
        self.seen.add(name)


def _inside(path: str, directories: Sequence[str]) -> str:
    """The path relative to its directory; refuses what is, or leads, outside it."""
    path = _text(path)
    for directory in directories:
        if path.startswith(f"{directory.rstrip('/')}/"):
            path = path[len(directory.rstrip("/")) + 1 :]
            break
    if path.startswith("/") or "://" in path:
        raise ValueError(f"it names {path!r}, which is outside its directory")
    if any(segment in ("", ".", "..") for segment in path.split("/")) or _CONTROL.search(path):
        raise ValueError(f"it names {path!r}, which is no path inside its directory")
    return path
