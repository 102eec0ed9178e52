"""Requests made beforehand and kept in a folder, with the answers that are right for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.bench import messages
from kpl_engine.bench.doors import Answer
from kpl_engine.bench.messages import Input, bytes_element, http_request

Parameters = dict[str, Any]


def bytes_input(name: str, elements: Sequence[bytes]) -> Input:
    """A BYTES tensor: each element behind its length in four bytes."""
    raw = b"".join(bytes_element(each) for each in elements)
    return Input(name, "BYTES", (len(elements),), raw)


def pixels_input(name: str, pixels: npt.NDArray[np.uint8]) -> Input:
    """(n, h, w, 3) uint8."""
    return Input(name, "UINT8", tuple(pixels.shape), np.ascontiguousarray(pixels).tobytes())


def grpc_body(model: str, tensor: Input, parameters: Parameters) -> bytes:
    """A serialised ModelInferRequest, written by tritonclient's stubs and not by those of the server."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else "string_param"
        setattr(request.parameters[name], kind, value)
    request.raw_input_contents.append(tensor.raw)
    return bytes(request.SerializeToString())


class PayloadSet:
    """Requests of one kind in ``folder``: bodies, and in ``index.json`` what else a sender needs."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.door: str = index["door"]
        self.model: str = index["model"]
        self.headers: list[int | None] = index["headers"]
        self.num_images: list[int] = index["num_images"]
        self.output: str = index["output"]
        self.tolerance: float = index["tolerance"]
        self.bodies = [(folder / f"{i:04d}.bin").read_bytes() for i in range(len(self.headers))]
        self.expected: list[Any] = [np.load(folder / f"{i:04d}.npy") for i in range(len(self.headers))]

    @classmethod
    def write(
        cls,
        folder: Path,
        door: str,
        model: str,
        requests: Sequence[tuple[Input, npt.NDArray[Any]]],
        output: str,
        tolerance: float,
        parameters: Parameters,
    ) -> Path:
        """``requests`` holds inputs and what output ``output`` must be for them, (n, k), within ``tolerance``."""
        folder.mkdir(parents=True, exist_ok=True)
        headers: list[int | None] = []
        for i, (tensor, expected) in enumerate(requests):
            if door == "http":
                body, length = http_request(tensor, parameters)
                headers.append(length)
            else:
                body = grpc_body(model, tensor, parameters)
                headers.append(None)
            (folder / f"{i:04d}.bin").write_bytes(body)
            np.save(folder / f"{i:04d}.npy", expected)
        index = {
            "door": door,
            "model": model,
            "headers": headers,
            "num_images": [len(expected) for _, expected in requests],
            "output": output,
            "tolerance": tolerance,
        }
        (folder / "index.json").write_text(json.dumps(index))
        return folder

    def is_right(self, index: int, answer: Answer) -> bool:
        """Whether the answer holds the expected rows."""
        read = read_http if self.door == "http" else read_grpc
        try:
            rows = read(answer, self.output)
        except (KeyError, ValueError, TypeError):
            return False
        expected = self.expected[index]
        return rows.shape == expected.shape and bool(np.abs(rows - expected).max() <= self.tolerance)


def read_http(answer: Answer, output: str) -> npt.NDArray[np.float32]:
    """One FP32 output of a reply."""
    return np.asarray(messages.read_http(answer)[0][output], np.float32)


def read_grpc(answer: Answer, output: str) -> npt.NDArray[np.float32]:
    """One FP32 output of a serialised ModelInferResponse."""
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2

    try:
        reply = service_pb2.ModelInferResponse.FromString(answer.body)
    except DecodeError as error:
        raise ValueError("not a ModelInferResponse") from error
    for each, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if each.name == output:
            return np.frombuffer(raw, "<f4").reshape(tuple(each.shape))
    raise KeyError(output)
