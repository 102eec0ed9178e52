"""Rivals without torch: ONNX Runtime and OpenVINO on the exported graph, and the published loop in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from published_loops import numpy_method
from rivals_pictures import PictureRival

__all__ = ["NumpyLoop", "OnnxRuntime", "OpenVino"]


class OnnxRuntime(PictureRival):
    """A session with its defaults, but for the number of threads. Its idle threads spin."""

    def open_encoder(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        provider, tuning = "CPUExecutionProvider", {}
        if self.device == "cuda":  # without TF32, which it takes on its own: equal answers
            provider, tuning = "CUDAExecutionProvider", {"use_tf32": "0"}
            onnxruntime.preload_dlls()
        self.session = onnxruntime.InferenceSession(
            str(self.work / "lung.kpl" / "image.onnx"), options, providers=[(provider, tuning)]
        )
        if self.session.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} did not start: pip install onnxruntime-gpu, with CUDA's libraries")
        self.settings |= {"provider": provider, **tuning}

    def encode(self, prepared: Sequence[Any]) -> Any:
        return self.session.run(None, {"pixels": np.stack(prepared)})[0]


class OpenVino(PictureRival):
    """The same graph, for latency, in float32: on processors with bfloat16 OpenVINO would take that on its own, and the
    features would differ in the third digit."""

    def open_encoder(self) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = openvino.Core().compile_model(self.work / "lung.kpl" / "image.onnx", "CPU", settings)
        self.request = model.create_infer_request()
        self.settings |= settings

    def encode(self, prepared: Sequence[Any]) -> Any:
        return self.request.infer({0: np.stack(prepared)})[0].copy()


class NumpyLoop:
    """The published method in NumPy, as one writes it."""

    def __init__(self, work: Path, threads: int, batch: int, device: str) -> None:
        self.settings: dict[str, Any] = {"steps": 2000}

    def open_adaptation(self, X: Any, texts: Sequence[Any]) -> Any:
        return X, texts

    def adapt(self, problem: Any) -> tuple[Any, Any]:
        logits = numpy_method(*problem)
        return logits.argmax(axis=1), logits
