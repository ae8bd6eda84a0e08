"""Azure accounts: adlfs's options, azure-identity where it is installed, else obstore's own search.

Promises: what the options name is used and nothing else; tokens of a credential object are fetched anew before they
expire. Where the options name nothing, `DefaultAzureCredential` decides, as for adlfs, if azure-identity is installed,
and otherwise obstore (environment, workload identity, managed identity, Azure CLI).
"""

import datetime as dt
import importlib.util
import inspect
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fsspec import asyn
from obstore.store import AzureStore

from ckpt_remote.store import azure_options, deadline, faults

__all__ = ["Account", "connect"]

_SCOPE = "https://storage.azure.com/.default"


@dataclass(frozen=True, slots=True)
class Account:
    """One user's way to one container.

    Attributes:
        options: What the user said.
        container: The container.
        provider: What obstore asks for credentials; None where it searches or needs none.
        source: Where the credentials come from, for messages.
    """

    options: azure_options.AzureOptions
    container: str
    provider: Callable[[], dict[str, Any]] | None
    source: str

    def open(self, seconds: float, silence: float | None) -> Any:
        """An obstore store.

        Args:
            seconds: How long its requests may take from connecting to the last byte.
            silence: How long the server may send nothing.
        """
        options = self.options
        configuration: dict[str, Any] = {
            "account_name": options.account_name,
            "endpoint": options.endpoint,
            "use_emulator": False,
            "skip_signature": options.anon,
        }
        if options.service_principal is not None:
            names = ("client_id", "client_secret", "tenant_id")
            configuration |= dict(zip(names, options.service_principal, strict=True))
        connect = deadline.CONNECT_SECONDS if options.connect_timeout is None else options.connect_timeout
        return AzureStore(
            self.container,
            config=configuration,
            client_options={
                "allow_http": options.endpoint.startswith("http://"),
                "connect_timeout": dt.timedelta(seconds=connect),
                "timeout": dt.timedelta(seconds=seconds),
                **({} if silence is None else {"read_timeout": dt.timedelta(seconds=silence)}),
            },
            retry_config={"max_retries": 0},
            credential_provider=self.provider,
        )

    def close(self) -> None:
        """Nothing is held open."""

    def unconnected(self) -> str:
        """The operating system's word for why no connection can be made; empty if one can, or if a proxy makes it."""
        parts = urlsplit(self.options.endpoint)
        host, port = parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443)
        if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            return ""
        try:
            socket.create_connection((host, port), deadline.CONNECT_SECONDS).close()
        except OSError as error:
            return type(error).__name__
        return ""


def connect(options: azure_options.AzureOptions, container: str) -> Account:
    """The account that the options name. Sends nothing."""
    provider: Callable[[], dict[str, Any]] | None = None
    if options.account_key:
        provider, source = _fixed("access_key", options.account_key), "the account key"
    elif options.sas_token:
        provider, source = _fixed("sas_token", options.sas_token.lstrip("?")), "the shared access signature"
    elif options.service_principal is not None:
        source = "the client secret"
    elif options.credential is not None:
        provider, source = _tokens(options.credential), "the credential in storage_options"
    elif options.anon:
        source = faults.ANONYMOUS
    elif importlib.util.find_spec("azure") and importlib.util.find_spec("azure.identity"):
        found = importlib.import_module("azure.identity").DefaultAzureCredential()
        provider, source = _tokens(found), "found by DefaultAzureCredential"
    else:
        source = "found by obstore"
    return Account(options, container, provider, source)


def _fixed(kind: str, secret: str) -> Callable[[], dict[str, Any]]:
    return lambda: {kind: secret, "expires_at": None}


def _tokens(credential: Any) -> Callable[[], dict[str, Any]]:
    """A credential of azure-identity as obstore asks for it; adlfs wants asynchronous ones."""

    def provide() -> dict[str, Any]:
        if inspect.iscoroutinefunction(credential.get_token):
            found = asyn.sync(asyn.get_loop(), credential.get_token, _SCOPE)
        else:
            found = credential.get_token(_SCOPE)
        return {"token": found.token, "expires_at": dt.datetime.fromtimestamp(found.expires_on, dt.timezone.utc)}

    return provide
