"""Where the time of one picture goes."""

from __future__ import annotations

from kpl_engine.bench.records import Stages
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine

__all__ = ["measure_stages"]


def measure_stages(engine: Engine, samples: Samples, settings: BenchSettings, seconds: float) -> Stages:
    """One picture a call, one call at a time, for ``seconds``."""
    raise NotImplementedError
