"""AWS accounts and endpoints: boto3 decides, both of the obstore engine's clients follow.

Promises: credentials, profile, region and endpoint are those that boto3 finds for the same options
(environment, shared files, SSO, instance and container roles, `AWS_ENDPOINT_URL_S3`, ...); short-lived
credentials are renewed before they expire; obstore never searches on its own. The secret stays inside the
clients. It sends no request of its own but one to AWS, to learn the bucket's region, which boto3 would
otherwise learn from a redirect.
"""

import dataclasses
import datetime as dt
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore
import botocore.config
import botocore.credentials
import botocore.loaders
import botocore.session
from botocore import exceptions as boto
from obstore.store import S3Store

from ckpt_remote.store import deadline, faults, options, s3_faults

__all__ = ["Account", "connect", "needs_own_certificates"]

# obstore asks again once less than five minutes are left, so this makes it ask about once a minute: botocore
# then renews in time, ten minutes or more before the end.
_TRUST = dt.timedelta(minutes=6)
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


@dataclass(frozen=True, slots=True)
class Account:
    """One user's way to one bucket.

    Attributes:
        client: boto3's client for the bucket's region, without retries.
        credentials: What obstore signs with; None for anonymous requests.
        source: Where the credentials come from, for messages.
    """

    options: options.S3Options
    bucket: str
    client: Any
    credentials: Any
    source: str

    def open(self, seconds: float, silence: float | None = None) -> Any:
        """An obstore store.

        Args:
            seconds: How long its requests may take from connecting to the last byte.
            silence: How long the server may send nothing.
        """
        endpoint = self.endpoint
        waits = {"timeout": _duration(seconds)} | ({} if silence is None else {"read_timeout": _duration(silence)})
        return S3Store(
            self.bucket,
            # AWS_ENDPOINT_URL_S3 in the environment beats obstore's `endpoint`: say both.
            config=self._configuration() | {"aws_endpoint": endpoint, "aws_endpoint_url_s3": endpoint},
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "allow_invalid_certificates": self.options.verify is False,
                "connect_timeout": _duration(self.options.config.get("connect_timeout", deadline.CONNECT_SECONDS)),
                **waits,
            },
            retry_config={"max_retries": 0},
            credential_provider=None if self.credentials is None else _Provider(self.credentials),
        )

    def close(self) -> None:
        """Give boto3's connections back."""
        self.client.close()

    @property
    def endpoint(self) -> str:
        """Where requests go."""
        endpoint: str = self.client.meta.endpoint_url
        if not self._virtual():
            return endpoint
        parts = urlsplit(endpoint)
        return parts._replace(netloc=f"{self.bucket}.{parts.netloc}").geturl()

    def _virtual(self) -> bool:
        return (self.client.meta.config.s3 or {}).get("addressing_style") == "virtual"

    def _sends_checksum(self) -> bool:
        """Whether the store is to compare bodies with a checksum: Amazon's does, others may not know it."""
        if self.options.consistency is None:
            return _is_amazon(self.client)
        return self.options.consistency == "checksum"

    def _configuration(self) -> dict[str, Any]:
        """Everything said outright, since obstore fills gaps from an environment of its own."""
        extra = self.options.extra
        configuration = {
            "aws_region": self.client.meta.region_name or "us-east-1",
            "aws_virtual_hosted_style_request": self._virtual(),
            "aws_skip_signature": self.credentials is None,
            "aws_request_payer": self.options.requester_pays,
            # The bundle's crc32c guards the bytes, and TLS the way; signing the body costs four times the
            # CPU.
            "aws_unsigned_payload": not (self.options.config.get("s3") or {}).get("payload_signing_enabled", False),
            "aws_conditional_put": "etag",
            "aws_s3_express": False,
        }
        if self._sends_checksum():
            configuration["aws_checksum_algorithm"] = "crc64nvme"
        if "ServerSideEncryption" in extra:
            configuration["aws_server_side_encryption"] = extra["ServerSideEncryption"]
        if "SSEKMSKeyId" in extra:
            configuration["aws_sse_kms_key_id"] = extra["SSEKMSKeyId"]
        if "BucketKeyEnabled" in extra:
            configuration["aws_sse_bucket_key_enabled"] = bool(extra["BucketKeyEnabled"])
        return configuration


