"""Google accounts and endpoints: google-auth decides, through gcsfs; both engines follow.

Promises: `token`, `project`, `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's configuration and the metadata server mean
what they mean to gcsfs; tokens are renewed before they expire; obstore never searches on its own. A request goes out
exactly once, unlike gcsfs's own calls, which repeat it up to six times.
"""

import contextlib
import datetime as dt
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import google.auth.exceptions as google_auth
import requests
import yarl
from fsspec import asyn
from gcsfs.core import GCSFileSystem
from google.auth.transport import mtls
from google.auth.transport.requests import Request as Transport
from obstore.store import GCSStore
from typing_extensions import Self

from ckpt_remote import errors
from ckpt_remote.buffers import byte_view
from ckpt_remote.store import deadline, faults, gcs, gcs_options

__all__ = ["Account", "adopt", "connect", "why_not_obstore"]

# obstore asks again once less than five minutes are left, so this makes it ask about once a minute: gcsfs then renews
# in time, five minutes or more before the end.
_TRUST = dt.timedelta(minutes=6)
_OBSTORES_OWN = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY")
_UNIVERSE = "googleapis.com"


@dataclass(frozen=True, slots=True)
class Account:
    """One user's way to Google Cloud Storage.

    Attributes:
        filesystem: gcsfs's filesystem, for its session, credentials and parameters; its own calls are not used.
        source: Where the credentials come from, for messages.
        patience: Seconds that a request of no size may take.
        owned: Whether the filesystem is ours to close.
    """

    filesystem: Any
    source: str
    patience: float = deadline.PATIENCE
    owned: bool = True

    @property
    def endpoint(self) -> str:
        """Where requests go, without a slash at the end."""
        endpoint: str = self.filesystem._location  # noqa: SLF001 - gcsfs's own precedence of option and environment
        return endpoint.rstrip("/")

    @property
    def anonymous(self) -> bool:
        """Whether requests carry no token."""
        return self.filesystem.credentials.credentials is None

    def send(self, query: gcs.Query) -> gcs.Answer:
        """One request, sent once."""
        authorization: dict[str, str] = {}
        self.filesystem.credentials.apply(authorization)  # renews what ends soon: here, not in the event loop
        try:
            loop = self.filesystem.loop
        except RuntimeError as error:
            raise errors.UnsupportedError(
                f"Cannot use the filesystem for {self.endpoint} here: this process was forked from the one that made "
                f"it, whose threads do not survive a fork. Make another one, or start workers with the 'spawn' method.",
            ) from error
        limit = self._limit(query)
        answer: gcs.Answer = asyn.sync(loop, _exchange, self.filesystem, self.endpoint, query, authorization, limit)
        return answer

    def renew(self) -> Self:
        """The same account with a new token, where it can have one, however long the old one says that it is good."""
        found = self.filesystem.credentials
        if found.credentials is not None:
            with contextlib.suppress(google_auth.GoogleAuthError), found.lock, requests.Session() as session:
                found.credentials.refresh(Transport(session))
        return self

    def open(self, bucket: str, seconds: float, silence: float | None) -> Any:
        """An obstore store.

        Args:
            bucket: The bucket.
            seconds: How long its requests may take from connecting to the last byte.
            silence: How long the server may send nothing.
        """
        payer = self.filesystem._get_params({}).get("userProject")  # noqa: SLF001 - as gcsfs fills it in
        return GCSStore(
            bucket,
            # Said outright, since obstore fills gaps from an environment of its own.
            config={"base_url": self.endpoint, "skip_signature": self.anonymous},
            client_options={
                "allow_http": self.endpoint.startswith("http://"),
                "connect_timeout": dt.timedelta(seconds=deadline.CONNECT_SECONDS),
                "timeout": dt.timedelta(seconds=seconds),
                **({} if silence is None else {"read_timeout": dt.timedelta(seconds=silence)}),
                **({"default_headers": {"x-goog-user-project": payer}} if payer else {}),
            },
            retry_config={"max_retries": 0},
            credential_provider=None if self.anonymous else _Provider(self.filesystem.credentials),
        )

    def close(self) -> None:
        """Give the connections back, if the filesystem is ours."""
        session = self.filesystem._session  # noqa: SLF001 - `session` of a filesystem without one makes one up
        if self.owned and session is not None:
            asyn.sync(self.filesystem.loop, session.close)

    def _limit(self, query: gcs.Query) -> aiohttp.ClientTimeout:
        """The deadline; while nothing is sent, the service may not be silent for long either."""
        given = self.filesystem.requests_timeout
        if isinstance(given, aiohttp.ClientTimeout):
            return given
        carried = query.answered if query.body is None else byte_view(query.body).nbytes
        return aiohttp.ClientTimeout(
            total=deadline.seconds_for(carried, self.patience),
            sock_connect=deadline.CONNECT_SECONDS,
            sock_read=self.patience if query.body is None else None,
        )


