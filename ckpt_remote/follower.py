"""Take part in a save by many workers, as one that does not lead.

    follow
    ├── find_plan, join
    ├── write the own share       while the plan is watched
    ├── vote
    └── await_outcome

Promises: it returns when the checkpoint is visible; when it raises, what this worker wrote has been taken back, but
for what the checkpoint may be made of. How bytes travel is the caller's: these are flows.
"""

from dataclasses import dataclass, replace

from ckpt_remote.ballot import Failure, Part, Plan, decode_layout
from ckpt_remote.bundle import encode_index
from ckpt_remote.errors import ConflictError, CorruptError, StoreError
from ckpt_remote.flow import Flow, Get, Wait
from ckpt_remote.layout import Layout, Manifest, assign, encode_manifest, manifest_of
from ckpt_remote.origin import Attempt
from ckpt_remote.rendezvous import Member, await_outcome, find_plan, join, vote, watch
from ckpt_remote.share import SAVE_COUNTER, Save, Share, Written, share_of
from ckpt_remote.store import Object
from ckpt_remote.tally import graph_of, index_of, pack
from ckpt_remote.upload import take_back
from ckpt_remote.verdicts import AbandonedError, SupersededError, ToldError

__all__ = ["follow", "refuse"]


def follow(me: Member, save: Save) -> Flow[str]:
    """Saves a checkpoint as a worker other than the leader, and returns its path when it is visible.

    Args:
        me: What this worker knows of its job.
        save: What to save.

    Raises:
        ConflictError: Another job has taken the directory over, or two processes act as one worker.
        IncompleteError: The leader has not come in time, or another worker has not.
        UnknownOutcomeError: Nobody has told what became of it.
        CheckpointError: What else somebody has found wrong.
        ValueError: Two workers have different contents under one name.
    """
    me.begin()
    attempts = _Attempts(me, save, manifest_of(save.tensors))
    try:
        while (path := (yield from attempts.next())) is None:
            pass
    except AbandonedError as told:
        raise told.failure.error(me.url) from None
    return path


def refuse(me: Member, error: Exception) -> Flow[None]:
    """Tells the others that this save has failed here before it began."""
    me.begin()
    plan = yield from find_plan(me)
    me.seen.add(plan.attempt.number)
    attempt = yield from join(plan, me)
    if plan.failure is None:
        yield from vote(plan, Part(failure=Failure.of(error, f"Worker {me.workers.rank}: ")), attempt, me)


def _with_counter_of(plan: Plan, save: Save) -> Save:
    """The same save, with the leader's save counter."""
    if plan.counter is None or plan.counter == save.counter:
        return save
    path = save.path if save.is_numbered else f"{save.path.rpartition('-')[0]}-{plan.counter}"
    tensors = [
        replace(it, data=plan.counter.to_bytes(8, "little"), crc32c=None) if it.key == SAVE_COUNTER else it
        for it in save.tensors
    ]
    return replace(save, path=path, counter=plan.counter, tensors=tensors)


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The attempts at one save, as a worker takes part in them."""

    me: Member
    save: Save
    manifest: Manifest

    def next(self) -> Flow[str | None]:
        """Takes part in the next one; returns the path if the checkpoint is visible, or else there will be another."""
        plan = yield from find_plan(self.me)
        if plan.failure is not None and plan.attempt.number in self.me.seen:
            raise AbandonedError(plan.failure)
        self.me.seen.add(plan.attempt.number)
        try:
            attempt = yield from join(plan, self.me)
            return (yield from self._take_part(plan, attempt))
        except SupersededError:
            return None

    def _take_part(self, plan: Plan, attempt: Attempt) -> Flow[str | None]:
        rank, save = self.me.workers.rank, _with_counter_of(plan, self.save)
        if plan.failure is not None:
            raise AbandonedError(plan.failure)
        if plan.path != save.path:
            text = f"Worker {rank} saves {save.path} while the leader saves {plan.path}. Give all the same number."
            yield from vote(plan, Part(failure=Failure("ValueError", text)), attempt, self.me)
            raise ValueError(text)
        if plan.status == "asking" or plan.manifests[rank] != self.manifest.digest:
            yield from vote(plan, Part(manifest=encode_manifest(self.manifest)), attempt, self.me)
            return None
        try:
            layout = yield from self._layout(plan)
        except (StoreError, CorruptError) as error:
            yield from vote(plan, Part(failure=Failure.of(error, f"Worker {rank}: ")), attempt, self.me)
            raise
        share = share_of(plan, layout, rank, save, attempt)
        if len(share.shards) != plan.first[rank + 1] - plan.first[rank]:  # strings of its own have grown
            yield from vote(plan, Part(manifest=encode_manifest(self.manifest)), attempt, self.me)
            return None
        start: float = yield Wait(0.0)
        try:
            written, _ = yield from save.write(share, lambda progress: watch(plan, progress, self.me.url))
        except ToldError:
            raise
        except ConflictError:
            yield from vote(plan, Part(is_occupied=True), attempt, self.me)
            return None
        except Exception as error:
            yield from vote(plan, Part(failure=Failure.of(error, f"Worker {rank}: ")), attempt, self.me)
            raise
        now: float = yield Wait(0.0)
        yield from self._conclude(plan, attempt, self._part(plan, share, written), written, now - start)
        return plan.path

    def _layout(self, plan: Plan) -> Flow[Layout]:
        if not plan.is_laid_out:
            return assign((self.manifest,) * plan.size, plan.led)
        found: Object | None = yield Get(plan.layout_key)
        if found is None:  # the attempt is over
            raise SupersededError
        return decode_layout(found.data, plan, path=f"{self.me.url}/{plan.layout_key}")

    def _part(self, plan: Plan, share: Share, written: Written) -> Part:
        return Part(
            index=encode_index(index_of(share.shards, written.uploaded.checksums)),
            checksums=pack(written.checksums),
            graph=graph_of(self.save.tensors) if plan.is_laid_out else b"",
        )

    def _conclude(self, plan: Plan, attempt: Attempt, part: Part, written: Written, took: float) -> Flow[None]:
        # Whatever else goes wrong, the checkpoint may be made of it.
        try:
            yield from vote(plan, part, attempt, self.me)
            yield from await_outcome(plan, self.me, took=took)
        except (StoreError, ToldError) as error:  # after a StoreError the vote was not cast
            if not (isinstance(error, AbandonedError) and error.failure.keep):
                yield from take_back(written.uploaded.created)
            raise
