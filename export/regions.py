"""Which nodes of a float32 graph are computed in reduced precision, and which stay in float32. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto, TensorProto

__all__ = ["LOW_OPS", "MOVES", "low_nodes"]

# Move values without changing them.
MOVES = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
# Safe in reduced precision: bounded functions, and products, which the hardware sums in float32. Everything else stays
# in float32, unknown operators too: norms, softmax and sums overflow float16 (65504) or lose their small terms.
LOW_OPS = MOVES | frozenset(
    (
        *("Abs", "Add", "AveragePool", "Clip", "Conv", "ConvTranspose", "Div", "Gelu", "Gemm", "GlobalAveragePool"),
        *("GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mul"),
        *("Neg", "PRelu", "Pad", "Relu", "Sigmoid", "Sub", "Sum", "Tanh", "Where"),
    )
)
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_NORMS = frozenset(("LpNormalization", "ReduceL1", "ReduceL2", "ReduceSumSquare"))
# What lies between the length of a vector and the division by it.
_OF_LENGTHS = MOVES | frozenset(("Abs", "Add", "Clip", "Max", "Pow", "Reciprocal", "Sqrt", "Where"))
_DIVISIONS = frozenset(("Div", "Mul"))


def low_nodes(graph: GraphProto, types: Mapping[str, int], too_large: frozenset[str]) -> set[int]:
    """Places in ``graph.node`` of the nodes for reduced precision.

    Parameters
    ----------
    types : mapping
        Element type of every value, of `graph.value_types`.
    too_large : set of str
        Weights that reduced precision cannot hold; the nodes that read them stay in float32.
    """
    kept = _input_places(graph) | _norm_places(graph)
    return {
        place
        for place, node in enumerate(graph.node)
        if node.op_type in LOW_OPS
        and node.domain in ("", "ai.onnx")
        and place not in kept
        and _is_float32(node, types)
        and not too_large.intersection(node.input)
    }


def _is_float32(node: NodeProto, types: Mapping[str, int]) -> bool:
    """Some value it reads or gives is float32, and none is of another floating type."""
    found = {types[name] for name in (*node.input, *node.output) if name}
    others = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    return TensorProto.FLOAT in found and not found & others


def _input_places(graph: GraphProto) -> set[int]:
    """From the pixels to the first product: the input normalisation. Levels of 255 deserve more than 11 bits."""
    reached = {value.name for value in graph.input}
    found = set()
    for place, node in enumerate(graph.node):
        if node.op_type in _PRODUCTS or node.op_type == "Shape" or not reached.intersection(node.input):
            continue
        found.add(place)
        reached.update(node.output)
    return found


def _norm_places(graph: GraphProto) -> set[int]:
    """Every L2 norm with the division by it."""
    lengths: set[str] = set()  # values between a norm and its division
    found = set()
    for place, node in enumerate(graph.node):
        is_norm = node.op_type in _NORMS
        if not is_norm and not lengths.intersection(node.input):
            continue
        if is_norm or node.op_type in _DIVISIONS or node.op_type in _OF_LENGTHS:
            found.add(place)
        if node.op_type in _OF_LENGTHS or (is_norm and node.op_type != "LpNormalization"):
            lengths.update(node.output)
    return found
