"""Restore the newest checkpoint that is whole, and say so where it is not the newest.

Promises: a checkpoint that is damaged is passed over only with a word that names it and what is tried next; where none
is whole nothing is restored, and the newest one's damage is what is raised. What a writer has changed meanwhile is
looked at again. How a checkpoint is restored, and the state read, is the caller's.
"""

import logging
from collections.abc import Callable

from ckpt_remote.directory import Directory
from ckpt_remote.errors import CorruptError
from ckpt_remote.progress import FellBack, emit

__all__ = ["restore_newest"]

_log = logging.getLogger(__name__)


def restore_newest(
    known: Directory,
    restore: Callable[[str], object],
    refresh: Callable[[], bool],
    full: Callable[[str], str],
    *,
    url: str,
) -> str:
    """Restores it, and returns its path.

    Args:
        known: The directory, which has checkpoints.
        restore: Restores the one with that path.
        refresh: Reads the state again, and returns whether it has changed.
        full: The URL of a path.
        url: The directory, for messages.

    Raises:
        CorruptError: None is whole.
    """
    while True:
        damage: CorruptError | None = None
        paths = known.newest_first
        for path, older in zip(paths, (*paths[1:], None), strict=True):
            try:
                restore(path)
            except CorruptError as error:
                if refresh():
                    break
                damage = damage or error
                _tell(full(path), error, None if older is None else full(older))
            else:
                return path
        else:
            raise CorruptError(
                f"None of the {len(paths)} checkpoints that {url} lists is whole; what is wrong with "
                f"{full(paths[0])} is the cause of this error. Nothing was restored or deleted, and init_fn was not "
                "called. Repair one, or start in another directory.",
                path=url,
            ) from damage


def _tell(damaged: str, error: CorruptError, following: str | None) -> None:
    _log.warning("%s IS DAMAGED and was passed over; tried next: %s. %s", damaged, following, error)
    emit(FellBack(damaged=damaged, error=str(error), tried_next=following))
