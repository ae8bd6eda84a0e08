"""Lead a save by many workers: decide, merge, publish.

    lead
    ├── Directory.claim, begin
    ├── publish the plan
    ├── write the own share, gather the votes
    ├── tally: verify, compare, merge
    ├── Directory.publish
    └── take the plan down, or say in it why nothing comes of it

Ordinarily all workers have the same tensors: then each knows its share as soon as there is a plan. One that has
something else says so instead of writing; then everybody is asked, and another attempt is made with a layout that fits,
which is taken for granted the next time. The same goes for mirrored variables that have drifted apart, as the moving
averages of Keras's BatchNormalization do by its design: the leader's copies count, as where TensorFlow saves.

Promises: nothing is visible before everybody's share is durable and everybody's copy of what all have is the same; no
byte is copied; what one worker finds wrong, all are told. How bytes travel is the caller's: these are flows.
"""

import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from ckpt_remote.ballot import Failure, Plan, Votes, encode_layout
from ckpt_remote.bundle import (
    OBJECT_GRAPH,
    STRING,
    Header,
    Index,
    encode_index,
    encode_strings,
    index_name,
    merge,
    merge_object_graphs,
    shard_name,
)
from ckpt_remote.commit import publish
from ckpt_remote.directory import Directory, Retention, Target
from ckpt_remote.errors import CheckpointError, ConflictError, StoreError
from ckpt_remote.flow import Delete, Flow, Get, Pause, Put, Remove, Wait
from ckpt_remote.layout import Identity, Manifest, assign, decode_manifest, manifest_of
from ckpt_remote.origin import Attempt
from ckpt_remote.patience import Progress
from ckpt_remote.plan import Tensor
from ckpt_remote.probe import PLAN
from ckpt_remote.progress import enter
from ckpt_remote.roll_call import await_joins, gather
from ckpt_remote.share import Save, Share, Written, share_of
from ckpt_remote.state import Retired
from ckpt_remote.store import Object, Version
from ckpt_remote.tally import compare, graph_of, index_of, pack, require_tiling, verify
from ckpt_remote.upload import create, index_entries, take_back
from ckpt_remote.verdicts import AbandonedError, DiffersError, FencedError, OccupiedError, taken_over
from ckpt_remote.workers import Workers

__all__ = ["Leader", "give_up", "lead", "take_down"]

_log = logging.getLogger(__name__)

# Attempts at one save: the first takes for granted what each worker has, the second asks.
_TRIES = 4
_BROKEN_OFF = Failure("IncompleteError", "Worker 0 has broken the save off. Nothing was published.")


class _DriftedError(Exception):
    """Copies of mirrored variables differ, of which workers have written parts."""


@dataclass(slots=True)
class Leader:
    """What the leader remembers from save to save.

    Attributes:
        workers: Its place.
        url: The directory, for messages.
        session: Names this leader.
        ordinal: How often it has begun to save.
        begun: When it last did.
        number: What the caller numbers that save, if it does.
        former: The same of the save before.
        counter: What the save counter said then.
        present: The ranks of those who have joined once.
        manifests: What each worker had at last.
        led: Of what the workers' copies have differed, so that only the leader's count.
        plan: The plan that is up, and its version.
        litter: What workers said in attempts that are over.
        failure: Why its last save failed, or will have if it ends without an error.
        last: The same of the save before.
        has_published: Whether it has come to publish anything.
        before: The serial number of the state before the last save published anything; None if it never came to that.
    """

    workers: Workers
    url: str
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    ordinal: int = 0
    begun: float = 0.0
    number: int | None = None
    former: int | None = None
    counter: int | None = None
    present: set[int] = field(default_factory=set)
    manifests: tuple[Manifest, ...] = ()
    led: frozenset[Identity] = frozenset()
    plan: tuple[Plan, Version] | None = None
    litter: list[str] = field(default_factory=list)
    failure: Failure | None = None
    last: Failure | None = None
    has_published: bool = False
    before: int | None = None

    def begin(self, counter: int) -> None:
        """Says that it begins to save."""
        self.ordinal += 1
        self.former, self.number = self.number, None
        self.counter, self.before = counter, None
        # So that the others learn of it at the next save, however this one ends.
        self.last, self.failure = self.failure, _BROKEN_OFF


def lead(me: Leader, known: Directory, save: Save, *, name: str, retention: Retention) -> Flow[int]:
    """Saves a checkpoint as the leader, and returns how many bytes it has.

    Args:
        me: What the leader remembers.
        known: The directory.
        save: What to save.
        name: What the names of the checkpoints begin with.
        retention: What to keep.

    Raises:
        ConflictError: Another writer has changed the state, or two processes act as one worker.
        IncompleteError: A worker gave no sign in time.
        ValueError: Two workers have different contents under one name.
        UnknownOutcomeError: The state may have been written, or may yet be.
        StoreError: The store kept failing, here or at a worker.
    """
    me.begun, me.number = (yield Wait(0.0)), save.number
    try:
        yield from _claim(me, known, name)
    except StoreError as error:
        with contextlib.suppress(CheckpointError):  # which hides nothing: they learn it at the deadline
            yield from give_up(me, known, save.path, error, name=name)
        raise
    try:
        size = yield from _Attempts(me, known, save, retention).run()
    except AbandonedError as told:
        yield from _tell(me, known, save.path, told.failure)
        raise told.failure.error(me.url) from None
    except Exception as error:
        yield from _tell(me, known, save.path, Failure.of(error, "Worker 0: ", keep=me.before is not None))
        raise
    me.failure = None
    yield from take_down(me)
    return size


