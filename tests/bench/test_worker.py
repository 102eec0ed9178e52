"""The process of a scenario from end to end: real LoadGen, the demo bundle."""

import subprocess
import sys

import pytest

from kpl_engine.bench.channel import Job
from kpl_engine.bench.scenarios import run_scenarios
from kpl_engine.data import demo_bundle
from tests.bench.made import fitted_bundle
from tests.bench.workers import WRONG_ANSWERS, run, settings_for

pytest.importorskip("mlperf_loadgen", reason="needs the extra bench")
SPEED = {"num_samples", "duration_s", "samples_per_s", "latency", "issue_delay", "loadgen", "resources", "first_ms"}
SPEED |= {"warm_up_ms", "num_queries", "num_failed", "codes"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("bench") / "lung.kpl")


def test_every_scenario_in_process(bundle):
    stream, multi, server, offline = run(settings_for(bundle))
    for record in (stream, multi, server, offline):
        assert "error" not in record, record["error"]
        assert record["is_speed_told"]
        assert record["check_before"]["is_right"]
        assert record["check_after"]["is_right"]
        assert record["check_after"]["num_pictures"] == 5
        assert record["verdict"].startswith("Result is : ")
        assert record["is_valid"] == (record["verdict"] == "Result is : VALID")
        assert record["reasons"]
        # A busy machine may stand still until the batcher is full, and then it refuses.
        assert record["num_failed"] == (record["num_queries"] - record["codes"]["OK"] if record is server else 0)
        assert record["samples_per_s"] == pytest.approx(record["num_samples"] / record["duration_s"])
        assert record["resources"]["of"] == "this process"
        assert record["first_ms"] > 0
        assert any("0.3 s are shorter than the 600 s" in note for note in record["notes"])
    assert [record["how"] for record in (stream, multi, server, offline)] == [
        "Engine.classify",
        "Engine.classify",
        "BatchingService",
        "Engine.classify",
    ]
    assert stream["num_samples"] == stream["num_queries"] == stream["latency"]["count"]
    assert multi["num_samples"] == 8 * multi["num_queries"]
    assert (offline["num_queries"], "latency" in offline) == (1, False)
    assert server["issue_delay"]["count"] == server["latency"]["count"] == server["num_samples"] > 10
    assert any("chosen here: 70% of the" in note for note in server["notes"])
    assert server["latency_bound_ms"] == 15.0


def test_the_module_runs_as_it_is_started(bundle):
    (record,) = run_scenarios(settings_for(bundle, "SingleStream", input_kind="features"), lambda _: None)
    assert "error" not in record, record["error"]
    assert record["latency"]["count"] == record["num_queries"] > 10
    assert len(record["warm_up_ms"]) >= 10


def test_proxies_are_fitted_where_there_are_none():
    (record,) = run(settings_for(demo_bundle(), "Server", num_samples=40, target_qps=50.0))
    assert "error" not in record, record["error"]
    assert any("fitted on the 40 samples" in note for note in record["notes"])
    assert record["target_qps"] == 50.0
    assert not any("chosen here" in note for note in record["notes"])


def test_a_wrong_answer_before_ends_the_scenario_unrun(bundle):
    (record,) = run(settings_for(bundle, "SingleStream"), WRONG_ANSWERS.format(right_calls=0))
    assert record["is_speed_told"] is False
    assert record["is_valid"] is False
    assert not record["check_before"]["is_right"]
    assert "expected probability" in record["check_before"]["reason"]
    assert not SPEED & set(record)
    assert "check_after" not in record


def test_a_wrong_answer_after_takes_the_speed_away(bundle):
    (record,) = run(settings_for(bundle, "SingleStream"), WRONG_ANSWERS.format(right_calls=1))
    assert record["check_before"]["is_right"]
    assert not record["check_after"]["is_right"]
    assert record["is_speed_told"] is False
    assert record["verdict"].startswith("Result is : ")
    assert not SPEED & set(record)


def test_an_impossible_rate_is_an_error_with_what_was_measured(bundle):
    (record,) = run(settings_for(bundle, "Server", target_qps=30_000.0, duration_s=2.0))
    assert "30000 queries/s are more than this takes" in record["error"]
    assert record["is_valid"] is False
    assert record["codes"]["RESOURCE_EXHAUSTED"] > record["codes"]["OK"] > 0
    assert record["latency"]["count"] == record["codes"]["OK"] == record["num_samples"]
    assert record["num_failed"] == record["num_queries"] - record["codes"]["OK"]


def test_an_error_of_ours_is_told_in_its_words(tmp_path):
    (record,) = run(settings_for(tmp_path / "none.kpl", "Offline"))
    assert "none.kpl" in record["error"]
    assert "last words" not in record["error"]  # as a crash is told


def test_a_process_whose_parent_is_gone_ends(bundle, tmp_path):
    command = [sys.executable, "-m", "kpl_engine.bench.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        job = Job(settings_for(bundle, "SingleStream", duration_s=600.0), "SingleStream", tmp_path)
        process.stdin.write(job.to_json().encode() + b"\n")
        process.stdin.flush()
        while b"warm-up" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        assert process.wait(30) == 1
