"""The protocol in a world of lost answers, late requests, crashes, rivals and sleepers.

A `World` holds one store, some managers (the library's own `Directory`, `create`, `commit`, driven request by
request) and readers. A seeded scheduler picks who goes next and what befalls the request: it fails before it arrives,
lands and the answer is lost, lands later or much later, the manager crashes, crashes with the request still under
way, or falls asleep. Versions are digests of the bytes, as S3's, or numbers that never repeat, as Google's.

After every change of the store the promises are checked (`_check`); at the end everything late lands, a clean manager
saves once, and nothing may be left that no checkpoint uses. `BrokenPromiseError` says which promise was broken.
"""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

from ckpt_remote.bundle import Entry, Header, Index, crc32c, decode_index, encode_index, index_name, mask, shard_name
from ckpt_remote.commit import STATE
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import CheckpointError, ConflictError, StoreError, UnknownOutcomeError, UnsupportedError
from ckpt_remote.flow import Delete, Ends, Get, GetAll, List, Pause, Put, Remove, Wait, Withdraw
from ckpt_remote.origin import read_write_id
from ckpt_remote.state import Retired, State, decode_state
from ckpt_remote.store import Object, ObjectInfo, Version
from ckpt_remote.upload import create

__all__ = ["ATTEMPTS", "URL", "Actor", "BrokenPromiseError", "Faults", "Model", "World"]

URL = "s3://bucket/run"
ATTEMPTS = 4
_WRITES = (Put, Remove, Delete, Withdraw)


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


@dataclass
class Model:
    """A store that keeps its word."""

    generations: bool
    objects: dict = field(default_factory=dict)
    serial: int = 0

    def perform(self, request):
        answer = None
        match request:
            case Get(key):
                answer = self.objects.get(key)
            case GetAll(keys):
                answer = tuple(self.objects.get(key) for key in keys)
            case Ends(objects, length):
                answer = tuple(self._end(info, length) for info in objects)
            case List(prefix):
                found = ((key, it.data) for key, it in sorted(self.objects.items()) if key.startswith(prefix))
                answer = tuple(ObjectInfo(key, len(data)) for key, data in found)
            case Put(key, buffers, mode):
                answer = self._put(key, b"".join(buffers), mode)
            case Remove(key, version):
                if not self._remove(key, version):
                    raise ConflictError("another version")
                answer = True
            case Withdraw(objects):
                for key, version in objects:
                    self._remove(key, version)
                answer = {}
            case Delete(keys):
                for key in keys:
                    self.objects.pop(key, None)
                answer = {}
            case _:
                raise AssertionError(request)
        return answer

    def _remove(self, key, version):
        if key in self.objects and self.objects[key].version != version:
            return False
        self.objects.pop(key, None)
        return True

    def _put(self, key, data, mode):
        current = self.objects.get(key)
        if mode == "create" and current is not None:
            raise ConflictError("exists")
        if isinstance(mode, Version) and (current is None or current.version != mode):
            raise ConflictError("another version")
        self.serial += 1
        token = str(self.serial) if self.generations else hashlib.md5(data).hexdigest()  # noqa: S324 - as S3's ETag
        self.objects[key] = Object(data, Version(token))
        return self.objects[key].version

    def _end(self, info, length):
        found = self.objects.get(info.key)
        return found.data[info.size - length : info.size] if found and len(found.data) >= info.size >= length else None


@dataclass(frozen=True)
class Faults:
    """How likely things go wrong at each request."""

    fail: float = 0.12
    crash: float = 0.02
    sleep: float = 0.03
    restarts: int = 3


@dataclass
class Actor:
    """A flow under way."""

    name: str
    flow: object
    request: object = None
    failures: int = 0
    asleep: int = 0

    def advance(self, answer=None, error=None):
        """Hands over an answer or an error; False when the flow has ended."""
        try:
            self.request = self.flow.throw(error) if error is not None else self.flow.send(answer)
        except StopIteration:
            return False
        return True


