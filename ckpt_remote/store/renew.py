"""Begin again when credentials end: a store whose engine is made anew, with credentials fetched anew.

Promises: a request that was refused because its credentials had ended is sent once more with newer ones, a
conditional one too, because a refused request changed nothing; if that is refused as well, the error says so.
However many threads are refused at once, the credentials are fetched once. It does not foresee the end: the
clients do, as far as their source tells it.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ckpt_remote import errors, progress
from ckpt_remote.buffers import Buffer
from ckpt_remote.store import faults, interface

__all__ = ["Renewing"]

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Renewing(interface.Store):
    """`inner`, replaced by what `renew` makes when its credentials have ended."""

    def __init__(self, inner: interface.Store, renew: Callable[[], interface.Store]) -> None:
        self.url = inner.url
        self.engine = inner.engine
        self._inner = inner
        self._renew = renew
        self._lock = threading.Lock()

    def read(self, key: str) -> interface.Object:
        """As the inner store's."""
        return self._send(lambda store: store.read(key))

    def read_range(self, key: str, start: int, length: int) -> Buffer:
        """As the inner store's."""
        return self._send(lambda store: store.read_range(key, start, length))

    def size(self, key: str) -> int:
        """As the inner store's."""
        return self._send(lambda store: store.size(key))

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As the inner store's."""
        return self._send(lambda store: store.put(key, buffers, mode))

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As the inner store's. The listing is complete before its first entry is handed out."""
        yield from self._send(lambda store: list(store.list(prefix)))

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As the inner store's."""
        store = self._inner
        failures = store.delete(keys)
        refused = [key for key, failure in failures.items() if isinstance(failure, faults.ExpiredError)]
        if not refused:
            return failures
        again = self._renewed(store, failures[refused[0]]).delete(refused)
        kept = {key: failure for key, failure in failures.items() if key not in refused}
        return kept | {key: _final(failure) for key, failure in again.items()}

    def remove(self, key: str, version: interface.Version) -> bool:
        """As the inner store's."""
        return self._send(lambda store: store.remove(key, version))

    def require_container(self) -> None:
        """As the inner store's."""
        self._send(lambda store: store.require_container())

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()

    def _send(self, request: Callable[[interface.Store], _T]) -> _T:
        store = self._inner
        try:
            return request(store)
        except faults.ExpiredError as error:
            refusal = error
        try:
            return request(self._renewed(store, refusal))
        except faults.ExpiredError as error:
            raise _final(error) from error

    def _renewed(self, stale: interface.Store, refusal: errors.CheckpointError) -> interface.Store:
        """The store to use after `stale` was refused: whoever is refused first makes it."""
        with self._lock:
            if self._inner is stale:
                _logger.info("Credentials are fetched anew: %s", refusal)
                progress.emit(progress.Repeated(error=str(refusal), failures=1, pause=0.0))
                self._inner = self._renew()  # what others still send through `stale` comes to its end there
            return self._inner


def _final(refusal: errors.CheckpointError) -> errors.CheckpointError:
    if not isinstance(refusal, faults.ExpiredError):
        return refusal
    return errors.StoreError(f"{refusal} They were fetched anew after a first refusal.", path=refusal.path)
