"""Percentiles and means with 95 % intervals, from latencies in the order they were measured.

An interval is for the machine as it was during the run. What changes from run to run (placement in memory, clocks,
neighbours) is in none of them: only runs repeated in turn show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64
from kpl_engine.bench.blocks import DRAWS, resampled_sums
from kpl_engine.bench.records import Distribution, Interval
from kpl_engine.errors import InputError

__all__ = ["MOST_KEPT", "PERCENTILES", "confidence_draws", "distribution", "interval_of", "percentile"]

PERCENTILES = ("50", "90", "99", "99.9")
MOST_KEPT = 20_000
_ROUNDING = 1e-9  # 0.999 * 1000 need not be 999 in binary


def percentile(ordered: Sequence[float] | Float64, q: float) -> float | None:
    """The value of nearest rank ``ceil(q n)``: a tail is a value that was seen, not one between two.

    Parameters
    ----------
    ordered : (n,)
        Ascending.
    q : float
        0 < q < 1: 0.99 is p99.

    Returns
    -------
    float or None
        None with fewer than ``1 / (1 - q)`` values: 100 for p99, 1,000 for p99.9.
    """
    rank = _rank(len(ordered), q)
    return None if rank is None else float(ordered[rank - 1])


def distribution(samples_ms: Sequence[float] | Float64) -> Distribution:
    """Latencies of one kind, with every percentile that they are enough for.

    Parameters
    ----------
    samples_ms : (n,)
        In the order they began; the intervals rest on it (`blocks`).

    Raises
    ------
    InputError
        No values, or one that is not finite.

    Notes
    -----
    1,000,000 values take about 0.4 s and four copies of 8 MB: one sort, and for each statistic one pass to 1,024 sums.
    """
    values = _checked(samples_ms)
    ordered = np.sort(values)
    told = [name for name in PERCENTILES if _rank(len(values), float(name) / 100.0) is not None]
    every = -(-len(values) // MOST_KEPT)
    return {
        "count": len(values),
        "mean": _interval(values, ordered, "mean", 0),
        "min": float(ordered[0]),
        "max": float(ordered[-1]),
        "percentiles": {name: _interval(values, ordered, name, 0) for name in told},
        "samples": [round(value, 6) for value in values[::every].tolist()],  # nanoseconds: more is no measurement
        "every": every,
    }


def interval_of(samples: Sequence[float] | Float64, statistic: str, seed: int = 0) -> Interval:
    """One statistic with its 95 % interval.

    Parameters
    ----------
    samples : (n,)
        In the order they were measured.
    statistic : str
        "mean", or a percentile: "50", "99.9".
    seed : int
        Of the resampling; the same samples and seed give the same interval.

    Raises
    ------
    InputError
        No values, one that is not finite, or too few for that percentile.
    """
    values = _checked(samples)
    return _interval(values, np.sort(values), statistic, seed)


def confidence_draws(samples: Sequence[float] | Float64, statistic: str, seed: int) -> Float64 | None:
    """`DRAWS` values of the statistic that the data leave possible; their 2.5 % and 97.5 % points are the interval.

    For the mean, its block bootstrap. For a percentile q, the values at the ranks that ``n q`` takes when the *count*
    of values up to it is resampled: what order statistics do for independent data (there the count is binomial and the
    interval exact), with the binomial replaced by blocks. Resampling the percentile itself would be too narrow in a
    tail, as it never sees more than the largest value. Infinite where the data say nothing that far out.

    Returns
    -------
    (DRAWS,) float64, or None where the samples are too few to say anything.
    """
    values = _checked(samples)
    rng = np.random.default_rng((seed, len(values)))
    if statistic == "mean":
        sums = resampled_sums(values, rng)
        return None if sums is None else values.mean() + sums / len(values)
    ordered = np.sort(values)
    ranks = _ranks(values, ordered, statistic, rng)
    if ranks is None:
        return None
    padded = np.concatenate(([-np.inf], ordered, [np.inf]))
    # The true value lies between two neighbours; which of them stands for it is tossed, as are parts of a rank.
    chosen = np.floor(ranks + rng.random(DRAWS)) + rng.integers(0, 2, size=DRAWS)
    return padded[np.clip(chosen, 0, len(values) + 1).astype(np.int64)]


def _interval(values: Float64, ordered: Float64, statistic: str, seed: int) -> Interval:
    rng = np.random.default_rng((seed, len(values)))
    if statistic == "mean":
        mean = float(values.mean())
        sums = resampled_sums(values, rng)
        if sums is None:
            return {"value": mean, "low": None, "high": None}
        low, high = np.quantile(sums, (0.025, 0.975)) / len(values)
        return {"value": mean, "low": mean + float(low), "high": mean + float(high)}
    value = percentile(ordered, _fraction(statistic))
    if value is None:
        raise InputError(f"p{statistic} needs at least 1 / (1 - q) values, got {len(values)}; measure for longer")
    ranks = _ranks(values, ordered, statistic, rng)
    if ranks is None:
        return {"value": value, "low": None, "high": None}
    low, high = np.quantile(ranks, (0.025, 0.975), method="inverted_cdf")
    first, last = math.floor(low), math.ceil(high)
    if first < 1 or last >= len(ordered):  # beyond the smallest or the largest value nothing is known
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": float(ordered[first - 1]), "high": float(ordered[last])}


def _ranks(values: Float64, ordered: Float64, statistic: str, rng: np.random.Generator) -> Float64 | None:
    """Where the percentile may stand among the ordered values: ``n q`` plus the resampled change of the count."""
    q = _fraction(statistic)
    value = percentile(ordered, q)
    if value is None:
        return None
    level = (values <= ordered[len(ordered) // 2]).astype(np.float64)
    changes = resampled_sums((values <= value).astype(np.float64), rng, level)
    # 0.99 * 100 need not be 99 in binary, and one bit more would take the next rank.
    return None if changes is None else np.round(len(values) * q, 6) + np.rint(changes)


def _rank(count: int, q: float) -> int | None:
    if count * (1.0 - q) < 1.0 - _ROUNDING:
        return None
    return max(1, math.ceil(count * q - _ROUNDING))


def _fraction(statistic: str) -> float:
    try:
        q = float(statistic) / 100.0
    except ValueError:
        q = math.nan
    if not 0.0 < q < 1.0:
        raise InputError(f"statistic: expected 'mean' or a percentile between 0 and 100 as text, got {statistic!r}")
    return q


def _checked(samples: npt.ArrayLike) -> Float64:
    values = np.ascontiguousarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"latencies: expected at least one finite number in a row, got an array {values.shape}")
    return values
