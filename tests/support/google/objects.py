"""The objects of our Google Cloud Storage: buckets, generations, conditions, checksums, the limit of writes.

Promises: every operation is atomic under one lock, and a reader gets a whole object; a generation is never
given twice; a condition is decided together with the write; an object whose announced checksum is wrong is not
stored. Writes (uploads, compositions, copies) of one name that come sooner than the limit allows after the
last successful one are refused before their condition is looked at; deletions are neither counted nor refused.
No versioning, no access control, no soft delete: a generation that was replaced is gone.
"""

import base64
import hashlib
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from crc32c import crc32c

from support.google.messages import Refusal, refuse

__all__ = ["Blob", "Conditions", "Digests", "Objects", "Page"]

_PAGE = 1000
# Google's generations are microseconds of the clock; ours only look like them.
_FIRST_GENERATION = 1_700_000_000_000_000


@dataclass(frozen=True, slots=True)
class Digests:
    """An object's checksums in base64, as announced or as computed; None: not announced, or none kept."""

    crc32c: str | None = None
    md5: str | None = None

    @classmethod
    def of(cls, data: bytes) -> "Digests":
        return cls(
            base64.b64encode(crc32c(data).to_bytes(4, "big")).decode(),
            base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
        )

    @classmethod
    def parsed(cls, header: str | None) -> "Digests":
        """What `x-goog-hash` says."""
        pairs = dict(part.strip().split("=", 1) for part in (header or "").split(",") if "=" in part)
        return cls(pairs.get("crc32c"), pairs.get("md5"))

    def check(self, actual: "Digests") -> None:
        """Pass if nothing that was announced differs.

        Raises:
            Refusal: Something does.
        """
        for name, ours, theirs in (("CRC32C", self.crc32c, actual.crc32c), ("MD5 hash", self.md5, actual.md5)):
            if ours is not None and ours != theirs:
                message = f'Provided {name} "{ours}" doesn\'t match calculated {name} "{theirs}".'
                raise Refusal(400, "invalid", "BadDigest", message)


