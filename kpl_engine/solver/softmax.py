"""Softmax with the infinities defined, in float64; in the compiled core where that is installed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Floats
from kpl_engine.errors import ShapeError
from kpl_engine.solver import cpu

__all__ = ["check_rows", "log_softmax", "softmax"]


def check_rows(name: str, values: Floats, *, finite: bool) -> None:
    """Raise `ShapeError` naming the rows of ``values`` (n, c) that hold NaN (or infinities, if ``finite``)."""
    bad = ~np.isfinite(values) if finite else np.isnan(values)
    rows = np.flatnonzero(bad.any(axis=1))
    if rows.size:
        shown = ", ".join(str(row) for row in rows[:8]) + (", ..." if rows.size > 8 else "")
        raise ShapeError(
            f"{name}: expected {'finite ' if finite else ''}numbers, got NaN{' or infinity' if finite else ''} in "
            f"{rows.size} of {len(values)} rows ({shown}); drop those rows first"
        )


def log_softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Float64:
    """``log softmax(logits / temperature)`` over the last axis of (n, c), float64.

    -inf is an impossible class (probability 0), a row of only -inf is uniform, and +inf entries
    share the whole mass of their row. The row maximum is subtracted before the division, so no
    finite input overflows.
    """
    values = np.array(logits, dtype=np.float64)  # (n, c) float64, a copy
    certain = np.isposinf(values)
    values[certain.any(axis=1)] = -np.inf
    values[certain] = 0.0
    values[np.isneginf(values).all(axis=1)] = 0.0
    with np.errstate(over="ignore", divide="ignore"):
        values -= values.max(axis=1, keepdims=True)
        values /= temperature
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Float64:
    """``softmax(logits / temperature)`` over the last axis of (n, c), float64; see `log_softmax`."""
    core = cpu.core()
    if core is not None:
        values = np.asarray(logits)
        if values.dtype not in (np.float32, np.float64) or not values.flags.aligned:
            values = values.astype(np.float64)
        if values.size:
            powers = np.empty(values.shape)  # (n, c) float64
            core.refine_labels(values, powers, "softmax", float(temperature), 0.0, 0, None)
            return powers
    return np.asarray(np.exp(log_softmax(logits, temperature)), dtype=np.float64)
