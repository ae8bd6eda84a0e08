"""What engines leave to a client that answers questions: sizes, listings, deletions, whether the bucket is there.

Promises: the client is asked about object keys only; each is checked before anything is sent.
"""

import abc
from collections.abc import Iterator, Sequence
from typing import Protocol

from ckpt_remote import errors
from ckpt_remote.store import interface

__all__ = ["BucketStore", "Questions"]


class Questions(Protocol):
    """A directory of a bucket, for all that moves no bytes."""

    def size(self, key: str) -> int:
        """As `Store.size`."""

    def list(self, prefix: str) -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`."""

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`."""

    def require(self) -> None:
        """As `Store.require_container`."""


class BucketStore(interface.Store):
    """A store that only moves bytes; `_bucket` answers everything else."""

    @property
    @abc.abstractmethod
    def _bucket(self) -> Questions:
        """The same directory."""

    def size(self, key: str) -> int:
        """As `Store.size`."""
        return self._bucket.size(interface.check_key(key))

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`."""
        return self._bucket.list(prefix)

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`."""
        return self._bucket.delete([interface.check_key(key) for key in keys])

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`."""
        return self._bucket.remove(interface.check_key(key), version)

    def require_container(self) -> None:
        """As `Store.require_container`."""
        self._bucket.require()
