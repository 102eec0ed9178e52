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
from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.encoder.base import MAX_NORM_ERROR, check_pixels
from kpl_engine.encoder.ort import BundleView, OrtEncoder
from kpl_engine.encoder.plans import Plan, choose_plan, describe_machine, measure_parity
from kpl_engine.encoder.tensorrt_engine import PlanEngine, Signature
from kpl_engine.encoder.tensorrt_library import import_tensorrt
from kpl_engine.errors import EncoderError, ShapeError

__all__ = ["TensorRtEncoder", "open_plan", "read_parity"]


def open_plan(
    bundle: BundleView, context: Context, config: EncoderConfig | None = None, notices: Sequence[str] = ()
) -> TensorRtEncoder:
    """The encoder with the plan of ``bundle`` that fits; it closes ``context``, unless opening it failed."""
    return TensorRtEncoder(bundle, context, config, notices, owns_context=True)


class TensorRtEncoder(OrtEncoder):
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
        self.context = context
        self._turn = context.turn if lock is None else lock
        self._owns_context = owns_context
        self._library = import_tensorrt(("tensorrt", "tensorrt_lean")) if library is None else library
        machine = describe_machine(context.driver.info, str(self._library.__version__))
        is_lean = str(self._library.__name__).startswith("tensorrt_lean")
        self.plan = choose_plan(bundle.manifest, machine, precision, portable_only=is_lean)
        self._engine: PlanEngine | None = None
        super().__init__(bundle, config, ("CPUExecutionProvider",), notices)
        self.batch_size = min(self.batch_size, self.plan.max_batch)
        self.fingerprint += f"+{self.plan.key}"
        self._unit = UnitRows(context, MAX_NORM_ERROR)
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

    def encode_on_device(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        """(n, h, w, 3) uint8, on the host or the device -> (n, d) float32 with unit rows, on the device.

        Returns before the work is done: what is put into ``context.stream`` next comes after it. Rows that are no
        unit vectors are raised by `check_encoded`, which waits, so call that when the answer has come.
        """
        if isinstance(pixels, DeviceArray):
            self._check_array(pixels)
        else:
            pixels = check_pixels(pixels, self.image_size)
        with self._turn:
            if self._engine is None:
                raise self._closed()
            n = pixels.shape[0]
            rows = self.context.empty((n, self.embed_dim), np.float32)
            for start in range(0, n, self.batch_size):
                self._engine.put(pixels, rows, start, min(self.batch_size, n - start))
            self._unit.scale(rows)
        return rows

    def check_encoded(self) -> None:
        """Wait; `EncoderError` if `encode_on_device` met rows that are no unit vectors since the last call."""
        with self._turn:
            num_bad, first = self._unit.take()
        if num_bad:
            raise EncoderError(
                f"the plan gave images that are not finite unit vectors: {num_bad} of them, the first is image {first} "
                "of those since the last check; build the plan again, in another precision if it stays so"
            )

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows, in float32 on the CPU: bundles keep them."""
        with self._turn:
            return super().encode_texts(texts, truncate)

    def close(self) -> None:
        """Free the plan and the text tower; calling it twice is harmless."""
        with self._turn:
            super().close()
            self._close_engine()
            if self._owns_context:
                self.context.close()

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

    def _check_array(self, pixels: DeviceArray) -> None:
        wanted = (*self.image_size, 3)
        if pixels.dtype != np.uint8 or len(pixels.shape) != 4 or pixels.shape[1:] != wanted:
            raise ShapeError(
                f"pixels on the device: expected (n, {wanted[0]}, {wanted[1]}, 3) of uint8, got {pixels.shape} of "
                f"{pixels.dtype}"
            )


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
