"""A float32 ONNX graph to fp16 or bf16: the precision TensorRT builds is the one written in the graph. Torch-free.

TensorRT 11 has no precision flags (it builds what the graph says), and 10 does the same when told to, so one graph
serves both. Layer norms, softmax, every L2 norm and the input normalisation stay in float32; a Cast stands where a
value crosses from one side to the other, once for all its readers; inputs and outputs keep their types.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from kpl_engine.errors import ConfigError

from .graph import Names, cast_target, is_float, lift_constants, save_graph, value_types
from .regions import low_nodes

__all__ = ["PRECISIONS", "CastReport", "cast_file", "cast_graph", "round_weights"]

PRECISIONS = ("fp32", "fp16", "bf16")

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Float inputs that stay float32 whatever the data: {operator: places}
_FLOAT_INPUTS = {"Resize": (1, 2)}
_LARGEST_BF16 = 3.3895314e38  # (2 - 2**-7) * 2**127


@dataclass(frozen=True)
class CastReport:
    """What the caster did.

    ``kept_weights`` stay in float32, with the nodes that read them, because the type cannot hold their largest
    numbers; ``num_overflows`` counts those. ``num_underflows`` counts numbers that became zero.
    """

    precision: str
    num_low_nodes: int = 0
    num_casts: int = 0
    num_weights: int = 0
    num_overflows: int = 0
    num_underflows: int = 0
    kept_weights: tuple[str, ...] = ()


def cast_file(source: Path, target: Path, precision: str) -> tuple[tuple[Path, ...], CastReport]:
    """`cast_graph` from file to file; returns the files written (graph, then data over 1.9 GB) and the report."""
    model = onnx.load(source)
    report = cast_graph(model, precision)
    return save_graph(model, target), report


def cast_graph(model: ModelProto, precision: str) -> CastReport:
    """Rewrite ``model`` in place for ``precision``; opset and IR version stay.

    With ``fp32`` only what every TensorRT build needs is done: tensors of Constant nodes become initializers, and a
    uint8 input is converted before it is transposed, because TensorRT allows bytes nothing but that conversion.

    bf16 below opset 22 is outside of the ONNX specification for Conv and Gelu; TensorRT takes it, ONNX Runtime not.

    Raises
    ------
    ConfigError
        Unknown precision.
    ExportError
        Control flow in the graph, or types that onnx cannot infer.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    lift_constants(model)
    _convert_bytes_first(model.graph)
    del model.graph.value_info[:]  # types of values change below
    if precision == "fp32":
        return CastReport(precision)
    return _Caster(model, precision).run()


def _convert_bytes_first(graph: GraphProto) -> None:
    """Put the conversion of a uint8 input before everything that reads it, and drop the one that came later."""
    names = Names(graph)
    for value in graph.input:
        places = [node for node in graph.node if value.name in node.input]
        is_bytes = value.type.tensor_type.elem_type == TensorProto.UINT8
        if not is_bytes or not all(node.op_type in ("Shape", "Transpose", "Cast") for node in places):
            continue
        floats = names.fresh(f"{value.name}_fp32")
        for node in places:
            node.input[0] = floats
        label = names.fresh(f"kpl_convert_{value.name}")
        first = onnx.helper.make_node("Cast", [value.name], [floats], name=label, to=TensorProto.FLOAT)
        rest = _without_repeated_casts(graph, floats)
        del graph.node[:]
        graph.node.extend([first, *rest])


def _without_repeated_casts(graph: GraphProto, floats: str) -> list[NodeProto]:
    """The nodes without conversions to float32 of what is float32 already, counted from the value ``floats``."""
    same = {floats: floats}  # value -> the value to read instead; all of them float32
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        is_float = bool(node.input) and node.input[0] in same.values()
        if is_float and cast_target(node) == TensorProto.FLOAT and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
            continue
        if is_float and node.op_type == "Transpose":
            same[node.output[0]] = node.output[0]
        kept.append(node)
    return kept


def round_weights(values: npt.NDArray[np.float32], precision: str) -> npt.NDArray[Any]:
    """Float32 to the nearest number of the precision, ties to even; bf16 comes as the uint16 of its bits."""
    if precision == "fp16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(values.shape)


