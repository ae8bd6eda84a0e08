from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.bundles import open_bundle, tensorflow_write, write_files

from ckpt_remote.bundle import (
    MAX_SHARDS,
    BundleWriter,
    Entry,
    Extent,
    Header,
    Index,
    TensorSlice,
    decode_index,
    encode_index,
    index_name,
    merge,
    shard_name,
    slice_key,
)

UPPER, LOWER = TensorSlice((Extent(0, 2), Extent())), TensorSlice((Extent(2, 2), Extent()))


def test_tensorflow_restores_a_merge_of_bundles_whose_data_never_moved(tmp_path: Path) -> None:
    """Every worker writes its shards under their final names, and only the indexes are merged."""
    first, second = BundleWriter("1", num_shards=2), BundleWriter("2", num_shards=3)
    first.add("a", np.arange(3))
    first.add_slice("v", (4, 2), UPPER, np.ones((2, 2), np.int16))
    second.add("b", np.array([b"text"], object))
    second.add_slice("v", (4, 2), LOWER, np.zeros((2, 2), np.int16))
    files = [first.finish(), second.finish()]
    merged = merge([decode_index(files[0]["1.index"]), decode_index(files[1]["2.index"])], write_id="w")
    assert merged.header == Header(5, "w")
    names = {shard_name("1", shard, 2): shard_name("ckpt", shard, 5) for shard in range(2)}
    names |= {shard_name("2", shard, 3): shard_name("ckpt", shard + 2, 5) for shard in range(3)}
    data = {names[name]: content for part in files for name, content in part.items() if name in names}
    write_files(tmp_path, data | {index_name("ckpt"): encode_index(merged)})
    loaded = tf.train.load_checkpoint(tmp_path / "ckpt")
    assert loaded.get_tensor("a").tolist() == [0, 1, 2]
    assert loaded.get_tensor("b").tolist() == [b"text"]
    assert loaded.get_tensor("v").tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert open_bundle(tmp_path / "ckpt").get_tensor("v").tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_the_merged_index_is_tensorflows_byte_for_byte(tmp_path: Path) -> None:
    tensorflow_write(tmp_path / "1", [("a", "", tf.range(3)), ("v", "4 2 0,2:-", tf.ones((2, 2)))])
    tensorflow_write(tmp_path / "2", [("b", "", tf.range(5)), ("v", "4 2 2,2:-", tf.ones((2, 2)))])
    ours = merge([decode_index((tmp_path / name).read_bytes()) for name in ("1.index", "2.index")])
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / "1"), str(tmp_path / "2")],
        destination_prefix=str(tmp_path / "merged"),
    )
    assert encode_index(ours) == (tmp_path / "merged.index").read_bytes()


def test_shards_that_hold_nothing_keep_their_numbers() -> None:
    parts = [Index(Header(3), {}), Index(Header(2), {b"a": Entry(1, (), 1, 0, 4)}), Index(Header(0), {})]
    assert merge(parts) == Index(Header(5), {b"a": Entry(1, (), 4, 0, 4)})


def test_side_files_of_all_parts_are_kept() -> None:
    parts = [Index(Header(1, "x", ("-a", "-b")), {}), Index(Header(1, "y", ("-b", "-c")), {})]
    assert merge(parts, write_id="z").header == Header(2, "z", ("-a", "-b", "-c"))


def test_nothing_is_merged_into_nothing() -> None:
    assert merge([]) == Index(Header(0), {})


WHOLE = Entry(1, (4, 2), 0, 0, 32)
FULL = Entry(1, (4, 2), slices=(UPPER,))


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        pytest.param(b"v", WHOLE, WHOLE, id="the same tensor"),
        pytest.param(b"v", WHOLE, Entry(1, (2,), 0, 0, 8), id="another tensor"),
        pytest.param(b"v", WHOLE, FULL, id="whole and sliced"),
        pytest.param(b"v", FULL, WHOLE, id="sliced and whole"),
        pytest.param(b"v", FULL, Entry(1, (5, 2), slices=(LOWER,)), id="slices of another shape"),
        pytest.param(b"v", FULL, Entry(2, (4, 2), slices=(LOWER,)), id="slices of another type"),
        pytest.param(
            slice_key("v", UPPER), Entry(1, (2, 2), 0, 0, 16), Entry(1, (2, 2), 0, 0, 16), id="the same slice"
        ),
    ],
)
def test_what_two_parts_cannot_both_hold_is_refused(key: bytes, one: Entry, other: Entry) -> None:
    parts = [
        Index(Header(1), {}),
        Index(Header(1), {key: one}),
        Index(Header(1), {}),
        Index(Header(1), {key: other}),
    ]
    with pytest.raises(ValueError, match="parts 1 and 3") as caught:
        merge(parts)
    assert repr(key) in str(caught.value)


def test_more_shards_than_names_can_count_are_refused() -> None:
    with pytest.raises(ValueError, match="shards"):
        merge([Index(Header(MAX_SHARDS), {}), Index(Header(1), {})])
