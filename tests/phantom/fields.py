"""Soft shapes on a pixel grid, from operations that round alike on every machine.

No exponential, power or trigonometric function is used and no sum over many pixels: NumPy's vector versions of those
differ in the last bit between processors, and one last bit can move an 8-bit pixel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Field", "bump", "lerp", "segment", "smooth", "soften", "step", "wave"]

Field = npt.NDArray[np.float64]


def step(distance: Field, width: float = 0.02) -> Field:
    """0 where ``distance`` is well below zero, 1 where well above, smooth over ``width`` on either side."""
    share = np.clip(distance / (2.0 * width) + 0.5, 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def bump(radius_squared: Field) -> Field:
    """A hill of height 1 at radius 0 that reaches 0 with zero slope at radius 1: ``(1 - r²)²``."""
    inside = np.clip(1.0 - radius_squared, 0.0, 1.0)
    return inside * inside


def lerp(low: Field | float, high: Field | float, share: Field) -> Field:
    return low + (high - low) * share


def segment(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float]) -> Field:
    """Distance of every pixel to the straight line from ``start`` to ``end``, (h, w) float64."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    off_x, off_y = x - start[0] - along * dx, y - start[1] - along * dy
    return np.sqrt(off_x * off_x + off_y * off_y)


def wave(phase: Field) -> Field:
    """Period 1, values 0..1, smooth, 1 at whole numbers: a raised cosine made of a cubic."""
    folded = np.abs(2.0 * (phase - np.floor(phase)) - 1.0)
    return folded * folded * (3.0 - 2.0 * folded)


def smooth(grid: Field, height: int, width: int) -> Field:
    """Bilinear enlargement of a small ``grid`` to (height, width): clouds from a few random numbers."""
    rows = np.arange(height, dtype=np.float64) * ((grid.shape[0] - 1) / max(height - 1, 1))
    columns = np.arange(width, dtype=np.float64) * ((grid.shape[1] - 1) / max(width - 1, 1))
    top = np.minimum(rows.astype(np.int64), grid.shape[0] - 2)
    left = np.minimum(columns.astype(np.int64), grid.shape[1] - 2)
    down, right = (rows - top)[:, None], (columns - left)[None, :]
    upper = lerp(grid[top][:, left], grid[top][:, left + 1], right)
    lower = lerp(grid[top + 1][:, left], grid[top + 1][:, left + 1], right)
    return lerp(upper, lower, down)


def soften(image: Field, times: int) -> Field:
    """``times`` passes of the 1-2-1 filter along both axes, edges repeated."""
    for _ in range(times):
        wide = np.pad(image, 1, mode="edge")
        tall = (wide[:-2] + 2.0 * wide[1:-1] + wide[2:]) / 4.0
        image = (tall[:, :-2] + 2.0 * tall[:, 1:-1] + tall[:, 2:]) / 4.0
    return image
