"""adlfs's storage options for Azure, for the one engine that there is.

Promises: the names are adlfs's, and so is the precedence of credentials and of the environment (`AZURE_STORAGE_...`);
fsspec's own configuration (`fsspec.config`, `FSSPEC_ABFS_...`) supplies what is not given; a name that nobody knows is
a `ValueError`, one that obstore cannot honour an `UnsupportedError`. adlfs itself is not needed.
"""

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import fsspec.config

from ckpt_remote import errors
from ckpt_remote.store import spelling, urls

__all__ = ["AzureOptions", "parse_azure_options"]

_FROM_ENVIRONMENT = (
    "account_key",
    "account_name",
    "client_id",
    "client_secret",
    "connection_string",
    "sas_token",
    "tenant_id",
)
_MEANT = (*_FROM_ENVIRONMENT, "account_host", "anon", "connection_timeout", "credential", "read_timeout")
_REFUSED = ("location_mode", "request_session")
# They rule file objects, listing caches, blob versions, event loops and the server's own timeouts.
_WITHOUT_EFFECT = (
    "assume_container_exists",
    "asynchronous",
    "batch_size",
    "blocksize",
    "default_cache_type",
    "default_fill_cache",
    "listings_expiry_time",
    "loop",
    "max_concurrency",
    "max_paths",
    "skip_instance_cache",
    "socket_timeout",
    "timeout",
    "use_listings_cache",
    "version_aware",
)
_NO = ("false", "0", "f", "")
_ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+(/[^?#]*)?")


@dataclass(frozen=True, slots=True)
class AzureOptions:
    """What the user said about Azure. Secrets stay out of its representation.

    Attributes:
        account_name: The storage account.
        endpoint: Where its containers are.
        account_key: Its key.
        sas_token: A shared access signature.
        service_principal: Client id, client secret and tenant id.
        credential: A credential of azure-identity, synchronous or not.
        anon: Whether nobody is to be asked for credentials.
        connect_timeout: Seconds for a connection to stand; None for the default.
        patience: Seconds that a request of no size may take; None for the default.
    """

    account_name: str
    endpoint: str
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    service_principal: tuple[str, str, str] | None = field(default=None, repr=False)
    credential: Any = field(default=None, repr=False)
    anon: bool = False
    connect_timeout: float | None = None
    patience: float | None = None


def parse_azure_options(storage_options: Mapping[str, Any], location: urls.BucketUrl) -> AzureOptions:
    """The options, with fsspec's configuration and the environment underneath.

    Raises:
        ValueError: An option that nobody knows, or one that cannot be meant; no account; a key or a connection string
            that is none.
        UnsupportedError: An option that obstore cannot honour.
    """
    given = fsspec.config.apply_config(SimpleNamespace(protocol=("abfs", "az", "abfss")), dict(storage_options))
    spelling.require_known("storage_options", given, {*_MEANT, *_REFUSED, *_WITHOUT_EFFECT}, "abfs")
    if given.get("asynchronous"):
        raise ValueError(
            "storage_options['asynchronous'] must be false: checkpoints are written from ordinary threads."
        )
    _require_honoured(given)
    meant = {name: given[name] for name in _MEANT if given.get(name) is not None}
    for name in _FROM_ENVIRONMENT:
        if name not in meant and (value := os.environ.get(f"AZURE_STORAGE_{name.upper()}")):
            meant[name] = value
    _, in_url, host = location.bucket.partition("@")
    if in_url:
        meant["account_name"] = host.partition(".")[0]
    if "connection_string" in meant:
        meant = {**_waits(meant), **_parse_connection_string(meant["connection_string"])}
    if not meant.get("account_name"):
        raise ValueError(
            "Azure needs the name of the storage account: give account_name or connection_string in storage_options, "
            "set AZURE_STORAGE_ACCOUNT_NAME, or write abfs://container@account.dfs.core.windows.net/run."
        )
    return _options(meant)


def _require_honoured(given: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if given.get(name) not in (None, "primary"):
            raise errors.UnsupportedError(
                f"storage_options[{name!r}] cannot be honoured: obstore, which serves Azure here, does not take it. "
                f"Leave it out."
            )


def _options(meant: Mapping[str, Any]) -> AzureOptions:
    name = str(meant["account_name"])
    host = meant.get("account_host") or f"{name}.blob.core.windows.net"
    credential, key, token = meant.get("credential"), meant.get("account_key"), meant.get("sas_token")
    if isinstance(credential, str):  # adlfs: a signature, or a key
        key, token = (None, credential) if "sig=" in credential else (credential, None)
        credential = None
    if key and not credential:
        _require_key(str(key))
    endpoint = meant.get("endpoint") or f"https://{host}"
    if not _ENDPOINT.fullmatch(endpoint):
        raise ValueError(
            f"Azure's endpoint must be like https://account.blob.core.windows.net, which {urls.shown(endpoint)!r} is "
            f"not: correct the connection_string or account_host."
        )
    principal = tuple(str(meant.get(part, "")) for part in ("client_id", "client_secret", "tenant_id"))
    anonymous = meant.get("anon", os.environ.get("AZURE_STORAGE_ANON", "false").lower() not in _NO)
    named = any((credential, key, token, all(principal)))
    return AzureOptions(
        account_name=name,
        endpoint=endpoint,
        credential=credential,
        account_key=None if credential else key,
        sas_token=None if credential or key else token,
        service_principal=None if credential or key or token or not all(principal) else principal,  # type: ignore[arg-type]
        anon=bool(anonymous) and not named,
        **_waits(meant),
    )


def _waits(meant: Mapping[str, Any]) -> dict[str, float]:
    names = {"connection_timeout": "connect_timeout", "read_timeout": "patience"}
    return {ours: float(meant[theirs]) for theirs, ours in names.items() if theirs in meant}


def _require_key(key: str) -> None:
    """Pass if it can be an account's key. It does not say what was given: that is a secret, if not the right one."""
    try:
        base64.b64decode(key, validate=True)
    except ValueError:
        wrong = True
    else:
        wrong = False
    if wrong:  # outside of the handler, so that nothing of the key is in the error's context
        raise ValueError(
            "The account key for Azure is not base64, as every account key is: copy it whole, its last = included, "
            "from the portal (account_key, credential or connection_string in storage_options, or AZURE_STORAGE_...)."
        )


def _parse_connection_string(text: str) -> dict[str, Any]:
    """What Azure's portal hands out, taken apart."""
    named = (part.split("=", 1) for part in text.split(";") if "=" in part)
    parts = {name.strip().lower(): value.strip() for name, value in named}
    name, endpoint = parts.get("accountname"), parts.get("blobendpoint")
    key, token = parts.get("accountkey"), parts.get("sharedaccesssignature")
    if not (name or endpoint) or not (key or token):
        raise ValueError(
            f"The connection_string for Azure lacks {_missing(name or endpoint)}: copy it whole from the portal, as in "
            f"AccountName=...;AccountKey=...;EndpointSuffix=core.windows.net (or give account_name and a credential)."
        )
    if not endpoint:
        scheme, suffix = parts.get("defaultendpointsprotocol", "https"), parts.get("endpointsuffix", "core.windows.net")
        endpoint = f"{scheme}://{name}.blob.{suffix}"
    return {
        "account_name": name or endpoint.partition("://")[2].partition(".")[0],
        "endpoint": endpoint.rstrip("/"),
        "account_key": key,
        "sas_token": token,
    }


def _missing(place: str | None) -> str:
    return "AccountKey and SharedAccessSignature" if place else "AccountName and BlobEndpoint"
