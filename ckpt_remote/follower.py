"""Take part in a save by many workers, as one that does not lead.

    follow
    ├── find_plan, join
    ├── write the own share       while the plan is watched
    ├── vote
    └── await_outcome

Promises: it returns when the checkpoint is visible; when it raises, what this worker wrote has been taken back, but
for what the checkpoint may be made of. How bytes travel is the caller's: these are flows.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_remote.ballot import Failure, Part, Plan, decode_layout
from ckpt_remote.bundle import encode_index
from ckpt_remote.errors import CheckpointError, ConflictError, IncompleteError, StoreError
from ckpt_remote.flow import Flow, Get, Wait
from ckpt_remote.layout import Layout, Manifest, assign, encode_manifest, manifest_of
from ckpt_remote.member import Member
from ckpt_remote.origin import Attempt
from ckpt_remote.rendezvous import answer, await_outcome, find_plan, join, object_to, require, vote, watch
from ckpt_remote.share import SAVE_COUNTER, Save, Share, Written, share_of
from ckpt_remote.store import Object, Version
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
    me.attendance.number = save.number
    attempts = _Attempts(me, save, manifest_of(save.tensors))
    path: str | None = None
    try:
        while path is None:
            with contextlib.suppress(SupersededError):
                path = yield from attempts.next()
    except AbandonedError as told:
        raise told.failure.error(me.url) from None
    except Exception as error:
        me.excuse = failure = _failure(me, error)
        if not me.takes_part:  # so that nobody knows
            with contextlib.suppress(CheckpointError, ValueError):  # which hides nothing: they learn it at the deadline
                yield from refuse(me, error)
            me.excuse = failure
        raise
    return path


def refuse(me: Member, error: Exception) -> Flow[None]:
    """Tells the others that this save has failed here before it began."""
    me.excuse = failure = _failure(me, error)
    try:
        plan = yield from find_plan(me)
        me.excuse = failure
        if plan.failure is None:
            yield from object_to(plan, failure, me)
        else:
            yield from join(plan, me)
    except AbandonedError as told:
        raise told.failure.error(me.url) from None
    except SupersededError:
        return


def _failure(me: Member, error: Exception) -> Failure:
    return Failure.of(error, f"Worker {me.workers.rank}: ")


def _with_counter_of(plan: Plan, save: Save) -> Save:
    """The same save, with the leader's save counter."""
    if plan.counter is None or plan.counter == save.counter:
        return save
    path = save.path if save.number is not None else f"{save.path.rpartition('-')[0]}-{plan.counter}"
    tensors = [
        replace(it, data=plan.counter.to_bytes(8, "little"), crc32c=None) if it.key == SAVE_COUNTER else it
        for it in save.tensors
    ]
    return replace(save, path=path, counter=plan.counter, tensors=tensors)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker says to a plan.

    Attributes:
        part: What it says.
        created: What is durable of its share, with the versions where that is known; None if it has written nothing.
        took: Seconds that it wrote.
    """

    part: Part
    created: Mapping[str, Version] | None = None
    took: float = 0.0


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The attempts at one save, as a worker takes part in them."""

    me: Member
    save: Save
    manifest: Manifest

    def next(self) -> Flow[str | None]:
        """Takes part in the next one; returns the path if the checkpoint is visible, or else there will be another.

        Raises:
            SupersededError: There will be another, too.
        """
        plan = yield from find_plan(self.me)
        if plan.failure is not None and plan.attempt.number in self.me.seen:
            raise AbandonedError(plan.failure)
        self.me.seen.add(plan.attempt.number)
        try:
            attempt = yield from join(plan, self.me)
            said = yield from self._write(plan, attempt)
            if said.created is None:
                yield from answer(plan, said.part, self.me)
                return None
        except ToldError:
            raise
        except Exception as error:
            yield from object_to(plan, _failure(self.me, error), self.me)
            raise
        yield from self._conclude(plan, said, said.created)
        return plan.path

    def _write(self, plan: Plan, attempt: Attempt) -> Flow["_Answer"]:
        """Writes this worker's share, or finds what keeps it from that."""
        if plan.failure is not None:
            raise AbandonedError(plan.failure)
        rank, save = self.me.workers.rank, _with_counter_of(plan, self.save)
        if plan.path != save.path:
            raise ValueError(
                f"{save.path} is saved here while the leader saves {plan.path}. Give all workers the same number."
            )
        has_other = _Answer(Part(manifest=encode_manifest(self.manifest)))
        if plan.status == "asking" or plan.manifests[rank] != self.manifest.digest:
            return has_other
        layout = yield from self._layout(plan)
        share = share_of(plan, layout, rank, save, attempt)
        if len(share.shards) != plan.first[rank + 1] - plan.first[rank]:  # strings of its own have grown
            return has_other
        start: float = yield Wait(0.0)
        try:
            written, _ = yield from save.write(share, lambda progress: watch(plan, progress, self.me.url))
        except ConflictError:
            return _Answer(Part(is_occupied=True))
        now: float = yield Wait(0.0)
        return _Answer(self._part(plan, share, written), written.uploaded.created, now - start)

    def _layout(self, plan: Plan) -> Flow[Layout]:
        if not plan.is_laid_out:
            return assign((self.manifest,) * plan.size, plan.led)
        found: Object | None = yield Get(plan.layout_key)
        if found is None:
            yield from require(plan, self.me.url)  # else the attempt is over, and it went with it
            raise IncompleteError(f"{self.me.url}/{plan.layout_key} is gone: nothing says who writes what.")
        return decode_layout(found.data, plan, path=f"{self.me.url}/{plan.layout_key}")

    def _part(self, plan: Plan, share: Share, written: Written) -> Part:
        return Part(
            index=encode_index(index_of(share.shards, written.uploaded.checksums)),
            checksums=pack(written.checksums),
            graph=graph_of(self.save.tensors) if plan.is_laid_out else b"",
        )

    def _conclude(self, plan: Plan, said: "_Answer", created: Mapping[str, Version]) -> Flow[None]:
        # Whatever else goes wrong, the checkpoint may be made of it.
        try:
            yield from vote(plan, said.part, self.me)
            yield from await_outcome(plan, self.me, took=said.took)
        except (StoreError, ToldError) as error:  # after a StoreError the vote was not cast
            if not (isinstance(error, AbandonedError) and error.failure.keep):
                yield from take_back(created)
            raise
