"""Bodies of `/v2/models/{m}/infer`: JSON, JSON with binary tensors behind it, or one bare picture; and the reply's."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kpl_engine.errors import RequestError
from kpl_engine.server.infer import InferAnswer, InferRequest, check_inputs, check_outputs
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tensors import Tensor, from_json, from_raw, to_json, to_raw

__all__ = ["Wire", "encode_answer", "parse_body"]

_RAW_TYPES = ("image/", "application/octet-stream", "application/dicom")
_INPUT_PARAMETERS = ("binary_data_size", "content_type")


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None
    # Some clients describe what they expect back; the answer says what it is.
    shape: list[int] | None = None
    datatype: str | None = None


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] | None = None
    id: str | None = None
    model_name: str | None = None  # KServe's clients repeat the address here
    model_version: str | None = None


_DECODER = msgspec.json.Decoder(_Body)


@dataclass(frozen=True)
class Wire:
    """Which outputs leave as binary: those ``named`` say, the others as ``default``."""

    default: bool
    named: Mapping[str, bool]

    def is_binary(self, name: str) -> bool:
        """Of one output."""
        return self.named.get(name, self.default)


def parse_body(
    body: bytes, header_length: str, content_type: str, query: Mapping[str, Any], settings: ServerSettings
) -> tuple[InferRequest, Wire]:
    """The request in ``body``; its ``model`` and ids are the door's to fill in.

    Parameters
    ----------
    body : bytes
        Unpacked.
    header_length, content_type : str
        The headers Inference-Header-Content-Length and Content-Type, "" without.
    query : mapping
        Parameters from the address; one that the body has too is refused.

    Raises
    ------
    RequestError
        JSON that is none or not of the protocol; lengths that do not fit; see `tensors`, `infer.check_inputs`.
    TooLargeError
        See `infer.check_inputs`.
    """
    if header_length and not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
        raise RequestError(f"Inference-Header-Content-Length: expected a number of bytes, got {header_length[:40]!r}")
    is_raw = content_type.lower().startswith(_RAW_TYPES) if not header_length else int(header_length) == 0
    if is_raw:
        return _bare_picture(body, query)
    size = int(header_length) if header_length else len(body)
    if size > len(body):
        raise RequestError(
            f"Inference-Header-Content-Length: expected at most the body's {len(body)} bytes, got {size}"
        )
    try:
        parsed = _DECODER.decode(memoryview(body)[:size])
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise RequestError(f"body: expected a JSON infer request, got: {error}") from error
    check_inputs(((each.name, each.datatype, each.shape) for each in parsed.inputs), settings)
    behind = memoryview(body)[size:]
    inputs = _read_inputs(parsed.inputs, behind, has_header=bool(header_length))
    asked = [(each.name, each.parameters or {}) for each in parsed.outputs or ()]
    request = InferRequest("", "", inputs, _merge(parsed.parameters or {}, query), check_outputs(asked), id=parsed.id)
    return request, _wire(request.parameters, asked)


def _bare_picture(body: bytes, query: Mapping[str, Any]) -> tuple[InferRequest, Wire]:
    if not body:
        raise RequestError("body: expected an encoded picture, got none")
    return InferRequest("", "", [Tensor("image", "BYTES", (1,), [body])], dict(query)), _wire(query, [])


def _merge(parameters: dict[str, Any], query: Mapping[str, Any]) -> dict[str, Any]:
    twice = [name for name in query if name in parameters]
    if twice:
        raise RequestError(f"parameters: expected {twice[0]!r} in the body or in the address, got it in both")
    return {**parameters, **query}


def _wire(parameters: Mapping[str, Any], asked: list[tuple[str, dict[str, Any]]]) -> Wire:
    default = parameters.get("binary_data_output", False)
    named = {name: given["binary_data"] for name, given in asked if "binary_data" in given}
    if default in ("true", "false"):  # from the address
        default = default == "true"
    if not isinstance(default, bool) or not all(isinstance(value, bool) for value in named.values()):
        raise RequestError("binary_data, binary_data_output: expected true or false")
    return Wire(default, named)


def _read_inputs(given: list[_Input], behind: memoryview, has_header: bool) -> list[Tensor]:
    inputs, position = [], 0
    for each in given:
        parameters = each.parameters or {}
        _check_input_parameters(each.name, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            inputs.append(_from_json(each, parameters))
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise RequestError(f"{each.name}: expected binary_data_size >= 0, got {size!r:.40}")
        if memoryview(each.data).nbytes:
            raise RequestError(f"{each.name}: expected data or binary_data_size, got both")
        if not has_header:
            raise RequestError(f"{each.name}: binary data needs the header Inference-Header-Content-Length")
        if size > len(behind) - position:
            raise RequestError(f"{each.name}: expected {size} bytes behind the JSON, got {len(behind) - position}")
        inputs.append(from_raw(each.name, each.datatype, each.shape, behind[position : position + size]))
        position += size
    if position != len(behind):
        raise RequestError(f"body: expected {position} bytes of binary tensors behind the JSON, got {len(behind)}")
    return inputs


def _check_input_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        raise RequestError(f"{name}: shared memory is not served; send the tensor in the request")
    unknown = [key for key in parameters if key not in _INPUT_PARAMETERS and not key.startswith("triton_")]
    if unknown:
        raise RequestError(f"{name}: expected parameters of {', '.join(_INPUT_PARAMETERS)}; got {unknown[0][:80]!r}")


def _from_json(given: _Input, parameters: Mapping[str, Any]) -> Tensor:
    if not memoryview(given.data).nbytes:
        raise RequestError(f"{given.name}: expected data or binary_data_size, got neither")
    tensor = from_json(given.name, given.datatype, given.shape, given.data)
    if not isinstance(tensor.data, list):
        return tensor
    # JSON text cannot hold the bytes of a picture, so what stands there is always base64.
    if parameters.get("content_type", "base64") != "base64":
        raise RequestError(f"{given.name}: expected content_type base64, got {parameters['content_type']!r:.40}")
    return Tensor(tensor.name, tensor.datatype, tensor.shape, [_unbase64(text, given.name) for text in tensor.data])


def _unbase64(text: bytes, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise RequestError(f"{name}: expected base64 of an encoded picture in JSON, got: {error}") from error


def encode_answer(
    answer: InferAnswer, model: str, version: str, given_id: str | None, wire: Wire
) -> tuple[bytes, int | None]:
    """The body of a reply, and how long its JSON is where binary tensors stand behind it."""
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for tensor in answer.outputs:
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wire.is_binary(tensor.name):
            raw = to_raw(tensor)
            told["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        else:
            told["data"] = to_json(tensor)
        outputs.append(told)
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if given_id is not None:
        head["id"] = given_id
    text = msgspec.json.encode({**head, "parameters": answer.parameters, "outputs": outputs})
    # A client that asked for binary looks for the header, also where a tensor has no bytes.
    return b"".join((text, *behind)), len(text) if behind else None
