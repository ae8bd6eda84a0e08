"""Take part in a save by many workers, as one that does not lead.

    follow
    ├── find_plan, join
    ├── write the own share       while the plan is watched
    ├── vote
    └── await_outcome

Promises: it returns when the checkpoint is visible; when it raises, what this worker wrote has been taken back, but
for what the checkpoint may be made of. How bytes travel is the caller's: these are flows.
"""

from dataclasses import dataclass

from ckpt_remote.ballot import Failure, Part, Plan
from ckpt_remote.bundle import encode_index
from ckpt_remote.errors import ConflictError, StoreError
from ckpt_remote.flow import Flow, Wait
from ckpt_remote.layout import Manifest, assign, encode_manifest, manifest_of
from ckpt_remote.origin import Attempt
from ckpt_remote.rendezvous import Member, await_outcome, find_plan, join, vote, watch
from ckpt_remote.share import Save, Share, Written, share_of
from ckpt_remote.tally import graph_of, index_of, pack
from ckpt_remote.upload import take_back
from ckpt_remote.verdicts import AbandonedError, SupersededError, ToldError

__all__ = ["follow", "refuse"]


def follow(me: Member, save: Save) -> Flow[None]:
    """Saves a checkpoint as a worker other than the leader, and returns when it is visible.

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
    me.ordinal += 1
    attempts = _Attempts(me, save, manifest_of(save.tensors))
    try:
        while not (yield from attempts.next()):
            pass
    except AbandonedError as told:
        raise told.failure.error(me.url) from None


def refuse(me: Member, error: Exception) -> Flow[None]:
    """Tells the others that this save has failed here before it began."""
    me.ordinal += 1
    plan = yield from find_plan(me)
    me.seen.add(plan.attempt.number)
    attempt = yield from join(plan, me)
    if plan.failure is None:
        yield from vote(plan, Part(failure=Failure.of(error, f"Worker {me.workers.rank}: ")), attempt, me)


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The attempts at one save, as a worker takes part in them."""

    me: Member
    save: Save
    manifest: Manifest

    def next(self) -> Flow[bool]:
        """Takes part in the next one; returns whether the checkpoint is visible, or else there will be another."""
        plan = yield from find_plan(self.me)
        if plan.failure is not None and plan.attempt.number in self.me.seen:
            raise AbandonedError(plan.failure)
        self.me.seen.add(plan.attempt.number)
        try:
            attempt = yield from join(plan, self.me)
            return (yield from self._take_part(plan, attempt))
        except SupersededError:
            return False

    def _take_part(self, plan: Plan, attempt: Attempt) -> Flow[bool]:
        rank, save = self.me.workers.rank, self.save
        if plan.failure is not None:
            raise AbandonedError(plan.failure)
        if plan.path != save.path:
            text = f"Worker {rank} saves {save.path} while the leader saves {plan.path}. Give all the same number."
            yield from vote(plan, Part(failure=Failure("ValueError", text)), attempt, self.me)
            raise ValueError(text)
        if plan.status == "asking" or plan.manifests[rank] != self.manifest.digest:
            yield from vote(plan, Part(manifest=encode_manifest(self.manifest)), attempt, self.me)
            return False
        layout = plan.layout or assign((self.manifest,) * plan.size, plan.led)
        share = share_of(plan, layout, rank, save, attempt)
        if len(share.shards) != plan.first[rank + 1] - plan.first[rank]:  # strings of its own have grown
            yield from vote(plan, Part(manifest=encode_manifest(self.manifest)), attempt, self.me)
            return False
        start: float = yield Wait(0.0)
        try:
            written, _ = yield from save.write(share, lambda progress: watch(plan, progress, self.me.url))
        except ToldError:
            raise
        except ConflictError:
            yield from vote(plan, Part(is_occupied=True), attempt, self.me)
            return False
        except Exception as error:
            yield from vote(plan, Part(failure=Failure.of(error, f"Worker {rank}: ")), attempt, self.me)
            raise
        now: float = yield Wait(0.0)
        yield from self._conclude(plan, attempt, self._part(plan, share, written), written, now - start)
        return True

    def _part(self, plan: Plan, share: Share, written: Written) -> Part:
        return Part(
            index=encode_index(index_of(share.shards, written.uploaded.checksums)),
            checksums=pack(written.checksums),
            graph=b"" if plan.layout is None else graph_of(self.save.tensors),
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
