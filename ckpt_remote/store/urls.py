"""URLs of checkpoints: schemes, directories and names, as fsspec spells them.

Promises: pure text; nothing is percent-decoded, since `#`, `?` and `%` are ordinary characters of an object's
name. It does not ask whether anything exists.
"""

import os
import re
from dataclasses import dataclass

__all__ = ["BucketUrl", "parse_bucket_url", "scheme_of", "split_url"]

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
# Access points are named by ARNs, whose last separator may be a slash.
_ARN = re.compile(r"arn:[^/]*:(?:accesspoint|outpost)(?:[:/][^/]+)(?:[:/]accesspoint[:/][^/]+)?")


def scheme_of(url: str) -> str:
    """The URL's scheme in lower case; empty for a plain path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


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
    if prefix and any(segment in ("", ".", "..") for segment in prefix.split("/")):
        raise ValueError(f"{url!r} has an empty, '.' or '..' segment, which object stores do not resolve.")
    return BucketUrl(scheme, bucket, prefix)