class World:
    """One schedule.

    Args:
        seed: Decides everything.
        managers: How many at once.
        saves: How many each tries.
        faults: How likely things go wrong.
    """

    def __init__(self, seed, *, managers=2, saves=3, faults=None):
        self.chance = random.Random(seed)
        self.faults = faults or Faults()
        self.saves = saves
        self.model = Model(generations=self.chance.random() < 0.3)
        self.keep = self.chance.choice((1, 2, 2, 3))
        self.hours = self.chance.choice((None, None, 1))
        self.clock = 1e9
        self.now = 0.0
        self.values = 0
        self.late = []
        self.failed_states = set()
        self.acked = {}
        self.ever = {}
        self.requests = 0
        self.events = Counter()
        self.restarts = 0
        self.actors = {}
        self.foreign = self._place_foreign()
        self.state = None
        self.epochs = {}
        self.again = self.chance.choice((0.1, 0.2, 0.6))
        for number in range(managers):
            self._start(f"manager {number}")
        self.actors["reader"] = Actor("reader", self._reader())

    # What runs

    def run(self):
        for actor in list(self.actors.values()):
            self._advance(actor)
        while self.actors:
            self._step()
        self._finish()

    def _start(self, name):
        self.actors[name] = Actor(name, self._manager(name))
        return self.actors[name]

    def _time(self):
        self.clock += 2000.0
        return self.clock

    def _manager(self, name):
        known = Directory(URL, clock=self._time, chance=random.Random(self.chance.random()))
        try:
            yield from known.load()
            if known.latest:
                yield from self._restore(known)
            for _ in range(self.saves):
                try:
                    yield from self._save(name, known)
                except ConflictError:
                    self.events["fenced"] += 1
                    if self.chance.random() < 0.5:
                        return
                    yield from known.load()
                except UnknownOutcomeError:
                    self.events["unknown"] += 1
                except StoreError:
                    self.events["failed"] += 1
        except StoreError:
            return

    def _restore(self, known):
        """What a manager restored must be there, whole; a writer may have retired it in the meantime."""
        yield from self._read(known.latest)

    def _save(self, name, known):
        yield from known.claim("ckpt")
        path = f"ckpt-{self._number(known)}"
        target = yield from known.begin(path)
        index, objects, created, value = yield from self._upload(target)
        try:
            yield from known.publish(
                index,
                objects,
                created,
                target,
                Retention(max_to_keep=self.keep, keep_checkpoint_every_n_hours=self.hours),
            )
        except (ConflictError, StoreError):
            self.failed_states.add((path, value))
            if (path, value) in self.ever:
                raise BrokenPromiseError(f"{name}: the save of {path} failed, and is listed") from None
            raise
        self.acked[path, value] = name
        if (path, value) not in self.ever:
            raise BrokenPromiseError(f"{name}: the save of {path} passed, and was never listed")
        yield from known.delete_retired()

    def _number(self, known):
        listed = [entry.path for entry in known.entries] + list(known.preserved)
        if listed and self.chance.random() < self.again:
            return self.chance.choice(listed).rpartition("-")[2]
        latest = int(known.latest.rpartition("-")[2]) if known.latest else 0
        return max(1, latest + self.chance.choice((1, 1, 1, 1, 2, 0, -1)))

    def _upload(self, target):
        """As `upload_data` does it, without threads."""
        self.values += 1
        shards = [
            f"value {self.values} of {target.path}, part {part}".encode() for part in range(self.chance.randint(1, 2))
        ]
        for count in target.counts(len(shards)):
            created = {}
            try:
                for number, data in enumerate(shards):
                    key = shard_name(target.path, number, count)
                    version = yield from create(key, [data], target.attempt)
                    created |= {key: version} if version else {}
                break
            except CheckpointError as error:
                if created:
                    try:
                        yield Withdraw(tuple(created.items()))
                    except StoreError:
                        self.events["withdrawal failed"] += 1
                if not isinstance(error, ConflictError):
                    raise
                self.events["collision"] += 1
        else:
            raise ConflictError("no count is free")
        write_id = target.attempt.write_id(index_name(target.path))
        entries = {
            b"t%d" % number: Entry(4, (len(data),), shard=number, size=len(data), crc32c=mask(crc32c(data)))
            for number, data in enumerate(shards)
        }
        index = Index(Header(num_shards=count, write_id=write_id), entries)
        objects = Retired(path=target.path, write_id=write_id, used=len(shards), of=count)
        return encode_index(index), objects, created, write_id

    def _reader(self):
        for _ in range(10):
            try:
                current = yield Get(STATE)
                if current is None:
                    continue
                latest = decode_state(current.data, path=STATE, directories=()).latest
                if latest is not None and (yield from self._read(latest)):
                    self.events["read"] += 1
            except StoreError:
                continue

    def _read(self, path):
        """Reads a checkpoint; what is incomplete has been retired or replaced, what is torn is a broken promise.

        A reader that slept since it read the index may find data of another attempt under the name of some that are
        gone. The checksum tells, and it looks again, as the library's own does: then that index must be gone, too.
        """
        found = yield Get(index_name(path))
        if found is None:
            return False
        index = decode_index(found.data)
        for entry in index.entries.values():
            if entry.slices:
                continue
            data = yield Get(shard_name(path, entry.shard, index.header.num_shards))
            if data is None:
                return False
            if mask(crc32c(data.data[entry.offset : entry.offset + entry.size])) != entry.crc32c:
                if (yield Get(index_name(path))) == found:
                    raise BrokenPromiseError(f"a reader of {path} found other data than its index says")
                self.events["overtaken"] += 1
                return False
        return True

    # What befalls

    def _step(self):
        if self.late and self.chance.random() < 0.12:
            self._land(self.late.pop(self.chance.randrange(len(self.late))))
            return
        awake = [actor for actor in self.actors.values() if not actor.asleep]
        for actor in self.actors.values():
            actor.asleep = max(0, actor.asleep - 1)
        if not awake:
            return
        actor = self.chance.choice(awake)
        self.requests += 1
        if self.requests > 5000:
            raise BrokenPromiseError("no end in sight")
        draw = self.chance.random()
        if draw < self.faults.sleep:
            actor.asleep = self.chance.randint(1, 60)
            self.events["sleep"] += 1
        elif draw < self.faults.sleep + self.faults.crash and actor.name != "reader":
            self._crash(actor)
        elif draw < self.faults.sleep + self.faults.crash + self.faults.fail and not isinstance(
            actor.request, (Pause, Wait)
        ):
            self._fail(actor)
        else:
            self._perform(actor)

    def _perform(self, actor):
        if isinstance(actor.request, Pause):
            actor.failures += not isinstance(actor.request.failure, StoreError)
            if actor.failures >= ATTEMPTS:
                actor.failures = 0
                self._advance(actor, error=actor.request.failure)
            else:
                self._advance(actor)
            return
        if isinstance(actor.request, Wait):
            actor.failures = 0
            self.now += actor.request.seconds
            self._advance(actor, self.now)
            return
        try:
            answer = self._change(actor.request)
        except CheckpointError as error:
            self._advance(actor, error=error)
        else:
            self._advance(actor, answer)

    def _fail(self, actor):
        request = actor.request
        kind = self.chance.choice(("before", "after", "late") if isinstance(request, _WRITES) else ("before",))
        self.events[kind] += 1
        if kind == "after":
            self._land(request)
        if kind == "late":
            self.late.append(request)
        actor.failures += 1
        repeatable = isinstance(request, (Get, GetAll, Ends, List, Delete))
        if repeatable and actor.failures < ATTEMPTS:
            return  # the driver sends it again
        failures = actor.failures
        error = StoreError("no answer", transient=True)
        if isinstance(request, Delete):
            self._advance(actor, dict.fromkeys(request.keys, error))
        elif isinstance(request, Withdraw):
            self._advance(actor, {key: error for key, _ in request.objects})
        else:
            self._advance(actor, error=error)
        if failures >= ATTEMPTS:
            actor.failures = 0

    def _crash(self, actor):
        self.events["crash"] += 1
        if isinstance(actor.request, _WRITES):
            draw = self.chance.random()
            if draw < 0.4:
                self._land(actor.request)
            elif draw < 0.8:
                self.late.append(actor.request)
        actor.flow.close()
        del self.actors[actor.name]
        if self.restarts < self.faults.restarts:
            self.restarts += 1
            self._advance(self._start(f"restart {self.restarts}"))

    def _land(self, request):
        try:
            self._change(request)
        except ConflictError:
            self.events["refused late"] += 1

    def _advance(self, actor, answer=None, error=None):
        try:
            alive = actor.advance(answer, error)
        except (ConflictError, UnknownOutcomeError, StoreError, UnsupportedError) as failure:
            if isinstance(failure, UnsupportedError):
                raise BrokenPromiseError(f"a store that keeps its word was refused: {failure}") from failure
            alive = False
        if not alive:
            self.actors.pop(actor.name, None)

    # What must hold

    def _change(self, request):
        before = dict(self.model.objects) if isinstance(request, _WRITES) else None
        answer = self.model.perform(request)
        if before is not None and before != self.model.objects:
            self._check(before, request)
        return answer

    def _check(self, before, request):
        objects = self.model.objects
        for key, data in self.foreign.items():
            if key not in objects or objects[key].data != data:
                raise BrokenPromiseError(f"{request} touched {key}, which is somebody else's")
        old, new = before.get(STATE), objects.get(STATE)
        if new is None:
            if old is not None:
                raise BrokenPromiseError("the state was deleted")
            return
        if new != old:
            self._check_transition(self.state, decode_state(new.data, path=STATE, directories=()))
        self._check_listed(before, request)

    def _check_transition(self, old: State | None, new: State):
        self.state = new
        self.epochs[new.record.serial] = new.record.epoch
        if old is None:
            return
        if (new.record.epoch, new.record.term) < (old.record.epoch, old.record.term):
            raise BrokenPromiseError("the epoch went back")
        if new.record.highest < old.record.highest:
            raise BrokenPromiseError("the highest number went back")
        was, now = [entry.path for entry in old.entries], [entry.path for entry in new.entries]
        added = [entry for entry in new.entries if entry not in old.entries]
        if len(added) > 1:
            raise BrokenPromiseError(f"{len(added)} checkpoints were added at once")
        expected = [path for path in was if not added or path != added[0].path] + [entry.path for entry in added]
        dropped = expected[: len(expected) - len(now)]
        if expected[len(dropped) :] != now:
            raise BrokenPromiseError(f"an update was lost: {was} became {now}")
        if dropped and (not added or len(now) != self.keep):
            raise BrokenPromiseError(f"{dropped} fell out of {was} without need")
        gone = [path for path in old.record.preserved if path not in new.record.preserved and path not in now]
        if gone:
            raise BrokenPromiseError(f"{gone} was preserved, and is no more")
        for entry in added:
            index = self.model.objects.get(index_name(entry.path))
            if index is None:
                raise BrokenPromiseError(f"{entry.path} is listed before it has an index")
            value = self._value(entry.path, decode_index(index.data))
            self.ever[entry.path, value] = True
            if (entry.path, value) in self.failed_states:
                raise BrokenPromiseError(f"a save of {entry.path} that had failed is listed")

    def _value(self, path, index):
        """What tells what was saved from every other save."""
        return index.header.write_id

    def _check_listed(self, before, request):
        state, objects = self.state, self.model.objects
        for path in {
            *(entry.path for entry in state.entries),
            *state.record.preserved,
            *([state.latest] if state.latest else ()),
        }:
            key = index_name(path)
            index = objects.get(key)
            if index is None:
                raise BrokenPromiseError(f"{path} is listed and has no index, after {request}")
            decoded = decode_index(index.data)
            for entry in decoded.entries.values():
                if entry.slices:  # each has an entry of its own
                    continue
                data = objects.get(shard_name(path, entry.shard, decoded.header.num_shards))
                if data is None or mask(crc32c(data.data[entry.offset :][: entry.size])) != entry.crc32c:
                    raise BrokenPromiseError(f"{path} is listed and its data are not whole, after {request}")
            if isinstance(request, Put) and request.key == key and index != before.get(key):
                self._check_replacement(path, key, before, decoded)

    def _check_replacement(self, path, key, before, decoded):
        """The index of a listed number changes by its owner, or by the one before until the owner has ended that."""
        record = self.state.record
        epoch = self._owner(decoded, key)
        if epoch == record.epoch:
            return
        ended = key in before and self._owner(decode_index(before[key].data), key) == record.epoch
        if ended or record.replaced is None or record.replaced.path != path:
            raise BrokenPromiseError(f"{path} is listed, and the index was replaced by an owner that is fenced")

    def _owner(self, index, key):
        """The epoch of the owner that wrote an index."""
        return self.epochs[read_write_id(index.header.write_id, key).serial]

    def _place_foreign(self):
        """What others keep in the same directory: nobody may touch it."""
        index = encode_index(Index(Header(num_shards=1), {b"t": Entry(4, (1,), size=1, crc32c=mask(crc32c(b"x")))}))
        foreign = {
            "other-1.index": index,
            "other-1.data-00000-of-00001": b"x",
            "ckpt-2.data-00000-of-00001": b"data without a seal",
            "ckpt-3.data-00000-of-00002": b"data without a seal",
            "notes.txt": b"",
        }
        for key, data in foreign.items():
            self.model.perform(Put(key, (data,), "create"))
        return foreign

    def _finish(self):
        """Everything late lands; then a clean manager comes, and saves once."""
        self.chance.shuffle(self.late)
        for request in self.late:
            self._land(request)
        self.late = []
        self.faults = Faults(0, 0, 0, 0)
        self.saves = 1
        self.events["clean"] = 0
        actor = self._start("clean")
        acked = len(self.acked)
        self._advance(actor)
        while self.actors:
            self._perform(self.actors["clean"])
        if len(self.acked) == acked:
            raise BrokenPromiseError("after all that, a clean manager cannot save")
        used = {STATE, *self.foreign}
        for path in {*(entry.path for entry in self.state.entries), *self.state.record.preserved}:
            decoded = decode_index(self.model.objects[index_name(path)].data)
            used |= {index_name(path)}
            used |= {shard_name(path, entry.shard, decoded.header.num_shards) for entry in decoded.entries.values()}
        orphans = sorted(self.model.objects.keys() - used)
        if orphans:
            raise BrokenPromiseError(f"nobody needs {orphans}, and it is still there")
