"""obstore for Azure, alone: there is no second client, so obstore answers everything.

Promises: those of every engine, but for two that obstore cannot keep: a version is removed after a look at it, since
it has no conditional delete; and where a name in the directory has an empty or dot segment, the directory cannot be
listed.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import obstore as client
from obstore import exceptions

from ckpt_remote import errors, parallel
from ckpt_remote.buffers import Buffer
from ckpt_remote.store import azure, azure_options, faults, interface, obstore, urls

__all__ = ["ObstoreAzureStore"]

_DELETIONS = 16  # at a time
_NEVER = {"e_tag": '"0x0"'}
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


class ObstoreAzureStore(obstore.ObstoreStore[azure.Account]):
    """A directory of a container."""

    _instead: ClassVar[str] = ""

    def __init__(self, location: urls.BucketUrl, options: azure_options.AzureOptions, engine: str) -> None:
        super().__init__(location, engine, options.patience)
        self._options = options
        self._container = location.bucket.partition("@")[0]

    def size(self, key: str) -> int:
        """As `Store.size`."""
        size: int = self._look(key)["size"]
        return size

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`."""
        return self._put(key, buffers, mode, {"e_tag": mode.token} if isinstance(mode, interface.Version) else mode)

    def list(self, prefix: str = "") -> Iterator[interface.ObjectInfo]:
        """As `Store.list`. The listing is complete before its first entry is handed out."""
        start = self._location.root + prefix
        folder = start.rpartition("/")[0] or None  # obstore knows prefixes as folders only
        found = self._send(
            lambda failure: self._meaning(failure, "list", "", self._refusal), self._reader(obstore.READ), _list, folder
        )
        for meta in found:
            if meta["path"].startswith(start):
                yield interface.ObjectInfo(meta["path"][len(self._location.root) :], meta["size"])

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`, one request for each key."""
        tasks = [functools.partial(self._delete, key) for key in [interface.check_key(key) for key in keys]]
        outcomes = dict(zip(keys, parallel.run_all(tasks, threads=_DELETIONS, name="ckpt_remote-delete"), strict=True))
        failures = {key: failure for key, failure in outcomes.items() if failure is not None}
        absent = [key for key, failure in failures.items() if isinstance(failure, errors.NotFoundError)]
        if absent:
            try:
                self.require_container()
            except errors.CheckpointError as error:
                return failures | dict.fromkeys(absent, error)
        return {key: failure for key, failure in failures.items() if key not in absent}

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`: a look, then a delete."""
        try:
            if self._version(self._look(key), key) != version:
                raise faults.conflict(self._request("delete", key))
        except errors.NotFoundError:
            return False
        failure = self._delete(key)
        if failure is not None and not isinstance(failure, errors.NotFoundError):
            raise failure
        return False

    def require_container(self) -> None:
        """As `Store.require_container`, by a write that can never happen.

        obstore has a class for "there is no such container" only when it writes.
        """
        failure = self._probe()
        if isinstance(failure, errors.NotFoundError) or getattr(failure, "transient", False):
            raise failure

    def _connect(self) -> azure.Account:
        return azure.connect(self._options, self._container)

    def _path(self, key: str) -> str:
        if "\\" in key:
            raise ValueError(f"{key!r} is no object key on Azure, which takes a backslash for a slash.")
        return super()._path(key)

    def _open(self, seconds: float, silence: float | None) -> Any:
        return self._account.open(seconds, silence)

    def _request(self, verb: str, key: str = "") -> faults.Request:
        endpoint = urls.shown(self._options.endpoint)
        return faults.Request(verb, self.url_of(key) if key else self.url, self._account.source, endpoint)

    def _version(self, meta: Mapping[str, Any], key: str) -> interface.Version:
        if not meta["e_tag"]:
            raise errors.UnsupportedError(
                f"The store gives {self.url_of(key)} no ETag, without which no safe write is possible. "
                f"Use a store with conditional writes.",
                path=self.url_of(key),
            )
        return interface.Version(meta["e_tag"])

    def _meaning(self, failure: Exception, verb: str, key: str, look: obstore.Look | None = None) -> Exception:
        if isinstance(failure, exceptions.InvalidPathError):
            return errors.StoreError(
                f"Cannot {verb} {self.url}: a name in it has an empty or a dot segment, which obstore cannot read. "
                f"Remove it with another tool.",
                path=self.url,
            )
        return super()._meaning(failure, verb, key, look)

    def _trouble(self) -> faults.Meaning | None:
        """Whether the container is missing; everything else may pass, as far as obstore tells."""
        failure = self._probe()
        if isinstance(failure, errors.NotFoundError):
            return functools.partial(faults.not_found, what=self._no_container)
        return faults.about(failure) if faults.is_passing(failure) else None

    def _refusal(self, request: faults.Request) -> errors.CheckpointError | None:
        """A listing that is refused has no class: whether a write is refused as well."""
        failure = self._probe()
        final = isinstance(failure, errors.StoreError) and not failure.transient
        return faults.refused(request, "so are writes") if final else None

    def _probe(self) -> errors.CheckpointError:
        """How a write that can never happen fails: a conflict if all is well."""
        path = f"{self._location.root}_ckpt_remote/never"
        try:
            self._send(self._answer, self._writer(0), client.put, path, b"", mode=_NEVER, use_multipart=False)
        except errors.CheckpointError as error:
            return error
        return faults.unreachable(self._request("open"), "the store ignores conditions")

    def _answer(self, failure: Exception) -> Exception:
        request = self._request("open")
        if isinstance(failure, FileNotFoundError):
            return faults.not_found(request, self._no_container)
        if isinstance(failure, exceptions.PreconditionError):
            return faults.conflict(request)
        if isinstance(failure, _REFUSED):
            return faults.refused(request, type(failure).__name__)
        if isinstance(failure, TimeoutError):
            return faults.unreachable(request, str(failure))
        word = self._account.unconnected()
        cause = f"no connection could be made ({word})" if word else "the store fails, and obstore does not tell how"
        return faults.unreachable(request, cause)

    @property
    def _no_container(self) -> str:
        return f"there is no container {self._container!r}"

    def _look(self, key: str) -> Mapping[str, Any]:
        path = self._path(key)
        meta: Mapping[str, Any] = self._send(
            lambda failure: self._meaning(failure, "look up", key), self._reader(0), client.head, path
        )
        return meta

    def _delete(self, key: str) -> errors.CheckpointError | None:
        try:
            self._send(
                lambda failure: self._meaning(failure, "delete", key), self._writer(0), client.delete, self._path(key)
            )
        except errors.CheckpointError as error:
            return error
        return None


def _list(store: Any, folder: str | None) -> list[Mapping[str, Any]]:
    return [meta for page in client.list(store, prefix=folder) for meta in page]
