"""Requests of the S3 API that both engines share.

Promises: exact keys (prefixes are compared as text, keys are never rewritten), every page of a listing, every
failure of a bulk delete. The requests go out through a function of the engine: boto3 beside obstore, s3fs's
own client in the other. Nothing is retried here; what failures mean is told by `s3_faults`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from ckpt_remote import errors
from ckpt_remote.store import faults, interface
from ckpt_remote.store.s3_faults import CREDENTIALS, EXPIRED, FAILURES, answer_of, from_code, translate

__all__ = ["Bucket", "Learnt", "version_of"]

_GONE = frozenset({"NoSuchKey", "NoSuchVersion"})
_FORBIDDEN, _NOT_FOUND = HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND
_WORDED = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, _FORBIDDEN})
_BULK = 1000
# How services answer a condition on a delete that they do not know.
_NO_CONDITION = frozenset({400, 501})
# Some S3-compatible services have no bulk delete: they answer as to an unknown method or a malformed request.
_NO_BULK = frozenset({400, 404, 405, 411, 501})


@dataclass(slots=True)
class Learnt:
    """What a service's answers have told about it.

    Attributes:
        unquoted: It takes ETags in conditions only without their quotes, as Ceph's gateway does up to 16.
    """

    unquoted: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """A directory of a bucket.

    Args:
        name: The bucket.
        root: What every key of the directory begins with in the bucket: empty, or ending with a slash.
        url: The directory's URL.
        call: Sends one request: boto3's operation name and parameters, boto3's response.
        credentials: Where the credentials come from, for messages.
        endpoint: Where requests go, for messages.
        learnt: What the service's answers have told about it.
    """

    name: str
    root: str
    url: str
    call: Callable[..., Mapping[str, Any]]
    credentials: str
    endpoint: str
    learnt: Learnt = field(default_factory=Learnt)

    def url_of(self, key: str) -> str:
        """The object's URL."""
        return f"{self.url}/{key}" if key else self.url

    def request(self, verb: str, key: str = "") -> faults.Request:
        """How messages speak of an operation on `key`, or on the directory."""
        return faults.Request(verb, self.url_of(key), self.credentials, self.endpoint)

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

    def remove(self, key: str, version: interface.Version) -> bool:
        """As `Store.remove`."""
        # The services that want ETags without quotes ignore them on a delete.
        if self.learnt.unquoted and not self._is_still(key, version):
            return False
        try:
            self.send("delete", key, "delete_object", Key=self.root + key, IfMatch=version.token)
        except errors.NotFoundError:
            return not self.learnt.unquoted
        except errors.StoreError as error:
            if answer_of(error)[0] not in _NO_CONDITION or _is_cause(error):
                raise
            refusal: errors.CheckpointError = error
        except errors.ConflictError as error:
            refusal = error
        else:
            return not self.learnt.unquoted
        if not self._is_still(key, version):
            return False
        if isinstance(refusal, errors.ConflictError):  # refused what it has: it takes ETags without quotes only
            self.send("delete", key, "delete_object", Key=self.root + key, IfMatch=_unquoted(version.token))
        else:
            self.send("delete", key, "delete_object", Key=self.root + key)
        return False

    def replace(
        self, key: str, version: interface.Version, put: Callable[[str], interface.Version]
    ) -> interface.Version:
        """A put over exactly `version`; `put` is given the ETag as the service takes it in a condition.

        Raises:
            ConflictError: The object is not that version.
        """
        if not self.learnt.unquoted:
            try:
                return put(version.token)
            except errors.ConflictError:
                if self.version(key) != version:
                    raise
        replaced = put(_unquoted(version.token))
        self.learnt.unquoted = True
        return replaced

    def _is_still(self, key: str, version: interface.Version) -> bool:
        """Whether the object is this version; False if there is none.

        Raises:
            ConflictError: It is another version.
        """
        current = self.version(key)
        if current not in (None, version):
            raise faults.conflict(self.request("delete", key))
        return current is not None

    def version(self, key: str) -> interface.Version | None:
        """The object's current version; None where there is none."""
        try:
            found = self.send("look up", key, "head_object", Key=self.root + key)
        except errors.NotFoundError:
            return None
        return version_of(found.get("ETag"), self.request("look up", key))

    def require(self) -> None:
        """As `Store.require_container`."""
        try:
            self.call("head_bucket", Bucket=self.name)
        except FAILURES as error:
            status, _ = answer_of(error)
            if status == _NOT_FOUND:
                raise faults.not_found(self.request("open"), f"there is no bucket {self.name!r}") from error
            meaning = self._meaning(error, self.request("open"))
            # Permission to list may be withheld; the bucket may exist.
            if status != _FORBIDDEN or isinstance(meaning, faults.ExpiredError):
                raise meaning from error

    def trouble(self) -> faults.Meaning | None:
        """What is wrong with the bucket or the account, by the answer to a question; None if that tells nothing."""
        try:
            self.call("head_bucket", Bucket=self.name)
        except FAILURES as error:
            status, _ = answer_of(error)
            if status == _NOT_FOUND:
                return functools.partial(faults.not_found, what=f"there is no bucket {self.name!r}")
            told = self._told(error)
            return None if status == _FORBIDDEN and told is error else functools.partial(translate, told)
        return None

    def expired(self) -> bool:
        """Whether the store says, when asked, that the credentials have ended."""
        try:
            self.call("list_objects_v2", Bucket=self.name, Prefix=self.root, MaxKeys=1)
        except FAILURES as error:
            return answer_of(error)[1] in EXPIRED
        return False

    def verify(self, key: str, version: interface.Version, size: int, *, created: bool, **checksum: str) -> None:
        """Pass if the store reports what was sent, or if `key` is another version by now, which is another's to check.

        Args:
            key: What was put.
            version: The version that the put brought.
            size: How many bytes were sent.
            created: Whether the put created the object. Then it is of no use if it is damaged, and is removed: left
                there, it would pass for what was to be created.
            checksum: What else was sent, by S3's names; compared if the store reports it.

        Raises:
            StoreError: The store reports something else, or nothing. Transient.
        """
        request = self.request("write", key)
        mode = {"ChecksumMode": "ENABLED"} if checksum else {}  # needs one more permission where KMS encrypts
        try:
            found = self.send("look up", key, "head_object", Key=self.root + key, **mode)
        except errors.CheckpointError as error:  # not as it is: it would speak of a write that was refused
            raise faults.unreachable(request, f"it was accepted, but cannot be verified ({error})") from error
        if _unquoted(found.get("ETag", version.token)) != _unquoted(version.token):
            return
        for name, sent in {"ContentLength": size, **checksum}.items():
            if (reported := found.get(name, sent)) != sent:
                if created:
                    with contextlib.suppress(errors.CheckpointError):
                        self.remove(key, version)
                raise faults.unreachable(request, f"{name} {sent} was sent and accepted, and {reported} is reported")

    def send(self, verb: str, key: str, operation: str, **parameters: Any) -> Mapping[str, Any]:
        """One request about `key`, with its failure translated."""
        try:
            return self.call(operation, Bucket=self.name, **parameters)
        except FAILURES as error:
            raise self._meaning(error, self.request(verb, key)) from error

    def _meaning(self, error: Exception, request: faults.Request) -> errors.CheckpointError:
        return translate(self._told(error), request)

    def _told(self, error: Exception) -> Exception:
        """What tells more than `error`: a HEAD is refused without a word for the cause, another request hears it."""
        status, code = answer_of(error)
        if status in _WORDED and not code:
            try:
                self.call("list_objects_v2", Bucket=self.name, Prefix=self.root, MaxKeys=1)
            except FAILURES as told:
                cause = answer_of(told)[1]
                # Who may not read may not list either, for reasons of its own.
                if cause and (status != _FORBIDDEN or cause in CREDENTIALS):
                    return told
        return error

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
            if (
                status in _NO_BULK
                and code != "NoSuchBucket"
                and not _is_cause(translate(error, self.request("delete")))
            ):
                return self._delete_singly(keys)
            return {key: translate(error, self.request("delete", key)) for key in keys}
        failures: dict[str, errors.CheckpointError] = {}
        for failure in response.get("Errors", ()):
            code, key = failure.get("Code", ""), named.get(failure.get("Key", ""))
            if code not in _GONE:
                # Without a name that we know, it could be any of them.
                failures |= {it: self._deletion_failure(it, code) for it in ((key,) if key else keys)}
        return failures

    def _deletion_failure(self, key: str, code: str) -> errors.CheckpointError:
        """One key's failure inside a bulk delete that succeeded: there is a code, but no status."""
        status = _FORBIDDEN if code == "AccessDenied" else HTTPStatus.BAD_REQUEST
        return from_code(self.request("delete", key), status, code)

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


def version_of(etag: str | None, request: faults.Request) -> interface.Version:
    """The version that an answer names.

    Raises:
        StoreError: It names none. Transient: what is said may be an error with the status of a success.
    """
    if not etag:
        raise faults.unreachable(
            request,
            "the answer names no ETag, so either it hides an error, or the service has no versions, without which "
            "no write is safe",
        )
    return interface.Version(etag)


def _unquoted(etag: str) -> str:
    return etag.strip('"')


def _is_cause(refusal: errors.CheckpointError) -> bool:
    """Whether a status 400 is no word on the kind of request: it came too late, or with credentials that ended."""
    return isinstance(refusal, faults.ExpiredError) or getattr(refusal, "transient", False)


def _is_key(name: str) -> bool:
    try:
        interface.check_key(name)
    except ValueError:
        return False
    return True
