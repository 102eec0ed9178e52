"""Runs of LoadGen over targets whose time and failures are known."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.bench import loadgen
from kpl_engine.bench.loadgen import run_load
from kpl_engine.bench.loadgen_logs import TRACE
from kpl_engine.bench.plan import Plan, import_loadgen
from kpl_engine.errors import ConfigError, MissingExtraError
from tests.bench.targets import CountingTarget, TimedTarget

pytest.importorskip("mlperf_loadgen", reason="needs the extra bench")
ROOT = Path(__file__).parents[2]


def run(target, folder, **plan):
    try:
        return run_load(Plan(**{"duration_s": 0.4, "num_samples": 9, "seed": 3, **plan}), target, folder)
    finally:
        target.close()


@pytest.mark.parametrize(
    ("plan", "pictures"),
    [
        ({"scenario": "SingleStream", "expected_ms": 1.0}, 1),
        ({"scenario": "MultiStream", "expected_ms": 1.0}, 8),
        ({"scenario": "Server", "rate": 200.0}, 1),
    ],
)
def test_latencies_of_the_trace_are_those_of_the_summary(tmp_path, plan, pictures):
    """LoadGen's percentile q of n sorted latencies is the one at index floor(q n)."""
    target = TimedTarget()
    outcome = run(target, tmp_path, **plan)
    assert set(target.sizes) == {pictures}
    latency = np.sort(outcome.trace.of_queries().latency_ns)
    assert len(latency) == outcome.num_issued == len(target.sizes) == len(outcome.trace.query) // pictures
    numbers = outcome.summary.numbers
    for name, q in (("50.00", 0.5), ("90.00", 0.9), ("97.00", 0.97), ("99.00", 0.99)):
        assert latency[int(q * len(latency))] == numbers[f"{name} percentile latency (ns)"]
    assert (latency[0], latency[-1]) == (numbers["Min latency (ns)"], numbers["Max latency (ns)"])
    assert latency[0] >= 2e6  # nothing is faster than the target
    assert (outcome.num_failed, outcome.error, outcome.codes) == (0, "", {"OK": outcome.num_issued})


def test_offline_is_one_query_cut_into_calls(tmp_path):
    target = TimedTarget(most=10_000)
    outcome = run(target, tmp_path, scenario="Offline", rate=1000.0)
    assert set(target.sizes[:-1]) == {8}
    assert sum(target.sizes) == len(outcome.trace.query) >= 400
    assert outcome.num_issued == 1
    rate = len(outcome.trace.query) / outcome.trace.seconds
    assert rate == pytest.approx(outcome.summary.numbers["Samples per second"], rel=1e-4)  # six figures are printed


def test_a_query_without_an_answer_is_missed_in_loadgens_own_verdict(tmp_path):
    """Refused at once, a query would be the fastest of all; LoadGen hears of its end when its bound has passed."""
    target = CountingTarget(code_of=lambda i: "UNAVAILABLE" if i % 4 == 0 else "OK")
    outcome = run(target, tmp_path, scenario="Server", rate=300.0, latency_bound_ms=30.0)
    assert outcome.num_failed == len(range(0, outcome.num_issued, 4)) > 20  # but never so many in a row
    assert outcome.error == ""
    assert not outcome.summary.is_valid
    assert "Performance constraints satisfied : NO" in outcome.summary.reasons
    told = loadgen.read_trace(tmp_path / TRACE)
    assert told.latency_ns[::4].min() > 30e6
    ours = outcome.trace.of_queries()
    assert not np.isin(ours.query, np.arange(0, outcome.num_issued, 4)).any()
    assert outcome.codes == {"OK": len(ours.query), "UNAVAILABLE": outcome.num_failed}


def test_too_many_refusals_end_the_run(tmp_path):
    """Half of all are refused at once: no run is valid with those, though hardly any is under way at a time."""
    target = CountingTarget(code_of=lambda i: "429" if i % 2 else "200")
    plan = Plan("Server", 3.0, 9, 3, rate=1000.0)
    outcome = run_load(plan, target, tmp_path)
    target.close()
    assert plan.most_outstanding <= outcome.num_failed < plan.num_planned / 4
    assert "1000 queries/s are more than this takes" in outcome.error


