"""Array aliases and the one place where arrays from outside are checked.

The letters used in shapes, everywhere in the code and the documents:
``n`` images, ``c`` classes, ``d`` embedding width, ``m`` descriptions of one
class, ``M`` descriptions of all classes, ``k`` descriptions kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.errors import ShapeError

__all__ = ["Bools", "Float32", "Float64", "Floats", "Ints", "UInt8", "check_array", "unit_rows"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]


def check_array(
    name: str,
    value: npt.ArrayLike,
    shape: Sequence[int | str],
    dtype: npt.DTypeLike = np.float32,
    *,
    finite: bool = True,
) -> npt.NDArray[Any]:
    """Return ``value`` as an array of ``dtype`` and ``shape``, or raise `ShapeError`.

    Parameters
    ----------
    name : str
        What the caller calls the array; it stands in the message.
    value : array_like
        Never changed; copied only when the dtype differs or its numbers are not aligned in memory.
    shape : sequence of int or str
        An int must match exactly; a letter matches any size and names it.
    dtype : dtype
        Target dtype. Float targets accept any real numbers.
    finite : bool
        Refuse NaN and infinities (default).
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ShapeError(f"{name}: expected plain numbers, got masked entries; drop those rows or fill them first")
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise ShapeError(f"{name}: expected one rectangular array, got nested data of unequal lengths") from error
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if array.ndim != len(shape) or any(
        want != got for want, got in zip(shape, array.shape, strict=True) if not isinstance(want, str)
    ):
        wanted = "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ShapeError(f"{name}: expected shape {wanted}, got {array.shape}")
    if array.dtype != dtype:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the next test names
            array = array.astype(dtype)
    elif not array.flags.aligned:  # a field of packed records: compiled code reads whole numbers only
        array = array.copy()
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise ShapeError(
            f"{name}: expected finite numbers, got {len(bad)} NaN or infinite entries (first at index "
            f"{tuple(int(i) for i in bad[0])}); drop or repair those rows first"
        )
    return array


def unit_rows(array: Floats) -> Floats:
    """Rows scaled to unit Euclidean length; a zero row stays zero. Shape and dtype kept."""
    norms = np.sqrt(np.einsum("ij,ij->i", array, array, dtype=np.float64))[:, None]
    scaled = array / np.where(norms > 0, norms, 1.0)
    return scaled.astype(array.dtype, copy=False)
