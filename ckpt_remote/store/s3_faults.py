"""What the failures of S3 and of AWS's clients mean: statuses, S3's error codes, exceptions of botocore and s3fs.

Promises: decided by status, code and class. What may pass is told from what will not, whatever status S3 gives
it: it answers 400 to a body that did not arrive in time. It sends nothing.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from ckpt_remote import errors
from ckpt_remote.store import faults

__all__ = ["CREDENTIALS", "EXPIRED", "FAILURES", "answer_of", "from_code", "translate"]

FAILURES: tuple[type[Exception], ...] = (
    boto.BotoCoreError,
    boto.ClientError,
    ResponseParserError,
    OSError,
    asyncio.TimeoutError,
)
"""What a request may raise, s3fs's translations and broken connections included."""

EXPIRED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidTokenId",
        "RequestExpired",
        "TokenRefreshRequired",
    }
)
"""Codes for credentials that have ended or were replaced: others may do."""

CREDENTIALS = EXPIRED | {"RequestTimeTooSkewed", "SignatureDoesNotMatch"}
"""Codes for credentials that do not do."""

_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
_UNCONNECTED = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_UNREACHED = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
    OSError,
    asyncio.TimeoutError,
)


def translate(error: Exception, request: faults.Request) -> errors.CheckpointError:
    """What `error` means to the caller. Raise it `from` the error."""
    status, code = answer_of(error)
    if status:
        metadata = _response_of(error).get("ResponseMetadata", {})
        return from_code(request, status, code, faults.retry_after(metadata.get("HTTPHeaders", {})))
    if isinstance(error, _NO_CREDENTIALS):
        return errors.StoreError(
            f"Cannot {request.verb} {request.url}: {error}. Give key and secret in storage_options, set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`.",
            path=request.url,
        )
    if isinstance(error, _UNCONNECTED):
        return faults.unreachable(request, f"no connection could be made ({type(error).__name__})")
    # A failed handshake is no passing trouble.
    if isinstance(error, _UNREACHED) and not isinstance(error, boto.SSLError):
        return faults.unreachable(request, f"the store could not be reached ({type(error).__name__})")
    return errors.StoreError(
        f"Cannot {request.verb} {request.url}: the AWS client gave up ({type(error).__name__}: {error}). "
        f"Check the storage_options and the AWS configuration.",
        path=request.url,
    )


def from_code(
    request: faults.Request, status: int, code: str, retry_after: float | None = None
) -> errors.CheckpointError:
    """As `faults.from_status`, where S3's code says more than the status."""
    if code == "NoSuchBucket":
        return faults.not_found(request, "the bucket does not exist")
    if code in EXPIRED:
        return faults.expired(request, f"HTTP {status} {code}")
    if code in CREDENTIALS:
        return faults.refused(request, f"HTTP {status} {code}")
    if code in _PASSING_CODES:
        return faults.unreachable(request, f"the store answered HTTP {status} {code}", retry_after)
    return faults.from_status(request, status, code, retry_after)


def answer_of(error: BaseException | None) -> tuple[int, str]:
    """The HTTP status and S3's code behind `error`; 0 where the server did not answer."""
    response = _response_of(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(response.get("Error", {}).get("Code", ""))
    return int(status), "" if code.isdigit() else code


def _response_of(error: BaseException | None) -> Mapping[str, Any]:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return response
        error = error.__cause__
    return {}
