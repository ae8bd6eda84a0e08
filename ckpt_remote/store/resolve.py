"""Which engine serves a URL.

Promises: the choice is made here alone, and every store says in `engine` what was chosen and why. Engines are
imported when a URL first needs them: boto3 and aiohttp take longer to import than the rest of the library.
Opening sends nothing.
"""

import functools
import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ckpt_remote import errors
from ckpt_remote.store import interface, local, memory, renew, retry, urls

__all__ = ["open_store"]

_logger = logging.getLogger(__name__)
_S3 = ("s3", "s3a")
_LOCAL = ("file", "local")
_GCS = ("gs", "gcs")
_AZURE = ("abfs", "abfss", "az", "azure")
_CHAIN = re.compile(r"^[^/]*::|::[a-z0-9+.-]+://")


def open_store(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    filesystem: fsspec.AbstractFileSystem | None = None,
) -> retry.Retrying:
    """The directory `url` as a store. Sends nothing: a wrong bucket or key shows at the first request.

    Requests that may be repeated are retried on transient failures; conditional puts are sent once.

    Args:
        url: A plain path or any URL that fsspec knows: `s3://bucket/run`, `memory://run`, ...
        storage_options: fsspec's options for the URL's scheme; fsspec's configuration supplies the rest.
        filesystem: A filesystem to use instead of one made from the URL's scheme and `storage_options`.

    Raises:
        ValueError: The URL names no directory, an option is unknown, or both `storage_options` and
            `filesystem` are given.
        TypeError: An argument is of another type.
        UnsupportedError: Nothing installed serves the URL's scheme.
    """
    text = _checked_url(url)
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise TypeError(f"storage_options is a mapping of names to values, not {type(storage_options).__name__}.")
    if filesystem is not None:
        if not isinstance(filesystem, fsspec.AbstractFileSystem):
            raise TypeError(f"filesystem is an fsspec filesystem, made, not {filesystem!r}.")
        if storage_options:
            raise ValueError("Give storage_options or a filesystem, not both: a filesystem has its own.")
        store = _of_filesystem(text, filesystem)
        policy = retry.Policy(attempts=1) if _repeats_itself(filesystem) else retry.Policy()
    elif urls.scheme_of(text) in _S3:
        store, policy = _of_s3(text, storage_options or {})
    elif urls.scheme_of(text) in _GCS:
        store, policy = _of_gcs(text, storage_options or {}), retry.Policy()
    elif urls.scheme_of(text) in _AZURE:
        store, policy = _of_azure(text, storage_options or {}), retry.Policy()
    else:
        store, policy = _of_scheme(text, storage_options or {}), retry.Policy()
    _logger.info("%s is served by %s", store.url, store.engine)
    return retry.Retrying(store, policy)


def _checked_url(url: str | os.PathLike[str]) -> str:
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"A directory is a URL or a path in text, not {text!r}.")
    scheme, colon, rest = text.partition(":")
    pathlib_was_there = colon and rest.startswith("/") and not rest.startswith("//")
    if pathlib_was_there and scheme not in _LOCAL and scheme in fsspec.available_protocols():
        raise ValueError(f"{text!r} was a URL before pathlib took one of its slashes: hand it in as text.")
    return text


