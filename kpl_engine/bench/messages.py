"""Requests and replies of the Open Inference Protocol v2 as a client writes and reads them, through either door.

Written here and not with the server's own reader, so that a mistake in one of them shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.bench.doors import Answer, import_grpc

__all__ = ["Input", "Rows", "bytes_element", "grpc_request", "http_request", "read_grpc", "read_http"]

Parameters = Mapping[str, Any]
Rows = npt.NDArray[Any] | list[bytes]
_DTYPES = {"FP32": "<f4", "UINT8": "u1", "BOOL": "?"}
_RAW_INPUTS = b"\x3a"  # field 7, raw_input_contents, of wire type 2: a length and its bytes


@dataclass(frozen=True)
class Input:
    """One input tensor: its raw little-endian bytes, as both doors carry them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def bytes_element(data: bytes) -> bytes:
    """One element of a BYTES tensor: behind its length in four bytes."""
    return len(data).to_bytes(4, "little") + data


def http_request(tensor: Input, parameters: Parameters, outputs: Sequence[str] = ()) -> tuple[bytes, int]:
    """A binary request and the length of its JSON; no ``outputs`` are the server's usual ones."""
    described = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": len(tensor.raw)},
    }
    request: dict[str, Any] = {"inputs": [described], "parameters": {"binary_data_output": True, **parameters}}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    header = json.dumps(request).encode()
    return header + tensor.raw, len(header)


def grpc_request(model: str, tensor: Input, parameters: Parameters, outputs: Sequence[str] = ()) -> bytes:
    """A serialised ModelInferRequest. The raw bytes are its last field: they are appended, and copied once."""
    request = _message("ModelInferRequest")(model_name=model)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else "string_param"
        setattr(request.parameters[name], kind, value)
    for name in outputs:
        request.outputs.add(name=name)
    return b"".join((request.SerializeToString(), _RAW_INPUTS, _varint(len(tensor.raw)), tensor.raw))


def read_http(answer: Answer) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Outputs by name and parameters of a binary reply, or of one in JSON."""
    header = json.loads(answer.body[: answer.header_bytes])
    start = answer.header_bytes or 0
    outputs: dict[str, Rows] = {}
    for each in header["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        if size is not None:
            outputs[each["name"]] = _rows(each["datatype"], each["shape"], answer.body[start : start + size])
            start += size
        elif each["datatype"] == "BYTES":
            outputs[each["name"]] = [str(text).encode() for text in each["data"]]
        else:
            outputs[each["name"]] = np.asarray(each["data"], _DTYPES[each["datatype"]]).reshape(each["shape"])
    return outputs, header.get("parameters", {})


def read_grpc(answer: Answer) -> tuple[dict[str, Rows], dict[str, Any]]:
    """As `read_http`, of a serialised ModelInferResponse; `ValueError` where it is none."""
    from google.protobuf.message import DecodeError

    try:
        reply = _message("ModelInferResponse").FromString(answer.body)
    except DecodeError as error:
        raise ValueError("not a ModelInferResponse") from error
    raw = zip(reply.outputs, reply.raw_output_contents, strict=True)
    outputs = {each.name: _rows(each.datatype, each.shape, data) for each, data in raw}
    return outputs, {name: value.string_param for name, value in reply.parameters.items()}


def _rows(datatype: str, shape: Sequence[int], raw: bytes) -> Rows:
    if datatype != "BYTES":
        return np.frombuffer(raw, _DTYPES[datatype]).reshape(tuple(shape))
    found, start = [], 0
    while start < len(raw):
        size = int.from_bytes(raw[start : start + 4], "little")
        found.append(raw[start + 4 : start + 4 + size])
        start += 4 + size
    return found


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _message(name: str) -> Any:
    import_grpc()
    from kpl_engine.server.grpc.messages import message

    return message(name)
