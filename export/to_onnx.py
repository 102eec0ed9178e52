"""Towers to ONNX files: pixels or token ids in, unit vectors out, batch axis free, nothing of this machine inside."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir
import torch
from torch import Tensor, nn

from kpl_engine.errors import ConfigError, ExportError

from .attention import explicit_attention
from .environment import quiet

__all__ = [
    "DEFAULT_OPSET",
    "ExternalData",
    "ImageTower",
    "TextTower",
    "WrittenGraph",
    "export_tower",
    "unit_features",
]

ExternalData = Literal["auto", "always", "never"]

DEFAULT_OPSET = 20  # native Gelu, and the newest that TensorRT 10.0-10.3 reads
OPSETS = (18, 23)  # what the tracer emits and converts to
MAX_INLINE_BYTES = 1_900_000_000  # a protobuf message ends at 2**31 - 1 bytes, graph structure included
PROTOBUF_LIMIT_BYTES = 2**31 - 1


def unit_features(features: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm in float32, (n, d); a zero row stays zero instead of turning NaN."""
    features = features.float()
    return features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1e-12)


class ImageTower(nn.Module):
    """``pixels`` (n, h, w, 3) uint8 RGB -> ``features`` (n, d) float32 unit rows."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return unit_features(self.model.encode_image((images - self.mean) / self.std))


class TextTower(nn.Module):
    """``tokens`` (n, context) int64 -> ``features`` (n, d) float32 unit rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return unit_features(self.model.encode_text(tokens))


@dataclass(frozen=True)
class WrittenGraph:
    """One ONNX file and, for large towers, the file its weights lie in."""

    path: Path
    data: tuple[Path, ...]
    num_nodes: int

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *self.data)


def export_tower(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    input_name: str,
    opset: int = DEFAULT_OPSET,
    external_data: ExternalData = "auto",
) -> WrittenGraph:
    """Trace ``tower`` and write it to ``path``.

    Parameters
    ----------
    tower : nn.Module
        `ImageTower` or `TextTower`; given back in the state it came in, in eval mode.
    example : Tensor
        Example input with a batch of two or more: a batch of one is baked into some towers.
    path : Path
        The ``.onnx`` file. Weights outside the graph go to the same name with ``.data`` appended.
    external_data : {"auto", "always", "never"}
        Where the weights go; ``auto`` takes them out of graphs that protobuf cannot hold.

    Raises
    ------
    ConfigError
        Opset out of range, or ``never`` with a tower over 2 GB.
    ExportError
        torch cannot trace the tower.
    """
    low, high = OPSETS
    if not low <= opset <= high:
        raise ConfigError(f"opset: expected {low} to {high}, got {opset}; {DEFAULT_OPSET} suits every runtime we know")
    if example.shape[0] < 2:
        raise ConfigError(f"example batch: expected 2 or more, got {example.shape[0]}; a batch of 1 would be baked in")
    program = _trace(tower.eval(), example, input_name, opset)
    graph = program.model
    _strip(graph)
    batch = graph.graph.inputs[0].shape[0]
    if isinstance(batch, int):
        raise ExportError(f"{path.name}: the traced graph fixed its batch at {batch}; this architecture cannot be used")
    return _write(graph, path, external_data)


def _trace(tower: nn.Module, example: Tensor, input_name: str, opset: int) -> torch.onnx.ONNXProgram:
    noise = io.StringIO()  # the converter reports its steps with print()
    try:
        with quiet(), torch.no_grad(), explicit_attention(tower), contextlib.redirect_stdout(noise):
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1, max=65536)},),
                verbose=False,
            )
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ExportError(
            f"torch could not trace the {input_name} tower to ONNX opset {opset}: {_reason(error)}"
        ) from error
    if program is None:
        raise ExportError(f"torch returned no ONNX program for the {input_name} tower")
    return program


def _reason(error: BaseException) -> str:
    """What failed first, in one line: the tracer wraps it in advice and stack traces."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _strip(model: onnx_ir.Model) -> None:
    """Drop what tells of the exporting machine: source lines, module names, stack traces, local paths."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None


def _write(model: onnx_ir.Model, path: Path, external_data: ExternalData) -> WrittenGraph:
    num_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if external_data == "never" and num_bytes > MAX_INLINE_BYTES:
        raise ConfigError(
            f"external data 'never': expected at most {MAX_INLINE_BYTES} bytes of weights, got {num_bytes}; "
            "a protobuf file cannot hold more, use 'auto'"
        )
    num_nodes = sum(1 for _ in model.graph)
    if external_data == "always" or num_bytes > MAX_INLINE_BYTES:
        data = path.with_name(path.name + ".data")
        onnx_ir.save(model, path, external_data=data.name)
        return WrittenGraph(path, (data,), num_nodes)
    onnx_ir.save(model, path)
    return WrittenGraph(path, (), num_nodes)
