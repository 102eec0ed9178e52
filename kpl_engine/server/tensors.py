"""Tensors of the Open Inference Protocol v2: datatypes, raw little-endian bytes and JSON data to NumPy and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from kpl_engine.errors import RequestError

__all__ = ["DTYPES", "Tensor", "check_shape", "from_json", "from_raw", "split_bytes", "to_json", "to_raw"]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_MAX_RANK = 8
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor. ``data`` is an array of ``shape``; of datatype BYTES a flat list, row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | list[bytes]


def check_shape(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Number of elements of a tensor that is still to be read; no array is made.

    Raises
    ------
    RequestError
        An unknown datatype (BF16 too: NumPy has none), a negative dimension, or more than 8 dimensions.
    """
    if datatype != "BYTES" and datatype not in DTYPES:
        hint = "; send FP32 instead" if datatype == "BF16" else ""
        raise RequestError(f"{name}: expected a datatype of {', '.join(DTYPES)}, BYTES; got {datatype[:40]!r}{hint}")
    if len(shape) > _MAX_RANK:
        raise RequestError(f"{name}: expected a shape of at most {_MAX_RANK} dimensions, got {len(shape)}")
    if any(size < 0 for size in shape):
        raise RequestError(f"{name}: expected a shape of dimensions >= 0, got {list(shape)}")
    return prod(shape)  # Python integers: no overflow


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | bytearray | memoryview) -> Tensor:
    """The tensor whose little-endian bytes are ``raw``; numbers are a view of them, not a copy.

    Raises `RequestError` as `check_shape`, and where the length is not that of the shape.
    """
    count = check_shape(name, datatype, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), split_bytes(name, count, raw))
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise RequestError(
            f"{name}: expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, got {len(raw)}"
        )
    if datatype == "BOOL" and count and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise RequestError(f"{name}: expected bytes 0 or 1 for BOOL, got others")
    return Tensor(name, datatype, tuple(shape), np.frombuffer(raw, dtype).reshape(shape))


def split_bytes(name: str, count: int, raw: bytes | bytearray | memoryview) -> list[bytes]:
    """The ``count`` elements of a raw BYTES tensor: each is its length as 4 little-endian bytes, then that many."""
    view = memoryview(raw)
    if count * _LENGTH.size > len(view):  # before a list of a billion empty elements is begun
        raise RequestError(f"{name}: expected {count} BYTES elements with 4-byte lengths, got {len(view)} bytes in all")
    elements: list[bytes] = []
    position = 0
    for i in range(count):
        left = len(view) - position - _LENGTH.size
        length = _LENGTH.unpack_from(view, position)[0] if left >= 0 else 0
        if left < length:
            raise RequestError(
                f"{name}: element {i} of {count} says {length} bytes, got {max(left, 0)} up to the end of the tensor"
            )
        position += _LENGTH.size
        elements.append(bytes(view[position : position + length]))
        position += length
    if position != len(view):
        raise RequestError(f"{name}: expected {position} bytes for {count} BYTES elements, got {len(view)}")
    return elements


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """A strict reader of lists nested ``depth`` times: no text or boolean for a number, none out of range."""
    element: Any
    if datatype == "BYTES":
        element = str
    elif datatype == "BOOL":
        element = bool
    elif datatype == "UINT64":
        element = Annotated[int, msgspec.Meta(ge=0)]  # Meta holds int64; NumPy refuses what is over
    elif DTYPES[datatype].kind == "f":
        element = float
    else:
        limits = np.iinfo(DTYPES[datatype])
        element = Annotated[int, msgspec.Meta(ge=int(limits.min), le=int(limits.max))]
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def from_json(name: str, datatype: str, shape: Sequence[int], data: bytes | msgspec.Raw) -> Tensor:
    """The tensor whose JSON ``data`` is a list, flat or nested as ``shape``; text of BYTES becomes UTF-8.

    Raises
    ------
    RequestError
        As `check_shape`; FP16, which is binary only; elements of another kind or out of range; another number of
        elements; nesting other than the shape's.
    """
    count = check_shape(name, datatype, shape)
    if datatype == "FP16":
        raise RequestError(f"{name}: expected FP16 as binary data, got JSON; send FP32, or binary_data_size")
    text = bytes(data)
    depth = _nesting(text)
    if depth not in (1, len(shape)):
        raise RequestError(f"{name}: expected data flat or nested {len(shape)} deep as its shape, got {depth} deep")
    try:
        values = _decoder(datatype, depth).decode(text)
        if datatype == "BYTES":
            return Tensor(name, datatype, tuple(shape), _flat_text(name, shape, depth, values))
        with np.errstate(over="ignore"):  # beyond float32: infinite, which the check of the values names
            array = np.array(values, dtype=DTYPES[datatype])
    except (ValueError, OverflowError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise RequestError(f"{name}: expected {datatype} data of shape {list(shape)}, got: {error}") from error
    if array.size != count or (depth > 1 and array.shape != tuple(shape)):
        raise RequestError(f"{name}: expected {count} elements for shape {list(shape)}, got shape {list(array.shape)}")
    return Tensor(name, datatype, tuple(shape), array.reshape(shape))


def _nesting(text: bytes) -> int:
    """How many lists begin the data, one where it is no list (the reader says so then)."""
    depth = 0
    for byte in text[: 64 * _MAX_RANK]:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth or 1


def _flat_text(name: str, shape: Sequence[int], depth: int, values: Any) -> list[bytes]:
    level = values
    for size in shape[1:depth]:
        if any(len(row) != size for row in level):
            raise ValueError("lists of other lengths")
        level = [item for row in level for item in row]
    if len(level) != prod(shape) or (depth > 1 and len(values) != shape[0]):
        raise RequestError(f"{name}: expected {prod(shape)} elements for shape {list(shape)}, got {len(level)}")
    return [text.encode() for text in level]


def to_raw(tensor: Tensor) -> bytes:
    """The bytes `from_raw` reads."""
    if isinstance(tensor.data, list):
        return b"".join(part for element in tensor.data for part in (_LENGTH.pack(len(element)), element))
    return np.ascontiguousarray(tensor.data, dtype=DTYPES[tensor.datatype]).tobytes()


def to_json(tensor: Tensor) -> list[Any]:
    """A flat list of plain values; text of BYTES is UTF-8, what is none is replaced."""
    if isinstance(tensor.data, list):
        return [element.decode("utf-8", "replace") for element in tensor.data]
    flat: list[Any] = tensor.data.ravel().tolist()
    return flat
