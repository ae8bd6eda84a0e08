"""TensorFlow's data types: number, name, NumPy's equivalent and size in a bundle, without TensorFlow.

The numbers are those of core/framework/types.proto and part of the format. In a bundle every element takes
whole bytes: four-bit and two-bit types one byte each. Quantised types become NumPy's integers, as in
TensorFlow's own reader.

Does not hold the `_ref` types, which are never saved. A type that the installed ml_dtypes lacks has no NumPy
equivalent: its bytes can be checked and copied, not turned into an array.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from ckpt_remote.errors import UnsupportedError

__all__ = ["DTYPES", "RESOURCE", "STRING", "VARIANT", "DType", "dtype_from_numpy", "find_dtype"]

STRING = 7
RESOURCE = 20
VARIANT = 21


@dataclass(frozen=True, slots=True)
class DType:
    """One data type.

    Attributes:
        number: The value in TensorFlow's `DataType` enum.
        name: TensorFlow's name for it, that of `tf.as_dtype(number)`.
        itemsize: Bytes of each element in a bundle, or None where they differ.
        numpy: The NumPy type of a loaded tensor, or None where there is none.
        sliceable: Whether every TensorFlow since 2.16 restores tensors of this type from several slices (the
            cases of `HANDLE_COPY` in tensor_bundle.cc). Write the others whole.
    """

    number: int
    name: str
    itemsize: int | None
    numpy: "np.dtype[Any] | None"
    sliceable: bool


def _numpy_type(name: str) -> "np.dtype[Any] | None":
    """Return the NumPy or ml_dtypes type called `name`, or None where the installed versions have none."""
    scalar = getattr(ml_dtypes, name, None)
    if scalar is None:
        scalar = getattr(np, name, None)
    return None if scalar is None else np.dtype(scalar)


# number, TensorFlow's name, bytes of an element, NumPy's name, sliceable
_TABLE: tuple[tuple[int, str, int | None, str, bool], ...] = (
    (1, "float32", 4, "float32", True),
    (2, "float64", 8, "float64", True),
    (3, "int32", 4, "int32", True),
    (4, "uint8", 1, "uint8", True),
    (5, "int16", 2, "int16", True),
    (6, "int8", 1, "int8", True),
    (STRING, "string", None, "object_", False),
    (8, "complex64", 8, "complex64", True),
    (9, "int64", 8, "int64", True),
    (10, "bool", 1, "bool_", True),
    (11, "qint8", 1, "int8", True),
    (12, "quint8", 1, "uint8", True),
    (13, "qint32", 4, "int32", True),
    (14, "bfloat16", 2, "bfloat16", True),
    (15, "qint16", 2, "int16", False),
    (16, "quint16", 2, "uint16", False),
    (17, "uint16", 2, "uint16", False),
    (18, "complex128", 16, "complex128", True),
    (19, "float16", 2, "float16", False),
    (RESOURCE, "resource", None, "", False),
    (VARIANT, "variant", None, "", False),
    (22, "uint32", 4, "uint32", False),
    (23, "uint64", 8, "uint64", False),
    (24, "float8_e5m2", 1, "float8_e5m2", False),
    (25, "float8_e4m3fn", 1, "float8_e4m3fn", False),
    (26, "float8_e4m3fnuz", 1, "float8_e4m3fnuz", False),
    (27, "float8_e4m3b11fnuz", 1, "float8_e4m3b11fnuz", False),
    (28, "float8_e5m2fnuz", 1, "float8_e5m2fnuz", False),
    (29, "int4", 1, "int4", True),
    (30, "uint4", 1, "uint4", True),
    (31, "int2", 1, "int2", False),
    (32, "uint2", 1, "uint2", False),
    (33, "float4_e2m1fn", 1, "float4_e2m1fn", False),
)

DTYPES: Mapping[int, DType] = MappingProxyType(
    {
        number: DType(number, name, itemsize, _numpy_type(numpy_name), sliceable)
        for number, name, itemsize, numpy_name, sliceable in _TABLE
    }
)
"""Every data type, by number."""

# A NumPy integer is a plain integer, never a quantised one.
_FROM_NUMPY = {dtype.numpy: dtype for dtype in DTYPES.values() if dtype.numpy is not None and dtype.name[0] != "q"}


def find_dtype(number: int) -> DType:
    """Return the data type with this number.

    Raises:
        UnsupportedError: No type is known by it.
    """
    try:
        return DTYPES[number]
    except KeyError:
        raise UnsupportedError(
            f"TensorFlow data type {number} is unknown here; a newer ckpt_remote may know it"
        ) from None


def dtype_from_numpy(dtype: "np.dtype[Any]") -> DType:
    """Return the data type under which TensorFlow saves arrays of `dtype`, whatever its byte order.

    Raises:
        TypeError: TensorFlow has no such type.
    """
    try:
        return _FROM_NUMPY[dtype.newbyteorder("=")]
    except KeyError:
        raise TypeError(f"TensorFlow has no data type for NumPy's {dtype}") from None
