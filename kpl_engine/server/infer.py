"""An infer request of the Open Inference Protocol v2, whichever door it came through, to a request of the service;
and the answer back to named tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any, get_args
from uuid import uuid4

import msgspec
import numpy as np

from kpl_engine.arrays import check_array
from kpl_engine.config import MethodName, ModeName
from kpl_engine.errors import RequestError, TooLargeError
from kpl_engine.server.requests import ClassifyRequest, Reply
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tensors import Tensor, check_shape

__all__ = [
    "DEFAULT_OUTPUTS",
    "INPUTS",
    "OUTPUTS",
    "PARAMETERS",
    "InferAnswer",
    "InferRequest",
    "RequestedOutput",
    "answer",
    "check_inputs",
    "check_outputs",
    "clean_id",
    "parse_parameters",
    "parse_prior",
    "parse_query",
    "to_classify",
]

# name: datatype, shapes with -1 for any size
INPUTS: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {
    "image": ("BYTES", ((-1,), (-1, 1))),
    "pixels": ("UINT8", ((-1, -1, -1, 3),)),
    "features": ("FP32", ((-1, -1),)),
}
OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "label": ("BYTES", (-1,)),
    "probabilities": ("FP32", (-1, -1)),
    "margin": ("FP32", (-1,)),
    "is_undecided": ("BOOL", (-1,)),
    "evidence": ("BYTES", (-1,)),
    "text_label": ("BYTES", (-1,)),
    "class_name": ("BYTES", (-1,)),
    "embedding": ("FP32", (-1, -1)),
}
DEFAULT_OUTPUTS = ("label", "probabilities", "margin", "is_undecided", "evidence")
PARAMETERS = ("task", "method", "mode", "top_k", "prior", "priority", "timeout")
_PROTOCOL = {"binary_data_output", "headers"}  # besides sequence_* and triton_*
_MAX_TOP_K = 1000
_MAX_TIMEOUT_US = 2**63 - 1
_ID = re.compile(r"[\x20-\x7e]{1,128}")


@dataclass(frozen=True)
class RequestedOutput:
    """An output the client asks for; ``classification`` k > 0 turns it to BYTES "value:index:label", k a row."""

    name: str
    classification: int = 0


@dataclass(frozen=True, eq=False)
class InferRequest:
    """An infer request as it came: tensors are made, nothing in it is checked against the model.

    ``parameters`` are plain JSON values. ``outputs`` empty means `DEFAULT_OUTPUTS`. ``id`` None: none was given, so
    none is echoed; ``request_id`` is what logs and the header ``x-request-id`` have (`clean_id`).
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[RequestedOutput] = ()
    id: str | None = None
    request_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, eq=False)
class InferAnswer:
    """``outputs`` in the order asked for; ``parameters`` are text, ``warnings`` and ``timings_ms`` JSON text."""

    outputs: list[Tensor]
    parameters: dict[str, str]


def clean_id(*given: str | None) -> str:
    """The first of ``given`` that is printable ASCII of at most 128 characters, else a fresh one."""
    return next((text for text in given if text and _ID.fullmatch(text)), None) or uuid4().hex


def check_inputs(inputs: Iterable[tuple[str, str, Sequence[int]]], settings: ServerSettings) -> None:
    """Check (name, datatype, shape) of all inputs of a request, before arrays are made of its bytes.

    Raises
    ------
    RequestError
        Not exactly one input; an unknown name; another datatype or shape than the input has; no rows.
    TooLargeError
        More pictures, or pixels in one, than the settings allow.
    """
    given = list(inputs)
    if len(given) != 1:
        raise RequestError(f"inputs: expected exactly one of {', '.join(INPUTS)}; got {len(given)}")
    name, datatype, shape = given[0]
    if name not in INPUTS:
        raise RequestError(f"inputs: expected one of {', '.join(INPUTS)}; got {name[:80]!r}")
    want, shapes = INPUTS[name]
    if datatype != want:
        raise RequestError(f"{name}: expected datatype {want}, got {datatype[:40]!r}")
    check_shape(name, datatype, shape)
    if not any(_fits(shape, pattern) for pattern in shapes):
        raise RequestError(f"{name}: expected shape {' or '.join(str(list(s)) for s in shapes)}, got {list(shape)}")
    if 0 in shape:
        raise RequestError(f"{name}: expected at least one picture and no empty ones, got shape {list(shape)}")
    if shape[0] > settings.max_images:
        raise TooLargeError(
            f"{name}: expected at most {settings.max_images} pictures a request, got {shape[0]}; send fewer at once"
        )
    if name == "pixels" and shape[1] * shape[2] > settings.max_pixels:
        raise TooLargeError(
            f"{name}: expected at most {settings.max_pixels} pixels a picture, got {shape[1]} x {shape[2]}"
        )