def _repeats_itself(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether requests of a user's filesystem are retried below already, and ours would multiply them."""
    config = getattr(filesystem, "config_kwargs", None)  # s3fs: botocore's configuration
    return config is not None and "retries" not in config


def _of_s3(url: str, storage_options: Mapping[str, Any]) -> tuple[interface.Store, retry.Policy]:
    options = _engine("options")
    location = urls.parse_bucket_url(url, "s3")
    parsed = options.parse_s3_options(storage_options)
    policy = retry.Policy(attempts=parsed.attempts) if parsed.attempts else retry.Policy()
    reason = _why_not_obstore(location, parsed)
    if not reason:
        make = functools.partial(_engine("obstore_s3").ObstoreS3Store, location, parsed, "obstore (default for s3://)")
        return renew.Renewing(make(), make) if parsed.renewable else make(), policy
    filesystem = fsspec.get_filesystem_class("s3")(**parsed.filesystem, skip_instance_cache=True)
    return _s3fs_store(filesystem, location, f"fsspec S3FileSystem ({reason})", parsed.consistency), policy


def _s3fs_store(
    filesystem: fsspec.AbstractFileSystem, location: urls.BucketUrl, engine: str, consistency: str | None = None
) -> interface.Store:
    make = functools.partial(_engine("s3fs").S3fsStore, filesystem, location, engine, consistency)
    if _engine("s3fs").is_renewable(filesystem):
        return renew.Renewing(make(), functools.partial(make, renewed=True))
    store: interface.Store = make()
    return store


def _why_not_obstore(location: urls.BucketUrl, parsed: Any) -> str:
    if parsed.s3fs_only:
        return f"obstore does not take {', '.join(parsed.s3fs_only)}"
    if location.bucket.startswith("arn:"):
        return "obstore does not take access points"
    if location.bucket.endswith("--x-s3"):
        return "obstore does not open directory buckets as boto3 does"
    if _engine("aws").needs_own_certificates(parsed):
        return "obstore would trust other certificates than the AWS configuration's ca_bundle"
    return ""


def _of_gcs(url: str, storage_options: Mapping[str, Any]) -> interface.Store:
    location = urls.parse_bucket_url(url, "gs")
    parsed = _engine("gcs_options").parse_gcs_options(storage_options)
    google = _engine("google")
    reason = google.why_not_obstore(parsed)

    def make(*, renewed: bool = False) -> Any:
        connect = functools.partial(google.connect, parsed, renewed=renewed)
        if reason:
            return _engine("gcsfs").GcsfsStore(location, connect, f"fsspec GCSFileSystem ({reason})")
        return _engine("obstore_gcs").ObstoreGcsStore(
            location, connect, "obstore (default for gs://)", parsed.patience, parsed.consistency
        )

    return renew.Renewing(make(), functools.partial(make, renewed=True))


def _of_azure(url: str, storage_options: Mapping[str, Any]) -> interface.Store:
    location = urls.parse_container_url(url)
    options = _engine("azure_options").parse_azure_options(storage_options, location)
    store: interface.Store = _engine("obstore_azure").ObstoreAzureStore(
        location, options, "obstore (the only one for abfs://)"
    )
    return store


def _of_scheme(url: str, storage_options: Mapping[str, Any]) -> interface.Store:
    scheme = urls.scheme_of(url) or "file"
    if _CHAIN.search(url):
        raise errors.UnsupportedError(
            f"{url!r} chains filesystems: make the filesystem yourself and hand it in.", path=url
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise errors.UnsupportedError(
            f"Cannot open {urls.shown(url)}: fsspec has nothing for {scheme}:// ({error}). "
            f"Install the package that serves it, or correct the URL.",
            path=urls.shown(url),
        ) from error
    if kind in (LocalFileSystem, MemoryFileSystem):
        _require_known(kind, storage_options)
    in_url = kind._get_kwargs_from_urls(url)  # noqa: SLF001 - fsspec's hook for hosts and ports in URLs
    options = {**in_url, **storage_options}
    try:
        filesystem = kind(**options, skip_instance_cache=True)
    except ImportError as error:
        raise errors.UnsupportedError(
            f"Cannot open {urls.shown(url)}: {error}. Install the package that serves {scheme}://.",
            path=urls.shown(url),
        ) from error
    return _served(url, filesystem, f"default for {scheme}://")


def _of_filesystem(url: str, filesystem: fsspec.AbstractFileSystem) -> interface.Store:
    scheme = urls.scheme_of(url)
    spoken = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else tuple(filesystem.protocol)
    if scheme and scheme not in spoken:
        raise ValueError(f"The filesystem serves {', '.join(spoken)}, not {scheme}://: hand in one that does.")
    return _served(url, filesystem, "a filesystem was given")


def _served(url: str, filesystem: fsspec.AbstractFileSystem, reason: str) -> interface.Store:
    engine = f"fsspec {type(filesystem).__name__} ({reason})"
    root = filesystem._strip_protocol(url)  # noqa: SLF001 - fsspec's spelling of "the path in this filesystem"
    s3fs = sys.modules.get("s3fs")
    if s3fs is not None and isinstance(filesystem, s3fs.S3FileSystem):
        return _s3fs_store(filesystem, urls.parse_bucket_url(url, "s3"), engine)
    gcsfs = sys.modules.get("gcsfs.core")
    if gcsfs is not None and isinstance(filesystem, gcsfs.GCSFileSystem):
        return _gcsfs_store(filesystem, urls.parse_bucket_url(url, "gs"), engine)
    if type(filesystem) is LocalFileSystem:
        return local.LocalStore(root, f"{urls.scheme_of(url)}://{root}" if urls.scheme_of(url) else root, engine)
    if type(filesystem) is MemoryFileSystem:
        return memory.MemoryStore(filesystem, root, f"memory://{root.lstrip('/')}", engine)
    other: interface.Store = _engine("fsspec").FsspecStore(filesystem, root, urls.shown(url).rstrip("/"), engine)
    return other


def _gcsfs_store(filesystem: fsspec.AbstractFileSystem, location: urls.BucketUrl, engine: str) -> interface.Store:
    if filesystem.asynchronous:
        raise ValueError("The filesystem is asynchronous: hand in one made with asynchronous=False.")
    account = _engine("google").adopt(filesystem)

    def make(*, renewed: bool = False) -> Any:
        return _engine("gcsfs").GcsfsStore(location, lambda _: account.renew() if renewed else account, engine)

    return renew.Renewing(make(), functools.partial(make, renewed=True))


def _engine(name: str) -> Any:
    return importlib.import_module(f"ckpt_remote.store.{name}")


def _require_known(kind: type[fsspec.AbstractFileSystem], storage_options: Mapping[str, Any]) -> None:
    """Refuse what fsspec would swallow; these two filesystems take few options."""
    makers = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    known -= {"self", "args", "kwargs", "storage_options"}
    for name in storage_options:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no option {name!r}. There are: {', '.join(sorted(known))}.")
