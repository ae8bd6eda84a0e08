"""obstore for S3: it moves the bytes, boto3 answers what obstore cannot say exactly.

Promises: account, region and endpoint are boto3's (see `aws`); sizes, listings and deletions are boto3's
(see `s3`), since obstore fails on keys it would not write itself and needs bulk deletes that not every
service has.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ckpt_remote import errors
from ckpt_remote.buffers import Buffer, total_size
from ckpt_remote.store import aws, bucket, faults, interface, obstore, options, s3, urls

__all__ = ["ObstoreS3Store"]


class ObstoreS3Store(bucket.BucketStore, obstore.ObstoreStore[aws.Account]):
    """A directory of an S3 bucket."""

    _instead: ClassVar[str] = ", or hand in filesystem=s3fs.S3FileSystem(...)"

    def __init__(self, location: urls.BucketUrl, parsed: options.S3Options, engine: str) -> None:
        super().__init__(location, engine, parsed.config.get("read_timeout"))
        self._options = parsed

    def put(self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode) -> interface.Version:
        """As `Store.put`."""
        if not isinstance(mode, interface.Version):
            return self._put_verified(key, buffers, mode, mode)
        return self._bucket.replace(key, mode, lambda etag: self._put_verified(key, buffers, mode, {"e_tag": etag}))

    def _connect(self) -> aws.Account:
        return aws.connect(self._options, self._location.bucket, faults.Request("open", self.url))

    @functools.cached_property
    def _bucket(self) -> s3.Bucket:
        account = self._account
        payer = {"RequestPayer": "requester"} if self._options.requester_pays else {}

        def call(operation: str, **parameters: Any) -> Any:
            self._require_home()
            paid = payer if operation != "head_bucket" else {}
            return getattr(account.client, operation)(**parameters, **paid)

        return s3.Bucket(
            self._location.bucket, self._location.root, self.url, call, account.source, urls.shown(account.endpoint)
        )

    def _open(self, seconds: float, silence: float | None) -> Any:
        return self._account.open(seconds, silence)

    def _put_verified(
        self, key: str, buffers: Sequence[Buffer], mode: interface.PutMode, condition: Any
    ) -> interface.Version:
        storage_class = self._options.extra.get("StorageClass")
        attributes = {"Storage-Class": storage_class} if storage_class else None
        version = self._put(key, buffers, mode, condition, attributes)
        if self._options.consistency in ("size", "checksum"):
            self._bucket.verify(key, version, total_size(buffers), created=mode == "create")
        return version

    def _request(self, verb: str, key: str = "") -> faults.Request:
        return self._bucket.request(verb, key)

    def _version(self, meta: Mapping[str, Any], key: str) -> interface.Version:
        return s3.version_of(meta["e_tag"], self._request("use", key))

    def _refused(self, request: faults.Request, code: str, failure: Exception) -> errors.CheckpointError:
        """boto3 knows whether it is the end of the credentials, or a permission."""
        if self._options.renewable and self._bucket.expired():
            return faults.expired(request, code)
        return super()._refused(request, code, failure)

    def _trouble(self) -> faults.Meaning | None:
        return self._bucket.trouble()
