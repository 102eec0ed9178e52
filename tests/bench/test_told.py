"""Fields of a record, from traces made by hand."""

import numpy as np
import pytest

from kpl_engine.bench.loadgen import Outcome
from kpl_engine.bench.loadgen_logs import Summary, Trace
from kpl_engine.bench.plan import Plan
from kpl_engine.bench.told import probe_of, speed_fields, verdict_fields

PLAN = Plan("Server", 10.0, 9, 0, rate=100.0, latency_bound_ms=5.0)
VALID = Summary("Result is : VALID", True, ("Early stopping satisfied: Yes",), {"Mode": "PerformanceOnly"})


def trace_of(latencies_ms, delay_ms=0.0, per_query=1):
    count = len(latencies_ms)
    sample = np.arange(count * per_query)
    begin = np.repeat(np.arange(count) * 10_000_000, per_query)
    latency = np.repeat(np.asarray(latencies_ms) * 1e6, per_query).astype(np.int64)
    return Trace(sample, sample // per_query, begin, np.full(len(sample), round(delay_ms * 1e6)), latency)


def outcome_of(latencies_ms, *, issued=None, codes=None, error="", summary=VALID, delay_ms=0.0):
    issued = len(latencies_ms) if issued is None else issued
    return Outcome(
        summary, trace_of(latencies_ms, delay_ms), issued, issued - len(latencies_ms), codes or {"OK": issued}, error
    )


def test_speed_is_of_samples_and_latency_of_queries():
    found = speed_fields("MultiStream", trace_of([4.0] * 200, per_query=8))
    assert (found["num_samples"], found["latency"]["count"]) == (1600, 200)
    assert found["duration_s"] == pytest.approx(199 * 0.01 + 0.004)
    assert found["samples_per_s"] == pytest.approx(1600 / found["duration_s"])
    assert found["latency"]["percentiles"]["50"]["value"] == 4.0
    assert "issue_delay" not in found


def test_lateness_of_the_generator_is_told_for_server_and_no_latency_for_offline():
    found = speed_fields("Server", trace_of([4.0] * 200, delay_ms=0.5))
    assert found["issue_delay"]["max"] == 0.5
    assert "latency" not in speed_fields("Offline", trace_of([4.0] * 200))
    assert speed_fields("Server", trace_of([])) == {"is_speed_told": True, "num_samples": 0}


def test_the_verdict_is_passed_on_and_a_short_run_is_said_to_be_none_of_mlperf():
    found = verdict_fields(outcome_of([1.0] * 300), PLAN)
    assert (found["is_valid"], found["verdict"], found["reasons"]) == (True, VALID.verdict, [*VALID.reasons])
    assert found["notes"] == ["10 s are shorter than the 600 s MLPerf's rules ask for: not an MLPerf result"]
    assert (found["num_queries"], found["num_failed"], found["target_qps"]) == (300, 0, 100.0)
    assert "error" not in found
    long = Plan("Server", 600.0, 9, 0, rate=1.0)
    assert verdict_fields(outcome_of([1.0] * 300), long)["notes"] == []


def test_memory_of_loadgens_own_is_told():
    """450 bytes a query: a million of them would be taken for memory of the engine."""
    many = Plan("Server", 1000.0, 9, 0, rate=1000.0)
    notes = verdict_fields(outcome_of([1.0] * 300), many)["notes"]
    assert notes == ["about 450 MB of the resident memory are LoadGen's 1,000,000 queries"]


def test_failures_and_a_late_generator_are_told():
    found = verdict_fields(outcome_of([1.0] * 300, issued=310, codes={"OK": 300, "429": 10}, delay_ms=0.3), PLAN)
    assert any("LoadGen knows of no failures" in note for note in found["notes"])
    assert any("10 of 310 queries had no answer" in note for note in found["notes"])
    assert any("p99 0.3 ms, inside a p99 latency of 1 ms" in note for note in found["notes"])
    calm = verdict_fields(outcome_of([1.0] * 300, delay_ms=0.05), PLAN)
    assert len(calm["notes"]) == 1
    offline = Plan("Offline", 700.0, 9, 0)
    told = verdict_fields(outcome_of([1.0], issued=1, codes={"OK": 9, "503": 3}, error="gone"), offline)
    assert told["error"] == "gone"
    assert told["notes"] == []  # no sample of it has failed
    failed = Outcome(VALID, trace_of([1.0]), 1, 1, {"OK": 9, "503": 3}, "")
    assert any("3 of 12 calls had no answer" in note for note in verdict_fields(failed, offline)["notes"])


def test_a_run_that_was_given_up_has_no_verdict():
    found = verdict_fields(outcome_of([1.0] * 5, error="gone", summary=None), PLAN)
    assert found["is_valid"] is False
    assert "verdict" not in found
    assert "no verdict of LoadGen: the run was given up" in found["notes"]


def test_a_probe_counts_what_was_not_answered_as_endless():
    good = [1.0] * 990 + [4.0] * 10
    kept = probe_of(outcome_of(good), PLAN)
    assert kept["keeps_bound"]
    assert (kept["p50_ms"], kept["p90_ms"], kept["p99_ms"]) == (1.0, 1.0, 1.0)
    assert not probe_of(outcome_of([*good, *[6.0] * 11]), PLAN)["keeps_bound"]  # more than 1 % over the bound
    assert probe_of(outcome_of([*good, *[6.0] * 9]), PLAN)["keeps_bound"]
    missing = probe_of(outcome_of(good, issued=1001), PLAN)
    assert not missing["keeps_bound"]
    assert not missing["is_valid"]
    assert probe_of(outcome_of(good[:500] + [4.0] * 10, issued=1020), PLAN)["p50_ms"] == 4.0  # half have none
    ended = probe_of(outcome_of(good, error="too much"), PLAN)
    assert not ended["keeps_bound"]
    nothing = probe_of(outcome_of([], issued=9), PLAN)
    assert (nothing["samples_per_s"], nothing["p99_ms"], nothing["keeps_bound"]) == (0.0, 0.0, False)
