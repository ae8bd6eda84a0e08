"""Each cloud through each of its engines, with a scripted server in its place.

with answering(cloud.failing(503, "SlowDown")) as server, cloud.open(server) as store: ...
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from google.oauth2.credentials import Credentials
from support.answering import Answer, Answering, Asked, s3_error
from support.engines import google_obstore

from ckpt_remote.store import Store, Version, open_store

__all__ = ["CLOUDS", "SECRETS", "TOKEN", "Cloud", "Script", "everything"]

Script = Callable[[Asked], Answer]
KEY, SECRET, TOKEN, AZURES = "TESTACCESSKEY0001", "very-secret-0001", "very-secret-token-0001", "dmVyeS1zZWNyZXQta2V5"
SECRETS = (SECRET, TOKEN, AZURES)
"""None of these may reach a message. The servers' answers hold them, as real ones do."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """One engine.

    Attributes:
        url: The directory.
        open: It, at a server; `anonymous=True`: without credentials, for which some engines are not taken.
        credentials: How messages call the credentials.
        failing: The cloud's way to answer with a status, its word for the failure, and headers.
    """

    url: str
    open: Callable[..., Store]
    credentials: str
    failing: Callable[..., Script]


def everything(store: Store) -> dict[str, Callable[[], object]]:
    """Every use of a store that raises what went wrong."""
    return {
        "read": lambda: store.read("key"),
        "read_range": lambda: store.read_range("key", 0, 3),
        "size": lambda: store.size("key"),
        "list": lambda: list(store.list()),
        "create": lambda: store.put("key", [b"abc"], "create"),
        "overwrite": lambda: store.put("key", [b"abc"], "overwrite"),
        "replace": lambda: store.put("key", [b"abc"], Version('"5"')),
    }


def _of_s3(server: Answering, *, anonymous: bool = False) -> Store:
    return open_store("s3://bucket/run", {**_keys(anonymous=anonymous), "endpoint_url": server.endpoint})


def _of_s3fs(server: Answering, *, anonymous: bool = False) -> Store:
    options = {**_keys(anonymous=anonymous), "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    filesystem = fsspec.filesystem("s3", **options, endpoint_url=server.endpoint, skip_instance_cache=True)
    return open_store("s3://bucket/run", filesystem=filesystem)


def _keys(*, anonymous: bool) -> dict[str, Any]:
    return {"anon": True} if anonymous else {"key": KEY, "secret": SECRET, "token": TOKEN}


def _of_gs(server: Answering) -> Store:
    return google_obstore("gs://bucket/run", server.endpoint, Credentials(TOKEN))


def _of_gcsfs(server: Answering, *, anonymous: bool = False) -> Store:
    token = "anon" if anonymous else Credentials(TOKEN)
    return open_store("gs://bucket/run", {"endpoint_url": server.endpoint, "token": token})


def _of_azure(server: Answering) -> Store:
    given = f"AccountName=acct;AccountKey={AZURES};BlobEndpoint={server.endpoint}/acct;"
    return open_store("abfs://bucket/run", {"connection_string": given})


def _failing_s3(status: int, word: str, headers: Mapping[str, str] | None = None) -> Script:
    """S3 echoes the signed headers, the session token among them, when a signature is wrong."""
    echo = f"<CanonicalRequest>x-amz-security-token:{TOKEN}</CanonicalRequest><X>{SECRET}</X>"
    error = s3_error(status, word, echo)
    return lambda _: Answer(status, error.body, {**error.headers, **(headers or {})})


def _failing_gs(status: int, word: str, headers: Mapping[str, str] | None = None) -> Script:
    """In the API that was asked."""
    told = json.dumps({"error": {"code": status, "errors": [{"reason": word, "message": TOKEN}]}}).encode()
    xml = f"<?xml version='1.0'?><Error><Code>{word}</Code><Details>{TOKEN}</Details></Error>".encode()
    return lambda asked: Answer(status, told if "storage/v1/" in asked.path else xml, headers or {})


_TOKEN = "the token in storage_options"
CLOUDS = {
    "s3-obstore": Cloud("s3://bucket/run", _of_s3, "the key in storage_options", _failing_s3),
    "s3-s3fs": Cloud("s3://bucket/run", _of_s3fs, "those of the filesystem", _failing_s3),
    "gs-obstore": Cloud("gs://bucket/run", _of_gs, _TOKEN, _failing_gs),
    "gs-gcsfs": Cloud("gs://bucket/run", _of_gcsfs, _TOKEN, _failing_gs),
    "azure": Cloud("abfs://bucket/run", _of_azure, "the account key", _failing_s3),
}
