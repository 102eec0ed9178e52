"""Throughput by batch size. The sizes take turns, so that what the machine does meanwhile falls on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from kpl_engine.bench.inprocess import EngineTarget
from kpl_engine.bench.intervals import interval_of
from kpl_engine.bench.records import BatchPoint, Interval
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError

__all__ = ["measure_batches"]

_LEAST_ROUNDS = 3


def measure_batches(engine: Engine, samples: Samples, settings: BenchSettings, seconds: float) -> list[BatchPoint]:
    """Whole calls of `Engine.classify` of each of ``settings.batch_sizes``, one after the other.

    One call of each size warms up and is left out; then rounds of one call a size until ``seconds`` are over, three at
    least. Pictures are drawn from the samples, again where a batch is larger. Rates are of the mean time of a call.
    """
    mode = settings.mode or "frozen"
    target = EngineTarget(
        engine, samples.kind, samples.payloads, knowledge=settings.knowledge, method=settings.method, mode=mode
    )
    rng = np.random.default_rng(settings.seed)
    sizes = list(dict.fromkeys(settings.batch_sizes))
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        _call(target, rng.integers(len(samples.files), size=size).tolist())
    ends = perf_counter() + seconds
    rounds = 0
    while rounds < _LEAST_ROUNDS or perf_counter() < ends:
        for size in sizes:
            spent[size].append(_call(target, rng.integers(len(samples.files), size=size).tolist()))
        rounds += 1
    return [
        {"batch": size, "samples_per_s": _rate(size, spent[size]), "ms": interval_of(spent[size], "50")}
        for size in sizes
    ]


def _call(target: EngineTarget, indices: Sequence[int]) -> float:
    codes: list[Any] = []
    started = perf_counter()
    target.submit(indices, codes.append)
    spent = (perf_counter() - started) * 1e3
    if codes != ["OK"]:
        raise InputError(f"a batch of {len(indices)} pictures was not answered: {codes}")
    return spent


def _rate(size: int, calls_ms: Sequence[float]) -> Interval:
    """Pictures a second; the slower end of the mean time is the lower end of the rate."""
    mean = interval_of(calls_ms, "mean")
    low, high = mean["high"], mean["low"]
    return {
        "value": size * 1e3 / mean["value"],
        "low": None if low is None else size * 1e3 / low,
        "high": None if high is None or high <= 0 else size * 1e3 / high,
    }