def give_up(me: Leader, known: Directory, path: str, error: Exception, *, name: str) -> Flow[None]:
    """Tells the others that this save has failed before it began."""
    me.begun = yield Wait(0.0)
    yield from _claim(me, known, name)
    yield from _tell(me, known, path, Failure.of(error, "Worker 0: "))


def _claim(me: Leader, known: Directory, name: str) -> Flow[None]:
    try:
        yield from known.claim(name)
    except Exception as error:  # the others can be told when the directory is ours, so at the next save
        me.failure = Failure.of(error, "Worker 0: ")
        raise


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The attempts at one save, as the leader makes them."""

    me: Leader
    known: Directory
    save: Save
    retention: Retention

    def run(self) -> Flow[int]:
        """Makes as many as it takes, and returns how many bytes the checkpoint has."""
        me, mine = self.me, manifest_of(self.save.tensors)
        if me.manifests and me.manifests[0].digest == mine.digest:
            me.manifests = (mine, *me.manifests[1:])  # its strings may be longer by now
        else:
            me.manifests = (mine,) * me.workers.size
        for tries in range(_TRIES):
            target = yield from self.known.begin(self.save.path)
            try:
                return (yield from self._attempt(target, tries))
            except DiffersError:
                me.manifests = (mine, *(yield from _ask(me, self.known, target)))
            except _DriftedError:
                _log.info("Workers have drifted apart in %d variables: worker 0 writes its own", len(me.led))
            except OccupiedError:
                _log.info(
                    "Objects of another attempt are in the way of %s/%s: other names are tried", me.url, self.save.path
                )
        text = f"Cannot save {me.url}/{self.save.path}: the workers never agreed, in {_TRIES} attempts."
        raise AbandonedError(Failure("IncompleteError", text))

    def _attempt(self, target: Target, tries: int) -> Flow[int]:
        layout = assign(self.me.manifests, self.me.led)
        uniform = len({manifest.digest for manifest in self.me.manifests}) == 1
        counts = layout.counts(self.me.manifests)
        total = sum(counts) + (not uniform)  # the merged object graph, by itself
        plan = dataclasses.replace(
            _plan_for(self.me, self.known, self.save.path, target.attempt),
            exact=target.exact,
            state=target.state,
            of=next(islice(target.counts(total), tries, None)),
            first=tuple(accumulate(counts, initial=0)),
            manifests=tuple(manifest.digest for manifest in self.me.manifests),
            led=tuple(sorted(self.me.led)),
            is_laid_out=not uniform,
        )
        if plan.is_laid_out:
            self.me.litter.append(plan.layout_key)
            yield from create(plan.layout_key, (encode_layout(layout),), plan.attempt)
        yield from _put_up(self.me, plan, target.guard)
        share = share_of(plan, layout, 0, self.save, plan.attempt)
        written, votes = yield from self._write(plan, share)
        created = dict(written.uploaded.created)
        try:
            parts = [index_of(share.shards, written.uploaded.checksums), *(yield from verify(plan, votes, self.me.url))]
            self._compare(written, votes)
            graphs = [graph_of(self.save.tensors), *(votes[rank][0].graph for rank in sorted(votes))]
            if not uniform and any(graphs):
                parts.append((yield from self._write_graph([graph for graph in graphs if graph], plan, created)))
            merged = _merged(parts, plan, self.me.url)
            require_tiling(merged, url=self.me.url)
        except Exception:
            yield from take_back(created)
            raise
        return (yield from self._publish(plan, merged, created, target))

    def _write(self, plan: Plan, share: Share) -> Flow[tuple[Written, Votes]]:
        try:
            return (
                yield from self.save.write(
                    share,
                    lambda progress: _gather(self.me, self.known, plan, progress),
                )
            )
        except ConflictError as error:
            raise OccupiedError from error

    def _compare(self, written: Written, votes: Votes) -> None:
        me = self.me
        drifted = compare(me.manifests, pack(written.checksums), votes, url=me.url) - me.led
        if drifted:
            me.led |= drifted
            raise _DriftedError

    def _write_graph(self, graphs: Sequence[bytes], plan: Plan, created: dict[str, Version]) -> Flow[Index]:
        """Writes the object graph of all, as the last data object."""
        data, checksum = encode_strings([merge_object_graphs(graphs)])
        tensor = Tensor(key=OBJECT_GRAPH, dtype=STRING, shape=(), data=data, crc32c=checksum)
        key = shard_name(plan.path, plan.first[-1], plan.of)
        version = yield from create(key, (data,), plan.attempt)
        created |= {key: version} if version is not None and plan.exact else {}
        return Index(Header(num_shards=1), index_entries([(tensor,)], [(checksum,)]))

    def _publish(self, plan: Plan, merged: Index, created: Mapping[str, Version], target: Target) -> Flow[int]:
        enter(f"{self.me.url}/{plan.path}", "publish")
        write_id = plan.attempt.write_id(index_name(plan.path))
        used = merged.header.num_shards
        index = encode_index(Index(Header(num_shards=plan.of, write_id=write_id), merged.entries))
        objects = Retired(path=plan.path, write_id=write_id, used=used, of=plan.of)
        self.me.before, self.me.has_published = self.known.serial, True
        yield from self.known.publish(index, objects, created, target, self.retention)
        return sum(entry.size for entry in merged.entries.values() if not entry.slices)


def _merged(parts: Sequence[Index], plan: Plan, url: str) -> Index:
    try:
        return merge(parts)
    except ValueError as error:
        text = (
            f"Cannot save {url}/{plan.path}: what the workers have does not fit together: {error} (parts are workers, "
            "by rank). Nothing was published. Give what is each worker's own a name of its own, and the parts of one "
            "tensor one whole shape and type."
        )
        raise AbandonedError(Failure("ValueError", text)) from error


def take_down(me: Leader) -> Flow[None]:
    """Removes the plan and what was said about it; what cannot be removed is found by the next owner."""
    if me.plan is None:
        return
    _, version = me.plan
    me.plan = None
    try:
        yield Remove(PLAN, version)
        failures: Mapping[str, CheckpointError] = yield Delete(tuple(me.litter))
    except CheckpointError as error:
        failures = {PLAN: error}
    me.litter = []
    for key, failure in failures.items():
        _log.info("%s/%s could not be removed, and is left to the next owner: %s", me.url, key, failure)


def _plan_for(me: Leader, known: Directory, path: str, attempt: Attempt) -> Plan:
    return Plan(
        status="open",
        session=me.session,
        job=me.workers.job,
        ordinal=me.ordinal,
        size=me.workers.size,
        attempt=attempt,
        path=path,
        number=me.number,
        former=me.former,
        counter=me.counter,
        epoch=known.epoch,
        is_first=not me.has_published,
        since=known.found,
        last=me.last,
    )


def _put_up(me: Leader, plan: Plan, guard: Version) -> Flow[None]:
    """Shows a plan, while the state is ours."""
    me.litter += plan.keys()
    put = yield from publish(PLAN, plan.encode(), guard=guard, url=me.url)
    me.plan = plan, put.after.version


def _ask(me: Leader, known: Directory, target: Target) -> Flow[tuple[Manifest, ...]]:
    """Asks the others what they have."""
    attempt = known.attempt()
    plan = dataclasses.replace(_plan_for(me, known, target.path, attempt), status="asking")
    yield from _put_up(me, plan, target.guard)
    idle = Progress()
    idle.finish(0.0)
    votes = yield from _gather(me, known, plan, idle)
    return tuple(decode_manifest(votes[rank][0].manifest, path=plan.key("part", rank)) for rank in sorted(votes))


def _gather(me: Leader, known: Directory, plan: Plan, progress: Progress) -> Flow[Votes]:
    timeout, present = me.workers.timeout, me.present
    try:
        return (yield from gather(plan, progress, known.guard, timeout=timeout, present=present, url=me.url))
    except FencedError:
        known.fence()
        raise taken_over(me.url) from None


def _tell(me: Leader, known: Directory, path: str, failure: Failure) -> Flow[None]:
    """Tells the others that nothing comes of it; who has never been here before is waited for."""
    me.failure = failure
    now: float = yield Wait(0.0)  # after a budget that is spent, another
    up = me.plan[0] if me.plan and me.plan[0].ordinal == me.ordinal else None
    plan = dataclasses.replace(up or _plan_for(me, known, path, known.attempt()), failure=failure)
    everybody = len(me.present) == me.workers.size - 1
    try:
        yield from _change(me, known, dataclasses.replace(plan, status="over" if everybody else "failed"))
        if not everybody:
            yield from await_joins(plan, timeout=me.begun + me.workers.timeout - now, present=me.present)
            yield from _change(me, known, dataclasses.replace(plan, status="over"))
    except CheckpointError as error:
        _log.info("The other workers could not be told that %s/%s was not saved: %s", me.url, path, error)


def _change(me: Leader, known: Directory, plan: Plan) -> Flow[None]:
    """Shows how the plan stands; one that is up is ours to change, whoever owns the state by now."""
    if me.plan is None:
        yield from _put_up(me, plan, known.guard)
        return
    data, version = plan.encode(), me.plan[1]
    while True:
        try:
            after: Version = yield Put(PLAN, (data,), version)
        except (ConflictError, StoreError) as error:
            current: Object | None = yield Get(PLAN)
            if current is None or (current.data != data and current.version != version):
                raise
            after = current.version
            if current.data != data:
                yield Pause(error)
                continue
        me.plan = plan, after
        return
