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
from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.encoder.base import MAX_NORM_ERROR, check_pixels, check_unit
from kpl_engine.encoder.ort import BundleView, Graph, OrtEncoder
from kpl_engine.encoder.ort_binding import Feeder
from kpl_engine.errors import BackendUnavailableError, EncoderError, KplError, ShapeError

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


class OrtCudaEncoder(OrtEncoder):
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
        self.context = context
        self._turn = context.turn if lock is None else lock
        self._owns_context = owns_context
        super().__init__(bundle, config, (self._provider,), notices)
        if self._config.use_tf32:
            self.fingerprint += "+tf32"
        self._feeder: Feeder | None = None
        self._unit = UnitRows(context, MAX_NORM_ERROR)

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows, ``batch_size`` pictures at a time."""
        pixels = check_pixels(pixels, self.image_size)
        with self._turn:
            rows = self.context.download(self._encode(pixels))
        return check_unit(rows, "images")

    def encode_on_device(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        """(n, h, w, 3) uint8, on the host or the device -> (n, d) float32 with unit rows, on the device.

        Returns before the work is done: what is put into ``context.stream`` next comes after it. Rows are
        checked and scaled as by `check_unit`, on the device; what was found there is raised by
        `check_encoded`, which waits, so call that when the answer has come.
        """
        if isinstance(pixels, DeviceArray):
            self._check_array(pixels)
        else:
            pixels = check_pixels(pixels, self.image_size)
        with self._turn:
            rows = self._encode(pixels)
            self._unit.scale(rows)
        return rows

    def check_encoded(self) -> None:
        """Wait; `EncoderError` if `encode_on_device` met rows that are no unit vectors since the last call."""
        with self._turn:
            num_bad, first = self._unit.take()
        if num_bad:
            raise EncoderError(
                f"the encoder returned images that are not finite unit vectors: {num_bad} of them, the first is image "
                f"{first} of those since the last check; export the model again"
            )

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows."""
        with self._turn:
            return super().encode_texts(texts, truncate)

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

    def _check_array(self, pixels: DeviceArray) -> None:
        wanted = (*self.image_size, 3)
        if pixels.dtype != np.uint8 or len(pixels.shape) != 4 or pixels.shape[1:] != wanted:
            raise ShapeError(
                f"pixels on the device: expected (n, {wanted[0]}, {wanted[1]}, 3) of uint8, got {pixels.shape} of "
                f"{pixels.dtype}"
            )

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
