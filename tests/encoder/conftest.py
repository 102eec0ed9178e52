"""What the encoder tests share: tiny hand-made graphs in a stand-in bundle, and open_clip where installed."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest

from kpl_engine.cuda.context import Context

from .doubles import Behaviour, HostDriver, onnxruntime_double


class StandInBundle:
    """The two methods and the manifest an encoder needs of a bundle."""

    def __init__(self, folder, manifest):
        self.folder, self.manifest, self.asked = folder, manifest, []

    def read_bytes(self, name):
        self.asked.append(name)
        return (self.folder / name).read_bytes()

    def local_path(self, name):
        self.asked.append(name)
        return self.folder / name


MERGES = ["l u", "n g</w>", "lu ng</w>", "a b"]
DESCRIPTOR = {
    "format": 1,
    "type": "clip_bpe",
    "merges": MERGES,
    "context_length": 12,
    "clean": "lower",
    "sot": 516,
    "eot": 517,
    "pad": 0,
    "vocab_size": 518,
}


def image_graph(onnx, weights, spoil=""):
    """uint8 (n, h, w, 3) -> mean colour -> (n, d) -> unit rows; ``spoil`` breaks it on purpose."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Add", ["means", "one"], ["shifted"]),
        helper.make_node("MatMul", ["shifted", "weights"], ["raw"]),
    ]
    if spoil == "nan":
        # log of (mean - 100): NaN for dark pictures only
        nodes.append(helper.make_node("Sub", ["means", "hundred"], ["dark"]))
        nodes.append(helper.make_node("Log", ["dark"], ["logs"]))
        nodes.append(helper.make_node("ReduceSum", ["logs", "last"], ["total"], keepdims=1))
        nodes.append(helper.make_node("Mul", ["raw", "total"], ["spoiled"]))
        nodes.append(helper.make_node("LpNormalization", ["spoiled"], ["features"], axis=1, p=2))
    elif spoil == "unscaled":
        nodes.append(helper.make_node("Identity", ["raw"], ["features"]))
    else:
        nodes.append(helper.make_node("LpNormalization", ["raw"], ["features"], axis=1, p=2))
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "last"),
        onnx.numpy_helper.from_array(np.array([1], dtype=np.float32), "one"),
        onnx.numpy_helper.from_array(np.array([100], dtype=np.float32), "hundred"),
        onnx.numpy_helper.from_array(weights, "weights"),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("pixels", types.UINT8, ["n", 8, 6, 3])],
        [helper.make_tensor_value_info("features", types.FLOAT, ["n", weights.shape[1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def text_graph(onnx, table, token_type):
    """Token ids (m, 12) -> mean of table rows -> unit rows."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["raw"], keepdims=0),
        helper.make_node("LpNormalization", ["raw"], ["features"], axis=1, p=2),
    ]
    constants = [
        onnx.numpy_helper.from_array(table, "table"),
        onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("tokens", token_type, ["m", 12])],
        [helper.make_tensor_value_info("features", types.FLOAT, ["m", table.shape[1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def make_bundle(tmp_path):
    """Options -> a stand-in bundle with an image tower (d = 5, 8 x 6 pixels) and a text tower."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx to make test graphs")

    def make(*, spoil="", external=False, int32=False, has_text=True, **image_options):
        rng = np.random.default_rng(4)
        weights = rng.standard_normal((3, 5)).astype(np.float32)
        table = rng.standard_normal((518, 5)).astype(np.float32)
        options = {}
        if external:
            options = {
                "save_as_external_data": True,
                "location": "image.onnx.data",
                "size_threshold": 64,
            }  # the weights, not the axes
        onnx.save_model(image_graph(onnx, weights, spoil), tmp_path / "image.onnx", **options)
        kind = onnx.TensorProto.INT32 if int32 else onnx.TensorProto.INT64
        onnx.save_model(text_graph(onnx, table, kind), tmp_path / "text.onnx")
        (tmp_path / "tokenizer.json").write_text(json.dumps(DESCRIPTOR))
        image = {"file": "image.onnx", "data": ["image.onnx.data"] if external else [], "input": "pixels"}
        image |= {"output": "features", "height": 8, "width": 6, "fingerprint": "image-print", **image_options}
        text = {"file": "text.onnx", "data": [], "input": "tokens", "output": "features", "context_length": 12}
        text |= {"tokenizer": "tokenizer.json", "fingerprint": "text-print"}
        encoder = {"name": "tiny", "embed_dim": 5, "fingerprint": "print", "image": image}
        encoder["text"] = text if has_text else None
        preprocess = {"resize": "squash", "height": 8, "width": 6, "interpolation": "bicubic", "fill": 0}
        preprocess |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        bundle = StandInBundle(tmp_path, {"encoder": encoder, "preprocess": preprocess})
        bundle.weights, bundle.table = weights, table
        return bundle

    return make


@pytest.fixture
def describe(open_clip):
    """open_clip's SimpleTokenizer -> our descriptor of it, made from its public tables."""

    def make(tokenizer, clean="lower"):
        merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
        return {
            "format": 1,
            "type": "clip_bpe",
            "merges": [" ".join(pair) for pair in merges],
            "context_length": tokenizer.context_length,
            "clean": clean,
            "sot": tokenizer.sot_token_id,
            "eot": tokenizer.eot_token_id,
            "pad": 0,
            "vocab_size": tokenizer.vocab_size,
        }

    return make


@pytest.fixture
def short_merges(open_clip, tmp_path):
    """open_clip's merges file cut to its first 1500 merges."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[:1501]
    path = tmp_path / "short.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    return path


@pytest.fixture
def behaviour():
    """What the double of ONNX Runtime does; a class of tests may bring another."""
    return Behaviour()


@pytest.fixture
def log(behaviour, monkeypatch):
    """Puts the double in the place of ONNX Runtime; its calls."""
    calls = []
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime_double(behaviour, calls))
    return calls


@pytest.fixture
def context():
    """A `Context` on host memory that passes for GPU 1."""
    return Context(HostDriver(ordinal=1))
