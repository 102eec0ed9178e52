"""What every encoder is: images and texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.errors import EncoderError, InputError, ShapeError
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["MAX_NORM_ERROR", "DeviceEncoder", "Encoder", "EncoderBase", "check_pixels", "check_texts", "check_unit"]

_Self = TypeVar("_Self", bound="EncoderBase")
MAX_NORM_ERROR = 1e-2  # reduced precision keeps a unit row within this; a graph without its last layer does not


@runtime_checkable
class Encoder(Protocol):
    """A back end. ``d`` is ``embed_dim``; (h, w) is ``image_size``."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def embed_dim(self) -> int:
        """Width d of every vector."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model input."""

    @property
    def batch_size(self) -> int:
        """The most images worth sending at once."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever an image's vector may change."""

    @property
    def text_fingerprint(self) -> str:
        """Changes whenever a text's vector may change; empty without a text tower."""

    @property
    def providers(self) -> tuple[str, ...]:
        """What the images really run on, best first."""

    @property
    def preprocess(self) -> Preprocess:
        """The geometry that turns a picture into model input."""

    @property
    def has_text(self) -> bool:
        """Whether `encode_texts` works."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should be told once."""

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows."""

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows; `TextTooLongError` unless ``truncate``."""

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""


@runtime_checkable
class DeviceEncoder(Encoder, Protocol):
    """An encoder whose rows can stay on a GPU."""

    @property
    def context(self) -> Context:
        """Where the rows are; whoever launches there takes its turn (``context.turn``)."""

    def encode_on_device(self, pixels: UInt8 | DeviceArray) -> DeviceArray:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows; returns before the work is done."""

    def check_encoded(self) -> None:
        """Wait; `EncoderError` if rows since the last call were no unit vectors."""


class EncoderBase:
    """The context manager all encoders share."""

    def close(self) -> None:
        """Free the model."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_pixels(pixels: npt.NDArray[Any], image_size: tuple[int, int]) -> UInt8:
    """``pixels`` as contiguous (n, h, w, 3) uint8, or `ShapeError`."""
    array = np.asarray(pixels)
    wanted = (*image_size, 3)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != wanted:
        raise ShapeError(
            f"pixels: expected (n, {wanted[0]}, {wanted[1]}, 3) of uint8, got {array.shape} of {array.dtype}; "
            "run encoder.preprocess.apply on each picture first"
        )
    return np.ascontiguousarray(array)


def check_texts(texts: Sequence[str]) -> list[str]:
    """``texts`` as a list, or `InputError`; a single string is a mistake worth naming."""
    if isinstance(texts, (str, bytes)):
        raise InputError("texts: expected a list of texts, got a single one; wrap it in a list")
    found = list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"texts[{index}]: expected a text, got {type(text).__name__}")
    return found


def check_unit(rows: npt.NDArray[Any], what: str, start: int = 0) -> Float32:
    """``rows`` as (n, d) float32 of unit length, or `EncoderError` naming the rows that are not.

    Rows within 1e-2 of unit length (reduced precision) are scaled to it.
    """
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))  # (n,) float64
    bad = np.flatnonzero(~(np.abs(norms - 1.0) <= MAX_NORM_ERROR))  # written so that NaN is bad
    if len(bad):
        shown = ", ".join(str(start + int(i)) for i in bad[:8]) + (", ..." if len(bad) > 8 else "")
        raise EncoderError(
            f"the encoder returned {what} that are not finite unit vectors: {len(bad)} of {len(rows)}, "
            f"{what} {shown} (length {norms[bad[0]]:g}, expected 1); export the model again"
        )
    return np.asarray(rows / norms[:, None], dtype=np.float32)  # (n, d) float32
