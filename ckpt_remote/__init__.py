"""TensorFlow checkpoints straight from tensor memory to S3, Google Cloud Storage, Azure, local paths and `memory://`.

`CheckpointManager` takes the place of `tf.train.CheckpointManager`: change one import, and give it a URL. Importing
this package does not import TensorFlow; what needs it is imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckpt_remote.errors import (
    CheckpointError,
    ConflictError,
    CorruptError,
    IncompleteError,
    NotFoundError,
    StoreError,
    UnknownOutcomeError,
    UnsupportedError,
)
from ckpt_remote.workers import Workers

if TYPE_CHECKING:
    from ckpt_remote.manager import CheckpointManager

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CheckpointManager",
    "ConflictError",
    "CorruptError",
    "IncompleteError",
    "NotFoundError",
    "StoreError",
    "UnknownOutcomeError",
    "UnsupportedError",
    "Workers",
]

_WITH_TENSORFLOW = {"CheckpointManager": "ckpt_remote.manager"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TENSORFLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WITH_TENSORFLOW[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
