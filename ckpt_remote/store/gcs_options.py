"""fsspec's storage options for Google Cloud Storage, read once and the same for both engines.

Promises: the names are gcsfs's; fsspec's own configuration (`fsspec.config`, `FSSPEC_GS_...`) supplies what is not
given; a name that nobody knows is a `ValueError`; what obstore cannot do exactly is listed, so that gcsfs is chosen
instead. Nothing is looked up in Google's own configuration here: gcsfs and google-auth do that.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import fsspec.config

from ckpt_remote.store import spelling

__all__ = ["GcsOptions", "parse_gcs_options"]

_MEANT = ("access", "consistency", "endpoint_url", "project", "requester_pays", "requests_timeout", "token")
_GCSFS_ONLY = ("loop", "session_kwargs")
# They rule file objects, listing caches, object versions, zonal buckets and gcsfs's own retries. None of these is used.
_WITHOUT_EFFECT = (
    "asynchronous",
    "batch_size",
    "block_size",
    "cache_timeout",
    "check_connection",
    "default_location",
    "finalize_on_close",
    "listings_expiry_time",
    "max_mrd_pool_cache_queue_size",
    "max_paths",
    "memmove_max_workers",
    "mrd_pool_cache_size",
    "retry_initial",
    "retry_maximum",
    "retry_multiplier",
    "retry_timeout",
    "secure_serialize",
    "skip_instance_cache",
    "timeout",
    "use_listings_cache",
    "version_aware",
)
_CONSISTENCIES = ("none", "size", "md5", "crc32c")


@dataclass(frozen=True, slots=True)
class GcsOptions:
    """What the user said about Google Cloud Storage. Secrets stay out of its representation.

    Attributes:
        consistency: How uploads are checked, in gcsfs's words; None for the default.
        patience: Seconds that a request of no size may take; None for the default.
        gcsfs_only: The options that obstore cannot honour exactly.
        filesystem: Keyword arguments for a `GCSFileSystem` that means the same.
    """

    consistency: str | None = None
    patience: float | None = None
    gcsfs_only: tuple[str, ...] = ()
    filesystem: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)


def parse_gcs_options(storage_options: Mapping[str, Any]) -> GcsOptions:
    """The options, with fsspec's configuration underneath.

    Raises:
        ValueError: An option that nobody knows, or one that cannot be meant.
    """
    given = fsspec.config.apply_config(SimpleNamespace(protocol=("gs", "gcs")), dict(storage_options))
    spelling.require_known("storage_options", given, {*_MEANT, *_GCSFS_ONLY, *_WITHOUT_EFFECT}, "gs")
    if given.get("asynchronous"):
        raise ValueError(
            "storage_options['asynchronous'] must be false: checkpoints are written from ordinary threads."
        )
    meant = {name: given[name] for name in (*_MEANT, *_GCSFS_ONLY) if given.get(name) is not None}
    _require_file(meant.get("token"))
    endpoint = meant.get("endpoint_url")
    if endpoint is not None and not str(endpoint).startswith(("http://", "https://")):
        raise ValueError(f"endpoint_url must begin with http:// or https://, which {endpoint!r} does not.")
    consistency = meant.pop("consistency", None)
    if consistency not in (None, *_CONSISTENCIES):
        raise ValueError(f"consistency is one of {', '.join(_CONSISTENCIES)}, not {consistency!r}.")
    timeout = meant.get("requests_timeout")
    return GcsOptions(
        consistency=consistency,
        patience=float(timeout) if isinstance(timeout, Real) else None,
        gcsfs_only=tuple(_not_for_obstore(meant)),
        filesystem=MappingProxyType({**meant, "use_listings_cache": False}),
    )


def _require_file(token: object) -> None:
    """Pass if a token that looks like a path is one: gcsfs would take it for a bare token, and ask Google about it."""
    if isinstance(token, str) and (os.sep in token[:2] or token.endswith(".json")) and not Path(token).exists():
        raise ValueError(f"token names the file {token!r}, and there is none.")


def _not_for_obstore(meant: Mapping[str, Any]) -> list[str]:
    reasons = [name for name in ("endpoint_url", *_GCSFS_ONLY) if name in meant]
    if meant.get("token") == "anon":
        reasons.append("token='anon'")
    if not isinstance(meant.get("requests_timeout", 0), Real):
        reasons.append("requests_timeout")
    return reasons
