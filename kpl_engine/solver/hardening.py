"""Confident label rows become one-hot before proxies are learned from them (method.md 3)."""

from __future__ import annotations

import numpy as np

from kpl_engine.arrays import Float64, Floats

__all__ = ["harden"]


def harden(labels: Floats, alpha: float) -> tuple[Float64, int]:
    """``labels`` with rows above ``alpha`` one-hot (first maximum), and their number; a copy if there are any."""
    values: Float64 = np.asarray(labels, dtype=np.float64)
    rows = np.flatnonzero(values.max(axis=1) > alpha)
    if not rows.size:
        return values, 0
    hardened = values.copy()  # (n, c) float64
    hardened[rows] = 0.0
    hardened[rows, values[rows].argmax(axis=1)] = 1.0
    return hardened, len(rows)
