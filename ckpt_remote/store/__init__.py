"""An object store over fsspec URLs: ranged reads, put, put-if, list, delete.

`open_store` picks the engine: obstore for S3, Google and Azure, fsspec for the rest and for any filesystem that a
user hands in. All of them are `Store`s and pass one conformance suite. See `interface` for what is promised.
"""

from ckpt_remote.store.interface import Object, ObjectInfo, PutMode, Store, Version
from ckpt_remote.store.resolve import open_store
from ckpt_remote.store.retry import Policy, Retry, Retrying, Trial
from ckpt_remote.store.urls import split_url

__all__ = [
    "Object",
    "ObjectInfo",
    "Policy",
    "PutMode",
    "Retry",
    "Retrying",
    "Store",
    "Trial",
    "Version",
    "open_store",
    "split_url",
]
