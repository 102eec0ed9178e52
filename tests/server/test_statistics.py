"""What the service counts."""

import pytest

from kpl_engine.server.statistics import Recent, Statistics


def timings(total, **stages):
    return {"decode": 0.0, "queue": 0.0, "encode": 0.0, "solve": 0.0, **stages, "total": total}


def test_the_last_minute_is_told_and_nothing_before_it():
    recent = Recent()
    for second in range(100):
        recent.add(float(second), timings(float(second)))
    assert sorted(recent.rows(100.0)[:, 0]) == list(range(41, 100))
    assert len(recent.rows(200.0)) == 0


def test_of_very_many_the_latest_are_kept():
    recent = Recent()
    for i in range(20_000):
        recent.add(1.0, timings(float(i)))
    rows = recent.rows(2.0)
    assert sorted(rows[:, 0]) == list(range(20_000 - len(rows), 20_000))
    assert len(rows) > 5000


def test_quantiles_and_means_are_of_the_requests_answered():
    statistics = Statistics()
    assert statistics.snapshot(0.0)["latency_ms"] == {"p50": None, "p90": None, "p99": None}
    for i in range(1, 102):
        statistics.answered("m", 2, 5.0, timings(float(i), encode=i / 2, solve=1.0))
    told = statistics.snapshot(6.0)
    assert told["latency_ms"] == pytest.approx({"p50": 51.0, "p90": 91.0, "p99": 100.0}, abs=1e-9)
    assert told["stages_ms"] == pytest.approx({"decode": 0.0, "queue": 0.0, "encode": 25.5, "solve": 1.0}, abs=1e-9)
    assert told["totals"]["images"] == 202


def test_totals_are_of_each_model_and_begin_anew_when_it_is_loaded_again():
    statistics = Statistics()
    statistics.ran({"a", "b"}, 8, 0.5)
    statistics.ran({"a"}, 8, 0.25)
    statistics.answered("a", 3, 0.0, timings(4.0, encode=2.0))
    statistics.failed("b", 7.0)
    statistics.failed("b", 1.0, is_cancelled=True)
    a, b = statistics.of("a"), statistics.of("b")
    assert (a.inference_count, a.execution_count, b.execution_count) == (3, 2, 1)
    assert (a.batches[8].count, a.batches[8].ns) == (2, 750_000_000)
    assert (a.success.ns, a.compute_infer.ns, b.fail.count) == (4_000_000, 2_000_000, 2)
    totals = statistics.snapshot(0.0)["totals"]
    assert (totals["failed"], totals["cancelled"], totals["batches"]) == (1, 1, 2)
    statistics.forget("a")
    assert statistics.of("a").inference_count == 0
    assert statistics.of("b").fail.ns == 8_000_000
