"""A bundle with a tower of a few hundred numbers, shaped like an exported one, and the plans built into it."""

from __future__ import annotations

import json

import numpy as np
import onnx

from kpl_engine.bundle import Bundle, write_bundle
from kpl_engine.bundle.tensors import dump_tensors
from kpl_engine.cuda.context import Context
from kpl_engine.knowledge.base import KnowledgeBase

from ..encoder.conftest import DESCRIPTOR, text_graph
from .double import make_tensorrt
from .driver import LateDriver

D = 5
SIZE = (8, 6)


def image_graph(seed=4):
    """uint8 (n, 8, 6, 3) -> normalise -> Conv -> layer norm -> two products -> unit rows (n, 5)."""
    rng = np.random.default_rng(seed)
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        make("Cast", ["planes"], ["floats"], to=onnx.TensorProto.FLOAT),
        make("Div", ["floats", "levels"], ["scaled"]),
        make("Sub", ["scaled", "mean"], ["centred"]),
        make("Conv", ["centred", "filters"], ["patches"], strides=[2, 2]),
        make("Reshape", ["patches", "flat"], ["tokens"]),
        make("LayerNormalization", ["tokens", "gain", "shift"], ["normed"], axis=-1),
        make("MatMul", ["normed", "wide"], ["hidden"]),
        make("Gelu", ["hidden"], ["active"]),
        make("MatMul", ["active", "inner"], ["mixed"]),
        make("MatMul", ["mixed", "narrow"], ["raw"]),
        make("ReduceL2", ["raw", "last"], ["length"], keepdims=1),
        make("Clip", ["length", "tiny"], ["safe"]),
        make("Div", ["raw", "safe"], ["features"]),
    ]

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    constants = {
        "levels": np.float32(255),
        "mean": rng.uniform(0.4, 0.6, (1, 3, 1, 1)).astype(np.float32),
        "filters": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "flat": np.array([-1, 48], dtype=np.int64),
        "gain": rng.uniform(0.5, 1.5, 48).astype(np.float32),
        "shift": draw(48),
        "wide": draw(48, 32),
        "inner": draw(32, 16),
        "narrow": draw(16, D),
        "last": np.array([-1], dtype=np.int64),
        "tiny": np.float32(1e-12),
    }
    graph = onnx.helper.make_graph(
        nodes,
        "image",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", *SIZE, 3])],
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", D])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def knowledge(classes=3, seed=1):
    rows = np.random.default_rng(seed).standard_normal((classes, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"class {i}" for i in range(classes))
    return KnowledgeBase("lung", names, tuple((name,) for name in names), rows, np.arange(classes + 1))


def write_tiny_bundle(path, *, has_knowledge=False, seed=4):
    """Its path; a bundle that kpl-engine reads like any other."""
    table = np.random.default_rng(seed).standard_normal((518, D)).astype(np.float32)
    graph = {"data": [], "output": "features"}
    image = {**graph, "file": "image.onnx", "input": "pixels", "height": SIZE[0], "width": SIZE[1]}
    text = {**graph, "file": "text.onnx", "input": "tokens", "fingerprint": "text-print", "context_length": 12}
    encoder = {"name": "tiny", "embed_dim": D, "fingerprint": f"print-{seed}", "logit_scale": 100.0}
    encoder |= {"precision": "fp32", "image": {**image, "fingerprint": f"image-print-{seed}"}}
    encoder["text"] = {**text, "tokenizer": "tokenizer.json"}
    preprocess = {"resize": "squash", "height": SIZE[0], "width": SIZE[1], "interpolation": "bicubic", "fill": 0}
    preprocess |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    files = {
        "image.onnx": image_graph(seed).SerializeToString(),
        "text.onnx": text_graph(onnx, table, onnx.TensorProto.INT64).SerializeToString(),
        "tokenizer.json": json.dumps(DESCRIPTOR).encode(),
    }
    manifest = {"encoder": encoder, "preprocess": preprocess}
    if has_knowledge:
        base = knowledge()
        manifest["knowledge"] = {base.name: {"file": "knowledge/lung.safetensors", "classes": list(base.classes)}}
        files["knowledge/lung.safetensors"] = dump_tensors(*base.to_tensors())
    write_bundle(path, manifest, files).close()
    return path


def pictures(num, seed=0):
    """(num, 8, 6, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (num, *SIZE, 3), dtype=np.uint8)


class Workshop:
    """One GPU, one TensorRT and one bundle; ``build`` and ``open`` use them together."""

    def __init__(self, path, version="11.4.0.106", bundle_options=None, **driver_options):
        self.path = path if path.exists() else write_tiny_bundle(path, **(bundle_options or {}))
        self.driver = LateDriver(**driver_options)
        self.library, self.state = make_tensorrt(version, self.driver)
        self.context = Context(self.driver)

    def build(self, images=None, progress=None, timing_caches=None, **settings):
        from kpl_engine.export.to_tensorrt import BuildSettings, build_plan

        settings = BuildSettings(**{"max_batch": 8, **settings})
        return build_plan(
            self.path,
            self.context,
            settings,
            images=images,
            library=self.library,
            progress=progress,
            timing_caches=timing_caches,
        )

    def open(self, config=None, **options):
        from kpl_engine.encoder.tensorrt import TensorRtEncoder

        with Bundle.open(self.path) as bundle:
            return TensorRtEncoder(bundle, self.context, config, library=self.library, **options)
