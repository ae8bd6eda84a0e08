"""Who saves together: the workers of a distributed training job.

Promises: what `TF_CONFIG` says is taken as TensorFlow takes it; what makes no sense is refused. It does no I/O.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Workers"]

_CHIEFS = ("chief", "master")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process's place among the workers that save one checkpoint together.

    Every worker makes its manager with the same directory and calls `save()` at the same steps. The one of rank 0
    leads: it decides, merges and publishes.

    Args:
        rank: Which worker this is, from 0.
        size: How many there are.
        timeout: Seconds after which a worker that gives no sign is given up.
        job: What tells this job from another one that may save into the same directory at the same time; equal on
            all its workers.

    Raises:
        ValueError: There is no such worker.

    Example:
        >>> import ckpt_remote
        >>> ckpt_remote.Workers(rank=1, size=4).leads
        False
    """

    rank: int
    size: int
    timeout: float = 300.0
    job: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"Workers have ranks from 0 to size - 1: there is no rank {self.rank} of {self.size}.")
        if not self.timeout > 0:
            raise ValueError(f"The timeout of workers is a positive number of seconds, not {self.timeout}.")

    @property
    def leads(self) -> bool:
        """Whether this worker decides, merges and publishes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Workers":
        """The workers that `TF_CONFIG` names: the chief, if there is one, then the workers in their order.

        Without it, in an evaluator, and where parameter servers hold the variables and one coordinator saves them,
        there is one worker: this process.

        Args:
            environment: Where to look; by default `os.environ`.

        Raises:
            ValueError: `TF_CONFIG` cannot be read.
        """
        config = _parse((os.environ if environment is None else environment).get("TF_CONFIG") or "{}")
        cluster, task = config.get("cluster") or {}, config.get("task") or {}
        kind = str(task.get("type", ""))
        chiefs = [address for name in _CHIEFS for address in _addresses(cluster, name)]
        members = [*chiefs, *_addresses(cluster, "worker")]
        if "ps" in cluster or kind not in (*_CHIEFS, "worker", "") or not members:
            return cls(0, 1)
        rank = _place(kind, task.get("index"), chiefs, members)
        return cls(rank, len(members), job=hashlib.blake2b(" ".join(members).encode(), digest_size=8).hexdigest())


def _place(kind: str, index: Any, chiefs: Sequence[str], members: Sequence[str]) -> int:
    """The rank of a task."""
    known = chiefs if kind in _CHIEFS else members[len(chiefs) :]
    number = str(0 if index is None and len(known) == 1 else index)
    if not number.isdecimal() or int(number) >= len(known) or (not kind and len(members) > 1):
        raise ValueError(
            f"TF_CONFIG names no {kind or 'task'} {index} among {len(members)} members. Mend it, or give workers=..."
        )
    return int(number) if kind in _CHIEFS else len(chiefs) + int(number)


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is no JSON: {error}. Mend it, or give workers=ckpt_remote.Workers(...).") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(key) or {}, dict) for key in ("cluster", "task")):
        raise ValueError("TF_CONFIG is no mapping with a cluster and a task. Mend it, or give workers=...")
    return config


def _addresses(cluster: Mapping[str, Any], kind: str) -> Sequence[str]:
    found = cluster.get(kind) or ()
    if isinstance(found, Mapping):  # a sparse cluster names some of its tasks by number
        return [str(found[index]) for index in sorted(found, key=int)]
    if not isinstance(found, list | tuple):
        text = f"TF_CONFIG has {found!r} where the addresses of {kind} belong. Mend it, or give workers=..."
        raise ValueError(text)  # noqa: TRY004 - whatever is wrong with TF_CONFIG, it is a bad value
    return [str(address) for address in found]
