"""Safetensors to and from bytes, so that equal content gives equal bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.errors import BundleCorruptError, BundleError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["dump_tensors", "load_tensors"]

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format


def dump_tensors(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Serialise to the safetensors format with sorted keys.

    The reference writer orders metadata by a hash table seeded anew in each process; a bundle whose
    checksum changes without its content would be rebuilt and shipped for nothing.
    """
    import json

    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    blocks: list[bytes] = []
    position = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        if array.dtype not in _NAMES:
            raise BundleError(f"tensor {name!r}: dtype {array.dtype} cannot be stored; use one of {sorted(_DTYPES)}")
        blocks.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        end = position + len(blocks[-1])
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # data starts on an 8-byte boundary
    return b"".join([struct.pack("<Q", len(text)), text, *blocks])


def load_tensors(data: bytes, where: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of one safetensors file; ``where`` names it in messages."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        (length,) = struct.unpack_from("<Q", data)
        header = parse_strict(data[8 : 8 + length], _MAX_HEADER_BYTES)
    except (SafetensorError, StrictJsonError, struct.error, KeyError, ValueError, TypeError) as error:
        raise BundleCorruptError(f"{where} is not a readable safetensors file: {error}") from error
    return tensors, header.get("__metadata__", {})
