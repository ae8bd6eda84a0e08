import importlib.util
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from support.bundles import NUMERIC, tensorflow_tensor, tensorflow_write
from tensorflow.core.framework import types_pb2

from ckpt_remote.bundle import DTYPES, RESOURCE, STRING, VARIANT, DType, dtype_from_numpy, dtypes, find_dtype
from ckpt_remote.errors import UnsupportedError

FIRST_REFERENCE = 100
NUMBERS = [number for number in types_pb2.DataType.values() if 0 < number < FIRST_REFERENCE]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_type_has_tensorflows_number_and_name(number: int) -> None:
    assert DTYPES[number].number == number
    assert DTYPES[number].name == tf.as_dtype(number).name


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_a_tensor_takes_the_bytes_and_loads_as_the_type_that_tensorflow_gives_it(dtype: DType, tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt"
    tensorflow_write(prefix, [("t", "", tensorflow_tensor(np.ones(3, dtype.numpy), dtype))])
    assert (tmp_path / "ckpt.data-00000-of-00001").stat().st_size == 3 * dtype.itemsize
    assert tf.train.load_checkpoint(prefix).get_tensor("t").dtype == dtype.numpy


@pytest.mark.parametrize("dtype", [d for d in NUMERIC if d.sliceable], ids=lambda dtype: dtype.name)
def test_tensorflow_restores_every_sliceable_type_from_several_slices(dtype: DType, tmp_path: Path) -> None:
    ones, zeros = np.ones(3, dtype.numpy), np.zeros(3, dtype.numpy)
    slices = [("t", "6 0,3", ones), ("t", "6 3,3", zeros)]
    prefix = tmp_path / "ckpt"
    tensorflow_write(prefix, [(name, where, tensorflow_tensor(part, dtype)) for name, where, part in slices])
    restored = tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=["t"], shape_and_slices=[""], dtypes=[tf.as_dtype(dtype.number)]
    )[0]
    assert restored.numpy().tobytes() == np.concatenate([ones, zeros]).tobytes()


def test_numpy_types_lead_to_the_plain_type_not_the_quantised_one() -> None:
    for dtype in NUMERIC:
        if not dtype.name.startswith(("qint", "quint")):
            assert dtype_from_numpy(dtype.numpy) is dtype
            assert dtype_from_numpy(dtype.numpy.newbyteorder(">")) is dtype
    assert dtype_from_numpy(np.dtype(object)).number == STRING


def test_numpy_types_that_tensorflow_lacks_are_refused() -> None:
    for dtype in (np.dtype("datetime64[s]"), np.dtype("U3"), np.dtype([("a", "i4")])):
        with pytest.raises(TypeError, match="no data type"):
            dtype_from_numpy(dtype)


def test_types_without_a_fixed_size_say_so() -> None:
    assert [DTYPES[number].itemsize for number in (STRING, RESOURCE, VARIANT)] == [None, None, None]


def test_a_type_of_a_later_tensorflow_is_named_in_the_refusal() -> None:
    with pytest.raises(UnsupportedError, match="data type 99 "):
        find_dtype(99)


def test_an_old_ml_dtypes_only_leaves_the_new_types_without_an_equivalent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = types.SimpleNamespace(bfloat16=ml_dtypes.bfloat16, int4=ml_dtypes.int4)
    monkeypatch.setitem(sys.modules, "ml_dtypes", old)
    spec = importlib.util.spec_from_file_location("dtypes_with_old_ml_dtypes", dtypes.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    by_name = {dtype.name: dtype for dtype in module.DTYPES.values()}
    assert by_name["float8_e4m3fn"].numpy is None
    assert by_name["float8_e4m3fn"].itemsize == 1
    assert by_name["bfloat16"].numpy == np.dtype(ml_dtypes.bfloat16)
