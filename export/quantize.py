"""int8 and fp8 by explicit Q/DQ pairs in the graph, with scales from the user's own images. Opt-in, torch-free.

Only products with a constant weight are quantised. QKᵀ and PV stay in float16: quantising them costs 5e-3 in 1 - cos
where the rest costs 1.8e-4 (measured on a ViT with outliers). So do the first product, which reads the pixels, and the
last, which makes the features. Zero points are zero, which is all TensorRT takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from kpl_engine.arrays import UInt8
from kpl_engine.errors import ConfigError, ExportError

from .graph import Names, is_float, lift_constants, save_graph
from .precision import CastReport, cast_graph

__all__ = ["QUANTIZED", "QuantizeReport", "Ranges", "find_ranges", "quantize_file", "quantize_graph"]

QUANTIZED = ("int8", "fp8")
Ranges = Mapping[str, float]  # largest |x| of what each product reads, by the name of its output

_PRODUCTS = frozenset(("Conv", "Gemm", "MatMul"))
_LARGEST = {"int8": 127.0, "fp8": 448.0}  # E4M3 ends at 448
_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_SMALLEST_SCALE = 6.103515625e-5  # 2**-14: below it float16 loses bits of the scale
_BATCH = 8


@dataclass(frozen=True)
class QuantizeReport:
    """``num_products`` were quantised of ``num_candidates``; the others read a range too small for a scale."""

    precision: str
    num_products: int
    num_candidates: int
    num_images: int
    cast: CastReport


def quantize_file(source: Path, target: Path, precision: str, pixels: UInt8) -> tuple[tuple[Path, ...], QuantizeReport]:
    """Float32 graph file to quantised graph file; ``pixels`` (n, h, w, 3) uint8 are the images that set the ranges."""
    model = onnx.load(source)
    lift_constants(model)
    ranges = find_ranges(model, pixels)
    report = quantize_graph(model, precision, ranges, len(pixels))
    return save_graph(model, target), report


def _candidates(graph: GraphProto) -> list[int]:
    weights = {tensor.name for tensor in graph.initializer if is_float(tensor) and len(tensor.dims) >= 2}
    products = [place for place, node in enumerate(graph.node) if node.op_type in _PRODUCTS]
    return [place for place in products[1:-1] if graph.node[place].input[1] in weights]


def find_ranges(model: ModelProto, pixels: UInt8) -> dict[str, float]:
    """Largest |x| over all images of what each product with a constant weight reads.

    The maximum, not a percentile: the outliers of a ViT carry its answer.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    wanted = {probe.graph.node[place].output[0]: probe.graph.node[place].input[0] for place in _candidates(probe.graph)}
    if not wanted:
        return {}
    names = Names(probe.graph)
    outputs: dict[str, str] = {}
    for value in dict.fromkeys(wanted.values()):
        size, largest = names.fresh(f"{value}_abs"), names.fresh(f"{value}_largest")
        probe.graph.node.append(onnx.helper.make_node("Abs", [value], [size]))
        probe.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        probe.graph.output.append(onnx.helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
        outputs[value] = largest
    found = _run(probe, pixels, list(outputs.values()))
    by_value = dict(zip(outputs, found.max(axis=0), strict=True))
    return {name: float(by_value[value]) for name, value in wanted.items()}


def _run(model: ModelProto, pixels: UInt8, outputs: Sequence[str]) -> npt.NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory(prefix="kpl-ranges-") as folder:
        path = save_graph(model, Path(folder) / "ranges.onnx")[0]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            starts = range(0, len(pixels), _BATCH)
            rows = [session.run(list(outputs), {name: pixels[start : start + _BATCH]}) for start in starts]
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise ExportError(f"calibration: ONNX Runtime cannot run the graph: {error!s:.300}") from error
    found = np.array(rows, dtype=np.float32)  # (batches, outputs)
    if not np.isfinite(found).all():
        raise ExportError("calibration: the graph gives NaN or infinity on these images; export the model again")
    return found


def quantize_graph(model: ModelProto, precision: str, ranges: Ranges, num_images: int = 0) -> QuantizeReport:
    """Rewrite a float32 ``model`` in place: float16, with Q/DQ before the products in ``ranges``.

    Raises
    ------
    ConfigError
        Unknown precision, or an opset before 19, whose scales are float32 only.
    """
    if precision not in QUANTIZED:
        raise ConfigError(f"precision: expected one of {', '.join(QUANTIZED)}, got {precision!r}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < 19:
        raise ConfigError(f"{precision}: expected a graph of opset 19 or later, got {opset}; export the model again")
    cast = cast_graph(model, "fp16")
    graph = model.graph
    quantizer = _Quantizer(graph, precision)
    for node in graph.node:
        if node.output[0] in ranges:
            quantizer.replace(node, ranges[node.output[0]])
        quantizer.nodes.append(node)
    del graph.node[:]
    graph.node.extend(quantizer.nodes)
    quantizer.drop_unread_weights()
    return QuantizeReport(precision, quantizer.count, len(ranges), num_images, cast)


class _Quantizer:
    """One rewriting of one float16 graph."""

    def __init__(self, graph: GraphProto, precision: str) -> None:
        self.graph, self.precision = graph, precision
        self.names = Names(graph)
        self.weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
        self.nodes: list[NodeProto] = []
        self.count = 0
        self._made: dict[tuple[str, int], str] = {}  # a value or weight, and the axis of its scales -> what to read
        self._zeros: dict[int, str] = {}

    def replace(self, node: NodeProto, largest: float) -> None:
        """Let ``node`` read quantised values, unless their scale would be too small."""
        scale = np.float16(largest / _LARGEST[self.precision])
        if node.input[1] not in self.weights or not _SMALLEST_SCALE <= scale < np.inf:
            return
        node.input[0] = self._value(node.input[0], scale)
        node.input[1] = self._weight(node.input[1], _output_axis(node))
        self.count += 1

    def _value(self, name: str, scale: np.float16) -> str:
        if (name, -1) not in self._made:
            small, back = self.names.fresh(f"{name}_{self.precision}"), self.names.fresh(f"{name}_restored")
            inputs = [self._add(f"{name}_scale", np.array(scale)), self._zero(())]
            self.nodes.append(onnx.helper.make_node("QuantizeLinear", [name, *inputs], [small], name=f"{small}_q"))
            self.nodes.append(onnx.helper.make_node("DequantizeLinear", [small, *inputs], [back], name=f"{small}_dq"))
            self._made[name, -1] = back
        return self._made[name, -1]

    def _weight(self, name: str, axis: int) -> str:
        if (name, axis) not in self._made:
            values = np.asarray(numpy_helper.to_array(self.weights[name]), dtype=np.float32)
            others = tuple(i for i in range(values.ndim) if i != axis)
            # fp8 has an exponent of its own: one scale does
            largest = np.abs(values).max(axis=others if self.precision == "int8" else None)
            scale = np.maximum(largest / _LARGEST[self.precision], _SMALLEST_SCALE).astype(np.float16)
            wide = np.expand_dims(scale, others).astype(np.float32) if scale.ndim else scale.astype(np.float32)
            small = self.names.fresh(f"{name}_{self.precision}")
            self._store(small, values / wide)
            back = self.names.fresh(f"{name}_restored")
            inputs = [small, self._add(f"{name}_scale", scale), self._zero(scale.shape)]
            node = onnx.helper.make_node("DequantizeLinear", inputs, [back], name=f"{small}_dq", axis=axis)
            self.nodes.append(node)
            self._made[name, axis] = back
        return self._made[name, axis]

    def _store(self, name: str, values: npt.NDArray[Any]) -> None:
        bound = _LARGEST[self.precision]
        tensor = self.graph.initializer.add()
        tensor.name, tensor.data_type = name, _TYPES[self.precision]
        tensor.dims.extend(values.shape)
        clipped = np.clip(values, -bound, bound)
        tensor.raw_data = (np.rint(clipped).astype(np.int8) if self.precision == "int8" else _to_fp8(clipped)).tobytes()

    def _add(self, wanted: str, value: npt.NDArray[Any]) -> str:
        name = self.names.fresh(wanted)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _zero(self, shape: tuple[int, ...]) -> str:
        count = shape[0] if shape else 0
        if count not in self._zeros:
            self._zeros[count] = self.names.fresh(f"kpl_zero_{count}")
            self._store(self._zeros[count], np.zeros(shape, dtype=np.float32))
        return self._zeros[count]

    def drop_unread_weights(self) -> None:
        """The float16 copies that nobody reads any more."""
        read = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _to_fp8(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import ml_dtypes  # onnx brings it

    return values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def _output_axis(node: NodeProto) -> int:
    """The axis of the weight that numbers the outputs: each has a scale of its own."""
    if node.op_type == "Conv":
        return 0
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and is_transposed else 1
