"""URLs are split and joined as text, and what cannot be meant is refused."""

from pathlib import Path

import pytest

from ckpt_remote.store import split_url
from ckpt_remote.store.urls import parse_bucket_url, scheme_of


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://b/run/ckpt-7", ("s3://b/run", "ckpt-7")),
        ("s3://b/ckpt-7", ("s3://b", "ckpt-7")),
        ("s3://b/a/b/c/ckpt-7", ("s3://b/a/b/c", "ckpt-7")),
        ("s3://b/run?x=1#2/ckpt%207", ("s3://b/run?x=1#2", "ckpt%207")),
        ("gs://b/run/ckpt-7", ("gs://b/run", "ckpt-7")),
        ("memory://run/ckpt-7", ("memory://run", "ckpt-7")),
        ("memory://ckpt-7", ("memory://", "ckpt-7")),
        ("file:///data/run/ckpt-7", ("file:///data/run", "ckpt-7")),
        ("file:///ckpt-7", ("file:///", "ckpt-7")),
        ("/data/run/ckpt-7", ("/data/run", "ckpt-7")),
        ("/ckpt-7", ("/", "ckpt-7")),
        ("run/ckpt-7", ("run", "ckpt-7")),
        ("ckpt-7", (".", "ckpt-7")),
        (Path("/data/run/ckpt-7"), ("/data/run", "ckpt-7")),
    ],
)
def test_a_checkpoints_url_is_its_directory_and_its_name(url: str | Path, parts: tuple[str, str]) -> None:
    assert parts == split_url(url)


@pytest.mark.parametrize("url", ["s3://b", "s3://b/", "s3://b/run/", "/", "", "run/", "memory://"])
def test_what_names_no_object_cannot_be_split(url: str) -> None:
    with pytest.raises(ValueError, match="names no object"):
        split_url(url)


def test_the_scheme_is_what_stands_before_the_slashes() -> None:
    assert scheme_of("S3://b/x") == "s3"
    assert scheme_of("/data/s3://x") == ""
    assert scheme_of("relative/path") == ""


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3a://b/run", "b", "run"),
        ("s3://b/run//", "b", "run"),
        ("s3://b/a/b?c#d%2F", "b", "a/b?c#d%2F"),
        ("b/run", "b", "run"),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/run",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine",
            "run",
        ),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:mine/run",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint:mine",
            "run",
        ),
    ],
)
def test_a_bucket_url_is_a_bucket_and_a_prefix(url: str, bucket: str, prefix: str) -> None:
    location = parse_bucket_url(url, "s3")
    assert (bucket, prefix) == (location.bucket, location.prefix)
    assert str(location) == f"s3://{bucket}/{prefix}".rstrip("/")
    assert location.root == (f"{prefix}/" if prefix else "")


@pytest.mark.parametrize("url", ["s3://", "s3:///run", "s3://b/a//b", "s3://b/../c", "s3://b/./c"])
def test_a_url_without_a_plain_directory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"bucket|segment"):
        parse_bucket_url(url, "s3")


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="no credentials") as caught:
        parse_bucket_url("s3://AKIAKEY:very-secret@b/run", "s3")
    assert "very-secret" not in str(caught.value)
