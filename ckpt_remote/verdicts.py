"""What ends an attempt at a save by many workers, when somebody else has said it, or nobody has come to say it.

Promises: what the errors say is what all workers raise and read, with the next step. They never reach the caller of a
save: `AbandonedError` carries what does.
"""

from collections.abc import Sequence

from ckpt_remote.ballot import Failure, Plan
from ckpt_remote.workers import Workers

__all__ = [
    "AbandonedError",
    "DiffersError",
    "FencedError",
    "OccupiedError",
    "SupersededError",
    "ToldError",
    "ahead",
    "behind",
    "in_vain",
    "incomplete",
    "not_begun",
    "overtaken",
    "taken_over",
    "too_early",
    "twice",
    "vanished",
]


class ToldError(Exception):
    """Somebody else has said what ends this attempt."""


class SupersededError(ToldError):
    """The leader has begun another attempt at the same save."""


class DiffersError(ToldError):
    """A worker has something else than it was taken to have."""


class OccupiedError(ToldError):
    """Objects of other attempts are in the way of a worker's."""


class FencedError(ToldError):
    """The state is not this leader's any more."""


class AbandonedError(ToldError):
    """Nothing will come of this save.

    Args:
        failure: Why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def taken_over(url: str) -> AbandonedError:
    """Another job owns the directory; an index may name what the workers wrote."""
    text = (
        f"Cannot save to {url}: another job has taken it over; nothing of theirs was touched. Stop this job, or "
        "restore, or make new managers on all workers, which continue from what is there."
    )
    return AbandonedError(Failure("ConflictError", text, keep=True))


def incomplete(text: str) -> AbandonedError:
    """The leader has not come, or has gone on; an index may name what the workers wrote."""
    return AbandonedError(Failure("IncompleteError", text, keep=True))


def overtaken(plan: Plan, url: str) -> AbandonedError:
    """The state has gone on without the checkpoint."""
    return incomplete(
        f"Cannot save {url}/{plan.path}: the state was written otherwise before it could be, so nothing of it was "
        "published. Worker 0 has given it up, or another job has taken the directory over. See what worker 0 says."
    )


def ahead(plan: Plan, number: int | None, workers: Workers, url: str) -> AbandonedError:
    """This worker is past that save."""
    at = "a later save" if number is None else f"number {number}"
    return AbandonedError(
        Failure(
            "IncompleteError",
            f"Cannot save {url}/{plan.path}: worker {workers.rank} is at {at} already. Nothing was published. Call "
            "save() on every worker at the same steps, with the same number.",
        )
    )


def behind(plan: Plan, workers: Workers, url: str) -> AbandonedError:
    """The leader is past this worker's save."""
    return AbandonedError(
        Failure(
            "IncompleteError",
            f"Worker {workers.rank} comes too late, or the leader has left this save out: it is at {url}/{plan.path} "
            "already. Nothing was published. Call save() on every worker at the same steps, with the same number.",
        )
    )


def in_vain(workers: Workers, url: str) -> AbandonedError:
    """This worker has given that save up."""
    return incomplete(
        f"Worker {workers.rank} had waited for this save to {url} to begin for {workers.timeout:.0f} seconds, and gone "
        "on. Nothing was published. Workers(timeout=...) sets how long to wait."
    )


def too_early(workers: Workers, url: str) -> AbandonedError:
    """The leader has begun before this worker's manager was made."""
    return incomplete(
        f"Worker {workers.rank} made its manager when worker 0 had begun to save to {url} already, so it is not in "
        "that save, and nothing was published; it is in the next. Make the managers on all workers before worker 0 "
        "first saves: a barrier does it."
    )


def not_begun(workers: Workers, url: str, *, is_late: bool) -> AbandonedError:
    """This worker waits for the leader no longer; `is_late` says whether the leader saves without it."""
    if is_late:
        return incomplete(
            f"Worker {workers.rank} of {workers.size} is not let in to save to {url}: its manager was made when the "
            "job had its first checkpoint there, so it may be what is left of an earlier job. Restart the job; make "
            "the managers on all workers before worker 0 first saves."
        )
    return incomplete(
        f"The leader, worker 0, has not begun to save to {url} within {workers.timeout:.0f} seconds: nothing was "
        f"published. Worker {workers.rank} of {workers.size} waited. See whether it is alive. Call save() on every "
        "worker at the same steps, with the same directory; let all restore or none. Workers(timeout=...) sets how "
        "long to wait."
    )


def twice(rank: int, url: str, *, keep: bool = False) -> AbandonedError:
    """Two processes have the same rank; `keep` says whether an index may name what the workers wrote."""
    text = (
        f"Two processes act as worker {rank} of those that save to {url}; nothing was published. Give each worker a "
        "rank of its own, and each job a name of its own (Workers(job=...)); see that no process of an earlier job is "
        "alive."
    )
    return AbandonedError(Failure("ConflictError", text, keep=keep))


def vanished(rank: int, plan: Plan, url: str, *, absent: Sequence[int]) -> AbandonedError:
    """The leader waits for a worker no longer; `absent` are all that have not even come."""
    what = "has not come" if rank in absent else "has begun its share and not finished it"
    text = (
        f"Cannot save {url}/{plan.path}: worker {rank} of {plan.size} {what} in time, so nothing was published. See "
        "whether it is alive. Every worker calls save() at the same steps, with the same directory; make the managers "
        "on all workers before worker 0 first saves. Workers(timeout=...) sets how long to wait."
    )
    return AbandonedError(Failure("IncompleteError", text, absent=tuple(absent)))
