"""From what LoadGen measured to the fields of a record."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kpl_engine.bench.intervals import distribution
from kpl_engine.bench.loadgen import Outcome
from kpl_engine.bench.loadgen_logs import Trace
from kpl_engine.bench.plan import Plan
from kpl_engine.bench.records import Probe, Scenario
from kpl_engine.bench.targets import ANSWERED

__all__ = ["probe_of", "speed_fields", "verdict_fields"]

_MLPERF_S = 600.0
_LATE_SHARE = 0.1
_BYTES_OF_QUERY, _MANY_BYTES = 450, 32 << 20  # measured with 5 million


def speed_fields(scenario: str, trace: Trace) -> Scenario:
    """Times and rates of the queries that were answered; the latencies of one ``Offline`` query say nothing."""
    found: Scenario = {"is_speed_told": True, "num_samples": len(trace.query)}
    if len(trace.query) == 0:
        return found
    found["duration_s"] = trace.seconds
    found["samples_per_s"] = len(trace.query) / trace.seconds
    if scenario != "Offline":
        queries = trace.of_queries()
        found["latency"] = distribution(_ms(queries.latency_ns))
        if scenario == "Server":
            found["issue_delay"] = distribution(_ms(queries.delay_ns))
    return found


def verdict_fields(outcome: Outcome, plan: Plan) -> Scenario:
    """LoadGen's words, and ours beside them."""
    found: Scenario = {"is_valid": False, "reasons": [], "notes": []}
    if outcome.summary is not None:
        found["is_valid"] = outcome.summary.is_valid
        found["verdict"] = outcome.summary.verdict
        found["reasons"] = list(outcome.summary.reasons)
        found["loadgen"] = outcome.summary.numbers
        if outcome.summary.is_valid and outcome.num_failed:
            found["notes"].append("LoadGen knows of no failures: with unanswered queries this is no valid run")
    else:
        found["notes"].append("no verdict of LoadGen: the run was given up")
    if outcome.error:
        found["error"] = outcome.error
    found["num_queries"], found["num_failed"] = outcome.num_issued, outcome.num_failed
    found["codes"] = outcome.codes
    if plan.scenario == "Server":
        found["target_qps"], found["latency_bound_ms"] = plan.rate, plan.latency_bound_ms
    found["notes"] += _notes(outcome, plan)
    return found


def _notes(outcome: Outcome, plan: Plan) -> list[str]:
    notes = []
    if plan.duration_s < _MLPERF_S:
        notes.append(
            f"{plan.duration_s:g} s are shorter than the {_MLPERF_S:g} s MLPerf's rules ask for: not an MLPerf result"
        )
    if plan.num_planned * _BYTES_OF_QUERY > _MANY_BYTES:
        megabytes = plan.num_planned * _BYTES_OF_QUERY / 1e6
        notes.append(f"about {megabytes:.0f} MB of the resident memory are LoadGen's {plan.num_planned:,} queries")
    if outcome.num_failed and outcome.summary is not None and plan.scenario == "Server":
        notes.append(
            f"{outcome.num_failed} of {outcome.num_issued} queries had no answer; LoadGen was told of their end after "
            "the bound, so its numbers count them as missed, and ours are of the others"
        )
    if outcome.num_failed and plan.scenario == "Offline":
        calls = sum(outcome.codes.values())
        answered = sum(count for code, count in outcome.codes.items() if code in ANSWERED)
        notes.append(f"{calls - answered} of {calls} calls had no answer; the rate is of the pictures of the others")
    queries = outcome.trace.of_queries()
    if plan.scenario == "Server" and len(queries.query) >= 100:
        delay, latency = (float(np.percentile(_ms(each), 99)) for each in (queries.delay_ns, queries.latency_ns))
        if delay > _LATE_SHARE * latency:
            notes.append(
                f"LoadGen itself issued late: p99 {delay:.3g} ms, inside a p99 latency of {latency:.3g} ms; "
                "this process computes beside it"
            )
    return notes


def probe_of(outcome: Outcome, plan: Plan) -> Probe:
    """A rate tried. Percentiles are of all queries issued: one without an answer counts as endless."""
    queries = outcome.trace.of_queries()
    latency = np.sort(_ms(queries.latency_ns))
    missing = outcome.num_issued - len(latency)
    p50, p90, p99 = (_rank(latency, missing, q) for q in (0.5, 0.9, 0.99))
    valid = outcome.summary is not None and outcome.summary.is_valid and not missing
    return {
        "target_qps": plan.rate,
        "samples_per_s": len(latency) / queries.seconds if len(latency) else 0.0,
        "keeps_bound": missing == 0 and not outcome.error and p99 <= plan.latency_bound_ms,
        "is_valid": valid,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "num_queries": outcome.num_issued,
    }


def _rank(ordered: npt.NDArray[np.float64], missing: int, q: float) -> float:
    """The smallest latency that a share ``q`` of answered and missing queries does not exceed; never infinite in a
    file: where that share includes missing ones it is the longest that was answered."""
    if len(ordered) == 0:
        return 0.0
    index = int(np.ceil(q * (len(ordered) + missing))) - 1
    return float(ordered[min(max(index, 0), len(ordered) - 1)])


def _ms(nanoseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return nanoseconds / 1e6
