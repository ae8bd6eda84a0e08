"""What a store's refusal means to the caller: HTTP statuses as the library's errors.

Promises: one wording and one class for each cause, whichever client reported it; the object, the operation,
the cause and the next step are named; decided by status and exception class, never by text. It holds no
credential, only the name of the place they came from.
"""

import datetime as dt
import email.utils
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias, TypeGuard

from ckpt_remote import errors

__all__ = [
    "ANONYMOUS",
    "ExpiredError",
    "Meaning",
    "Request",
    "about",
    "conflict",
    "corrupt",
    "expired",
    "from_status",
    "is_passing",
    "not_found",
    "refused",
    "retry_after",
    "unreachable",
]

_TRANSIENT = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_LONGEST_WISH = 3600.0

ANONYMOUS = "none (anonymous)"
"""The source of credentials where requests carry none."""


class ExpiredError(errors.StoreError):
    """The credentials have ended: a refusal that others, fetched anew, may be spared. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of the store, for messages.

    Args:
        verb: The operation, as in "cannot `verb` the object".
        url: The object or directory.
        credentials: Where the credentials came from; `ANONYMOUS`, or empty where the store knows none.
        endpoint: Where requests go, as far as it is known.
    """

    verb: str
    url: str
    credentials: str = ""
    endpoint: str = ""


Meaning: TypeAlias = Callable[[Request], errors.CheckpointError]
"""What a trouble of the store, which is none of one object, means for whoever asked it something."""


def not_found(request: Request, what: str = "there is no such object") -> errors.NotFoundError:
    """Nothing is there."""
    return errors.NotFoundError(f"Cannot {request.verb} {request.url}: {what}. Check the URL.", path=request.url)


def conflict(request: Request) -> errors.ConflictError:
    """The store's precondition failed."""
    return errors.ConflictError(
        f"Cannot {request.verb} {request.url}: it is not in the state that the write required, so another "
        f"writer was first. Read it again before you decide.",
        path=request.url,
    )


def corrupt(request: Request, start: int, length: int, size: int) -> errors.CorruptError:
    """The object is shorter than it should be."""
    return errors.CorruptError(
        f"Cannot {request.verb} {request.url}: it ends after {size} bytes, before byte {start + length} "
        f"(range of {length} from {start}). It was truncated or belongs to another save: fall back to an "
        f"older checkpoint.",
        path=request.url,
    )


def refused(request: Request, cause: str) -> errors.StoreError:
    """Credentials or permissions do not suffice; asking again will not help."""
    return errors.StoreError(_refusal(request, cause), path=request.url)


def expired(request: Request, cause: str) -> errors.StoreError:
    """The credentials were good once; asking again with the same ones will not help. As `refused` if there are none."""
    if request.credentials == ANONYMOUS:
        return refused(request, cause)
    return ExpiredError(_refusal(request, cause), path=request.url)


def unreachable(request: Request, cause: str, retry_after: float | None = None) -> errors.StoreError:
    """No answer, a broken one, or "later": the same request may pass if it is sent again."""
    endpoint = f"endpoint {request.endpoint}".strip()
    return errors.StoreError(
        f"Cannot {request.verb} {request.url}: {cause}. Check the {endpoint} and the network if this persists.",
        path=request.url,
        transient=True,
        retry_after=retry_after,
        cause=cause,
    )


def is_passing(error: Exception | None) -> TypeGuard[errors.StoreError]:
    """Whether the same request may pass later unchanged."""
    return isinstance(error, errors.StoreError) and error.transient


def about(trouble: errors.StoreError) -> Meaning:
    """What a passing trouble means for another request."""
    return lambda request: unreachable(request, trouble.cause, trouble.retry_after)


def from_status(
    request: Request, status: int, code: str = "", retry_after: float | None = None
) -> errors.CheckpointError:
    """The error for an HTTP status.

    Args:
        request: What was asked.
        status: The status.
        code: The service's own word for it, for the message.
        retry_after: Seconds that the service asks to be left alone, if it does.
    """
    answer = f"HTTP {status} {code}".strip()
    if status == HTTPStatus.NOT_FOUND:
        return not_found(request)
    if status == HTTPStatus.PRECONDITION_FAILED:
        return conflict(request)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return refused(request, answer)
    if status in _TRANSIENT:
        return unreachable(request, f"the store answered {answer}", retry_after)
    if status == HTTPStatus.INSUFFICIENT_STORAGE:
        return errors.StoreError(
            f"Cannot {request.verb} {request.url}: the store or its quota is full ({answer}). Make room or raise the "
            f"quota, then try again.",
            path=request.url,
        )
    return errors.StoreError(
        f"Cannot {request.verb} {request.url}: the store answered {answer}. Check the credentials, the region, "
        f"the endpoint and the storage_options.",
        path=request.url,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds an answer asks to be left alone: from 0 to an hour, None if it does not ask.

    A date is compared with the answer's own `Date`, so that the clocks need not agree.

    Args:
        headers: The answer's, named in lower case.
    """
    wish = headers.get("retry-after", "")
    try:
        seconds = float(wish)
    except ValueError:
        until = _moment(wish)
        now = _moment(headers.get("date", "")) or dt.datetime.now(dt.timezone.utc)
        seconds = (until - now).total_seconds() if until else math.nan
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_WISH)


def _refusal(request: Request, cause: str) -> str:
    if request.credentials == ANONYMOUS:
        advice = "No credentials were used: give some in storage_options, or check that this is open to everybody."
    elif request.credentials:
        advice = (
            f"Credentials used: {request.credentials}. Check that they are valid here, not expired, and allowed to do "
            f"this."
        )
    else:
        advice = "Check the permissions."
    return f"Cannot {request.verb} {request.url}: access was refused ({cause}). {advice}"


def _moment(date: str) -> dt.datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
