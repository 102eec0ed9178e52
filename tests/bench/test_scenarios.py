"""Scenarios seen from the parent: what is kept when a process fails, crashes, hangs or is lost."""

import os
import signal

import pytest

from kpl_engine.bench import child as child_module
from kpl_engine.bench import scenarios
from kpl_engine.bench.child import Child
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.data import demo_bundle
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError, MissingExtraError

PROGRAM = """
import json, os, pathlib, signal, sys, time
job = json.loads(sys.stdin.readline())
right, wrong = {"is_right": True}, {"is_right": False}
def say(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), flush=True)
def trace():
    line = '{"name":"Sample","cat":"default","ph":"b","pid":7,"id":0,"ts":%d,"args":{"sample_seq":%d,"query_seq":%d,'
    line += '"sample_idx":3,"issue_start_ns":5,"complete_ns":2000000}},'
    text = "".join(line % (i * 1000, i, i) + chr(10) for i in range(150))
    pathlib.Path(job["folder"], "mlperf_log_trace.json").write_text(text)
say("part", record={"how": "a double", "check_before": right})
"""


def run(*programs, names=("SingleStream",), **settings):
    """Each scenario is the program in its place; what `on_scenario` saw."""
    left, seen, children = list(programs), [], []

    def start(job):
        children.append(Child(job, ("-c", PROGRAM + left.pop(0))))
        return children[-1]

    found = scenarios.run_scenarios(BenchSettings(demo_bundle(), scenarios=names, **settings), seen.append, start=start)
    assert found == seen
    for each in children:
        with pytest.raises(ProcessLookupError):
            os.kill(each.pid, 0)
    return seen


def test_parts_are_put_together():
    (record,) = run('say("part", record={"is_valid": True, "notes": ["n"]}); say("end", error="")')
    assert record == {
        "scenario": "SingleStream",
        "how": "a double",
        "check_before": {"is_right": True},
        "is_valid": True,
        "notes": ["n"],
    }


def test_an_error_is_kept_beside_what_was_measured_and_the_next_one_runs():
    first, second = run(
        'say("part", record={"num_samples": 3}); say("end", error="the server is gone")',
        'say("end", error="")',
        names=("Server", "Offline"),
    )
    assert (first["error"], first["num_samples"], first["is_valid"]) == ("the server is gone", 3, False)
    assert second["scenario"] == "Offline"
    assert "error" not in second


def test_a_crash_leaves_the_times_of_its_queries():
    """Segmentation fault in the middle of LoadGen: its trace is on the disk."""
    (record,) = run("trace(); os.kill(os.getpid(), signal.SIGSEGV)")
    assert "was killed by SIGSEGV" in record["error"]
    assert record["latency"]["count"] == record["num_samples"] == 150
    assert record["latency"]["percentiles"]["50"]["value"] == 2.0
    assert any("could not be checked" in note for note in record["notes"])
    assert record["is_valid"] is False


def test_memory_that_ran_out_is_guessed():
    (record,) = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert "SIGKILL (the machine may be out of memory)" in record["error"]
    assert "latency" not in record


def test_wrong_answers_leave_no_times_behind_a_crash():
    (record,) = run('trace(); say("part", record={"check_after": wrong}); os._exit(9)')
    assert "exit code 9" in record["error"]
    assert "latency" not in record


def test_last_words_are_told():
    (record,) = run('raise SystemExit("no room on the device")')
    assert "exit code 1" in record["error"]
    assert "no room on the device" in record["error"]


def test_a_silent_process_is_ended(monkeypatch):
    monkeypatch.setattr(child_module, "_SILENCE_S", 0.4)
    (record,) = run("trace(); time.sleep(600)")
    assert "silent for 0.4 s" in record["error"]
    assert record["latency"]["count"] == 150


def test_ctrl_c_ends_the_process():
    started = []

    def start(job):
        started.append(Child(job, ("-c", PROGRAM + 'say("progress", what="x", share=0.5); time.sleep(600)')))
        return started[-1]

    def interrupt(what, share):
        assert (what, share) == ("x", 0.5)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        scenarios.run_scenarios(BenchSettings(demo_bundle()), print, interrupt, start=start)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


@pytest.fixture(scope="module")
def engine():
    with Engine.load(demo_bundle(), "cpu") as engine:
        yield engine


def test_what_can_be_known_before_is_told_before(engine, monkeypatch):
    pytest.importorskip("mlperf_loadgen", reason="needs the extra bench")
    scenarios.check_target(BenchSettings(demo_bundle()), engine)
    with pytest.raises(ConfigError, match="expected at most 5,000,000"):
        scenarios.check_target(BenchSettings(demo_bundle(), target_qps=1e6), engine)
    scenarios.check_target(BenchSettings(demo_bundle(), target_qps=1e6, scenarios=("SingleStream",)), engine)
    with pytest.raises(ConfigError, match="got stream"):
        scenarios.check_target(BenchSettings(demo_bundle(), mode="stream"), engine)
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    with pytest.raises(MissingExtraError, match="mlcommons-loadgen"):
        scenarios.check_target(BenchSettings(demo_bundle()), engine)