def connect(parsed: options.S3Options, bucket: str, request: faults.Request) -> Account:
    """Find credentials, endpoint and region for `bucket`.

    Raises:
        StoreError: There are no credentials, or boto3 cannot make sense of the configuration.
    """
    try:
        session = _session(parsed.profile)
        credentials, source = _credentials(parsed, session)
        if credentials is None and not parsed.anon:
            raise boto.NoCredentialsError
        client = _client(parsed, session, parsed.region)
        region = _region_of(client, bucket)
        if region != client.meta.region_name:
            client = _client(parsed, session, region)
    except s3_faults.FAILURES as error:
        raise s3_faults.translate(error, request) from error
    return Account(parsed, bucket, client, credentials, source)


def needs_own_certificates(parsed: options.S3Options) -> bool:
    """Whether the AWS configuration names certificates to trust at this endpoint, instead of the usual."""
    try:
        session = _session(parsed.profile)
        if not session._session.get_config_variable("ca_bundle"):  # noqa: SLF001 - boto3 shows it nowhere
            return False
        # Any key will do to learn the endpoint, and keeps boto3 from searching for one.
        anybody: dict[str, Any] = {"anon": False, "key": "any", "secret": "any", "token": None}
        somebody = dataclasses.replace(parsed, **anybody)
        endpoint: str = _client(somebody, session, parsed.region).meta.endpoint_url
    except s3_faults.FAILURES:  # a profile that does not exist, and the like: connecting tells it better
        return False
    return endpoint.startswith("https://")


def _session(profile: str | None) -> Any:
    found = botocore.session.Session(profile=profile)
    found.register_component("data_loader", _loader(found.get_config_variable("data_path")))
    return boto3.session.Session(botocore_session=found)


@functools.cache
def _loader(search_path: str | None) -> Any:
    """The descriptions of AWS's services, parsed once: a client is made in 5 ms then, not 50 to 200."""
    return botocore.loaders.create_loader(search_path)


def _credentials(parsed: options.S3Options, session: Any) -> tuple[Any, str]:
    if parsed.anon:
        return None, faults.ANONYMOUS
    if parsed.key:
        if not parsed.secret:
            raise boto.PartialCredentialsError(provider="storage_options", cred_var="secret")
        explicit = botocore.credentials.Credentials(parsed.key, parsed.secret, parsed.token)
        return explicit, "the key in storage_options"
    found = session.get_credentials()
    return found, f"found by boto3 ({getattr(found, 'method', None) or 'no source'})"


def _client(parsed: options.S3Options, session: Any, region: str | None) -> Any:
    overrides = (
        {"retries": {"total_max_attempts": 1}, "signature_version": botocore.UNSIGNED}
        if parsed.anon
        else {"retries": {"total_max_attempts": 1}}
    )
    # Its requests are small: who has not answered them after this long does not answer.
    config = {
        "connect_timeout": deadline.CONNECT_SECONDS,
        "read_timeout": deadline.PATIENCE,
        "max_pool_connections": 64,  # every upload may be verified, and dozens are under way
        "request_checksum_calculation": "when_required",
    }
    given = {name: value for name, value in parsed.config.items() if name != "region_name"}
    client = session.client(
        "s3",
        region_name=region,
        endpoint_url=parsed.endpoint_url,
        use_ssl=parsed.use_ssl,
        verify=parsed.verify,
        aws_access_key_id=parsed.key,
        aws_secret_access_key=parsed.secret,
        aws_session_token=parsed.token,
        config=botocore.config.Config(**{**config, **given, **overrides}),
    )
    client.meta.events.register("before-parse.s3", _require_whole)
    return client


def _require_whole(operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
    """Pass if the body is as long as announced: botocore takes one that broke off at once for an empty listing."""
    length = response_dict["headers"].get("Content-Length")
    body = response_dict["body"]
    if operation_model.http["method"] == "HEAD" or length is None or not isinstance(body, bytes):
        return
    if len(body) != int(length):
        raise boto.IncompleteReadError(actual_bytes=len(body), expected_bytes=int(length))


def _region_of(client: Any, bucket: str) -> str | None:
    """The bucket's own region on AWS; elsewhere the configured one, since only AWS has a word on it."""
    configured: str | None = client.meta.region_name
    if not _is_amazon(client):
        return configured
    try:
        response = client.head_bucket(Bucket=bucket)
    except boto.ClientError as error:  # also a refusal names the region
        response = error.response
    region: str | None = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", configured)
    return region


def _is_amazon(client: Any) -> bool:
    return (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AWS_HOSTS)


def _duration(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=seconds)


class _Provider:
    """botocore's credentials as obstore asks for them."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": dt.datetime.now(dt.timezone.utc) + _TRUST,
        }