@dataclass(frozen=True, slots=True)
class Blob:
    """One generation of one object. `properties` are the settable fields of the JSON resource."""

    bucket: str
    name: str
    data: bytes
    digests: Digests
    generation: int
    metageneration: int
    created: datetime
    updated: datetime
    properties: Mapping[str, Any]
    components: int | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold of the live object; generation 0 stands for none."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None

    def check(self, live: Blob | None, *, reading: bool = False) -> None:
        """Pass if they hold.

        Raises:
            Refusal: 412; or 304 for a reader who has that generation.
        """
        generation = live.generation if live else 0
        metageneration = live.metageneration if live else None
        if self.generation not in (None, generation) or self.metageneration not in (None, metageneration):
            raise refuse.unmet()
        same_metadata = self.not_metageneration is not None and self.not_metageneration == metageneration
        if self.not_generation == generation or same_metadata:
            raise refuse.unchanged() if reading else refuse.unmet()


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing; `last` is where the next one begins, None at the end."""

    blobs: Sequence[Blob]
    prefixes: Sequence[str]
    last: str | None


@dataclass(slots=True)
class Objects:
    """Every bucket of a server.

    Args:
        writes_per_second: How many writes of one object's name may succeed in a second; None: any number.
        clock: Seconds, monotonic.
    """

    writes_per_second: float | None = None
    clock: Callable[[], float] = time.monotonic
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _buckets: dict[str, dict[str, Blob]] = field(default_factory=dict)
    _written: dict[tuple[str, str], float] = field(default_factory=dict)
    _generations: "itertools.count[int]" = field(default_factory=lambda: itertools.count(_FIRST_GENERATION))

    def create_bucket(self, name: str) -> None:
        with self._lock:
            if name in self._buckets:
                message = "Your previous request to create the named bucket succeeded and you already own it."
                raise Refusal(409, "conflict", "BucketAlreadyOwnedByYou", message)
            self._buckets[name] = {}

    def new_bucket(self) -> str:
        """A fresh, empty bucket."""
        name = f"test-{uuid.uuid4().hex}"
        self.create_bucket(name)
        return name

    def bucket(self, name: str) -> dict[str, Blob]:
        """A copy of the bucket's objects by name."""
        with self._lock:
            return dict(self._bucket(name))

    def buckets(self) -> list[str]:
        with self._lock:
            return sorted(self._buckets)

    def get(self, bucket: str, name: str, conditions: Conditions | None = None, generation: int | None = None) -> Blob:
        """The live object, or exactly that generation of it."""
        with self._lock:
            blob = self._bucket(bucket).get(name)
            if blob is None or generation not in (None, blob.generation):
                raise refuse.no_object(bucket, name)
            (conditions or Conditions()).check(blob, reading=True)
            return blob

    def put(
        self,
        bucket: str,
        name: str,
        data: bytes,
        *,
        properties: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
        announced: Digests | None = None,
        limited: bool = True,
    ) -> Blob:
        """Write an object; `limited=False` is how a test writes behind everybody's back."""
        actual = Digests.of(data)  # before the lock: it takes time
        (announced or Digests()).check(actual)
        return self._write((bucket, name), data, actual, properties or {}, conditions, limited=limited)

    def compose(
        self,
        bucket: str,
        name: str,
        sources: Sequence[tuple[str, int | None]],
        properties: Mapping[str, Any],
        conditions: Conditions,
    ) -> Blob:
        """Write the concatenation of other objects; a composite has no MD5."""
        with self._lock:
            blobs = []
            for source, generation in sources:
                blobs.append(self.get(bucket, source))
                if generation not in (None, blobs[-1].generation):
                    raise refuse.unmet()
            data = b"".join(blob.data for blob in blobs)
            digests = replace(Digests.of(data), md5=None)
            components = sum(blob.components or 1 for blob in blobs)
            return self._write((bucket, name), data, digests, properties, conditions, components=components)

    def copy(
        self, source: Blob, bucket: str, name: str, properties: Mapping[str, Any] | None, conditions: Conditions
    ) -> Blob:
        """Write a copy; without `properties` it has the source's."""
        kept = source.properties if properties is None else properties
        return self._write((bucket, name), source.data, source.digests, kept, conditions, components=source.components)

    def patch(self, bucket: str, name: str, properties: Mapping[str, Any], conditions: Conditions) -> Blob:
        """Change settable fields; None removes one."""
        with self._lock:
            blob = self.get(bucket, name)
            conditions.check(blob)
            merged = {key: value for key, value in {**blob.properties, **properties}.items() if value is not None}
            changed = replace(blob, properties=merged, metageneration=blob.metageneration + 1, updated=_now())
            self._bucket(bucket)[name] = changed
            return changed

    def delete(
        self, bucket: str, name: str, conditions: Conditions | None = None, generation: int | None = None
    ) -> None:
        with self._lock:
            blob = self.get(bucket, name, generation=generation)
            (conditions or Conditions()).check(blob)
            del self._bucket(bucket)[name]

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        after: str | None = None,
        most: int | None = None,
        start: str = "",
        end: str | None = None,
    ) -> Page:
        """A page of the names that begin with `prefix`, in the order of their UTF-8 bytes.

        Args:
            after: The last entry of the page before.
            start: The first name that may appear.
            end: The first name that may not.
        """
        live = self.bucket(bucket)
        entries: dict[str, Blob | None] = {}
        for name in sorted(live, key=str.encode):
            if not name.startswith(prefix) or name < start or (end is not None and name >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry, blob = (prefix + head + delimiter, None) if found else (name, live[name])
            if after is None or entry.encode() > after.encode():
                entries[entry] = blob
        page = list(entries)[: min(most or _PAGE, _PAGE)]
        return Page(
            [blob for entry in page if (blob := entries[entry]) is not None],
            [entry for entry in page if entries[entry] is None],
            page[-1] if len(page) < len(entries) else None,
        )

    def _bucket(self, name: str) -> dict[str, Blob]:
        if name not in self._buckets:
            raise refuse.no_bucket()
        return self._buckets[name]

    def _write(
        self,
        where: tuple[str, str],
        data: bytes,
        digests: Digests,
        properties: Mapping[str, Any],
        conditions: Conditions | None,
        *,
        components: int | None = None,
        limited: bool = True,
    ) -> Blob:
        bucket, name = where
        if not name or len(name.encode()) > 1024:
            raise refuse.invalid("An object's name has 1 to 1024 bytes.")
        with self._lock:
            blobs = self._bucket(bucket)
            if limited:
                self._limit(where)
            (conditions or Conditions()).check(blobs.get(name))
            now = _now()
            blob = Blob(bucket, name, data, digests, next(self._generations), 1, now, now, dict(properties), components)
            blobs[name] = blob
            if limited:
                self._written[where] = self.clock()
            return blob

    def _limit(self, where: tuple[str, str]) -> None:
        last = self._written.get(where)
        if self.writes_per_second is None or last is None:
            return
        left = last + 1 / self.writes_per_second - self.clock()
        if left > 0:
            message = (
                f"The object {'/'.join(where)} exceeded the rate limit for object mutation operations "
                f"(create, update, and delete). Please reduce your request rate."
            )
            raise Refusal(429, "rateLimitExceeded", "SlowDown", message, {"Retry-After": str(math.ceil(left))})


def _now() -> datetime:
    return datetime.now(timezone.utc)
