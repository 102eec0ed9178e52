"""What LoadGen is told to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine.bench.settings import ScenarioName
from kpl_engine.errors import ConfigError, MissingExtraError

__all__ = ["MOST_QUERIES", "MULTI_STREAM_PICTURES", "Plan", "import_loadgen", "log_settings", "run_settings"]

MULTI_STREAM_PICTURES = 8  # MLPerf's rules
_PERCENTILE = {"SingleStream": 0.90, "MultiStream": 0.99, "Server": 0.99}  # MLPerf's rules
MOST_QUERIES = 5_000_000  # LoadGen makes all before it begins, and keeps them: so many took 17 s and 2.2 GB
_LEAST_OUTSTANDING, _MOST_OUTSTANDING = 256, 20_000  # these are to be answered, or refused, after the end


@dataclass(frozen=True)
class Plan:
    """What LoadGen is told.

    Parameters
    ----------
    scenario : str
    duration_s : float
    num_samples : int
        Pictures it draws from.
    seed : int
    expected_ms : float
        Of a query of the streams.
    rate : float
        ``Server``: queries a second; ``Offline``: pictures a second expected.
    latency_bound_ms : float
        Of ``Server``.
    """

    scenario: ScenarioName
    duration_s: float
    num_samples: int
    seed: int
    expected_ms: float = 1.0
    rate: float = 1.0
    latency_bound_ms: float = 15.0

    def __post_init__(self) -> None:
        if self.num_planned > MOST_QUERIES:
            raise ConfigError(
                f"{self.scenario}: {self.duration_s:g} s at this rate are {self.num_planned:,} queries, and LoadGen "
                f"keeps them all in memory; expected at most {MOST_QUERIES:,}: a lower rate or a shorter run"
            )

    @property
    def num_planned(self) -> int:
        """Queries (``Offline``: pictures) that LoadGen makes beforehand."""
        is_stream = self.scenario in ("SingleStream", "MultiStream")
        return math.ceil(self.duration_s * (1e3 / self.expected_ms if is_stream else self.rate))

    @property
    def most_outstanding(self) -> int:
        """``Server`` ends early with more unanswered queries than this.

        Ten bounds of arrivals wait only where the average is far over the bound; and with more than 1 % missed no
        run is valid, so 2 % leave the verdict as it is.
        """
        waiting = 10 * self.rate * self.latency_bound_ms / 1e3
        return min(max(_LEAST_OUTSTANDING, math.ceil(waiting + 0.02 * self.num_planned)), _MOST_OUTSTANDING)


def import_loadgen() -> Any:
    """The module; `MissingExtraError` without it."""
    try:
        import mlperf_loadgen
    except ImportError:
        raise MissingExtraError("mlcommons-loadgen", "bench", "running MLPerf's scenarios") from None
    return mlperf_loadgen


def run_settings(lg: Any, plan: Plan) -> Any:
    """LoadGen's own settings of a plan."""
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, plan.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(plan.duration_s * 1e3)
    settings.max_duration_ms = 0
    settings.min_query_count = 1  # how many are enough is what early stopping judges
    for number, name in enumerate(("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"), 1):
        setattr(settings, name, int(np.random.SeedSequence((plan.seed, number)).generate_state(1, np.uint64)[0]))
    settings.single_stream_target_latency_percentile = _PERCENTILE["SingleStream"]
    settings.multi_stream_target_latency_percentile = _PERCENTILE["MultiStream"]
    settings.server_target_latency_percentile = _PERCENTILE["Server"]
    settings.multi_stream_samples_per_query = MULTI_STREAM_PICTURES
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = round(
        plan.expected_ms * 1e6
    )
    settings.server_target_latency_ns = round(plan.latency_bound_ms * 1e6)
    settings.server_target_qps = settings.offline_expected_qps = plan.rate
    settings.server_max_async_queries = plan.most_outstanding if plan.scenario == "Server" else 0
    return settings


def log_settings(lg: Any, folder: Path) -> Any:
    """Its logs, the trace among them, in ``folder``."""
    logs, output = lg.LogSettings(), lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs.log_output = output
    logs.enable_trace = True  # the only place with the latency of each query
    return logs
