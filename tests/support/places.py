"""Where a test keeps its checkpoints: one directory of one store."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ckpt_remote
from ckpt_remote.store import open_store

__all__ = ["Place", "read_all"]


@dataclass(frozen=True, slots=True)
class Place:
    """A fresh, empty directory somewhere, and what it takes to open it."""

    url: str
    storage_options: Mapping[str, Any] | None = None
    filesystem: Any = None

    @classmethod
    def in_memory(cls):
        return cls(f"memory://test-{uuid.uuid4().hex}/run")

    def store(self):
        return open_store(self.url, self.storage_options, self.filesystem)

    def manager(self, checkpoint, directory=None, max_to_keep=None, **arguments):
        return ckpt_remote.CheckpointManager(
            checkpoint,
            directory or self.url,
            max_to_keep,
            storage_options=self.storage_options,
            filesystem=self.filesystem,
            **arguments,
        )


def read_all(place):
    """Every object of the place, by key."""
    store = place.store()
    return {info.key: store.read(info.key).data for info in store.list()}


def download(place, folder):
    """Copies the place to a disk, as `aws s3 cp --recursive` would."""
    for key, data in read_all(place).items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def upload(folder, place):
    """Copies a folder to the place."""
    store = place.store()
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), [path.read_bytes()], "overwrite")
