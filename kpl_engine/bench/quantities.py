"""The quantities that two results have in common, each with draws of what its data leave possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kpl_engine.arrays import Float64
from kpl_engine.bench.blocks import DRAWS, Z95
from kpl_engine.bench.intervals import confidence_draws, percentile
from kpl_engine.bench.records import Distribution, Interval, Result, Scenario

__all__ = ["Pair", "pairs"]

_SAME_RATE = 1e-3  # at 70 % of capacity, 1 % more load moves a latency by about 2 %
_LATENCIES = ("mean", "50", "90", "99", "99.9")
_ONE_VALUE = "one value a run: its noise is not known"
_TOO_FEW = "too few independent values for an interval; measure for longer"


@dataclass(frozen=True)
class Pair:
    """One quantity in both results. ``draws`` None where ``why`` says that it cannot be tested."""

    what: str
    unit: str
    before: float
    after: float
    less_is_faster: bool
    draws: tuple[Float64, Float64] | None
    why: str = ""


def pairs(before: Result, after: Result) -> list[Pair]:
    """Everything that was measured in both, in the order of the report."""
    found: list[Pair] = []
    scenarios = {each["scenario"]: each for each in after.get("scenarios", ())}
    for first in before.get("scenarios", ()):
        second = scenarios.get(first["scenario"])
        if second is not None:
            found += _of_scenario(first, second)
    found += _of_peak(before, after)
    found += _of_batches(before, after)
    found += _of_stages(before, after)
    found += _of_cold_starts(before, after)
    return found


def _of_scenario(first: Scenario, second: Scenario) -> Iterator[Pair]:
    name = first["scenario"]
    if name == "Offline":  # its latencies are places in one long queue: only the rate says something
        yield from _of_offline(first, second)
    elif "latency" in first and "latency" in second:
        why = _other_rate(first, second)
        yield from _of_latencies(name, first["latency"], second["latency"], _LATENCIES, why)
    resources = first.get("resources", {}), second.get("resources", {})
    if "cpu_s_per_sample" in resources[0] and "cpu_s_per_sample" in resources[1]:
        used = resources[0]["cpu_s_per_sample"] * 1e3, resources[1]["cpu_s_per_sample"] * 1e3
        yield Pair(f"{name} CPU time of a sample", "ms", *used, True, None, _ONE_VALUE)


def _of_offline(first: Scenario, second: Scenario) -> Iterator[Pair]:
    if "samples_per_s" not in first or "samples_per_s" not in second:
        return
    sides = [_rate_draws(each, seed) for seed, each in enumerate((first, second))]
    draws = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
    yield Pair("Offline rate", "samples/s", first["samples_per_s"], second["samples_per_s"], False, draws, _TOO_FEW)


def _rate_draws(scenario: Scenario, seed: int) -> Float64 | None:
    """Resampled rates: the gaps between completions, of which the whole run is the sum."""
    if "latency" not in scenario:
        return None
    ends = np.sort(np.asarray(scenario["latency"]["samples"], dtype=np.float64))
    gaps = np.diff(ends, prepend=0.0)
    draws = confidence_draws(gaps, "mean", seed)
    if draws is None or gaps.mean() <= 0.0:
        return None
    return np.asarray(scenario["samples_per_s"] * gaps.mean() / np.maximum(draws, 1e-12 * gaps.mean()))


def _other_rate(first: Scenario, second: Scenario) -> str:
    if first["scenario"] != "Server" or "target_qps" not in first or "target_qps" not in second:
        return ""
    rates = first["target_qps"], second["target_qps"]
    if abs(rates[0] - rates[1]) <= _SAME_RATE * max(rates):
        return ""
    return f"offered {rates[0]:.4g} and {rates[1]:.4g} queries/s; measure both with one --target-qps"


def _of_latencies(
    name: str, first: Distribution, second: Distribution, statistics: tuple[str, ...], why: str = ""
) -> Iterator[Pair]:
    for statistic in statistics:
        values = _value(first, statistic), _value(second, statistic)
        if values[0] is None or values[1] is None or values == (0.0, 0.0):  # a stage that neither run had
            continue
        draws = None if why else _both(first, second, statistic)
        label = f"{name} {statistic if statistic == 'mean' else f'p{statistic}'}"
        yield Pair(label, "ms", values[0], values[1], True, draws, why or _TOO_FEW)


def _value(found: Distribution, statistic: str) -> float | None:
    interval = found["mean"] if statistic == "mean" else found["percentiles"].get(statistic)
    return None if interval is None else interval["value"]


def _both(first: Distribution, second: Distribution, statistic: str) -> tuple[Float64, Float64] | None:
    sides = [_draws(each, statistic, seed) for seed, each in enumerate((first, second))]
    return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])


def _draws(found: Distribution, statistic: str, seed: int) -> Float64 | None:
    """From the samples that were kept, moved to the value that all of them gave."""
    kept = np.asarray(found["samples"], dtype=np.float64)
    draws, value = confidence_draws(kept, statistic, seed), _value(found, statistic)
    of_kept = kept.mean() if statistic == "mean" else percentile(np.sort(kept), float(statistic) / 100.0)
    return draws * (value / of_kept) if draws is not None and value is not None and of_kept else draws


def _of_peak(before: Result, after: Result) -> Iterator[Pair]:
    if "peak_qps" in before and "peak_qps" in after:
        why = "one search a run: its noise is not known"
        yield Pair("peak within the bound", "queries/s", before["peak_qps"], after["peak_qps"], False, None, why)


def _of_batches(before: Result, after: Result) -> Iterator[Pair]:
    points = {each["batch"]: each for each in after.get("batches", ())}
    for first in before.get("batches", ()):
        if first["batch"] in points:
            second = points[first["batch"]]
            yield _of_intervals(
                f"batch of {first['batch']}", "samples/s", first["samples_per_s"], second["samples_per_s"], False
            )


def _of_stages(before: Result, after: Result) -> Iterator[Pair]:
    first, second = before.get("stages"), after.get("stages")
    if first is None or second is None:
        return
    yield from _of_latencies("one picture", first["total"], second["total"], ("50", "99"))
    for stage in first["order"]:
        if stage in first["stages"] and stage in second["stages"]:
            yield from _of_latencies(
                f"stage {stage.replace('_', ' ')}", first["stages"][stage], second["stages"][stage], ("50",)
            )


def _of_cold_starts(before: Result, after: Result) -> Iterator[Pair]:
    first, second = before.get("cold_start"), after.get("cold_start")
    if first is None or second is None:
        return
    yield _of_intervals("cold start", "ms", first["total_ms"], second["total_ms"], True)
    sizes = first["resident_bytes"] / 2**20, second["resident_bytes"] / 2**20
    yield Pair("memory after a cold start", "MiB", *sizes, True, None, _ONE_VALUE)


def _of_intervals(what: str, unit: str, first: Interval, second: Interval, less_is_faster: bool) -> Pair:
    sides = [_spread(each, seed) for seed, each in enumerate((first, second))]
    draws = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
    return Pair(what, unit, first["value"], second["value"], less_is_faster, draws, _TOO_FEW)


def _spread(interval: Interval, seed: int) -> Float64 | None:
    """Draws of a quantity of which only the interval was kept: log-normal, each side as wide as the interval is."""
    value, low, high = interval["value"], interval["low"], interval["high"]
    if low is None or high is None or not 0.0 < low <= value <= high:
        return None
    normal = np.random.default_rng((seed, 1)).standard_normal(DRAWS)
    scale = np.where(normal < 0.0, math.log(value / low), math.log(high / value)) / Z95
    return np.asarray(value * np.exp(normal * scale))
