"""Synthetic features with the geometry of CLIP embeddings, shared by benchmarks and tests.

Images of one domain share a strong mean direction (mean cosine about 0.8), vary along a decaying
spectrum, and lie across a gap from the texts; classes differ by a small offset in both towers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ClipLike", "make_clip_like"]


@dataclass(frozen=True)
class ClipLike:
    features: npt.NDArray[np.float32]  # (n, d) unit rows
    descriptions: tuple[npt.NDArray[np.float32], ...]  # c of (m, d), unit rows
    classes: npt.NDArray[np.int64]  # (n,) true classes


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_clip_like(
    n: int, d: int, c: int, seed: int, *, m: int = 12, separation: float = 0.12, common: float = 0.9
) -> ClipLike:
    """``n`` images and ``c`` classes of ``m`` descriptions in ``d`` dimensions."""
    random = np.random.default_rng(seed)
    spectrum = _unit(np.arange(1, d + 1) ** -0.5)
    basis = np.linalg.qr(random.normal(size=(d, d)))[0]
    mean, gap = _unit(random.normal(size=(2, d)))
    offsets = _unit(random.normal(size=(c, d)))
    classes = random.integers(0, c, n)
    images = common * mean + separation * offsets[classes] + 0.43 * (random.normal(size=(n, d)) * spectrum) @ basis.T
    noise = 0.35 * random.normal(size=(c, m, d)) / np.sqrt(d)
    texts = 0.25 * mean + 0.75 * gap + 0.10 * offsets[:, None] + noise
    return ClipLike(_unit(images).astype(np.float32), tuple(_unit(texts).astype(np.float32)), classes)
