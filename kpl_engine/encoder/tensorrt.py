"""The TensorRT encoder: the image tower from a plan of the bundle, texts from the bundle's own graph on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.bundle.tensors import load_tensors
from kpl_engine.config import EncoderConfig
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.encoder.gpu_encoder import GpuEncoder
from kpl_engine.encoder.ort import BundleView
from kpl_engine.encoder.plans import Plan, choose_plan, describe_machine, measure_parity
from kpl_engine.encoder.tensorrt_engine import PlanEngine, Signature
from kpl_engine.encoder.tensorrt_library import import_tensorrt
from kpl_engine.errors import EncoderError

__all__ = ["TensorRtEncoder", "open_plan", "read_parity"]


def open_plan(
    bundle: BundleView, context: Context, config: EncoderConfig | None = None, notices: Sequence[str] = ()
) -> TensorRtEncoder:
    """The encoder with the plan of ``bundle`` that fits; it closes ``context``, unless opening it failed."""
    return TensorRtEncoder(bundle, context, config, notices, owns_context=True)


class TensorRtEncoder(GpuEncoder):
    """Encodes images with a plan that `kpl-engine build` put into the bundle; calls from several threads take turns.

    A plan holds code that TensorRT runs on the host. Only plans of the bundle are loaded, after their checksum, so
    a bundle with plans must come from someone trusted, like a program.

    Parameters
    ----------
    bundle : BundleView
    context : Context
        The GPU, and the stream that all work goes into.
    config : EncoderConfig, optional
    notices : sequence of str
    precision : str, optional
        Use the plan of this precision alone; by default the best that fits.
    library : module, optional
        TensorRT; by default the one installed. ``tensorrt_lean`` runs portable plans.
    lock : context manager, optional
        Held during each call, where others launch in the same context.
    owns_context : bool
        Close the context with the encoder; when this raises, it is left open.

    Raises
    ------
    BackendUnavailableError
        No TensorRT, no plan for this GPU and TensorRT, or TensorRT refuses the plan; the reason is in the message.
    EncoderError
        The plan is not one of this model, or its features differ from those stored when it was built.
    """

    _bad_rows = "the plan gave"
    _advice = "build the plan again, in another precision if it stays so"

    def __init__(
        self,
        bundle: BundleView,
        context: Context,
        config: EncoderConfig | None = None,
        notices: Sequence[str] = (),
        *,
        precision: str | None = None,
        library: Any = None,
        lock: AbstractContextManager[Any] | None = None,
        owns_context: bool = False,
    ) -> None:
        self._attach(context, lock, owns_context)
        self._library = import_tensorrt(("tensorrt", "tensorrt_lean")) if library is None else library
        machine = describe_machine(context.driver.info, str(self._library.__version__))
        is_lean = str(self._library.__name__).startswith("tensorrt_lean")
        self.plan = choose_plan(bundle.manifest, machine, precision, portable_only=is_lean)
        self._engine: PlanEngine | None = None
        super().__init__(bundle, config, ("CPUExecutionProvider",), notices)
        self.batch_size = min(self.batch_size, self.plan.max_batch)
        self.fingerprint += f"+{self.plan.key}"
        try:
            self.parity = self._check_parity()
        except BaseException:
            self._close_engine()
            raise

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should be told once."""
        return (*self._notices, *(self._engine.notices if self._engine is not None else ()))

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows, ``batch_size`` pictures at a time."""
        with self._turn:
            return super().encode_images(pixels)

    def close(self) -> None:
        """Free the plan and the text tower; calling it twice is harmless."""
        with self._turn:
            super().close()
            self._close_engine()
            if self._owns_context:
                self.context.close()

    def _encode(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        if self._engine is None:
            raise self._closed()
        n = pixels.shape[0]
        rows = self.context.empty((n, self.embed_dim), np.float32)
        for start in range(0, n, self.batch_size):
            self._engine.put(pixels, rows, start, min(self.batch_size, n - start))
        return rows

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _open(self, entry: Mapping[str, Any], tower: str) -> Any:
        if tower != "image":
            return super()._open(entry, tower)
        signature = Signature(str(entry["input"]), str(entry["output"]), self.image_size, self.embed_dim)
        data = self._bundle.read_bytes(self.plan.file)  # hashed on the way: nothing else reaches TensorRT
        self._engine = PlanEngine(self._library, self.context, self.plan, data, signature)
        return self._engine

    def _check_parity(self) -> dict[str, float]:
        """The pictures that the plan was built with give the features that were stored then."""
        pixels, wanted = read_parity(self._bundle, self.plan)
        if pixels.shape[1:] != (*self.image_size, 3) or wanted.shape != (len(pixels), self.embed_dim):
            raise EncoderError(f"plan {self.plan.name!r}: its stored pictures are of another model; build it again")
        got = super().encode_images(pixels)
        return measure_parity(got, wanted, self.plan.precision, f"plan {self.plan.name!r} on this machine")


def read_parity(bundle: BundleView, plan: Plan) -> tuple[UInt8, Float32]:
    """The pictures (k, h, w, 3) uint8 stored with a plan, and their features (k, d) by the float32 graph."""
    tensors, _ = load_tensors(bundle.read_bytes(plan.parity_file), plan.parity_file)
    pixels, features = tensors.get("pixels"), tensors.get("features")
    if pixels is None or features is None or pixels.dtype != np.uint8 or features.dtype != np.float32:
        raise EncoderError(
            f"{plan.parity_file}: expected 'pixels' of uint8 and 'features' of float32; build the plan again"
        )
    if pixels.ndim != 4 or features.ndim != 2 or not len(pixels):
        raise EncoderError(f"{plan.parity_file}: holds no pictures; build the plan again")
    return pixels, features
