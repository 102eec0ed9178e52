"""Fresh processes: from start to the first answer."""

from __future__ import annotations

from kpl_engine.bench.records import ColdStart
from kpl_engine.bench.settings import BenchSettings

__all__ = ["measure_cold"]


def measure_cold(settings: BenchSettings, repeats: int) -> ColdStart:
    """Start ``repeats`` processes after one that is left out."""
    raise NotImplementedError
