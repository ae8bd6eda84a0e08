"""Requests of the S3 API that both engines share, and what its errors mean.

Promises: exact keys (prefixes are compared as text, keys are never rewritten), every page of a listing, every
failure of a bulk delete; errors decided by status and by S3's error code. The requests go out through a
function of the engine: boto3 beside obstore, s3fs's own client in the other. Nothing is retried here.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from botocore import exceptions as boto

from ckpt_remote import errors
from ckpt_remote.store import faults, interface

__all__ = ["FAILURES", "Bucket", "answer_of", "translate", "unquoted"]

FAILURES: tuple[type[Exception], ...] = (boto.BotoCoreError, boto.ClientError, OSError, asyncio.TimeoutError)
"""What a request may raise, s3fs's translations and broken connections included."""

_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
_PASSING = (boto.ConnectionError, boto.HTTPClientError, OSError, asyncio.TimeoutError)
_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})
_FORBIDDEN, _NOT_FOUND = HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND
_BULK = 1000
# How services answer a condition on a delete that they do not know.
_NO_CONDITION = frozenset({400, 501})
# Some S3-compatible services have no bulk delete: they answer as to an unknown method or a malformed request.
_NO_BULK = frozenset({400, 404, 405, 411, 501})


@dataclass(frozen=True, slots=True)
class Bucket:
    """A directory of a bucket.

    Args:
        name: The bucket.
        root: What every key of the directory begins with in the bucket: empty, or ending with a slash.
        url: The directory's URL.
        call: Sends one request: boto3's operation name and parameters, boto3's response.
        credentials: Where the credentials come from, for messages.
    """

    name: str
    root: str
    url: str
    call: Callable[..., Mapping[str, Any]]
    credentials: str

    def url_of(self, key: str) -> str:
        """The object's URL."""
        return f"{self.url}/{key}" if key else self.url

    def request(self, verb: str, key: str = "") -> faults.Request:
        """How messages speak of an operation on `key`, or on the directory."""
        return faults.Request(verb, self.url_of(key), self.credentials)

    def size(self, key: str) -> int:
        """As `Store.size`."""
        size: int = self.send("look up", key, "head_object", Key=self.root + key)["ContentLength"]
        return size

    def list(self, prefix: str) -> Iterator[interface.ObjectInfo]:
        """As `Store.list`, page by page."""
        token: dict[str, str] = {}
        while True:
            page = self.send("list", "", "list_objects_v2", Prefix=self.root + prefix, **token)
            for entry in page.get("Contents", ()):
                key = entry["Key"][len(self.root) :]
                if _is_key(key):
                    yield interface.ObjectInfo(key, entry["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        """As `Store.delete`."""
        failures: dict[str, errors.CheckpointError] = {}
        for start in range(0, len(keys), _BULK):
            failures.update(self._delete_page(keys[start : start + _BULK]))
        return failures

    def remove(self, key: str, version: interface.Version) -> None:
        """As `Store.remove`."""
        try:
            self.send("delete", key, "delete_object", Key=self.root + key, IfMatch=version.token)
        except errors.NotFoundError:
            return
        except errors.StoreError as error:
            if answer_of(error)[0] not in _NO_CONDITION:
                raise
            refusal: errors.CheckpointError = error
        except errors.ConflictError as error:
            refusal = error
        else:
            return
        if (current := self.version(key)) is None:
            return
        if current != version:
            raise faults.conflict(self.request("delete", key)) from refusal
        if isinstance(refusal, errors.ConflictError):  # refused what it has: it takes ETags without quotes only
            self.send("delete", key, "delete_object", Key=self.root + key, IfMatch=unquoted(version))
        else:
            self.send("delete", key, "delete_object", Key=self.root + key)

    def version(self, key: str) -> interface.Version | None:
        """The object's current version; None where there is none."""
        try:
            return interface.Version(self.send("look up", key, "head_object", Key=self.root + key)["ETag"])
        except errors.NotFoundError:
            return None

    def require(self) -> None:
        """As `Store.require_container`."""
        try:
            self.call("head_bucket", Bucket=self.name)
        except FAILURES as error:
            status, _ = answer_of(error)
            if status == _FORBIDDEN:  # permission to list is withheld; the bucket may exist
                return
            if status == _NOT_FOUND:
                raise faults.not_found(self.request("open"), f"there is no bucket {self.name!r}") from error
            raise translate(error, self.request("open")) from error

    def explain(self, request: faults.Request) -> errors.CheckpointError | None:
        """Why a request failed, if asking again is useless; None if it may pass, or if this cannot tell."""
        try:
            self.call("head_bucket", Bucket=self.name)
        except FAILURES as error:
            meaning = translate(error, request)
            if answer_of(error)[0] == _FORBIDDEN or getattr(meaning, "transient", False):
                return None
        else:
            return None
        try:  # a HEAD has no body, so no word for what is wrong
            self.call("list_objects_v2", Bucket=self.name, Prefix=self.root, MaxKeys=1)
        except FAILURES as error:
            return translate(error, request)
        return meaning

    def send(self, verb: str, key: str, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """One request about `key`, with its failure translated."""
        try:
            return self.call(operation, Bucket=self.name, **parameters)
        except FAILURES as error:
            raise translate(error, self.request(verb, key)) from error

    def _delete_page(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        named = {self.root + key: key for key in keys}
        try:
            response = self.call(
                "delete_objects",
                Bucket=self.name,
                Delete={"Objects": [{"Key": name} for name in named], "Quiet": True},
            )
        except FAILURES as error:
            status, code = answer_of(error)
            if status in _NO_BULK and code != "NoSuchBucket":
                return self._delete_singly(keys)
            return {key: translate(error, self.request("delete", key)) for key in keys}
        return {
            named[failure["Key"]]: _deletion_failure(
                failure.get("Code", ""), self.request("delete", named[failure["Key"]])
            )
            for failure in response.get("Errors", ())
            if failure.get("Code") not in _GONE
        }

    def _delete_singly(self, keys: Sequence[str]) -> dict[str, errors.CheckpointError]:
        outcomes = {key: self._delete(key) for key in keys}
        return {key: failure for key, failure in outcomes.items() if failure is not None}

    def _delete(self, key: str) -> errors.CheckpointError | None:
        try:
            self.send("delete", key, "delete_object", Key=self.root + key)
        except errors.NotFoundError:
            return None
        except errors.CheckpointError as error:
            return error
        return None


def unquoted(version: interface.Version) -> str:
    """The ETag as some services want it in conditions: Ceph's gateway up to 16 refuses its own ETags in quotes."""
    return version.token.strip('"')


def translate(error: Exception, request: faults.Request) -> errors.CheckpointError:
    """What `error` means to the caller. Raise it `from` the error."""
    status, code = answer_of(error)
    if code == "NoSuchBucket":
        return faults.not_found(request, "the bucket does not exist")
    if code in _CREDENTIALS:
        return faults.refused(request, f"HTTP {status} {code}")
    if status:
        return faults.from_status(request, status, code)
    if isinstance(error, _NO_CREDENTIALS):
        return errors.StoreError(
            f"Cannot {request.verb} {request.url}: {error}. Give key and secret in storage_options, set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`.",
            path=request.url,
        )
    # A failed handshake is no passing trouble.
    if isinstance(error, _PASSING) and not isinstance(error, boto.SSLError):
        return faults.unreachable(request, f"the store could not be reached ({type(error).__name__})")
    return errors.StoreError(
        f"Cannot {request.verb} {request.url}: the AWS client gave up ({type(error).__name__}: {error}). "
        f"Check the storage_options and the AWS configuration.",
        path=request.url,
    )


def answer_of(error: BaseException | None) -> tuple[int, str]:
    """The HTTP status and S3's code behind `error`; 0 where the server did not answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(response.get("Error", {}).get("Code", ""))
            return int(status), "" if code.isdigit() else code
        error = error.__cause__
    return 0, ""


_DELETION_STATUS = {"AccessDenied": 403, "InternalError": 500, "ServiceUnavailable": 503, "SlowDown": 503}


def _deletion_failure(code: str, request: faults.Request) -> errors.CheckpointError:
    """One key's failure inside a bulk delete that succeeded: there is a code, but no status."""
    return faults.from_status(request, _DELETION_STATUS.get(code, 400), code)


def _is_key(name: str) -> bool:
    try:
        interface.check_key(name)
    except ValueError:
        return False
    return True
