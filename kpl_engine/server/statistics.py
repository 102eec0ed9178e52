"""What happened so far, counted cheaply: totals of each model, and the last requests."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kpl_engine.server.port import ModelStatistics, StageTotal

__all__ = ["Recent", "Statistics"]

_STAGES = ("decode", "queue", "encode", "solve")
_KEPT = 8192  # requests; above 136 a second the quantiles are of fewer than 60 seconds
_WINDOW_S = 60.0


class Recent:
    """Times of the last answered requests."""

    def __init__(self) -> None:
        self._rows = np.zeros((_KEPT, 2 + len(_STAGES)))  # moment (s), total, stages (ms); float64
        self._num = 0

    def add(self, now: float, timings_ms: Mapping[str, float]) -> None:
        """A request was answered at ``now``."""
        self._rows[self._num % _KEPT] = (now, timings_ms["total"], *[timings_ms[name] for name in _STAGES])
        self._num += 1

    def rows(self, now: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(r, 5) float64 ms of the last minute: total, then the stages."""
        kept = self._rows[: min(self._num, _KEPT)]
        return np.array(kept[kept[:, 0] > now - _WINDOW_S, 1:])


class Statistics:
    """Totals since the start and since each model was loaded. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, _Totals] = defaultdict(_Totals)
        self._recent = Recent()
        self._totals = dict.fromkeys(("requests", "images", "rejected", "failed", "cancelled", "batches"), 0)

    def count(self, name: str, num: int = 1) -> None:
        """``name``: requests, images, rejected, failed, cancelled or batches."""
        with self._lock:
            self._totals[name] += num

    def answered(self, model: str, num_images: int, now: float, timings_ms: Mapping[str, float]) -> None:
        """A request got its reply."""
        with self._lock:
            self._totals["images"] += num_images
            self._recent.add(now, timings_ms)
            self._models[model].answered(num_images, timings_ms)

    def failed(self, model: str, total_ms: float, *, is_cancelled: bool = False) -> None:
        """An accepted request got an error, or its client left."""
        with self._lock:
            self._totals["cancelled" if is_cancelled else "failed"] += 1
            self._models[model].add("fail", total_ms)

    def ran(self, models: set[str], num_images: int, seconds: float) -> None:
        """A batch with images of ``models`` went through the encoder."""
        with self._lock:
            self._totals["batches"] += 1
            for model in models:
                self._models[model].ran(num_images, seconds)

    def forget(self, model: str) -> None:
        """It was loaded again, or taken away."""
        with self._lock:
            self._models.pop(model, None)

    def of(self, model: str) -> ModelStatistics:
        """Of a model that is loaded."""
        with self._lock:
            return self._models[model].told()

    def snapshot(self, now: float) -> dict[str, Any]:
        """The parts ``totals``, ``latency_ms`` and ``stages_ms`` of `port.Service.snapshot`."""
        with self._lock:
            totals, rows = dict(self._totals), self._recent.rows(now)
        latency: dict[str, float | None] = {"p50": None, "p90": None, "p99": None}
        stages: dict[str, float | None] = dict.fromkeys(_STAGES)
        if len(rows):
            latency = dict(zip(latency, np.quantile(rows[:, 0], (0.5, 0.9, 0.99)).tolist(), strict=True))
            stages = dict(zip(_STAGES, rows[:, 1:].mean(axis=0).tolist(), strict=True))
        return {"totals": totals, "latency_ms": latency, "stages_ms": stages}


class _Totals:
    """Of one model."""

    def __init__(self) -> None:
        self._stages: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # count, ms
        self._batches: dict[int, list[float]] = defaultdict(lambda: [0, 0.0])
        self._num_images = 0
        self._last_ms = 0

    def answered(self, num_images: int, timings_ms: Mapping[str, float]) -> None:
        self._num_images += num_images
        self._last_ms = int(time.time() * 1e3)
        self.add("success", timings_ms["total"])
        for stage in _STAGES:
            self.add(stage, timings_ms[stage])

    def ran(self, num_images: int, seconds: float) -> None:
        total = self._batches[num_images]
        total[0] += 1
        total[1] += seconds * 1e3

    def add(self, stage: str, ms: float) -> None:
        total = self._stages[stage]
        total[0] += 1
        total[1] += ms

    def told(self) -> ModelStatistics:
        named = {
            "success": "success",
            "fail": "fail",
            "queue": "queue",
            "compute_input": "decode",
            "compute_infer": "encode",
            "compute_output": "solve",
        }
        stages = {field: _stage(self._stages.get(stage, (0, 0.0))) for field, stage in named.items()}
        batches = {size: _stage(total) for size, total in sorted(self._batches.items())}
        runs = sum(total.count for total in batches.values())
        base = ModelStatistics(self._num_images, runs, self._last_ms, batches=batches)
        return replace(base, **stages)  # type: ignore[arg-type]


def _stage(total: list[float] | tuple[int, float]) -> StageTotal:
    return StageTotal(int(total[0]), int(total[1] * 1e6))
