"""The protocol of many workers in the world of `schedules`: lost answers, late requests, crashes, rivals and sleepers.

A job is a leader and its followers, each the library's own `lead` and `follow`, driven request by request. Some train
in step, as those with mirrored variables must, and now and then one leaves a save out; of those, some save behind
training, and are in step when each has begun the save before. Others run apart after a failure of which not all have
learnt. When one of its workers crashes, the job may be restarted with another number of workers,
while those of the old one live on.

Every checkpoint must be of one job and one save, whichever workers wrote it. What any worker was told must be true:
who saw the save pass finds it listed, and who saw it fail never does.
"""

from collections import Counter
from functools import partial

from ckpt_remote.bundle import crc32c, mask, shard_name
from ckpt_remote.directory import Directory, Retention
from ckpt_remote.errors import CheckpointError, ConflictError, UnknownOutcomeError
from ckpt_remote.flow import Wait
from ckpt_remote.follower import follow
from ckpt_remote.leader import Leader, lead, take_down
from ckpt_remote.member import Member
from ckpt_remote.patience import Progress
from ckpt_remote.plan import Tensor
from ckpt_remote.rendezvous import look_around
from ckpt_remote.share import Save, Written
from ckpt_remote.upload import Uploaded, create, take_back
from ckpt_remote.workers import Workers
from support.schedules import URL, Actor, BrokenPromiseError, Faults, World

__all__ = ["Crews"]

UINT8 = 4
DRIFTED = 255
"""The mark of a copy that does not count."""
FORGETFUL = 0.04
"""How likely a worker leaves a save out."""
SIZE = 48


class Job:
    """Some workers that save together.

    Args:
        name: Tells it from every other job.
        size: How many.
        named: Whether its workers know that name; if not, only what they have tells them apart.
        timeout: Seconds for which they wait for each other.
    """

    def __init__(self, name, size, *, named, timeout):
        self.name, self.size, self.named, self.timeout = name, size, named, timeout
        self.numbers = {}
        self.arrived = Counter()
        self.alive = size

    def workers(self, rank):
        return Workers(rank, self.size, timeout=self.timeout, job=self.name if self.named else "")


