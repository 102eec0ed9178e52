"""Sums over images that the closed form starts from, in one pass over the features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Floats
from kpl_engine.solver import cpu

__all__ = ["Moments", "moments_of", "row_blocks", "squared_lengths"]

_BLOCK_BYTES = 1 << 25  # a converted block of rows: far beyond the cost of a call, far below the features


@dataclass(frozen=True)
class Moments:
    """Of ``X`` (n, d) and labels ``P`` (n, c), all float64."""

    n: int
    mean: Float64  # (d,)
    mean_square: float  # mean of ‖x_i‖²
    XtP: Float64  # (d, c)
    column_mass: Float64  # (c,) Σ_i P_ij


def moments_of(X: Floats, P: Float64, num_threads: int | None = None) -> Moments:
    """`Moments` of features (n, d) and labels (n, c) float64."""
    n, d = X.shape
    mass = P.sum(axis=0)
    core = cpu.core()
    if core is not None:
        mean, PtX = np.empty(d), np.empty((P.shape[1], d))
        square = core.moments(
            np.ascontiguousarray(X), np.ascontiguousarray(P), mean, PtX, cpu.resolve_threads(num_threads)
        )
        return Moments(n, mean, square, PtX.T, mass)
    total, square, XtP, start = np.zeros(d), 0.0, np.zeros((d, P.shape[1])), 0
    for part in row_blocks(X, np.float64):
        total += part.sum(axis=0)
        square += float(np.vdot(part, part))
        XtP += part.T @ P[start : start + len(part)]
        start += len(part)
    return Moments(n, total / n, square / n, XtP, mass)


def squared_lengths(X: Floats) -> Float64:
    """``‖x_i‖²`` of the rows of (n, d), float64 (n,)."""
    core = cpu.core()
    if core is None:
        return np.asarray(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    lengths = np.empty(len(X))
    core.squared_lengths(np.ascontiguousarray(X), lengths, cpu.resolve_threads(None))
    return lengths


def row_blocks(X: Floats, dtype: type[np.floating[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Rows of ``X`` in ``dtype``, in order: all at once if that needs no copy, else in blocks of 32 MiB."""
    size = len(X) if X.dtype == dtype else max(1, _BLOCK_BYTES // (X.shape[1] * np.dtype(dtype).itemsize))
    for start in range(0, len(X), size):
        yield X[start : start + size].astype(dtype, copy=False)
