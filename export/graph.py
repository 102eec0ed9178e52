"""Small facts about an ONNX graph that its rewriting needs: value types, constants, free names. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from kpl_engine.errors import ExportError

__all__ = [
    "MAX_INLINE_BYTES",
    "Names",
    "cast_target",
    "is_float",
    "lift_constants",
    "save_graph",
    "value_types",
]

MAX_INLINE_BYTES = 1_900_000_000  # a protobuf message ends at 2**31 - 1 bytes, graph structure included
_SMALL_ELEMENTS = 1024  # constants that shape inference may have to read: shapes, axes, indices


class Names:
    """Names that the graph does not use yet."""

    def __init__(self, graph: GraphProto) -> None:
        self._taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        self._taken.update(name for node in graph.node for name in (*node.output, node.name))

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with a number behind it."""
        name, count = wanted, 1
        while name in self._taken:
            name, count = f"{wanted}_{count}", count + 1
        self._taken.add(name)
        return name


def cast_target(node: NodeProto) -> int:
    """The element type a Cast gives; 0 for every other node."""
    if node.op_type != "Cast":
        return 0
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _subgraphs(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield node


def lift_constants(model: ModelProto) -> None:
    """Make initializers of the Constant nodes that hold a tensor, so that weights are found in one place.

    Raises
    ------
    ExportError
        The graph has control flow or local functions, which no CLIP tower of ours has and the rewriting cannot follow.
    """
    graph = model.graph
    nested = next(_subgraphs(graph), None)
    if nested is not None or model.functions:
        what = f"the node {nested.op_type} {nested.name!r}" if nested is not None else "local functions"
        raise ExportError(
            f"precision: expected a plain graph, got {what}; export the model again with kpl-engine export"
        )
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def value_types(model: ModelProto) -> dict[str, int]:
    """Element type (`TensorProto.DataType`) of every value of the graph.

    Shape inference serialises the model, which protobuf cannot do over 2 GB: it is given a copy without the weights.
    """
    bare = ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if count <= _SMALL_ELEMENTS:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=False).graph
    except Exception as error:  # onnx raises its own C++ types
        raise ExportError(f"precision: onnx cannot infer the types of this graph: {error!s:.300}") from error
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ExportError(
            f"precision: onnx {onnx.__version__} cannot tell the types of {len(unknown)} values, first {unknown[0]!r}; "
            "export the model again with an opset this onnx knows"
        )
    return types


def save_graph(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """Write ``model``; weights over 1.9 GB go to the same name with ``.data`` appended. Returns the files."""
    num_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if num_bytes <= MAX_INLINE_BYTES:
        onnx.save_model(model, path)
        return (path,)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to it
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
    return path, data


def is_float(tensor: TensorProto) -> bool:
    """Whether a tensor holds float32."""
    return tensor.data_type == TensorProto.FLOAT
