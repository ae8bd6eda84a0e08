"""States and indexes as an attacker would write them, read by the library: where does it go, how long does it take?

    python -m support.fuzz FOLDER COUNT        makes so many files of a real directory's; prints a summary, as JSON

A part of them are broken where chance falls; the others below their checksums, which are made right again. Every key
that the store is asked for, and every local file that is written, is looked at. It needs no TensorFlow.
"""

import json
import os
import posixpath
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt_remote.bundle import Header, Index, crc32c, decode_index, encode_index
from ckpt_remote.bundle.messages import decode_header, encode_header
from ckpt_remote.bundle.table import read_table, write_table
from ckpt_remote.bundle.wire import encode_varint
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import CheckpointError, NotFoundError
from ckpt_remote.flow import run
from ckpt_remote.reader import fetch, open_checkpoint
from ckpt_remote.staging import Folder
from ckpt_remote.state import Retired, decode_state, encode_state
from ckpt_remote.store import Retry, open_store
from support.watched import repeated

__all__ = ["main"]

URL = "memory://fuzzed/run"
STATE = "checkpoint"
MARK = b"# ckpt_remote "
NAMES = [
    b"../../etc/passwd", b"/etc/passwd", b"..", b".", b"*", b"ckpt-[0-9]*", b"s3://elsewhere/ckpt-1", b"a//b", b"\\0",
    b"\xff\xfe", b"ckpt-1/../../victim/ckpt-1", b"~root", b"..\\victim", b"ckpt-1" * 200, b"", b"victim/ckpt-1",
]  # fmt: skip
NUMBERS = [0, 1, 127, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 99_999, 100_000]
SUFFIXES = [
    b"/../../../evil", b"/x/../../../../evil", b"/../ckpt-1.index", b"/..", b"/.", b"/", b"//evil", b"/a//evil",
    b"\x00", b"/\n", b"\xff", b".table/../../evil", b"/..\\..\\evil", b"*", b"/../../../../../../../../../tmp/evil",
]  # fmt: skip
DEEP = [
    b"[" * 5000,
    b"{" * 5000,
    b'{"a":' * 3000,
    b"\x80" * 12,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x12\x80\x80\x80\x80\x01",
]
_LARGEST = 1 << 20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`data`, changed in a few places: bits, cuts, repeats, names, numbers, nesting, pieces of other files."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.randrange(1, 200))
        piece = bytes(changed[start:end])
        other = chance.choice(others)
        begin = chance.randrange(len(other) + 1)
        changed[start:end] = chance.choice(
            [
                b"",
                piece * chance.choice((2, 3, 50)),
                bytes([piece[0] ^ 1 << chance.randrange(8)]) + piece[1:] if piece else b"",
                chance.choice(NAMES) + piece,
                chance.choice(NAMES),
                encode_varint(chance.choice(NUMBERS)) + piece,
                str(chance.choice(NUMBERS)).encode() + piece,
                chance.choice(DEEP) + piece,
                other[begin : begin + chance.randrange(256)],
                chance.randbytes(4),
            ]
        )
    return bytes(changed[:_LARGEST])


def renamed(data: bytes, chance: random.Random) -> bytes:
    """`data` with another name in the place of one that is there: what an attacker would try first."""
    name = chance.choice((b"ckpt-1", b"other-1", b"ckpt-8", b"ckpt-9", b"ckpt", b"-1"))
    return data.replace(name, chance.choice(NAMES).replace(b"\\", b"\\\\"))


