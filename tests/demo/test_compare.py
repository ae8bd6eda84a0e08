"""The comparison that the demo rests on sees every bit of every tensor. TensorFlow writes what it reads."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf


def write(folder: Path, **values: Any) -> str:
    """A checkpoint of plain TensorFlow in a folder of its own; returns the folder."""
    tracked = {k: tf.Variable(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    tf.train.CheckpointManager(tf.train.Checkpoint(**tracked), str(folder), max_to_keep=1).save()
    return str(folder)


def prefetching(buffer_size: int) -> object:
    iterator = iter(tf.data.Dataset.range(100).batch(4).prefetch(buffer_size))
    next(iterator)
    return iterator


def test_equal_checkpoints_are_equal(tmp_path: Path, compare: ModuleType) -> None:
    folders = [write(tmp_path / name, it=prefetching(1), x=np.float32([1.5, np.nan, -0.0])) for name in "ab"]
    assert compare.main(folders) == 0


def test_one_bit_in_one_tensor_is_different(
    tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.arange(1000, dtype=np.float32)
    flipped = x.copy()
    flipped.view(np.uint32)[567] ^= 1
    folders = [write(tmp_path / "a", x=x, y=x), write(tmp_path / "b", x=x, y=flipped)]
    assert compare.main(folders) == 1
    printed = capsys.readouterr().out
    assert "different: y/.ATTRIBUTES/VARIABLE_VALUE\n" in printed
    assert "1 different" in printed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(np.float32([0.0]), np.float32([-0.0]), id="sign of zero"),
        pytest.param(np.float32([1]), np.int32([1]), id="dtype"),
        pytest.param(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), id="shape"),
    ],
)
def test_what_compares_equal_as_numbers_may_be_different(
    tmp_path: Path, compare: ModuleType, one: np.ndarray, other: np.ndarray
) -> None:
    assert compare.main([write(tmp_path / "a", x=one), write(tmp_path / "b", x=other)]) == 1


def test_what_an_iterator_happened_to_prefetch_makes_no_difference(tmp_path: Path, compare: ModuleType) -> None:
    folders = [write(tmp_path / str(buffered), it=prefetching(buffered)) for buffered in (1, 2)]
    assert compare.main(folders) == 0


def test_an_iterator_on_one_side_only_is_different(tmp_path: Path, compare: ModuleType) -> None:
    folders = [
        write(tmp_path / "a", x=np.float32([1]), it=prefetching(1)),
        write(tmp_path / "b", x=np.float32([1])),
    ]
    assert compare.main(folders) == 1


def test_a_missing_entry_is_different(compare: ModuleType) -> None:
    assert compare.differences({"a": "1", "b": "2"}, {"a": "1"}) == ["b"]
    assert compare.differences({"a": "1"}, {"a": "1", "b": "2"}) == ["b"]


def test_a_folder_without_a_checkpoint_is_no_match(
    tmp_path: Path, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert compare.main([str(tmp_path / "empty"), write(tmp_path / "a", x=np.float32([1]))]) == 1
    assert "holds no checkpoint" in capsys.readouterr().out
