"""From values to places in a picture, and which values get a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Axis", "Law", "axis_over"]

Law = Literal["linear", "log", "logit"]
_LOGIT_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Axis:
    """``low`` stands at ``start`` px, ``high`` at ``end`` px."""

    low: float
    high: float
    start: float
    end: float
    law: Law = "linear"

    def at(self, value: float) -> float:
        """The place of ``value``; what lies outside stands at the edge."""
        inside = min(max(value, self.low), self.high)
        low, here, high = (_bent(each, self.law) for each in (self.low, inside, self.high))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the axis, at most ``most``."""
        if self.law == "logit":
            return [each for each in _LOGIT_TICKS if self.low <= each <= self.high]
        if self.law == "log" and self.high / self.low >= 8.0:
            return _log_ticks(self.low, self.high, most)
        return _linear_ticks(self.low, self.high, most)


def axis_over(values: Sequence[float], start: float, end: float, law: Law = "linear") -> Axis:
    """An axis that holds all of ``values`` with some room; a linear one begins at 0, as bars and rates must."""
    high = max(values)
    if law == "linear":
        return Axis(0.0, high * 1.08 if high > 0.0 else 1.0, start, end, law)
    positive = [each for each in values if each > 0.0] or [1.0]  # a logarithmic axis has no place for zero
    return Axis(min(positive) / 1.12, max(positive) * 1.12, start, end, law)


def _bent(value: float, law: Law) -> float:
    if law == "log":
        return math.log(value)
    return math.log(value / (1.0 - value)) if law == "logit" else value


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [each for each in found if low <= each <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
    first = math.ceil(low / step)
    return [each * step for each in range(first, math.floor(high / step) + 1)]
