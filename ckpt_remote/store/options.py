"""fsspec's storage options for S3, read once and the same for both engines.

Promises: the names are s3fs's; fsspec's own configuration (`fsspec.config`, `FSSPEC_S3_...`) supplies what is
not given; a name that nobody knows is a `ValueError`, since s3fs would swallow it; what obstore cannot do
exactly is listed, so that s3fs is chosen instead. Nothing is looked up in the clouds' own configuration here:
boto3 does that.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any

import boto3
import botocore
import botocore.config
import botocore.session
import fsspec.config

from ckpt_remote.store import spelling

__all__ = ["S3Options", "parse_s3_options"]

_ALIASES = {"username": "key", "password": "secret"}
_MEANT = (
    "anon",
    "consistency",
    "endpoint_url",
    "key",
    "profile",
    "region",
    "requester_pays",
    "secret",
    "token",
    "use_ssl",
)
_CONSISTENCIES = ("none", "size", "checksum")
_GROUPS = ("client_kwargs", "config_kwargs", "s3_additional_kwargs")
_OURS = ("consistency", "region")  # which s3fs does not take
_S3FS_ONLY = ("loop", "session")
# They rule file objects, multipart uploads, listing caches and object versions. None of these is used here.
_WITHOUT_EFFECT = (
    "asynchronous",
    "batch_size",
    "cache_regions",
    "default_block_size",
    "default_cache_type",
    "default_fill_cache",
    "fixed_upload_size",
    "listings_expiry_time",
    "local_expiry_check",
    "max_concurrency",
    "max_paths",
    "skip_instance_cache",
    "use_listings_cache",
    "version_aware",
)
_CLIENT_NAMES = {  # client_kwargs' word for an option of the first level
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
    "aws_session_token": "token",
    "endpoint_url": "endpoint_url",
    "region_name": "region",
    "use_ssl": "use_ssl",
}
_PUT_ON_OBSTORE = ("BucketKeyEnabled", "RequestPayer", "SSEKMSKeyId", "ServerSideEncryption", "StorageClass")
_CONFIG_ON_OBSTORE = (
    "connect_timeout",
    "max_pool_connections",
    "read_timeout",
    "region_name",
    "retries",
    "tcp_keepalive",
)
_S3_CONFIG_ON_OBSTORE = ("addressing_style", "payload_signing_enabled")
_OPERATIONS = ("PutObject", "GetObject", "HeadObject", "ListObjectsV2", "DeleteObject", "DeleteObjects")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What the user said about S3. Secrets stay out of its representation.

    Attributes:
        config: `config_kwargs` for botocore.
        extra: `s3_additional_kwargs`: parameters of requests.
        consistency: How uploads are verified: "none", "size" or "checksum"; None for the default.
        verify: Certificate checking as boto3 takes it; None for the default.
        attempts: The user's own number of attempts, if given.
        s3fs_only: The options that obstore cannot honour exactly.
        filesystem: Keyword arguments for an `S3FileSystem` that means the same.
    """

    anon: bool = False
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    use_ssl: bool = True
    requester_pays: bool = False
    consistency: str | None = None
    verify: bool | str | None = None
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    attempts: int | None = None
    s3fs_only: tuple[str, ...] = ()
    filesystem: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @property
    def renewable(self) -> bool:
        """Whether boto3 finds the credentials, so that it can find newer ones."""
        return not (self.anon or self.key)