def _fits(shape: Sequence[int], pattern: Sequence[int]) -> bool:
    return len(shape) == len(pattern) and all(want in (-1, got) for want, got in zip(pattern, shape, strict=True))


def check_outputs(outputs: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[RequestedOutput, ...]:
    """The outputs asked for, from (name, parameters); `RequestError` for an unknown or repeated name or parameter.

    ``binary_data`` is the HTTP door's own and passed over here.
    """
    found: list[RequestedOutput] = []
    for name, parameters in outputs:
        if name not in OUTPUTS:
            raise RequestError(f"outputs: expected some of {', '.join(OUTPUTS)}; got {name[:80]!r}")
        if any(name == each.name for each in found):
            raise RequestError(f"outputs: expected each once, got {name!r} twice")
        _check_names(f"outputs: {name}: ", parameters, ("classification", "binary_data"))
        k = _whole("classification", parameters.get("classification", 0), 0, 2**31)
        if k and name != "probabilities":
            raise RequestError(f"outputs: expected classification of probabilities only, got it of {name!r}")
        found.append(RequestedOutput(name, k))
    return tuple(found)


def _is_protocol(name: str) -> bool:
    return name in _PROTOCOL or name.startswith(("sequence_", "triton_"))


def _check_names(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [name for name in given if name not in known and not _is_protocol(name)]
    if any(name.startswith("shared_memory") for name in unknown):
        raise RequestError(f"{where}shared memory is not served; send the tensor in the request")
    if unknown:
        raise RequestError(f"{where}expected parameters of {', '.join(known)}; got {unknown[0][:80]!r}")


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, got {value!r:.80}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise RequestError(f"{name}: expected a text of 1 to 4096 characters, got {value!r:.80}")
    return value


def _choice(choices: Sequence[str], name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in choices:
        raise RequestError(f"{name}: expected one of {', '.join(choices)}; got {value!r:.80}")
    return value


def parse_prior(text: Any) -> dict[str, float]:
    """Class shares from "normal=0.8,effusion=0.2"; whether they are the model's classes is the service's to check."""
    shares: dict[str, float] = {}
    for part in _text("prior", text).split(","):
        name, _, number = part.rpartition("=")
        name = name.strip()
        try:
            share = float(number)
        except ValueError:
            share = float("nan")
        if not name or not isfinite(share) or share < 0:
            raise RequestError(f"prior: expected CLASS=SHARE,... with finite shares >= 0, got {part[:80]!r}")
        if name in shares:
            raise RequestError(f"prior: expected each class once, got {name[:80]!r} twice")
        shares[name] = share
    return shares


def _timeout(name: str, value: Any) -> float | None:
    return _whole(name, value, 0, _MAX_TIMEOUT_US) / 1e6 or None  # 0 is Triton's "none given"


_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "task": ("task", _text),
    "method": ("method", partial(_choice, get_args(MethodName))),
    "mode": ("mode", partial(_choice, get_args(ModeName))),
    "top_k": ("top_k", partial(_whole, low=0, high=_MAX_TOP_K)),
    "prior": ("prior", lambda _, value: parse_prior(value)),
    "priority": ("priority", partial(_whole, low=0, high=3)),
    "timeout": ("timeout_s", _timeout),
}


def parse_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Request parameters as the arguments of `ClassifyRequest` that they set.

    Those of the protocol itself (``sequence_*``, ``triton_*``, ``binary_data_output``, ``headers``) are passed over;
    any other unknown one is a `RequestError` that lists the known, and so is a value of the wrong kind.
    """
    _check_names("", given, PARAMETERS)
    return {field_name: read(name, given[name]) for name, (field_name, read) in _READERS.items() if name in given}


def parse_query(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Request parameters from the query of an address, where every value is text; `RequestError` for one twice."""
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name in found:
            raise RequestError(f"query: expected each parameter once, got {name[:80]!r} twice")
        is_whole = name in ("top_k", "priority", "timeout") and re.fullmatch(r"[0-9]{1,19}", text)
        found[name] = int(text) if is_whole else text
    return found


def to_classify(request: InferRequest, settings: ServerSettings) -> ClassifyRequest:
    """What the service is asked, every form checked.

    Raises
    ------
    RequestError
        See `check_inputs`, `parse_parameters`.
    ShapeError
        Features that are not finite.
    TooLargeError
        See `check_inputs`.
    """
    check_inputs(((each.name, each.datatype, each.shape) for each in request.inputs), settings)
    arguments = parse_parameters(request.parameters)
    given = request.inputs[0]
    if given.name == "image":
        arguments["images"] = given.data
    elif given.name == "pixels":
        arguments["pixels"] = given.data
    else:
        arguments["features"] = check_array("features", np.asarray(given.data), ("n", "d"), np.float32)
    return ClassifyRequest(
        request.model,
        request.version,
        request_id=request.request_id or clean_id(request.id),
        traceparent=request.traceparent,
        **arguments,
    )


def answer(reply: Reply, outputs: Sequence[RequestedOutput] = ()) -> InferAnswer:
    """The outputs asked for, or `DEFAULT_OUTPUTS`, and the parameters that go with every answer."""
    wanted = outputs or tuple(RequestedOutput(name) for name in DEFAULT_OUTPUTS)
    found = reply.classification
    warnings = [{"code": each.code, "message": each.message} for each in found.warnings]
    parameters = {
        "task": found.knowledge,
        "method": found.method,
        "method_used": found.method_used,
        "mode": found.mode,
        "warnings": msgspec.json.encode(warnings).decode(),
        "timings_ms": msgspec.json.encode({k: round(v, 3) for k, v in reply.timings_ms.items()}).decode(),
    }
    return InferAnswer([_output(reply, each) for each in wanted], parameters)


def _output(reply: Reply, wanted: RequestedOutput) -> Tensor:
    found, name = reply.classification, wanted.name
    if wanted.classification:
        return _ranked(reply, wanted.classification)
    if name in ("label", "text_label"):
        labels = found.labels if name == "label" else found.text_labels
        return _bytes(name, [(label or "").encode() for label in labels])
    if name == "class_name":
        return _bytes(name, [each.encode() for each in found.classes])
    if name == "evidence":
        return _bytes(name, [msgspec.json.encode(row) for row in found.evidence])  # the fields of `Evidence`
    array: Any = {
        "probabilities": found.probabilities,
        "margin": found.margins,
        "is_undecided": found.is_undecided,
        "embedding": reply.features,
    }[name]
    return Tensor(name, OUTPUTS[name][0], array.shape, array)


def _bytes(name: str, elements: list[bytes]) -> Tensor:
    return Tensor(name, "BYTES", (len(elements),), elements)


def _ranked(reply: Reply, k: int) -> Tensor:
    """The ``k`` largest probabilities of each picture as "value:index:label", (n, k) BYTES."""
    found = reply.classification
    order = np.argsort(-found.probabilities, axis=1, kind="stable")[:, :k]
    rows = [
        f"{found.probabilities[i, j]:f}:{j}:{found.classes[j]}".encode() for i, row in enumerate(order) for j in row
    ]
    return Tensor("probabilities", "BYTES", order.shape, rows)
