"""obstore for Google Cloud Storage: it moves the bytes, Google's JSON API answers what obstore cannot say exactly.

Promises: the account is gcsfs's (see `google`); sizes, listings and deletions are those of the JSON API (see `gcs`);
after an upload one look-up compares size and crc32c with what was sent, unless the user says otherwise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from obstore import exceptions

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer
from ckpt_remote.store import bucket, faults, gcs, google, interface, obstore, pace, urls

__all__ = ["ObstoreGcsStore"]


class ObstoreGcsStore(bucket.BucketStore, obstore.ObstoreStore[google.Account]):
    """A directory of a bucket.

    Args:
        location: The directory.
        connect: Finds the account; called at the first request.
        engine: As `Store.engine`.
        patience: Seconds that a request of no size may take; None for the default.
        consistency: How uploads are checked: `"none"`, `"size"`, or the checksum.
    """

    _instead: ClassVar[str] = ", or hand in filesystem=gcsfs.GCSFileSystem(...)"

    def __init__(
        self,
        location: urls.BucketUrl,
        connect: Callable[[faults.Request], google.Account],
        engine: str,
        patience: float | None = None,
        consistency: str | None = None,
    ) -> None:
        super().__init__(location, engine, patience)
        self._find = connect
        self._consistency = consistency

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`. It waits a second since the last write of the key."""
        url = self.url_of(key)
        if self._account.anonymous:  # obstore would ask the metadata server for a token all the same
            raise faults.refused(self._request("write", key), "there are no credentials")
        condition = {"version": mode.token} if isinstance(mode, interface.Version) else mode
        with pace.GOOGLE.turn(url):
            version = self._put(key, buffers, mode, condition, {"Cache-Control": gcs.NO_STORE})
        if self._consistency != "none":
            self._bucket.verify(key, version, buffers, mode, checksum=self._consistency != "size")
        return version

    def _connect(self) -> google.Account:
        return self._find(faults.Request("open", self.url))

    @functools.cached_property
    def _bucket(self) -> gcs.Bucket:
        account = self._account

        def send(query: gcs.Query) -> gcs.Answer:
            self._require_home()
            return account.send(query)

        return gcs.Bucket(
            self._location.bucket, self._location.root, self.url, send, account.source, urls.shown(account.endpoint)
        )

    def _open(self, seconds: float, silence: float | None) -> Any:
        return self._account.open(self._location.bucket, seconds, silence)

    def _request(self, verb: str, key: str = "") -> faults.Request:
        return self._bucket.request(verb, key)

    def _version(self, meta: Mapping[str, Any], key: str) -> interface.Version:
        return gcs.version_of(meta["version"], self._request("read", key))

    def _refused(self, request: faults.Request, code: str, failure: Exception) -> errors.CheckpointError:
        """Google answers 401 to a token that has ended, and 403 to one that does not suffice."""
        if isinstance(failure, exceptions.UnauthenticatedError):
            return faults.expired(request, code)
        return super()._refused(request, code, failure)

    def _trouble(self) -> faults.Meaning | None:
        return self._bucket.trouble()