def parse_s3_options(storage_options: Mapping[str, Any]) -> S3Options:
    """The options, with fsspec's configuration underneath.

    Raises:
        ValueError: An option that nobody knows, or one that cannot be meant.
    """
    given = fsspec.config.apply_config(SimpleNamespace(protocol=("s3", "s3a")), dict(storage_options))
    given = {_ALIASES.get(name, name): value for name, value in given.items()}
    spelling.require_known(
        "storage_options", given, {*_MEANT, *_GROUPS, *_S3FS_ONLY, *_WITHOUT_EFFECT, *_ALIASES}, "s3"
    )
    if given.get("asynchronous"):
        raise ValueError(
            "storage_options['asynchronous'] must be false: checkpoints are written from ordinary threads."
        )
    client, config, extra = (dict(given.get(group) or {}) for group in _GROUPS)
    _check_groups(client, config, extra)
    meant = {meaning: client[name] for name, meaning in _CLIENT_NAMES.items() if name in client}
    if "region_name" in config:
        meant.setdefault("region", config["region_name"])
    meant |= {name: given[name] for name in _MEANT if given.get(name) is not None}
    for name in (
        "key",
        "secret",
        "token",
    ):  # fsspec reads its environment as JSON: a numeric key comes as a number
        if meant.get(name) is not None:
            meant[name] = str(meant[name])
    endpoint = meant.get("endpoint_url")
    if endpoint is not None and not str(endpoint).startswith(("http://", "https://")):
        raise ValueError(f"endpoint_url must begin with http:// or https://, which {endpoint!r} does not.")
    if meant.get("consistency") not in (None, *_CONSISTENCIES):
        raise ValueError(f"consistency is one of {', '.join(_CONSISTENCIES)}, not {meant['consistency']!r}.")
    meant["requester_pays"] = bool(meant.get("requester_pays")) or extra.get("RequestPayer") == "requester"
    return S3Options(
        **meant,
        verify=client.get("verify"),
        config=MappingProxyType(config),
        extra=MappingProxyType(extra),
        attempts=_attempts(config.get("retries")),
        s3fs_only=_not_for_obstore(given, client, config, extra),
        filesystem=MappingProxyType(_filesystem_arguments(given, meant, client, config)),
    )


def _check_groups(client: Mapping[str, Any], config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    signature = inspect.signature(boto3.session.Session.client)
    spelling.require_known("client_kwargs", client, set(signature.parameters) - {"self", "service_name"}, "s3")
    spelling.require_known("config_kwargs", config, set(botocore.config.Config.OPTION_DEFAULTS), "s3")
    if extra:
        model = botocore.session.Session().get_service_model("s3")
        members = {name for operation in _OPERATIONS for name in model.operation_model(operation).input_shape.members}
        spelling.require_known("s3_additional_kwargs", extra, members, "s3")


def _attempts(retries: Mapping[str, Any] | None) -> int | None:
    if retries and "total_max_attempts" in retries:
        return max(1, int(retries["total_max_attempts"]))
    if retries and "max_attempts" in retries:  # botocore counts the first one apart
        return max(1, int(retries["max_attempts"]) + 1)
    return None


def _not_for_obstore(
    given: Mapping[str, Any], client: Mapping[str, Any], config: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[str, ...]:
    reasons = [name for name in _S3FS_ONLY if given.get(name) is not None]
    reasons += [f"client_kwargs[{name!r}]" for name in client if name not in {*_CLIENT_NAMES, "verify"}]
    if isinstance(client.get("verify"), str):
        reasons.append("client_kwargs['verify']")
    reasons += [f"s3_additional_kwargs[{name!r}]" for name in extra if name not in _PUT_ON_OBSTORE]
    for name, value in config.items():
        if name == "s3":
            reasons += [f"config_kwargs['s3'][{word!r}]" for word in value or {} if word not in _S3_CONFIG_ON_OBSTORE]
        elif name == "signature_version":
            if value not in ("s3v4", botocore.UNSIGNED):
                reasons.append("config_kwargs['signature_version']")
        elif name in ("request_checksum_calculation", "response_checksum_validation"):
            if value != "when_required":
                reasons.append(f"config_kwargs[{name!r}]")
        elif name not in _CONFIG_ON_OBSTORE:
            reasons.append(f"config_kwargs[{name!r}]")
    return tuple(reasons)


def _filesystem_arguments(
    given: Mapping[str, Any], meant: Mapping[str, Any], client: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """One place for each option, and no retries below ours, which would hide a conflict with oneself."""
    arguments = {name: value for name, value in given.items() if name not in (*_OURS, "skip_instance_cache")}
    arguments |= {name: meant[name] for name in _MEANT if name in meant and name not in _OURS}
    kept = {name: value for name, value in client.items() if name not in _CLIENT_NAMES}
    arguments["client_kwargs"] = kept | ({"region_name": meant["region"]} if "region" in meant else {})
    checksums = {"request_checksum_calculation": "when_required"}  # the bundle has its own, and this one costs half
    arguments["config_kwargs"] = checksums | {
        **{name: value for name, value in config.items() if name != "region_name"},
        "retries": {"total_max_attempts": 1},
    }
    arguments["use_listings_cache"] = False
    return arguments
