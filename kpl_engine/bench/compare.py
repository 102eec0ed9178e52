"""What changed between two results beyond their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kpl_engine.bench.records import Result

__all__ = ["Comparison", "Note", "Row", "Verdict", "compare", "comparison_record", "notes"]

Verdict = Literal["faster", "slower", "same within noise", "cannot tell"]


@dataclass(frozen=True)
class Note:
    """Something that differs between two results; ``is_other`` where it makes them no comparison."""

    text: str
    is_other: bool


@dataclass(frozen=True)
class Row:
    """One quantity. ``ratio`` is after / before; ``p`` is Holm's, over all rows."""

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
    """All rows, and what to know before reading them."""

    rows: tuple[Row, ...]
    notes: tuple[Note, ...]
    before: str
    after: str


def compare(before: Result, after: Result, allow_other: bool = False) -> Comparison:
    raise NotImplementedError


def notes(before: Result, after: Result) -> tuple[Note, ...]:
    raise NotImplementedError


def comparison_record(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values, for JSON."""
    raise NotImplementedError