def fuzzed_state(state: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A state: as it comes, with a checksum that is right, or as a stock manager's."""

    def changed(part: bytes) -> bytes:
        return renamed(part, chance) if chance.random() < 0.5 else mutated(part, others, chance)

    kind = chance.randrange(4)
    if kind == 0:
        return mutated(state, others, chance)
    first, _, body = state.partition(b"\n")
    record = first.removeprefix(MARK).partition(b" ")[2]
    if kind == 1:
        return changed(body)
    rest = changed(record) + b"\n" + body if chance.random() < 0.5 else record + b"\n" + changed(body)
    return MARK + f"{crc32c(rest):08x} ".encode() + rest


def fuzzed_index(index: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """An index: as it comes, with a side file elsewhere, or with other keys and values and checksums that are right."""
    kind = chance.randrange(4)
    if kind == 0:
        return mutated(index, others, chance)
    items = dict(read_table(index))
    if kind == 1:
        name = chance.choice(SUFFIXES)
        header = replace(decode_header(items[b""]), files=("x" * len(name),))
        items[b""] = encode_header(header).replace(b"x" * len(name), name)
        return write_table(sorted(items.items()))
    for key in chance.sample(sorted(items), min(len(items), chance.choice((1, 1, 2, 5)))):
        value = items.pop(key)
        other = mutated(key, others, chance)[:2000] if key and chance.random() < 0.2 else key
        items[other] = mutated(value, others, chance)[: 1 << 17]
    return write_table(sorted(items.items()))


class Watch:
    """Where the library went: keys of the store, and local files that it wrote."""

    def __init__(self) -> None:
        self.keys = 0
        self.outside: list[str] = []
        self.armed = False
        self._private = tuple(f"{place}/ckpt_remote-" for place in (tempfile.gettempdir(), "/dev/shm"))  # noqa: S108
        sys.addaudithook(self._audit)

    def hand(self, asked: Any, perform: Callable[[], Any]) -> Any:
        for key in asked.keys:
            self.keys += 1
            there = posixpath.normpath(f"/run/{key}")
            if asked.verb != "list" and (there != f"/run/{key}" or not key.isprintable()):
                self.outside.append(f"{asked}")
        return perform()

    def _audit(self, event: str, arguments: Any) -> None:
        if not self.armed:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & _WRITES:
            self._look_at(os.fsdecode(arguments[0]))
        elif event in ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink"):
            self._look_at(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")

    def _look_at(self, path: str) -> None:
        there = os.path.normpath(path)
        if path.startswith("/") and not there.startswith(
            self._private
        ):  # what is relative is relative to an open folder, which was looked at
            self.outside.append(path)


class Fuzzing:
    """Reads fuzzed files one after the other.

    Attributes:
        outcomes: What the library said.
        unexpected: What it must not have raised.
        slowest: Seconds of the processor for one file.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.watch = Watch()
        self.outcomes: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.slowest = 0.0
        self._objects = objects
        self._plain = open_store(URL)
        self._store = repeated(open_store(URL), self.watch.hand)
        self._victim = open_store("memory://fuzzed/victim")
        self._victim.put("ckpt-1.index", [b"somebody's"], "create")

    def read(self, kind: str, key: str, data: bytes, read: Callable[[], None]) -> None:
        """Puts the file in its place and lets the library read it."""
        for name in [info.key for info in self._plain.list()]:
            if self._objects.get(name) is None:
                self._plain.delete([name])
        for name, content in self._objects.items():
            self._plain.put(name, [data if name == key else content], "overwrite")
        start = time.process_time()
        self.watch.armed = True
        try:
            read()
            self.outcomes[f"{kind} read"] += 1
        except CheckpointError as error:
            self.outcomes[f"{kind} {type(error).__name__}"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            self.outcomes[f"{kind} {type(error).__name__}"] += 1
            self.unexpected.append(f"{error!r} for {data[:300]!r}")
        finally:
            self.watch.armed = False
        self.slowest = max(self.slowest, time.process_time() - start)
        if self._victim.read("ckpt-1.index").data != b"somebody's":
            self.watch.outside.append("memory://fuzzed/victim")

    def take_over(self) -> None:
        """What a new manager does that restores what it finds, and saves."""
        known = Directory(URL)
        self._run(known.load())
        for path in (known.latest, *(entry.path for entry in known.entries), *known.preserved):
            if path is not None:
                self.restore(path)
        self._run(known.claim("ckpt"))
        target = self._run(known.begin("ckpt-7"))
        objects = Retired(path=target.path, write_id=target.attempt.write_id("ckpt-7.index"), used=0, of=1)
        index = encode_index(Index(Header(num_shards=1, write_id=objects.write_id or ""), {}))
        keep = Retention(max_to_keep=1, keep_checkpoint_every_n_hours=None)
        self._run(known.publish(index, objects, {}, target, keep))
        self._run(known.delete_retired())
        self._run(known.collect(dry_run=False))

    def _run(self, flow: Any) -> Any:
        return run(flow, self._store, Retry(self._store.policy))

    def restore(self, path: str = "ckpt-1") -> None:
        """What a restore does before TensorFlow gets a checked copy; a checkpoint that is not there is passed over."""
        folder = Folder()
        try:
            fetch(open_checkpoint(self._store, path), folder.path)
        except NotFoundError:
            return
        finally:
            folder.remove()


def _objects(folder: Path) -> Iterable[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _with_everything(objects: dict[str, bytes]) -> dict[str, bytes]:
    """The directory, with all that a state and an index can mention."""
    state = decode_state(objects[STATE], path=STATE, directories=())
    assert state.record is not None
    gone = Retired(path="ckpt-8", write_id="", used=2, of=3, files=("ckpt-8.table",))
    replaced = Retired(path="ckpt-9", write_id="", used=1, of=1)
    record = replace(state.record, preserved=("other-1",), retired=(gone,), replaced=replaced)
    index = decode_index(objects["ckpt-1.index"])
    index = Index(replace(index.header, files=(".table",)), index.entries)
    return {
        **objects,
        STATE: encode_state(replace(state, record=record)),
        "ckpt-1.index": encode_index(index),
        "ckpt-1.table": b"a table",
    }


def main() -> None:
    """Fuzzes, and says what came of it."""
    objects = _with_everything(dict(_objects(Path(sys.argv[1]))))
    chance = random.Random(11)
    others = list(objects.values())
    fuzzing = Fuzzing(objects)
    fuzzing.read("real", STATE, objects[STATE], fuzzing.restore)
    fuzzing.outcomes.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = int(sys.argv[2])
    for number in range(count):
        if number % 2:
            state = fuzzed_state(objects[STATE], others, chance)
            fuzzing.read("state", STATE, state, fuzzing.take_over)
        else:
            index = fuzzed_index(objects["ckpt-1.index"], others, chance)
            fuzzing.read("index", "ckpt-1.index", index, fuzzing.restore)
    unit = 1 if sys.platform == "darwin" else 1024
    print(
        json.dumps(
            {
                "runs": count,
                "outcomes": fuzzing.outcomes,
                "keys": fuzzing.watch.keys,
                "outside": fuzzing.watch.outside[:20],
                "unexpected": fuzzing.unexpected[:20],
                "slowest": fuzzing.slowest,
                "bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit,
            }
        )
    )


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    main()