class Crews(World):
    """One schedule.

    Args:
        seed: Decides everything.
        jobs: How many jobs begin.
        saves: How many saves each tries.
    """

    def __init__(self, seed, *, jobs=1, saves=3, faults=None):
        super().__init__(seed, managers=0, saves=saves, faults=faults or Faults(fail=0.06, crash=0.006, restarts=2))
        self.jobs = 0
        self.timeout = self.chance.choice((3.0, 40.0))
        self.of = {}
        self.marks = {}
        self.sizes = {}
        self.named = self.chance.random() < 0.5
        self.own = self.chance.random() < 0.3
        self.lockstep = self.chance.random() < 0.6
        self.behind = self.lockstep and self.chance.random() < 0.4
        self.mirrors = self.named and self.lockstep
        self.drifts = self.mirrors and self.chance.random() < 0.3
        for _ in range(jobs):
            self._begin_job()

    def _begin_job(self):
        self.jobs += 1
        job = Job(f"job {self.jobs}", self.chance.choice((2, 2, 3, 4)), named=self.named, timeout=self.timeout)
        for rank in range(job.size):
            name = f"{job.name}, worker {rank}"
            self.of[name] = job
            self.actors[name] = Actor(name, self._worker(job, rank, name))
        return [f"{job.name}, worker {rank}" for rank in range(job.size)]

    def _crash(self, actor):
        restarts, self.restarts = self.restarts, self.faults.restarts  # those of the base are of single managers
        super()._crash(actor)
        self.restarts = restarts
        job = self.of.get(actor.name)
        if job is not None:
            job.alive -= 1
            if restarts < self.faults.restarts:
                self.restarts += 1
                for name in self._begin_job():
                    if name in self.actors:
                        self._advance(self.actors[name])

    def _worker(self, job, rank, name):
        known = Directory(URL, clock=self._time, chance=self.chance)
        workers = job.workers(rank)
        leader, member = Leader(workers, URL), Member(workers, URL)
        try:
            yield from known.load()
            member.since, member.latest = known.found, known.latest
            yield from look_around(member)
            for turn in range(self.saves):
                if self.lockstep:
                    yield from self._meet(job, turn)
                    if not self.behind and self.chance.random() < FORGETFUL:
                        self.events["left out"] += 1
                        continue
                try:
                    yield from self._turn(job, rank, turn, known, leader if rank == 0 else member)
                except ConflictError:
                    self.events["fenced"] += 1
                    return
                except UnknownOutcomeError:
                    self.events["unknown"] += 1
                except (CheckpointError, ValueError) as error:
                    self.events[type(error).__name__] += 1
        except CheckpointError:
            return
        finally:
            job.alive -= 1
        if rank == 0:
            yield from take_down(leader)

    def _meet(self, job, turn):
        """Waits until all are at this turn; behind training, that is when they have begun the one before."""
        job.arrived[turn] += not self.behind or turn == 0
        while job.arrived[turn] < job.alive:
            yield Wait(0.1)
        job.arrived[turn + 1] += self.behind

    def _turn(self, job, rank, turn, known, me):
        number = int(job.numbers.setdefault(turn, self._number(known)))
        path, stamp = f"ckpt-{number}", f"{job.name}.{turn}"
        tensors = self._tensors(stamp, rank)
        # Those behind training are told the leader's number, so that it does not give away whose save they are in.
        given = None if self.behind else number
        save = Save(path=path, counter=number, number=given, tensors=tensors, write=self._write)
        me.begin(number) if rank == 0 else me.begin(is_behind=self.behind)
        self.sizes[self.marks[stamp]] = SIZE * (2 + self.drifts + (job.size - 1 if self.own else 0))
        try:
            if rank == 0:
                retention = Retention(max_to_keep=self.keep, keep_checkpoint_every_n_hours=self.hours)
                yield from lead(me, known, save, name="ckpt", retention=retention)
            else:
                path = yield from follow(me, save)
        except UnknownOutcomeError:
            raise
        except (CheckpointError, ValueError) as error:
            self.failed_states.add((path, stamp))
            if (path, stamp) in self.ever:
                raise BrokenPromiseError(f"{job.name}, worker {rank}: {error!r} for {path}, which is listed") from None
            raise
        if (path, stamp) not in self.ever:
            raise BrokenPromiseError(f"{job.name}, worker {rank}: the save of {path} passed, and was never listed")
        self.acked[path, stamp] = job.name
        self.events["together"] += 1
        if rank == 0:
            yield from known.delete_retired()
        else:
            yield from known.load()
            me.since, me.latest = known.found, known.latest

    def _tensors(self, stamp, rank):
        """Every byte of them says whose save it is of; of what has drifted, the leader's."""
        mark = self.marks.setdefault(stamp, len(self.marks) + 1)

        def tensor(key, mark=mark, *, mirrored=self.mirrors):
            return Tensor(key=key, dtype=UINT8, shape=(SIZE,), data=bytes([mark]) * SIZE, mirrored=mirrored)

        drifted = [tensor("drifted", mark if rank == 0 else DRIFTED)] if self.drifts else []
        own = [tensor(f"own {rank}", mirrored=False)] if self.own and rank != 1 else []
        return [tensor("a"), tensor("b"), *drifted, *own]

    def _write(self, share, beside):
        """As `write_share`, with the two flows taking turns by chance."""
        progress, created, checksums = Progress(), {}, []
        work = _Turns(self._upload_share(share, created, checksums), lambda: progress.finish(1.0))
        other = _Turns(beside(progress), lambda: None)
        try:
            while flows := [flow for flow in (work, other) if flow.alive]:
                yield from self.chance.choice(flows).turn()
        except Exception:
            progress.call_off()
            yield from take_back(created)
            raise
        compared = tuple(crc32c(tensor.data) for tensor in share.compared)
        return Written(Uploaded(checksums=tuple(checksums), created=created), compared), other.result

    def _upload_share(self, share, created, checksums):
        for number, shard in enumerate(share.shards):
            version = yield from create(share.name(number), [tensor.data for tensor in shard], share.attempt)
            created |= {share.name(number): version} if version and share.exact else {}
            checksums.append(tuple(mask(crc32c(tensor.data)) for tensor in shard))

    def _value(self, path, index):
        """Whose save that is; it is of one only."""
        marks = set()
        for entry in index.entries.values():
            if not entry.slices:
                shard = self.model.objects.get(shard_name(path, entry.shard, index.header.num_shards))
                if shard is None:
                    raise BrokenPromiseError(f"{path} is listed and its data are not there")
                marks |= set(shard.data[entry.offset : entry.offset + entry.size])
        if len(marks) > len(self.marks):  # a manager's that saved alone: it wrote text
            return index.header.write_id
        if len(marks) > 1:
            raise BrokenPromiseError(f"{path} is made of several saves: {marks}")
        size = sum(entry.size for entry in index.entries.values() if not entry.slices)
        if size not in {self.sizes[mark] for mark in marks}:
            raise BrokenPromiseError(f"{path} is listed and has {size} bytes, not all")
        stamps = [stamp for stamp, mark in self.marks.items() if {mark} == marks]
        return stamps[0] if stamps else index.header.write_id


class _Turns:
    """A flow of which one request is performed at a time."""

    def __init__(self, flow, ended):
        self.alive, self.result = True, None
        self._flow, self._ended, self._begun = flow, ended, False

    def turn(self):
        advance = partial(next, self._flow) if not self._begun else self._go_on
        self._begun = True
        try:
            self._request = advance()
        except StopIteration as stop:
            self.alive, self.result = False, stop.value
            self._ended()
            return
        try:
            answer = yield self._request
        except CheckpointError as error:
            self._go_on = partial(self._flow.throw, error)
        else:
            self._go_on = partial(self._flow.send, answer)
