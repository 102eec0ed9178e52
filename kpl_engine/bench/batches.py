"""Throughput by batch size, the sizes in turns."""

from __future__ import annotations

from kpl_engine.bench.records import BatchPoint
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine

__all__ = ["measure_batches"]


def measure_batches(engine: Engine, samples: Samples, settings: BenchSettings, seconds: float) -> list[BatchPoint]:
    """Whole calls of each of ``settings.batch_sizes``, for ``seconds`` in all."""
    raise NotImplementedError
