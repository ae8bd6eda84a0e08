"""A store whose every request passes through somebody's hands.

    Watched(inner, hand)        hand(Asked("put", ("ckpt-1.index",), "create"), perform) -> what perform() returns

Promises: each request is shown once, in the order in which it is made, before it reaches the inner store; the hand may
perform it, fail it, do it later or twice. It repeats nothing itself: `single` is the store itself, and waits are of
no length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from ckpt_remote.store import Policy, Retrying, Store
from ckpt_remote.store.interface import PutMode

__all__ = ["Asked", "Hand", "Watched", "repeated"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: the store's method, the keys it names (of a listing, the prefix), and a put's condition."""

    verb: str
    keys: tuple[str, ...] = ()
    mode: PutMode | None = None

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.verb in {"put", "delete", "remove"}

    def __str__(self) -> str:
        return f"{self.verb} {' '.join(self.keys)}"


Hand: TypeAlias = Callable[[Asked, Callable[[], Any]], Any]
"""Given a request and what performs it; returns the answer."""


class Watched(Store):
    """`inner`, through a hand.

    Args:
        inner: The store that does the work, once for each request.
        hand: Sees each request first.
    """

    def __init__(self, inner: Store, hand: Hand) -> None:
        self.url = inner.url
        self.engine = f"watched {inner.engine}"
        self._inner = inner.single
        self._hand = hand

    def read(self, key: str) -> Any:
        return self._hand(Asked("read", (key,)), partial(self._inner.read, key))

    def read_range(self, key: str, start: int, length: int) -> Any:
        return self._hand(Asked("read_range", (key,)), partial(self._inner.read_range, key, start, length))

    def size(self, key: str) -> Any:
        return self._hand(Asked("size", (key,)), partial(self._inner.size, key))

    def put(self, key: str, buffers: Sequence[Any], mode: PutMode) -> Any:
        return self._hand(Asked("put", (key,), mode), partial(self._inner.put, key, buffers, mode))

    def list(self, prefix: str = "") -> Iterator[Any]:
        yield from self._hand(Asked("list", (prefix,)), lambda: tuple(self._inner.list(prefix)))

    def delete(self, keys: Sequence[str]) -> Any:
        return self._hand(Asked("delete", tuple(keys)), partial(self._inner.delete, tuple(keys)))

    def remove(self, key: str, version: Any) -> Any:
        return self._hand(Asked("remove", (key,), version), partial(self._inner.remove, key, version))

    def require_container(self) -> Any:
        return self._hand(Asked("require_container"), self._inner.require_container)

    def close(self) -> None:
        self._inner.close()


def repeated(inner: Store, hand: Hand, *, attempts: int = 6) -> Store:
    """`inner`, through a hand, and as `open_store` would hand it out: with safe requests repeated so often."""
    return Retrying(Watched(inner, hand), Policy(attempts=attempts, first_delay=0.0, longest_delay=0.0))
