"""An encoder without a model: deterministic, quick, and used by the tests of everything above."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from kpl_engine.arrays import Float32, Float64, UInt8
from kpl_engine.encoder.base import EncoderBase, check_pixels, check_texts
from kpl_engine.errors import InputError, TextTooLongError
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["FakeEncoder"]

_GRID = 8  # a picture is pooled to at most 8 x 8 cells


class FakeEncoder(EncoderBase):
    """Unit vectors from pooled pixels and hashed texts.

    An image's vector is a fixed random projection of its pooled pixels plus a constant, so like
    pictures have like vectors and a black one is not the zero vector. A text's vector is drawn
    from the hash of its words. Each row is computed alone: a batch changes no bit.

    Parameters
    ----------
    embed_dim : int
        d.
    image_size : (int, int)
        Height and width of the input.
    seed : int
        Another seed is another model, with another fingerprint.
    context_length : int
        The most words of one text.
    has_text : bool
        False makes an encoder of images only.
    """

    def __init__(
        self,
        embed_dim: int = 16,
        image_size: tuple[int, int] = (32, 32),
        seed: int = 0,
        *,
        context_length: int = 77,
        batch_size: int = 8,
        has_text: bool = True,
    ) -> None:
        self.name = f"fake-{embed_dim}"
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.batch_size = batch_size
        self.has_text = has_text
        self.fingerprint = _digest(f"fake image {embed_dim} {image_size} {seed}")
        self.text_fingerprint = _digest(f"fake text {embed_dim} {seed} {context_length}") if has_text else ""
        self.providers = ("FakeExecutionProvider",)
        self.preprocess = Preprocess(height=image_size[0], width=image_size[1])
        self.notices: tuple[str, ...] = ()
        self._seed = seed
        self._context_length = context_length
        self._rows = _cells(image_size[0])
        self._columns = _cells(image_size[1])
        num_values = len(self._rows) * len(self._columns) * 3 + 1
        self._projection = _draw(f"projection {seed}", num_values * embed_dim).reshape(num_values, embed_dim)

    def encode_images(self, pixels: UInt8) -> Float32:
        """(n, h, w, 3) uint8 -> (n, d) float32 with unit rows."""
        pixels = check_pixels(pixels, self.image_size)
        rows = [self._encode_image(picture) for picture in pixels]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.embed_dim)

    def encode_texts(self, texts: Sequence[str], truncate: bool = False) -> Float32:
        """m texts -> (m, d) float32 with unit rows."""
        if not self.has_text:
            raise InputError(f"encoder {self.name!r} has no text tower; use one that has")
        rows = [self._encode_text(text, index, truncate) for index, text in enumerate(check_texts(texts))]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.embed_dim)

    def _encode_image(self, picture: UInt8) -> Float64:
        sums = np.add.reduceat(np.add.reduceat(picture.astype(np.int64), self._rows, 0), self._columns, 1)
        counts = np.outer(_widths(self._rows, self.image_size[0]), _widths(self._columns, self.image_size[1]))
        values = np.append((sums / counts[:, :, None]).ravel() / 127.5 - 1.0, 0.5)  # (cells * 3 + 1,) float64
        return _unit(values @ self._projection)

    def _encode_text(self, text: str, index: int, truncate: bool) -> Float64:
        words = text.split()
        if len(words) > self._context_length and not truncate:
            raise TextTooLongError(
                f"texts[{index}] {text[:60]!r}: expected at most {self._context_length} words, got {len(words)}; "
                "shorten it or pass truncate=True"
            )
        kept = " ".join(words[: self._context_length])
        return _unit(_draw(f"text {self._seed} {kept}", self.embed_dim))


def _cells(size: int) -> list[int]:
    """First index of each of at most `_GRID` cells."""
    count = min(size, _GRID)
    return [i * size // count for i in range(count)]


def _widths(starts: list[int], size: int) -> Float64:
    return np.diff(np.array([*starts, size], dtype=np.float64))


def _unit(row: Float64) -> Float64:
    return np.asarray(row / np.sqrt(np.sum(row * row)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _draw(key: str, count: int) -> Float64:
    """``count`` numbers, near normal, that depend on ``key`` alone and on no library's random streams."""
    stream = hashlib.shake_256(key.encode("utf-8", "surrogatepass")).digest(count * 4)
    quads = np.frombuffer(stream, np.uint8).reshape(count, 4)
    return np.asarray(quads.sum(axis=1, dtype=np.float64) / 127.5 - 4.0)
