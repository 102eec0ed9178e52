from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kpl_engine.bundle import Bundle, write_bundle


def make_manifest(seed: int = 0) -> dict[str, Any]:
    graph = {"data": [], "input": "x", "output": "features", "fingerprint": f"tower{seed}"}
    return {
        "encoder": {
            "name": "tiny",
            "pretrained": None,
            "source": None,
            "embed_dim": 4,
            "precision": "fp32",
            "opset": 18,
            "logit_scale": 100.0,
            "fingerprint": f"encoder{seed}",
            "image": {**graph, "file": "image.onnx", "data": ["image.onnx.data"], "height": 8, "width": 8},
            "text": {**graph, "file": "text.onnx", "context_length": 77, "tokenizer": "clip"},
            "parity": {},
            "versions": {},
        },
        "preprocess": {
            "resize": "shortest",
            "height": 8,
            "width": 8,
            "interpolation": "bicubic",
            "fill": 0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
    }


def make_files(seed: int = 0) -> dict[str, Path | bytes]:
    return {
        "image.onnx": b"image graph %d " % seed * 40,
        "image.onnx.data": bytes(range(256)) * 3,
        "text.onnx": b"text graph %d" % seed,
        "knowledge/lung.safetensors": b"not tensors %d" % seed,
        "empty.bin": b"",
    }


@pytest.fixture
def manifest() -> dict[str, Any]:
    return make_manifest()


@pytest.fixture
def files() -> dict[str, Path | bytes]:
    return make_files()


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write bundle number ``seed`` to a name in the test's folder."""

    def make(name: str = "a.kpl", seed: int = 0, **options: Any) -> Path:
        path: Path = tmp_path / name
        bundle: Bundle = write_bundle(path, make_manifest(seed), make_files(seed), **options)
        bundle.close()
        return path

    return make


@pytest.fixture
def bundle_path(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()
