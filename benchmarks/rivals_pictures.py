"""What a user writes around an encoder that is only an encoder: decode on a few threads, encode in batches, adapt."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from published_loops import numpy_method

__all__ = ["FEWEST_PER_CLASS", "PictureRival", "pil_pixels", "read_texts"]

FEWEST_PER_CLASS = 4  # images below which there is nothing to adapt to: the engine's rule, for all
_SIZE = 224


def pil_pixels(picture: bytes) -> Any:
    """(224, 224, 3) uint8 by Pillow alone: shortest edge to 224, bicubic, the middle of the longer one."""
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    short = min(width, height)
    # torchvision's rounding: the longer edge is cut to an integer, the crop's corner rounded
    size = (_SIZE, int(_SIZE * height / width)) if short == width else (int(_SIZE * width / height), _SIZE)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - _SIZE) / 2), round((size[1] - _SIZE) / 2)
    return np.asarray(resized.crop((left, top, left + _SIZE, top + _SIZE)))


def read_texts(work: Path) -> list[Any]:
    """Embedded descriptions of the knowledge base: c arrays (m, d) float32."""
    with np.load(work / "texts.npz") as kept:
        return [kept[name] for name in sorted(kept.files, key=int)]


class PictureRival:
    """Pictures to features and labels around `encode`, which a rival defines; so may it `prepare` and `method`.

    Pictures are decoded on ``threads`` threads, ahead of the encoder, which takes ``batch`` at a time: as the engine
    does it.
    """

    def __init__(self, work: Path, threads: int, batch: int, device: str) -> None:
        self.work, self.threads, self.batch, self.device = work, threads, batch, device
        self.settings: dict[str, Any] = {"batch": batch}

    def open_pictures(self) -> None:
        """Load the model; from here on `features` works."""
        self.texts = read_texts(self.work)
        self.pool = ThreadPoolExecutor(self.threads)
        self.open_encoder()

    def open_encoder(self) -> None:
        raise NotImplementedError

    def prepare(self, picture: bytes) -> Any:
        """One picture as `encode` takes it, in a batch."""
        return pil_pixels(picture)

    def encode(self, prepared: Sequence[Any]) -> Any:
        """(n, d) unit rows."""
        raise NotImplementedError

    def gather(self, parts: Sequence[Any]) -> Any:
        return np.concatenate(parts)

    def method(self, X: Any, adapts: bool) -> Any:
        """Logits (n, c), in NumPy."""
        return numpy_method(X, self.texts, adapts)

    def features(self, pictures: Sequence[bytes]) -> Any:
        """(n, d) float32."""
        return self._encoded(pictures)

    def labels(self, pictures: Sequence[bytes]) -> Any:
        """(n,) class indices; pictures too few to adapt to are named by the text proxies."""
        X = self._encoded(pictures)
        return np.asarray(self.method(X, len(X) >= FEWEST_PER_CLASS * len(self.texts)).argmax(1))

    def _encoded(self, pictures: Sequence[bytes]) -> Any:
        ready = map(self.prepare, pictures) if len(pictures) == 1 else self.pool.map(self.prepare, pictures)
        return self.gather([self.encode(chunk) for chunk in _chunks(ready, self.batch)])


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk
