"""Exponents of measured curves: straight lines in log-log, where they bend, and intervals by resampling the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

FEWEST = 3  # points of one straight piece; two would lie on any line
NOISE = 0.03  # relative misfit below which a better line is no evidence: repeated medians differ by about as much
_LEVEL = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """``y = factor x^exponent`` from ``first`` to ``last``; ``low`` and ``high`` bound the exponent at 95 %."""

    first: float
    last: float
    exponent: float
    factor: float
    low: float
    high: float

    def at(self, x: float) -> float:
        """y of the fitted line."""
        return float(self.factor * x**self.exponent)


def line(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Exponent, log of the factor, and sum of squared residuals of least squares in log-log."""
    u, v = np.log(x), np.log(y)
    slope = float(np.sum((u - u.mean()) * (v - v.mean())) / np.sum((u - u.mean()) ** 2))
    shift = float(v.mean() - slope * u.mean())
    return slope, shift, float(np.sum((v - shift - slope * u) ** 2))


def cuts(x: Floats, y: Floats, most: int = 2) -> tuple[int, ...]:
    """Where a curve bends: indices of the first point of each straight piece but the first.

    All ways to cut the curve into up to ``most + 1`` pieces of `FEWEST` points or more are compared by Schwarz's
    criterion, ``N ln(RSS / N + NOISE²) + p ln N`` with three parameters a cut (slope, height, place): a bend is told
    only where it explains more than noise would.
    """
    best: tuple[float, tuple[int, ...]] = (np.inf, ())
    for chosen in _ways(len(x), most):
        ends = (0, *chosen, len(x))
        misfit = sum(line(x[a:b], y[a:b])[2] for a, b in pairwise(ends))
        score = len(x) * np.log(misfit / len(x) + NOISE**2) + (2 + 3 * len(chosen)) * np.log(len(x))
        best = min(best, (float(score), chosen))
    return best[1]


def _ways(count: int, most: int) -> list[tuple[int, ...]]:
    ways: list[tuple[int, ...]] = [()]
    grown = ways
    for _ in range(most):
        grown = [(*way, k) for way in grown for k in range((way[-1] if way else 0) + FEWEST, count - FEWEST + 1)]
        ways = ways + grown
    return ways


def fit(xs: Sequence[float], runs: Sequence[Sequence[float]], seed: int = 0, resamples: int = 400) -> list[Piece]:
    """The straight pieces of a curve, in order of x.

    Parameters
    ----------
    xs : (N,)
        Increasing, > 0. Fewer than `FEWEST` points give no piece.
    runs : N sequences
        Repeated measurements at each x, > 0; the curve is their medians. Each round of the bootstrap draws as many
        with replacement at every x, and the residuals of the line besides, for a line misses by more than the runs
        scatter. The cuts stay where the medians have them, so the interval is conditional on them.
    """
    x, y = np.asarray(xs, dtype=np.float64), np.array([np.median(each) for each in runs])
    if len(x) < FEWEST:
        return []
    random = np.random.default_rng(seed)
    ends = (0, *cuts(x, y), len(x))
    return [_piece(x[a:b], runs[a:b], random, resamples) for a, b in pairwise(ends)]


def _piece(x: Floats, runs: Sequence[Sequence[float]], random: np.random.Generator, resamples: int) -> Piece:
    y = np.array([np.median(each) for each in runs])
    slope, shift, _ = line(x, y)
    left = np.log(y) - shift - slope * np.log(x)
    # Residuals of a line through N points are too small by sqrt((N - 2) / N): two parameters were fitted to them.
    left = left * np.sqrt(len(x) / max(len(x) - 2, 1))
    slopes = []
    for _ in range(resamples):
        drawn = np.array([np.median(random.choice(np.asarray(each), len(each))) for each in runs])
        fitted = np.exp(shift + slope * np.log(x) + random.choice(left, len(x))) * drawn / y
        slopes.append(line(x, fitted)[0])
    low, high = np.quantile(slopes, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Piece(float(x[0]), float(x[-1]), slope, float(np.exp(shift)), float(low), float(high))


def leaves(piece: Piece, expected: tuple[float, float], slack: float = 0.15) -> bool:
    """Whether a piece's exponent lies outside the expected range, beyond its own interval and ``slack``.

    ``slack`` allows for terms of lower order, which bend every measured curve a little.
    """
    return piece.low > expected[1] + slack or piece.high < expected[0] - slack
