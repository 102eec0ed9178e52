"""Cold starts of real processes, and of processes that fail."""

import subprocess

import pytest

from kpl_engine.bench import cold
from kpl_engine.bench.cold import measure_cold
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.data import demo_bundle
from kpl_engine.errors import KplError


def test_a_start_is_the_sum_of_its_parts(monkeypatch):
    runs, start = [], cold._start
    monkeypatch.setattr(cold, "_start", lambda *given: runs.append(start(*given)) or runs[-1])
    found = measure_cold(BenchSettings(demo_bundle(), device="cpu"), 2)
    assert (found["count"], len(runs)) == (2, 3)
    for run in runs:
        parts = [run[name] for name in ("import_ms", "load_ms", "first_ms")]
        assert min(parts) > 0.5  # an interpreter, a graph of 2 MB and a JPEG of 500 x 375
        assert sum(parts) == pytest.approx(run["total_ms"], abs=1e-6)
        assert 20e6 < run["resident_bytes"] < 2e9
    assert found["total_ms"]["value"] in [run["total_ms"] for run in runs[1:]]


def test_the_first_start_is_left_out_and_medians_are_told(monkeypatch):
    starts = iter([900.0, 5.0, 1.0, 3.0])
    started = []

    def start(settings, picture):
        started.append(picture.read_bytes())
        spent = next(starts)
        keys = ("import_ms", "load_ms", "first_ms", "total_ms")
        return {**dict.fromkeys(keys, spent), "resident_bytes": int(10 * spent)}

    monkeypatch.setattr(cold, "_start", start)
    found = measure_cold(BenchSettings(demo_bundle()), 3)
    assert (found["count"], found["total_ms"]["value"], found["resident_bytes"]) == (3, 3.0, 30)
    assert len(started) == 4
    assert started[0].startswith(b"\xff\xd8\xff")  # a JPEG that is there when the process starts


def test_a_process_that_fails_tells_its_last_words(tmp_path):
    with pytest.raises(KplError, match=r"exit code 1: \.\.\.no bundle at .*absent\.kpl"):
        measure_cold(BenchSettings(tmp_path / "absent.kpl"), 1)


def test_a_process_that_hangs_is_not_waited_for(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KplError, match="no answer within 300 s"):
        measure_cold(BenchSettings(demo_bundle()), 1)
