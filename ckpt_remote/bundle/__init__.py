"""The TensorBundle V2 format, in which TensorFlow keeps checkpoints, on bytes: no I/O, and no TensorFlow.

A bundle is an index file and data files, the shards. The index is a `table` of `messages` whose keys
(`ordered`) name tensors and slices of tensors; each says in which shard, where, and with which checksum the
bytes lie.

Promises: what is written here TensorFlow reads, and the reverse, bit for bit. Whatever is read may be
hostile: it is refused with `CorruptError` or `UnsupportedError`, in time and memory linear in its size.
"""

from ckpt_remote.bundle.crc32c import crc32c, mask, unmask
from ckpt_remote.bundle.dtypes import DTYPES, RESOURCE, STRING, VARIANT, DType, dtype_from_numpy, find_dtype
from ckpt_remote.bundle.index import (
    MAX_SHARDS,
    Index,
    decode_index,
    encode_index,
    index_name,
    parse_shard_name,
    shard_name,
)
from ckpt_remote.bundle.merge import merge
from ckpt_remote.bundle.messages import Entry, Header
from ckpt_remote.bundle.object_graph import OBJECT_GRAPH, merge_object_graphs
from ckpt_remote.bundle.ordered import decode_slice_key, is_slice_key, slice_key, tensor_key, tensor_name
from ckpt_remote.bundle.reader import BundleReader
from ckpt_remote.bundle.restriction import owner_of, restrict_object_graph
from ckpt_remote.bundle.slices import Extent, TensorSlice, Tiling, parse_shape_and_slice
from ckpt_remote.bundle.strings import decode_strings, encode_strings
from ckpt_remote.bundle.verify import is_intact
from ckpt_remote.bundle.writer import BundleWriter, tensor_entry

__all__ = [
    "DTYPES",
    "MAX_SHARDS",
    "OBJECT_GRAPH",
    "RESOURCE",
    "STRING",
    "VARIANT",
    "BundleReader",
    "BundleWriter",
    "DType",
    "Entry",
    "Extent",
    "Header",
    "Index",
    "TensorSlice",
    "Tiling",
    "crc32c",
    "decode_index",
    "decode_slice_key",
    "decode_strings",
    "dtype_from_numpy",
    "encode_index",
    "encode_strings",
    "find_dtype",
    "index_name",
    "is_intact",
    "is_slice_key",
    "mask",
    "merge",
    "merge_object_graphs",
    "owner_of",
    "parse_shape_and_slice",
    "parse_shard_name",
    "restrict_object_graph",
    "shard_name",
    "slice_key",
    "tensor_entry",
    "tensor_key",
    "tensor_name",
    "unmask",
]