def test_a_failure_in_a_stream_is_no_latency(tmp_path):
    target = TimedTarget(code_of=lambda i: "503" if i % 2 == 0 else "200")
    outcome = run(target, tmp_path, scenario="SingleStream")
    assert outcome.num_failed == outcome.codes["503"] == outcome.num_issued - len(outcome.trace.query) > 0
    assert (outcome.trace.query % 2 == 1).all()


def test_an_impossible_rate_ends_early_and_keeps_what_was_measured(tmp_path):
    """100 times what it can take for 4 s, ended when more queries wait than any valid run has."""
    plan = Plan("Server", 4.0, 9, 3, rate=50_000.0, latency_bound_ms=10.0)
    target = TimedTarget()
    outcome = run_load(plan, target, tmp_path)
    target.close()
    # those that still waited when it ended were answered then
    assert plan.most_outstanding - target.most <= outcome.num_failed < outcome.num_issued < plan.num_planned / 2
    assert "50000 queries/s are more than this takes" in outcome.error
    assert not outcome.summary.is_valid
    assert any("Too many outstanding queries" in reason for reason in outcome.summary.reasons)
    assert len(outcome.trace.query) == outcome.codes["OK"] > 0


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("SingleStream", "broken"),
        ("Server", "broken"),
        ("Offline", "broken"),
        ("SingleStream", None),
        ("SingleStream", "timed out"),
    ],
)
def test_a_target_that_dies_ends_the_run(tmp_path, scenario, code):
    """LoadGen goes on waiting, so it is a process of its own, and leaves by force."""
    program = f"""
import json, os
from pathlib import Path
from kpl_engine.bench import loadgen
from kpl_engine.bench.plan import Plan
from tests.bench.targets import TimedTarget
loadgen._SLACK_S = -7.0
target = TimedTarget(most=10_000, code_of=lambda i: "OK" if i < 30 else {code!r})
plan = Plan({scenario!r}, 2.0, 9, 3, expected_ms=2.0, rate=200.0 if {scenario!r} == "Server" else 4000.0)
out = loadgen.run_load(plan, target, Path({str(tmp_path)!r}))
print(json.dumps([out.summary is None, out.error, len(out.trace.query), out.num_failed, out.codes]), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    is_given_up, error, answered, failed, codes = json.loads(done.stdout)
    assert is_given_up
    assert answered == 30 * (8 if scenario == "Offline" else 1)
    assert failed >= 1
    assert codes["OK"] == 30
    how_often = {"broken": 20, "timed out": 1}
    expected = f"{how_often[code]} queries in a row had no answer, the last: {code}" if code else "did not end within"
    assert expected in error


def test_the_issuing_thread_is_loadgens_and_ends_with_it(tmp_path):
    before = set(threading.enumerate())
    target = CountingTarget()
    run(target, tmp_path, scenario="SingleStream", duration_s=0.2)
    left = {thread for thread in threading.enumerate() if thread.name in ("loadgen", "kpl-late")}
    assert left <= before


def test_a_trace_that_was_cut_is_told(tmp_path, monkeypatch):
    whole = loadgen.read_trace

    def cut(path):
        return whole(path).without([7])

    monkeypatch.setattr(loadgen, "read_trace", cut)
    outcome = run(CountingTarget(), tmp_path, scenario="Server", rate=100.0)
    expected = f"trace has {outcome.num_issued - 1} of {outcome.num_issued} queries: is the disk full?"
    assert expected in outcome.error
    assert outcome.num_failed == 0


def test_seeds_repeat_the_draws(tmp_path):
    def draws(seed, name):
        folder = tmp_path / name
        folder.mkdir()
        target = TimedTarget(service_s=0.0)
        outcome = run(target, folder, scenario="Server", rate=500.0, seed=seed, duration_s=0.2)
        return outcome.trace.begin_ns - outcome.trace.begin_ns[0]

    first, again, other = draws(5, "a"), draws(5, "b"), draws(6, "c")
    assert len(first) == len(again)
    assert np.abs(first - again).max() <= 1000  # the schedule is the same; the trace rounds to the nanosecond
    assert len(other) != len(first) or np.abs(first - other).max() > 1_000_000


def test_more_queries_than_memory_are_refused():
    with pytest.raises(ConfigError, match=r"6,000,000 queries.*expected at most 5,000,000"):
        Plan("Server", 600.0, 9, 0, rate=10_000.0)


def test_without_loadgen_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingExtraError, match=r"kpl-engine\[bench\]"):
        import_loadgen()
