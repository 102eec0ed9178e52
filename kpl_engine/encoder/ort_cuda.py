"""The ONNX Runtime encoder on a GPU: pictures and rows stay in device memory, all work goes into the engine's stream.

Sources: the documentation of ONNX Runtime's CUDA execution provider (options, I/O binding, CUDA graphs) and its
session and run configuration keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.config import EncoderConfig
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.encoder.base import check_pixels, check_unit
from kpl_engine.encoder.gpu_encoder import GpuEncoder
from kpl_engine.encoder.ort import BundleView, Graph
from kpl_engine.encoder.ort_binding import Feeder
from kpl_engine.errors import BackendUnavailableError, EncoderError, KplError

__all__ = ["HOW_TO_INSTALL", "OrtCudaEncoder"]

# Both wheels own the package onnxruntime: with both installed, whichever came last wins.
HOW_TO_INSTALL = (
    "on a machine with an NVIDIA driver: pip uninstall onnxruntime onnxruntime-gpu, then "
    'pip install onnxruntime-gpu; or use device="cpu"'
)
# Where the batch is dynamic, these compute shapes: a few integers, which ONNX Runtime keeps on the CPU on purpose.
_SHAPE_OPS = frozenset(
    (
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Identity", "Mul", "Range", "Reshape"),
        *("Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)
_CPU = "CPUExecutionProvider"


class OrtCudaEncoder(GpuEncoder):
    """Encodes with ONNX Runtime's CUDA provider; calls from several threads take turns.

    Parameters
    ----------
    bundle : BundleView
    context : Context
        The GPU, and the stream that ONNX Runtime works in.
    config : EncoderConfig, optional
        ``use_tf32`` holds for images only: vectors of texts are kept in bundles and must not depend on it.
    notices : sequence of str
    lock : context manager, optional
        Held during each call, where others launch in the same context.
    owns_context : bool
        Close the context with the encoder.

    Raises
    ------
    BackendUnavailableError
        The provider did not start, or left part of a tower to the CPU.
    EncoderError
        No encoder in the bundle, or a graph that cannot be loaded.
    """

    _provider = "CUDAExecutionProvider"
    _memory = "cuda"

    def __init__(
        self,
        bundle: BundleView,
        context: Context,
        config: EncoderConfig | None = None,
        notices: Sequence[str] = (),
        *,
        lock: AbstractContextManager[Any] | None = None,
        owns_context: bool = False,
    ) -> None:
        self._attach(context, lock, owns_context)
        super().__init__(bundle, config, (self._provider,), notices)
        if self._config.use_tf32:
            self.fingerprint += "+tf32"
        self._feeder: Feeder | None = None

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows, ``batch_size`` pictures at a time."""
        pixels = check_pixels(pixels, self.image_size)
        with self._turn:
            rows = self.context.download(self._encode(pixels))
        return check_unit(rows, "images")

    def close(self) -> None:
        """Free both graphs and the buffers; calling it twice is harmless."""
        with self._turn:
            with suppress(KplError):  # a failed context cannot wait any more, and must be closed all the same
                self.context.driver.synchronize(self.context.stream)
            self._feeder = None
            super().close()
            if self._owns_context:
                self.context.close()

    def _encode(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        graph = self._images
        if graph is None:
            raise self._closed()
        if self._feeder is None:
            self._feeder = Feeder(graph, self.context, self._memory, self._config, self.image_size, self.embed_dim)
        n = pixels.shape[0]
        rows = self.context.empty((n, self.embed_dim), np.float32)
        for start in range(0, n, self.batch_size):
            self._feeder.run(pixels, rows, start, min(self.batch_size, n - start))
        return rows

    def _open(self, entry: Mapping[str, Any], tower: str) -> Graph:
        path, label = self._verified(entry, tower)
        asked = [(self._provider, self._options(tower == "image"))]
        try:
            graph = Graph(path, entry, label, asked, self._config, _assignment_settings())
        except EncoderError as error:
            if "disabled by the user" not in str(error):
                raise
            raise BackendUnavailableError(f"{error}; {HOW_TO_INSTALL}") from error
        self._check_started(graph)
        if tower == "image" and graph.types != ("tensor(uint8)", "tensor(float)"):
            raise EncoderError(
                f"{label}: expected tensor(uint8) in and tensor(float) out, got {' and '.join(graph.types)}; "
                "export the model again"
            )
        return graph

    def _options(self, is_image: bool) -> dict[str, str]:
        """Provider options, all of them texts. CUDA graphs are for images: texts come seldom, in any number."""
        config, driver = self._config, self.context.driver
        options = {
            "device_id": str(driver.info.ordinal),
            "user_compute_stream": str(self.context.stream.handle),
            "use_tf32": str(int(config.use_tf32 and is_image)),  # ONNX Runtime's own default is 1
            "enable_cuda_graph": str(int(config.use_cuda_graph and is_image)),
            # EXHAUSTIVE times every algorithm for each new batch size and takes one by chance
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles, past what the limit allows
        }
        if config.gpu_memory_bytes is not None:
            options["gpu_mem_limit"] = str(config.gpu_memory_bytes)
        return options

    def _check_started(self, graph: Graph) -> None:
        """ONNX Runtime silently drops a provider that does not load, and gives the CPU what one cannot run."""
        if self._provider not in graph.providers:
            raise BackendUnavailableError(
                f"{graph.label}: {self._provider} did not start (its libraries or the driver); running: "
                f"{list(graph.providers)}; {HOW_TO_INSTALL}"
            )
        if not hasattr(graph.session, "get_provider_graph_assignment_info"):
            return  # then the session was told to refuse the CPU itself
        assigned = graph.session.get_provider_graph_assignment_info()
        strayed = {
            node.op_type
            for part in assigned
            if part.ep_name == _CPU != self._provider
            for node in part.get_nodes()
            if node.op_type not in _SHAPE_OPS
        }
        if strayed or not any(part.ep_name == self._provider for part in assigned):
            raise BackendUnavailableError(
                f"{graph.label}: expected every node on {self._provider}, but it left "
                f"{', '.join(sorted(strayed)) or 'all of them'} to the CPU; update onnxruntime-gpu, build a TensorRT "
                'plan with kpl-engine build, or use device="cpu"'
            )


def _assignment_settings() -> dict[str, str]:
    """How a session is asked where its nodes run; one too old for that (before 1.24) is told to refuse the CPU."""
    import onnxruntime

    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        return {"session.record_ep_graph_assignment_info": "1"}
    return {"session.disable_cpu_ep_fallback": "1"}
