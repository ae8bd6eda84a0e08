"""What workers that save together tell each other: a few small objects below `_ckpt_remote/`.

    plan                    the leader's: what is being saved, and how it stands. The only one that changes
    <attempt>/join-<rank>   a worker's: I am here, and these seals are mine
    <attempt>/part-<rank>   a worker's vote, once for all: what it wrote, or why it did not

Each ends with the seal of who wrote it. What an attempt is called is never used again.

Promises: what is decoded is what was encoded, or `CorruptError` is raised. It does no I/O.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ckpt_remote import errors
from ckpt_remote.bundle import crc32c
from ckpt_remote.errors import CheckpointError, CorruptError, IncompleteError
from ckpt_remote.layout import Identity, Layout
from ckpt_remote.origin import SEAL_SIZE, Attempt, read_seal
from ckpt_remote.probe import CONTROL, PLAN

__all__ = [
    "Failure",
    "Part",
    "Plan",
    "Status",
    "Votes",
    "decode_join",
    "decode_layout",
    "decode_part",
    "decode_plan",
    "encode_layout",
]

_CHECKSUM = 8  # hexadecimal digits

Status: TypeAlias = Literal["open", "asking", "failed", "over"]
"""How a plan stands.

open: Workers write their shares. asking: They say what they have. failed: Nothing will come of it, and who arrives
for the first time learns so. over: The same, and everybody has heard.
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt came to nothing.

    Attributes:
        kind: The name of the error that everybody raises.
        message: What it says.
        keep: Whether an index may name what the workers wrote, so that they leave it.
        absent: The workers that had not come when the leader gave them up.
    """

    kind: str
    message: str
    keep: bool = False
    absent: tuple[int, ...] = ()

    @classmethod
    def of(cls, error: BaseException, who: str = "", *, keep: bool = False) -> "Failure":
        """What the others are told: only errors of the library's own, and of bad input, mean the same to them."""
        for known in type(error).__mro__:
            if _ERRORS.get(known.__name__) is known:
                return cls(known.__name__, f"{who}{error}", keep)
        # What others' errors say may hold a credential, and this goes into the bucket.
        text = f"{who}{type(error).__name__}; its own log says more. Nothing was published."
        return cls("IncompleteError", text, keep)

    def error(self, path: str) -> Exception:
        """The error to raise."""
        kind = _ERRORS.get(self.kind, IncompleteError)
        return kind(self.message, path=path) if issubclass(kind, CheckpointError) else kind(self.message)


