"""Which checkpoints to keep: TensorFlow's rule, as a pure function.

Promises: the same decisions as `tf.train.CheckpointManager` for the same list, numbers and timestamps; the newest
checkpoint is never retired. It deletes nothing and reads no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_remote.state import Entry

__all__ = ["Sweep", "sweep"]

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What becomes of the checkpoints of a directory.

    Attributes:
        active: Those that stay managed, oldest first.
        preserved: Those that leave the list but are kept for good.
        retired: Those to delete.
        last_preserved_timestamp: Seconds since the epoch; the time of the newest preserved checkpoint.
    """

    active: tuple[Entry, ...]
    preserved: tuple[Entry, ...]
    retired: tuple[Entry, ...]
    last_preserved_timestamp: float


def sweep(
    entries: Sequence[Entry],
    last_preserved_timestamp: float,
    *,
    max_to_keep: int | None,
    keep_checkpoint_every_n_hours: float | None,
) -> Sweep:
    """Decides which checkpoints stay, oldest first, as `tf.train.CheckpointManager` does after a save.

    A checkpoint that falls out of the newest `max_to_keep` is preserved when it is at least
    `keep_checkpoint_every_n_hours` younger than the last one preserved, and retired otherwise.

    Args:
        entries: The managed checkpoints, oldest first, the one just saved last.
        last_preserved_timestamp: Seconds since the epoch.
        max_to_keep: How many stay managed; None keeps all.
        keep_checkpoint_every_n_hours: Hours between preserved checkpoints; None preserves none.

    Returns:
        The decision.
    """
    surplus = 0 if max_to_keep is None else max(0, len(entries) - max_to_keep)
    preserved: list[Entry] = []
    retired: list[Entry] = []
    for entry in entries[:surplus]:
        if (
            keep_checkpoint_every_n_hours
            and entry.timestamp - keep_checkpoint_every_n_hours * _SECONDS_PER_HOUR >= last_preserved_timestamp
        ):
            last_preserved_timestamp = entry.timestamp
            preserved.append(entry)
        else:
            retired.append(entry)
    return Sweep(
        active=tuple(entries[surplus:]),
        preserved=tuple(preserved),
        retired=tuple(retired),
        last_preserved_timestamp=last_preserved_timestamp,
    )