def connect(parsed: gcs_options.GcsOptions, request: faults.Request, *, renewed: bool = False) -> Account:
    """Find credentials, as gcsfs does; `renewed` if those that were found before have been refused.

    Raises:
        StoreError: There are none where the options say, or google-auth cannot make sense of them.
    """
    try:
        # Not `gcsfs.GCSFileSystem`: unless the environment forbids it, that one asks for the kind of each bucket over
        # gRPC, which takes a minute and a half where nobody answers.
        filesystem = GCSFileSystem(**parsed.filesystem, skip_instance_cache=True)
    except requests.RequestException as error:
        # Not `from error`: its text holds the URL that a token was asked about with.
        raise faults.unreachable(request, f"the token could not be looked up ({type(error).__name__})") from None
    except (google_auth.GoogleAuthError, LookupError, ValueError, OSError) as error:
        raise errors.StoreError(
            f"Cannot {request.verb} {request.url}: the credentials could not be found ({type(error).__name__}: "
            f"{error}). Give token in storage_options, set GOOGLE_APPLICATION_CREDENTIALS, or run "
            f"`gcloud auth application-default login`.",
            path=request.url,
        ) from error
    patience = deadline.PATIENCE if parsed.patience is None else parsed.patience
    account = Account(filesystem, _source(filesystem.credentials), patience)
    return account.renew() if renewed else account


def adopt(filesystem: Any) -> Account:
    """The account of a filesystem that a user brought."""
    patience = filesystem.requests_timeout
    known = isinstance(patience, int | float)
    source = faults.ANONYMOUS if filesystem.credentials.credentials is None else "those of the filesystem"
    return Account(filesystem, source, patience if known else deadline.PATIENCE, owned=False)


def why_not_obstore(parsed: gcs_options.GcsOptions) -> str:
    """Why obstore would not mean what the options and the environment say; empty if it would."""
    if parsed.gcsfs_only:
        return f"obstore does not take {', '.join(parsed.gcsfs_only)}"
    if os.environ.get("STORAGE_EMULATOR_HOST", "default") not in ("", "default"):
        return "obstore does not take STORAGE_EMULATOR_HOST"
    if os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN", _UNIVERSE) != _UNIVERSE:
        return "obstore does not take GOOGLE_CLOUD_UNIVERSE_DOMAIN"
    for name in _OBSTORES_OWN:
        if name in os.environ:
            return f"obstore would take {name} for itself"
    if _presents_certificate():
        return "obstore does not present client certificates"
    return ""


async def _exchange(
    filesystem: Any, endpoint: str, query: gcs.Query, authorization: Mapping[str, str], limit: aiohttp.ClientTimeout
) -> gcs.Answer:
    """As gcsfs's `_request`, without its repetitions, and with the status and headers of a failure."""
    session = await filesystem._set_session()  # noqa: SLF001 - gcsfs's spelling of "the session"
    parameters = filesystem._get_params(query.parameters)  # noqa: SLF001 - adds who pays
    told = {name: value for name, value in parameters.items() if value}
    address = f"{endpoint}/{query.path}?{urlencode(told, quote_via=quote)}"
    async with session.request(
        query.method,
        yarl.URL(address, encoded=True),
        headers={**query.headers, **authorization},
        data=None if query.body is None else io.BytesIO(byte_view(query.body)),
        timeout=limit,
        allow_redirects=False,
    ) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return gcs.Answer(response.status, headers, await response.read())


def _presents_certificate() -> bool:
    asked = getattr(mtls, "should_use_client_cert", None)  # since google-auth 2.42
    return asked is not None and bool(asked()) and bool(mtls.has_default_client_cert_source())


def _source(credentials: Any) -> str:
    if credentials.credentials is None:
        return faults.ANONYMOUS
    if credentials.method is None:
        return "the token in storage_options"
    return f"found by gcsfs ({credentials.method})"


class _Provider:
    """gcsfs's credentials as obstore asks for them."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        self._credentials.maybe_refresh()
        found = self._credentials.credentials
        trusted = dt.datetime.now(dt.timezone.utc) + _TRUST
        expiry = found.expiry.replace(tzinfo=dt.timezone.utc) if found.expiry else trusted  # google-auth's is naive UTC
        return {"token": found.token, "expires_at": min(expiry, trusted)}
