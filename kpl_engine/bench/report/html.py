"""A result as one HTML file."""

from __future__ import annotations

from kpl_engine.bench.records import Result

__all__ = ["render"]


def render(result: Result) -> str:
    raise NotImplementedError
