"""What the encoders on a GPU share: turns at the context, rows that stay on the device and are checked there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.encoder.base import MAX_NORM_ERROR, check_pixels
from kpl_engine.encoder.ort import OrtEncoder
from kpl_engine.errors import EncoderError, ShapeError

__all__ = ["GpuEncoder"]


class GpuEncoder(OrtEncoder):
    """A `DeviceEncoder` but for `_encode`; calls from several threads take turns."""

    _bad_rows = "the encoder returned"
    _advice = "export the model again"

    def _attach(self, context: Context, lock: AbstractContextManager[Any] | None, owns_context: bool) -> None:
        """To be called before `OrtEncoder` opens its graphs."""
        self.context = context
        self._turn = context.turn if lock is None else lock
        self._owns_context = owns_context
        self._unit = UnitRows(context, MAX_NORM_ERROR)

    def encode_on_device(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        """(n, h, w, 3) uint8, on the host or the device -> (n, d) float32 with unit rows, on the device.

        Returns before the work is done: what is put into ``context.stream`` next comes after it. Rows are checked and
        scaled as by `check_unit`, on the device; what was found there is raised by `check_encoded`, which waits, so
        call that when the answer has come.
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
                f"{self._bad_rows} images that are not finite unit vectors: {num_bad} of them, the first is image "
                f"{first} of those since the last check; {self._advice}"
            )

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows."""
        with self._turn:
            return super().encode_texts(texts, truncate)

    def _encode(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        """(n, h, w, 3) uint8 -> (n, d) float32 on the device, as the model gives them."""
        raise NotImplementedError

    def _check_array(self, pixels: DeviceArray) -> None:
        wanted = (*self.image_size, 3)
        if pixels.dtype != np.uint8 or len(pixels.shape) != 4 or pixels.shape[1:] != wanted:
            raise ShapeError(
                f"pixels on the device: expected (n, {wanted[0]}, {wanted[1]}, 3) of uint8, got {pixels.shape} of "
                f"{pixels.dtype}"
            )
