"""The highest rate of ``Server`` whose 99th percentile keeps the bound, and the curve of the rates tried."""

from __future__ import annotations

from collections.abc import Callable

from kpl_engine.bench.records import Probe
from kpl_engine.bench.scenarios import Progress
from kpl_engine.bench.settings import BenchSettings

__all__ = ["find_peak"]


def find_peak(
    settings: BenchSettings, on_probe: Callable[[Probe], None], progress: Progress | None = None
) -> tuple[float | None, list[Probe]]:
    """The peak in queries a second, None where no rate keeps the bound, and every rate tried in order."""
    raise NotImplementedError
