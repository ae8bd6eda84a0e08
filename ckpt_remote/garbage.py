"""Find what dead attempts have left in a directory.

A save that is killed leaves data that no index names, or an index that no state lists; a check that is killed leaves
its probe, and workers that save together what they told each other. Everything carries a seal of the attempt that
wrote it, so what is dead can be told from what merely lies here: of this directory's own history, from an owner that
is fenced, or from an attempt of ours that is over, and in use by nobody.

Promises: it deletes nothing itself. What has no seal, a seal of another name or another history, what a listed,
preserved or foreign checkpoint uses, is never reported, nor anything beside an index that cannot be read.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from ckpt_remote.bundle import index_name, parse_shard_name
from ckpt_remote.commit import described
from ckpt_remote.errors import CorruptError
from ckpt_remote.flow import Ends, Flow, Get, List
from ckpt_remote.origin import SEAL_SIZE, Attempt, read_seal, read_write_id
from ckpt_remote.probe import CONTROL
from ckpt_remote.state import Retired
from ckpt_remote.store import Object, ObjectInfo

__all__ = ["Garbage", "find_garbage"]

_log = logging.getLogger(__name__)

_INDEX = index_name("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What dead attempts have left.

    Attributes:
        checkpoints: Checkpoints, or data without an index, as intentions to delete.
        control: Keys of what is neither checkpoint nor state: of probes, and of what workers told each other.
        present: Every key that was listed.
        is_from_later: Whether something builds on a later state than the one that is here: somebody has put an
            older one back. Then nobody can tell what is dead, and nothing is reported.
    """

    checkpoints: tuple[Retired, ...] = ()
    control: tuple[str, ...] = ()
    present: frozenset[str] = frozenset()
    is_from_later: bool = False


@dataclass(slots=True)
class _Group:
    """What lies under one prefix: data objects by the count in their names, and whether there is an index."""

    data: dict[int, dict[int, ObjectInfo]]
    indexed: bool = False


def find_garbage(
    prefixes: Iterable[str], *, term: str, serial: int, newest: int, listed: Collection[str], url: str
) -> Flow[Garbage]:
    """Lists, reads seals and indexes, and reports what is dead.

    Args:
        prefixes: Where to look: what names begin with.
        term: The history of the directory.
        serial: The serial number of the newest state that attempts may have built upon that are over or fenced.
        newest: The serial number of the state now: who has read an older one cannot claim the directory any more.
        listed: The prefixes of the checkpoints that the state lists or preserves.
        url: The directory, for messages.

    Raises:
        StoreError: The store kept failing, or does not let us list.
    """
    infos: dict[str, ObjectInfo] = {}
    for prefix in prefixes:
        found: tuple[ObjectInfo, ...] = yield List(prefix)
        infos.update({info.key: info for info in found})
    search = _Search(term, serial, newest, listed, url)
    control = yield from search.over([info for key, info in infos.items() if key.startswith(CONTROL)])
    checkpoints: list[Retired] = []
    for path, group in _grouped(infos.values()).items():
        try:
            checkpoints += yield from search.under(path, group)
        except CorruptError as error:
            _log.warning("What lies under %s/%s is left, as its index is damaged: %s", url, path, error)
    if search.later:
        return Garbage(present=frozenset(infos), is_from_later=True)
    return Garbage(checkpoints=tuple(checkpoints), control=tuple(sorted(control)), present=frozenset(infos))


def _grouped(infos: Iterable[ObjectInfo]) -> Mapping[str, _Group]:
    groups: dict[str, _Group] = {}
    for info in infos:
        parsed = parse_shard_name(info.key)
        if parsed is not None:
            path, shard, count = parsed
            groups.setdefault(path, _Group({})).data.setdefault(count, {})[shard] = info
        elif info.key.endswith(_INDEX):
            groups.setdefault(info.key.removesuffix(_INDEX), _Group({})).indexed = True
    return groups


@dataclass(slots=True)
class _Search:
    term: str
    serial: int
    newest: int
    listed: Collection[str]
    url: str
    later: bool = False

    def under(self, path: str, group: _Group) -> Flow[list[Retired]]:
        """What is dead under one prefix."""
        if path in self.listed and len(group.data) < 2:  # noqa: PLR2004 - all data under one count is the checkpoint's own
            return []
        key = index_name(path)
        index: Object | None = (yield Get(key)) if group.indexed else None
        if index is None and path in self.listed:  # damaged: whatever is left of it stays
            return []
        current = None if index is None else described(path, index, url=self.url)
        used: Collection[str] = current.data if current is not None else ()
        dead: list[Retired] = []
        if (
            current is not None
            and path not in self.listed
            and self._is_dead(read_write_id(current.write_id or "", key))
        ):
            dead.append(current)
        for count, shards in sorted(group.data.items()):
            ours = yield from self.ours([info for info in shards.values() if info.key not in used])
            # An intention names a range of objects, and one that is not ours may lie between two that are.
            for is_ours, run in groupby(sorted(shards), key=lambda number: shards[number].key in ours):
                first, *more = run
                if is_ours:
                    dead.append(Retired(path=path, write_id=None, first=first, used=1 + max((first, *more)), of=count))
        return dead

    def ours(self, infos: list[ObjectInfo]) -> Flow[set[str]]:
        """The keys of those that a dead attempt of this directory wrote."""
        seals = yield from _seals(infos)
        return {key for key, attempt in seals.items() if self._is_dead(attempt)}

    def over(self, control: list[ObjectInfo]) -> Flow[set[str]]:
        """The keys of what those wrote who cannot save any more: they build upon an older state."""
        seals = yield from _seals(control)
        return {key for key, by in seals.items() if by and not (by.term == self.term and by.serial >= self.newest)}

    def _is_dead(self, attempt: Attempt | None) -> bool:
        if attempt is None or attempt.term != self.term:
            return False
        self.later |= attempt.serial > self.serial
        return attempt.serial <= self.serial


def _seals(infos: list[ObjectInfo]) -> Flow[dict[str, Attempt | None]]:
    if not infos:
        return {}
    ends: tuple[bytes | None, ...] = yield Ends(tuple(infos), SEAL_SIZE)
    return {info.key: None if end is None else read_seal(end, info.key) for info, end in zip(infos, ends, strict=True)}
