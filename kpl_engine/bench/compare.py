"""What changed between two results beyond their noise.

Each quantity is a row: the ratio after / before, its 95 % interval, and a two-sided p-value for "no change", all from
draws of both sides that their data leave possible (`intervals.confidence_draws`: moving blocks). The p-values are
Holm's over all rows that have one: with nothing changed, the chance of *any* alarm in a table is at most 5 %, however
many rows it has. An effect below 2 % is never called a change.

Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kpl_engine.arrays import Float64
from kpl_engine.bench.differences import Note, notes
from kpl_engine.bench.quantities import Pair, pairs
from kpl_engine.bench.records import Result
from kpl_engine.bench.results import tells_speed
from kpl_engine.errors import InputError

__all__ = ["Comparison", "Note", "Row", "Verdict", "compare", "comparison_record", "notes"]

Verdict = Literal["faster", "slower", "same within noise", "cannot tell"]
_ALPHA = 0.05
_LEAST = math.log(1.02)  # of an effect that is called a change
_HIDDEN = math.log(1.10)  # an interval that reaches further could hide a change that somebody would want to know


@dataclass(frozen=True)
class Row:
    """One quantity.

    Parameters
    ----------
    what, unit : str
    before, after : float
    ratio : float
        after / before.
    low, high : float or None
        Its 95 % interval, of this row alone; None where there is none.
    p : float or None
        Two-sided, Holm's over all rows.
    verdict : str
        "faster", "slower", "same within noise" (a change of 10 % would have shown) or "cannot tell".
    why : str
        What stands in the way of a verdict, or "".
    """

    what: str
    unit: str
    before: float
    after: float
    ratio: float
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Comparison:
    """All rows, and what to know before reading them. ``before`` and ``after`` name the results by date and commit."""

    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    before: str
    after: str


def compare(before: Result, after: Result, allow_other: bool = False) -> Comparison:
    """Hold ``after`` to ``before``.

    Parameters
    ----------
    allow_other : bool
        Compare also what is no comparison (another machine, encoder, input ...); the notes still say so.

    Raises
    ------
    InputError
        An answer of one was wrong, the two measured different things and ``allow_other`` is False, or they have nothing
        in common.
    """
    for name, result in (("before", before), ("after", after)):
        if not tells_speed(result):
            raise InputError(f"{name}: the run gave wrong answers, so it has no speed to compare; measure again")
    found = notes(before, after)
    others = [note.text for note in found if note.is_other]
    if others and not allow_other:
        raise InputError(
            f"these results are no comparison: {'; '.join(others)}. Measure both alike, or compare with --allow-other"
        )
    common = pairs(before, after)
    if not common:
        raise InputError("the two results have no quantity in common; measure the same scenarios or parts in both")
    return Comparison(tuple(_judged(common)), found, _name(before), _name(after))


def comparison_record(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values, for JSON."""
    return asdict(found)


def _judged(common: Sequence[Pair]) -> list[Row]:
    changes = [_changes(pair) for pair in common]
    tested = [index for index, change in enumerate(changes) if change is not None]
    adjusted = dict(zip(tested, _holm([_p_value(c) for c in changes if c is not None]), strict=True))
    return [_row(pair, changes[i], adjusted.get(i)) for i, pair in enumerate(common)]


def _changes(pair: Pair) -> Float64 | None:
    """Draws of log(after / before); NaN where neither side is bounded."""
    if pair.draws is None or min(pair.before, pair.after) <= 0.0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (np.log(np.maximum(draws, 0.0)) for draws in pair.draws)
        return np.asarray(second - first)


def _p_value(changes: Float64) -> float:
    unknown = np.count_nonzero(np.isnan(changes))
    fewer = min(np.count_nonzero(changes <= 0.0), np.count_nonzero(changes >= 0.0)) + unknown
    return min(1.0, 2.0 * (1.0 + float(fewer)) / (1.0 + len(changes)))


def _holm(values: Sequence[float]) -> list[float]:
    adjusted, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


def _row(pair: Pair, changes: Float64 | None, p: float | None) -> Row:
    effect = math.log(pair.after / pair.before) if pair.before > 0.0 and pair.after > 0.0 else math.nan
    bounds = None if changes is None else _bounds(changes)
    verdict, why = _verdict(pair, effect, bounds, p)
    low, high = (None, None) if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1]))
    ratio = math.exp(effect) if math.isfinite(effect) else math.nan
    return Row(pair.what, pair.unit, pair.before, pair.after, ratio, low, high, p, verdict, why)


def _verdict(pair: Pair, effect: float, bounds: tuple[float, float] | None, p: float | None) -> tuple[Verdict, str]:
    if not math.isfinite(effect):
        return "cannot tell", "nothing was measured in one of them"
    if bounds is None or p is None:
        return "cannot tell", pair.why or "too few independent values for an interval; measure for longer"
    if p <= _ALPHA and abs(effect) >= _LEAST:
        return ("faster" if (effect < 0.0) is pair.less_is_faster else "slower"), ""
    if p <= _ALPHA:
        return "same within noise", "less than 2 % is not called a change"
    if max(-bounds[0], bounds[1]) >= _HIDDEN:
        return "cannot tell", "a change of 10 % could hide in this noise; measure for longer"
    return "same within noise", ""


def _bounds(changes: Float64) -> tuple[float, float] | None:
    low = float(np.quantile(np.where(np.isnan(changes), -np.inf, changes), 0.025, method="lower"))
    high = float(np.quantile(np.where(np.isnan(changes), np.inf, changes), 0.975, method="higher"))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _name(result: Result) -> str:
    return " ".join(filter(None, (result["date"], result.get("commit", ""))))
