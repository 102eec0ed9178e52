"""Infer requests and answers between protobuf messages and the records of `kpl_engine.server.infer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kpl_engine.errors import RequestError
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.infer import InferAnswer, InferRequest, check_inputs, check_outputs
from kpl_engine.server.requests import Reply
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tensors import DTYPES, Tensor, check_shape, from_raw, to_raw

__all__ = ["is_raw", "to_infer", "to_response"]

# Where `InferTensorContents` keeps the elements; FP16 has no place there. UINT8 and INT8 travel as 32 bits.
_CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}

_PASSED_OVER = ("binary_data_size",)  # of HTTP; KServe's client sends it here too


def is_raw(request: Any) -> bool:
    """Whether the tensors came as raw bytes; the answer's go the same way."""
    return len(request.raw_input_contents) > 0


def to_infer(request: Any, settings: ServerSettings, request_id: str, traceparent: str) -> InferRequest:
    """What a ModelInferRequest says, its tensors made; numbers of raw tensors are a view of their bytes.

    Raises
    ------
    RequestError, TooLargeError
        See `check_inputs`, `check_outputs`, `from_raw`; tensors both raw and in ``contents``, or of another number.
    """
    check_inputs(((each.name, each.datatype, tuple(each.shape)) for each in request.inputs), settings)
    given = request.inputs[0]
    _check_input_parameters(given)
    return InferRequest(
        request.model_name,
        request.model_version,
        (_raw(request, given) if is_raw(request) else _contents(given),),
        _values(request.parameters),
        check_outputs((each.name, _values(each.parameters)) for each in request.outputs),
        request.id or None,
        request_id,
        traceparent,
    )


def _check_input_parameters(tensor: Any) -> None:
    unknown = [name for name in tensor.parameters if name not in _PASSED_OVER and not name.startswith("triton_")]
    if any(name.startswith("shared_memory") for name in unknown):
        raise RequestError(f"{tensor.name}: shared memory is not served; send the tensor in the request")
    if unknown:
        raise RequestError(f"{tensor.name}: expected no parameters of an input; got {unknown[0][:80]!r}")


def _values(parameters: Any) -> Mapping[str, Any]:
    found = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise RequestError(f"{name[:80]!r}: expected a parameter with a value, got one without")
        found[name] = getattr(value, kind)
    return found


def _raw(request: Any, tensor: Any) -> Tensor:
    raw = request.raw_input_contents
    if tensor.HasField("contents"):
        raise RequestError(f"{tensor.name}: expected contents or raw_input_contents, got both")
    if len(raw) != 1:
        raise RequestError(f"raw_input_contents: expected one for each input, 1; got {len(raw)}")
    return from_raw(tensor.name, tensor.datatype, tuple(tensor.shape), raw[0])


def _contents(tensor: Any) -> Tensor:
    shape = tuple(tensor.shape)
    count = check_shape(tensor.name, tensor.datatype, shape)
    want = _CONTENTS[tensor.datatype]
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != want]
    if others:
        raise RequestError(f"{tensor.name}: expected {want} for {tensor.datatype}, got {others[0]}")
    values = getattr(tensor.contents, want)
    if len(values) != count:
        raise RequestError(f"{tensor.name}: expected {count} elements for shape {list(shape)}, got {len(values)}")
    if tensor.datatype == "BYTES":
        return Tensor(tensor.name, tensor.datatype, shape, list(values))
    dtype = DTYPES[tensor.datatype]
    array = np.array(values, dtype=np.uint32 if dtype.kind == "u" else dtype)
    if dtype.kind == "u" and array.max(initial=0) > np.iinfo(dtype).max:
        raise RequestError(f"{tensor.name}: expected {tensor.datatype} values, got {array.max()}")
    return Tensor(tensor.name, tensor.datatype, shape, array.astype(dtype, copy=False).reshape(shape))


def to_response(reply: Reply, answer: InferAnswer, request_id: str, raw: bool) -> Any:
    """The ModelInferResponse; ``request_id`` as the request gave it, ``raw`` as `is_raw`."""
    response = message("ModelInferResponse")(model_name=reply.model, model_version=reply.version, id=request_id)
    for name, text in answer.parameters.items():
        response.parameters[name].string_param = text
    for tensor in answer.outputs:
        place = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(to_raw(tensor))
        else:
            values = tensor.data if isinstance(tensor.data, list) else tensor.data.ravel().tolist()
            getattr(place.contents, _CONTENTS[tensor.datatype]).extend(values)
    return response
