"""A result as tables of text."""

from __future__ import annotations

from kpl_engine.bench.compare import Comparison
from kpl_engine.bench.records import Result

__all__ = ["render", "render_comparison"]


def render(result: Result, width: int = 100) -> str:
    raise NotImplementedError


def render_comparison(comparison: Comparison, width: int = 100) -> str:
    raise NotImplementedError
