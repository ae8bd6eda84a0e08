"""What can go wrong, and what a caller should do about each.

One root, and one leaf for each different body of an `except` clause::

    CheckpointError
    ├── NotFoundError       (FileNotFoundError)    nothing there              start fresh, or fix the path
    ├── ConflictError                              another writer won         stop, or re-read the latest and decide
    ├── IncompleteError     (TimeoutError)         a worker never arrived     nothing was published; try again
    ├── UnknownOutcomeError                        neither can be proved      nothing was deleted; re-read later
    ├── CorruptError        (ValueError)           bytes fail their check     fall back to an older checkpoint
    ├── StoreError          (OSError)              the store kept failing     try again later
    └── UnsupportedError    (NotImplementedError)  no safe way on this store  change the store or the setting

Bad arguments are plain `ValueError` and `TypeError`, as everywhere in Python.
"""

__all__ = [
    "CheckpointError",
    "ConflictError",
    "CorruptError",
    "IncompleteError",
    "NotFoundError",
    "StoreError",
    "UnknownOutcomeError",
    "UnsupportedError",
]


class CheckpointError(Exception):
    """The root of every error that this library raises on its own account.

    Args:
        message: What happened to which object, the cause, and the next step, in one sentence or two.
            Never holds a credential.
        path: The URL of the object or directory concerned, for handlers that want it apart.
    """

    path: str | None

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class NotFoundError(CheckpointError, FileNotFoundError):
    """Nothing is there: start fresh, or fix the path."""


class ConflictError(CheckpointError):
    """Another writer won: stop, or re-read the latest state and decide. Nothing of the winner's was touched."""


class IncompleteError(CheckpointError, TimeoutError):
    """A worker never arrived: nothing was published, and the next save may pass."""


class UnknownOutcomeError(CheckpointError):
    """Neither success nor failure can be proved: nothing was deleted; read the state again later."""


class CorruptError(CheckpointError, ValueError):
    """Bytes fail their check: fall back to an older checkpoint. Nothing was deleted."""


class StoreError(CheckpointError, OSError):
    """The store kept failing or refused: mend the cause it names, then try again.

    Args:
        message: As for `CheckpointError`.
        path: As for `CheckpointError`.
        transient: Whether the same request may pass later unchanged (an overloaded or unreachable server,
            a lost response). A refused permission is not transient. After a transient failure a write may
            have landed all the same.
        retry_after: How many seconds the store asked to be left alone, if it did.
        cause: What went wrong, without the object and the advice, where that is known.

    Attributes:
        questions: How many other requests were sent to learn the cause. Budgets count them.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        transient: bool = False,
        retry_after: float | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message, path=path)
        self.transient = transient
        self.retry_after = retry_after
        self.cause = cause
        self.questions = 0


class UnsupportedError(CheckpointError, NotImplementedError):
    """There is no safe way to do this on this store: change the store or the setting."""
