"""URLs of checkpoints: schemes, directories and names, as fsspec spells them.

Promises: pure text; nothing is percent-decoded, since `#`, `?` and `%` are ordinary characters of an object's
name. It does not ask whether anything exists.
"""

import os
import re
from dataclasses import dataclass

__all__ = ["BucketUrl", "parse_bucket_url", "parse_container_url", "scheme_of", "shown", "split_url"]

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_AZURE_HOST = re.compile(r"[a-z0-9]+\.(?:dfs|blob)\.core\.windows\.net")
# Access points are named by ARNs, whose last separator may be a slash.
_ARN = re.compile(r"arn:[^/]*:(?:accesspoint|outpost)(?:[:/][^/]+)(?:[:/]accesspoint[:/][^/]+)?")


def scheme_of(url: str) -> str:
    """The URL's scheme in lower case; empty for a plain path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def shown(url: str) -> str:
    """`url` without the user and password that some schemes allow in it."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else url


def split_url(url: str | os.PathLike[str]) -> tuple[str, str]:
    """A checkpoint's URL as directory and name: `s3://b/run/ckpt-7` is `("s3://b/run", "ckpt-7")`.

    A bare name is in the current directory, `"."`.

    Raises:
        ValueError: The URL has no name in a directory: it is a bucket, or ends with a slash.
    """
    text = os.fspath(url)
    match = _SCHEME.match(text)
    start = match.end() if match else 0
    directory, slash, name = text[start:].rpartition("/")
    in_bucket = bool(directory) or scheme_of(text) in ("", "file", "local", "memory")
    if not name or not in_bucket:
        raise ValueError(f"{text!r} names no object in a directory, as 's3://bucket/run/ckpt-7' does.")
    if match:
        return text[:start] + (directory or slash), name
    return directory or slash or ".", name


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A directory in a bucket. `prefix` has no slash at either end and is empty for the bucket itself."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def root(self) -> str:
        """What every key of the directory begins with in the bucket."""
        return f"{self.prefix}/" if self.prefix else ""


def parse_bucket_url(url: str, scheme: str) -> BucketUrl:
    """`scheme://bucket/prefix`, or `bucket/prefix`, taken apart.

    Args:
        url: The URL; its own scheme may be an alias of `scheme`.
        scheme: The scheme to call it by.

    Raises:
        ValueError: No bucket, credentials in the URL, or a prefix with an empty, `.` or `..` segment.
    """
    match = _SCHEME.match(url)
    path = url[match.end() :] if match else url
    arn = _ARN.match(path)
    bucket = arn[0] if arn else path.partition("/")[0]
    prefix = path[len(bucket) :].lstrip("/").rstrip("/") if len(path) > len(bucket) else ""
    if "@" in bucket:
        raise ValueError(f"A {scheme}:// URL holds no credentials: hand them in as storage_options.")
    if not bucket:
        raise ValueError(f"{url!r} names no bucket, as '{scheme}://bucket/run' does.")
    return BucketUrl(scheme, bucket, _plain(prefix, url))


def parse_container_url(url: str) -> BucketUrl:
    """A directory in a container of Azure, as adlfs spells it, taken apart.

    `abfs://container/prefix`, `abfs://container@account.dfs.core.windows.net/prefix`, or
    `abfs://account.dfs.core.windows.net/container/prefix`. The account, where there is one, stays with the bucket.

    Raises:
        ValueError: No container, credentials in the URL, or a prefix with an empty, `.` or `..` segment.
    """
    match = _SCHEME.match(url)
    path = url[match.end() :] if match else url
    authority, _, prefix = path.partition("/")
    if _AZURE_HOST.fullmatch(authority):
        container, _, prefix = prefix.partition("/")
        authority = f"{container}@{authority}"
    container, at, host = authority.partition("@")
    if at and not _AZURE_HOST.fullmatch(host):
        raise ValueError(
            "After the @ of an abfs:// URL stands an account, as in abfs://container@account.dfs.core.windows.net/run. "
            "It holds no credentials: hand them in as storage_options."
        )
    if not container:
        raise ValueError(f"{url!r} names no container, as 'abfs://container/run' does.")
    return BucketUrl("abfs", authority, _plain(prefix.strip("/"), url))


def _plain(prefix: str, url: str) -> str:
    if prefix and any(segment in ("", ".", "..") for segment in prefix.split("/")):
        raise ValueError(f"{url!r} has an empty, '.' or '..' segment, which object stores do not resolve.")
    return prefix