class _Caster:
    """One rewriting of one graph."""

    def __init__(self, model: ModelProto, precision: str) -> None:
        self.graph, self.precision, self.low = model.graph, precision, _TYPES[precision]
        self.types = value_types(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer if is_float(tensor)}
        self.names = Names(self.graph)
        self.is_low: set[str] = set()  # values that are of the low type now
        self.casts: dict[tuple[str, int], str] = {}
        self.low_weights: dict[str, str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> CastReport:
        overflows = {name: self._count_overflows(tensor) for name, tensor in self.weights.items()}
        kept = tuple(sorted(name for name, count in overflows.items() if count))
        chosen = low_nodes(self.graph, self.types, frozenset(kept))
        float_readers = {name for i, node in enumerate(self.graph.node) if i not in chosen for name in node.input} | {
            name for i in chosen for name in self._fixed(self.graph.node[i])
        }
        for place, node in enumerate(self.graph.node):
            self._lower(node, float_readers) if place in chosen else self._raise(node)
        self._restore_outputs()
        counts = [self._convert(name, new) for name, new in self.low_weights.items()]
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        return CastReport(
            self.precision,
            len(chosen),
            sum(node.name.startswith("kpl_cast") for node in self.nodes),
            sum(count for count, _ in counts),
            sum(overflows.values()),
            sum(under for _, under in counts),
            kept,
        )

    def _count_overflows(self, tensor: TensorProto) -> int:
        values = numpy_helper.to_array(tensor)
        finite = values[np.isfinite(values)]
        largest = np.float32(np.finfo(np.float16).max if self.precision == "fp16" else _LARGEST_BF16)
        # What rounds to infinity lies half a step above the largest number; nothing between is worth a difference.
        return int(np.count_nonzero(np.abs(finite) > largest))

    def _fixed(self, node: NodeProto) -> list[str]:
        return [node.input[i] for i in _FLOAT_INPUTS.get(node.op_type, ()) if i < len(node.input)]

    def _lower(self, node: NodeProto, float_readers: set[str]) -> None:
        fixed = self._fixed(node)
        for i, name in enumerate(node.input):
            if not name or name in fixed or self.types[name] != TensorProto.FLOAT or name in self.is_low:
                continue
            if name in self.weights:
                new = self.names.fresh(f"{name}_{self.precision}") if name in float_readers else name
                node.input[i] = self.low_weights.setdefault(name, new)
            else:
                node.input[i] = self._cast(name, self.low)
        self.nodes.append(node)
        self.is_low.update(name for name in node.output if name and self.types[name] == TensorProto.FLOAT)

    def _raise(self, node: NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in self.is_low:
                node.input[i] = self._cast(name, TensorProto.FLOAT)
        self.nodes.append(node)

    def _cast(self, name: str, target: int) -> str:
        if (name, target) not in self.casts:
            kind = "fp32" if target == TensorProto.FLOAT else self.precision
            new = self.names.fresh(f"{name}_{kind}")
            label = self.names.fresh(f"kpl_cast_{name}")
            self.nodes.append(onnx.helper.make_node("Cast", [name], [new], name=label, to=target))
            self.casts[name, target] = new
        return self.casts[name, target]

    def _restore_outputs(self) -> None:
        """Outputs keep their names and types: what computes one in the low type gets another name."""
        for output in self.graph.output:
            if output.name not in self.is_low:
                continue
            inner = self.names.fresh(f"{output.name}_{self.precision}")
            for node in self.nodes:
                for names in (node.input, node.output):
                    for i, name in enumerate(names):
                        if name == output.name:
                            names[i] = inner
            label = self.names.fresh(f"kpl_cast_{output.name}")
            node = onnx.helper.make_node("Cast", [inner], [output.name], name=label, to=TensorProto.FLOAT)
            self.nodes.append(node)

    def _convert(self, name: str, new: str) -> tuple[int, int]:
        """Write one weight in the low type; how many numbers it has, and how many became zero."""
        tensor = self.weights[name]
        values = np.asarray(numpy_helper.to_array(tensor), dtype=np.float32)
        rounded = round_weights(values, self.precision)
        target = tensor if new == name else self.graph.initializer.add()
        dims = list(tensor.dims)
        target.Clear()
        target.name, target.data_type = new, self.low
        target.dims.extend(dims)
        target.raw_data = rounded.astype(rounded.dtype.newbyteorder("<"), copy=False).tobytes()
        # Minus zero is the sign bit alone, in both types.
        is_zero = rounded == 0 if rounded.dtype == np.float16 else (rounded & 0x7FFF) == 0
        return values.size, int(np.count_nonzero(is_zero & (values != 0)))