_ERRORS: Mapping[str, type[Exception]] = {
    **{name: getattr(errors, name) for name in errors.__all__ if name != "CheckpointError"},
    "ValueError": ValueError,
    "TypeError": TypeError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt to save a checkpoint together.

    Attributes:
        status: How it stands.
        session: Names the leader's manager.
        job: Names the job, where one is given.
        ordinal: How often this manager has begun to save, this time included; several attempts may have one ordinal.
        size: How many workers there are.
        attempt: Whose seal the leader's objects get; the workers' differ by their number.
        path: The prefix of the checkpoint.
        number: What the leader's caller numbers it, if it does.
        former: The same of the save before.
        counter: The leader's save counter, if it got so far. The others take it over: a failure of which not all
            have learnt puts them at odds.
        since: The digest of the state that the leader found when it began.
        epoch: How often the directory had been claimed when the leader had.
        is_first: Whether the leader has published nothing yet.
        exact: Whether the store deletes only exactly what it is told to.
        state: The write id that the state will have when the checkpoint is visible.
        of: The count in the names of the data objects.
        first: For each worker the number of its first data object, and at last how many there are.
        manifests: For each worker the digest of what it is taken to have.
        led: What the leader writes, whole, though all have it: copies of it differ.
        is_laid_out: Whether an object of its own says who writes what, as it does not follow from equal manifests.
        failure: Why it failed, if it did.
        last: Why the leader's save before this one failed, if it did, for who has yet to learn it.
    """

    status: Status
    session: str
    job: str
    ordinal: int
    size: int
    attempt: Attempt
    path: str
    since: str
    number: int | None = None
    former: int | None = None
    counter: int | None = None
    epoch: int = 0
    is_first: bool = False
    exact: bool = False
    state: str = ""
    of: int = 0
    first: tuple[int, ...] = ()
    manifests: tuple[str, ...] = ()
    led: tuple[Identity, ...] = ()
    is_laid_out: bool = False
    failure: Failure | None = None
    last: Failure | None = None

    def key(self, what: Literal["join", "part"], rank: int) -> str:
        """The key of what a worker says."""
        return f"{CONTROL}{self.attempt.number}/{what}-{rank}"

    @property
    def layout_key(self) -> str:
        """The key of what says who writes what. Everybody looks at the plan many times, and at that once."""
        return f"{CONTROL}{self.attempt.number}/layout"

    def keys(self) -> tuple[str, ...]:
        """The keys of everything that the workers say."""
        return tuple(self.key(what, rank) for rank in range(1, self.size) for what in ("join", "part"))

    def encode(self) -> bytes:
        """Prints it, sealed."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {
            "attempt": dataclasses.astuple(self.attempt),
            "failure": self.failure and dataclasses.astuple(self.failure),
            "last": self.last and dataclasses.astuple(self.last),
        }
        return _checked(json.dumps(fields).encode()) + self.attempt.seal(PLAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A worker's vote on an attempt.

    Attributes:
        failure: Why it wrote nothing; None if it wrote its share.
        is_occupied: Whether it wrote nothing because objects of the planned names are there.
        index: The index of its share, whose data objects are numbered from 0.
        checksums: The crc32c of each comparable tensor that it has, in the order of its manifest.
        graph: Its object graph, where it has objects of its own.
        manifest: What it has, if it is asked, or is taken to have something else.
    """

    failure: Failure | None = None
    is_occupied: bool = False
    index: bytes = b""
    checksums: bytes = b""
    graph: bytes = b""
    manifest: bytes = b""

    def encode(self) -> bytes:
        """Prints it, without a seal."""
        blobs = (self.index, self.checksums, self.graph, self.manifest)
        header = {
            "failure": self.failure and dataclasses.astuple(self.failure),
            "occupied": self.is_occupied,
            "sizes": [len(blob) for blob in blobs],
        }
        return _checked(b"".join((json.dumps(header).encode(), b"\n", *blobs)))


Votes: TypeAlias = Mapping[int, tuple[Part, Attempt]]
"""What the others wrote, and whose seals their objects have, by rank."""


def decode_plan(data: bytes, *, path: str) -> Plan:
    """Parses a plan.

    Raises:
        CorruptError: It is none.
    """
    sealed, by = _unseal(data, PLAN, path)
    body = _verified(sealed, path)
    try:
        fields = json.loads(body)
        fields["attempt"] = Attempt(*fields["attempt"])
        fields["led"] = [(key, part) for key, part in fields["led"]]
        fields |= {name: _failure(fields[name]) for name in ("failure", "last")}
        values: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in fields.items()}
        plan = Plan(**values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError(f"{path} holds no plan: {error}.", path=path) from error
    if plan.attempt != by:
        raise CorruptError(f"{path} has another seal than its plan says.", path=path)
    return plan


def encode_layout(layout: Layout) -> bytes:
    """Prints who writes what, without a seal."""
    fields = {
        "own": [sorted(names) for names in layout.own],
        "common": sorted(layout.common),
        "taken": layout.taken,
        "limit": layout.limit,
    }
    return _checked(zlib.compress(json.dumps(fields).encode()))


def decode_layout(data: bytes, plan: Plan, *, path: str) -> Layout:
    """Parses who writes what.

    Raises:
        CorruptError: It is no layout, or not the plan's.
    """
    sealed, by = _unseal(data, plan.layout_key, path)
    if by != plan.attempt:
        raise CorruptError(f"{path} has another seal than its plan.", path=path)
    body = _verified(sealed, path)
    try:
        fields = json.loads(zlib.decompress(body))
        return Layout(
            own=tuple(_names(pairs) for pairs in fields["own"]),
            common=_names(fields["common"]),
            taken=tuple(int(size) for size in fields["taken"]),
            limit=int(fields["limit"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        raise CorruptError(f"{path} holds no layout: {error}.", path=path) from error


def decode_join(data: bytes, key: str, *, path: str) -> Attempt:
    """Whose seals a worker's objects have.

    Raises:
        CorruptError: It is no join.
    """
    return _unseal(data, key, path)[1]


def decode_part(data: bytes, key: str, *, path: str) -> tuple[Part, Attempt]:
    """Parses a vote; also returns whose it is.

    Raises:
        CorruptError: It is none.
    """
    sealed, by = _unseal(data, key, path)
    body = _verified(sealed, path)
    line, _, rest = body.partition(b"\n")
    try:
        header = json.loads(line)
        failure = _failure(header["failure"])
        is_occupied = bool(header["occupied"])
        sizes = [int(size) for size in header["sizes"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError(f"{path} holds no vote: {error}.", path=path) from error
    if min(sizes, default=-1) < 0 or sum(sizes) != len(rest) or len(sizes) != 4:  # noqa: PLR2004 - the blobs of a part
        raise CorruptError(f"{path} is cut short.", path=path)
    blobs, start = [], 0
    for size in sizes:
        blobs.append(rest[start : start + size])
        start += size
    index, checksums, graph, manifest = blobs
    part = Part(
        failure=failure, is_occupied=is_occupied, index=index, checksums=checksums, graph=graph, manifest=manifest
    )
    return part, by


def _checked(body: bytes) -> bytes:
    return f"{crc32c(body):08x}".encode() + body


def _verified(checked: bytes, path: str) -> bytes:
    body = checked[_CHECKSUM:]
    if checked[:_CHECKSUM] != f"{crc32c(body):08x}".encode():
        raise CorruptError(f"{path} fails its checksum.", path=path)
    return body


def _unseal(data: bytes, key: str, path: str) -> tuple[bytes, Attempt]:
    body, end = data[:-SEAL_SIZE], data[-SEAL_SIZE:]
    by = read_seal(end, key)
    if by is None:
        raise CorruptError(f"{path} has no seal: it is not what this library wrote there.", path=path)
    return body, by


def _failure(fields: Sequence[Any] | None) -> Failure | None:
    if fields is None:
        return None
    kind, message, keep, absent = fields
    return Failure(kind, message, keep, tuple(absent))


def _names(pairs: Sequence[Sequence[str]]) -> frozenset[Identity]:
    return frozenset((key, part) for key, part in pairs)
