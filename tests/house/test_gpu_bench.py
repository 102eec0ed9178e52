"""`make bench-gpu` without a GPU: predictions marked as such, answers checked, rows judged, results written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kpl_engine.errors import CudaMemoryError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_bench

    return gpu_bench


@pytest.fixture
def rows(bench):
    return {row.name: row for row in bench.ROWS}


def test_the_table_of_predictions_says_what_it_is(bench, rows, capsys):
    assert bench.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTED for an NVIDIA H200")
    assert "nothing here was measured" in printed
    for name, row in rows.items():
        assert f"| {row.title} |" in printed
        assert f"`python3 benchmarks/gpu_bench.py --rows {name}`" in printed
    assert "make bench-gpu" in printed


def test_goals_are_those_that_were_set(rows):
    goals = {name: (row.size, row.goal, row.is_rate) for name, row in rows.items()}
    assert goals == {
        "schedule": ((138, 768, 2), 2.0, False),
        "schedule-662": ((662, 768, 2), 6.0, False),
        "schedule-27558": ((27558, 768, 2), 90.0, False),
        "schedule-50000": ((50000, 768, 1000), 2000.0, False),
        "closed-form": ((662, 768, 2), 0.5, False),
        "closed-form-1000": ((1000, 768, 2), 0.5, False),
        "many": ((64, 768, 4), 100, True),
        "whole": ((64, 768, 5), 0.15, False),
        "preprocess": ((64, 1920, 1080), 0.5, True),
    }
    assert rows["schedule"].min_speedup == 80


def test_predictions_follow_from_counts(rows, bench):
    """Nothing is predicted to beat what the hardware can do: X read once a step, flops at the peak."""
    for name in ("schedule-27558", "schedule-50000"):
        n, d, c = rows[name].size
        said = bench.predict(rows[name])
        on_chip = 132 * 1e5 + (50 << 20) / 2
        assert said["prediction"] >= 2e6 * (4 * n * d - on_chip) / 4.8e12
        if c > 9:
            assert said["prediction"] >= 2e6 * 4 * n * d * c / 67e12
    assert bench.predict(rows["schedule"])["torch_ms"] == pytest.approx(348)


def test_without_a_gpu_it_refuses(bench, monkeypatch):
    import kpl_engine.cuda.select

    monkeypatch.setattr(kpl_engine.cuda.select, "explain_absence", lambda: "no NVIDIA driver")
    with pytest.raises(SystemExit, match="make bench-gpu needs an NVIDIA GPU"):
        bench.main([])


EXACT = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5 + 1e-7]])


@pytest.mark.parametrize(
    ("error", "labels", "float32_error", "is_right"),
    [
        (0.0, [0, 1, 1], 0.0, True),
        (9e-6, [0, 1, 1], 0.0, True),  # the floor
        (2e-5, [0, 1, 1], 0.0, False),
        (2e-5, [0, 1, 1], 1.1e-5, True),  # less than twice the float32 loop
        (0.0, [0, 1, 0], 0.0, True),  # a margin below the allowed error decides nothing
        (0.0, [1, 1, 1], 0.0, False),
        (np.nan, [0, 1, 1], 0.0, False),
    ],
)
def test_answers_are_held_to_float64(bench, error, labels, float32_error, is_right):
    found = bench.check_answer(EXACT + error, np.array(labels), EXACT, EXACT - float32_error)
    assert found["is_right"] is is_right


def times(**medians):
    return {name.replace("_", " "): {"median_ms": ms, "min_ms": ms, "max_ms": ms} for name, ms in medians.items()}


@pytest.mark.parametrize(
    ("row", "medians", "figure", "reached"),
    [
        ("schedule", {"ours": 1.9, "torch": 300.0, "torch_graph": 50.0}, 1.9, True),
        ("schedule", {"ours": 1.9, "torch": 150.0, "torch_graph": 50.0}, 1.9, False),  # not 80 times faster
        ("schedule-662", {"ours": 6.1, "torch": 300.0, "torch_graph": 50.0}, 6.1, False),
        ("many", {"1000 problems": 8.0, "2 problems": 1.0, "torch": 300.0, "torch_graph": 50.0}, 125, True),
        ("many", {"1000 problems": 20.0, "2 problems": 1.0, "torch": 300.0, "torch_graph": 50.0}, 50, False),
        ("whole", {"ours": 0.3, "solver_alone": 0.2, "torch": 300.0, "torch_graph": 50.0}, 0.1, True),
    ],
)
def test_rows_are_judged(bench, rows, row, medians, figure, reached):
    found = {"times": times(**medians), "checks": {"ours": {"is_right": True}}}
    judged = bench.judge(rows[row], found)
    assert judged["figure"] == pytest.approx(figure)
    assert judged["reached"] is reached
    found["checks"]["ours"]["is_right"] = False
    judged = bench.judge(rows[row], found)
    assert (judged["reached"], judged["is_right"]) == (False, False)


def test_a_share_of_copy_bandwidth_is_judged(bench, rows):
    found = {"times": times(ours=0.1, copy=0.5), "checks": {"ours": {"is_right": True}}}
    judged = bench.judge(rows["preprocess"], {**found, "bytes": 240_000_000, "copy_bytes_per_s": 4e12})
    assert judged["figure"] == pytest.approx(0.6)
    assert judged["reached"]
    assert not bench.judge(rows["preprocess"], {**found, "bytes": 160_000_000, "copy_bytes_per_s": 4e12})["reached"]


def test_bytes_that_preprocessing_must_move(bench):
    from gpu_preprocess import moved_bytes

    from kpl_engine.imaging.preprocess import Preprocess

    # 1080p to 224: the middle 1080 columns are kept
    expected = 2 * 3 * (1080 * 1080 + 224 * 224)
    assert moved_bytes(Preprocess(), 2, 1080, 1920) == pytest.approx(expected, rel=0.01)


@pytest.fixture
def machine(bench, monkeypatch):
    """A pretended GPU machine: results that would be saved, and what a row measures."""
    import kpl_engine.cuda.select
    from tests.encoder.doubles import HostDriver

    state = SimpleNamespace(saved={}, measure=None)
    monkeypatch.setattr(bench, "refuse_without_gpu", lambda what: None)
    monkeypatch.setattr(bench, "describe_gpu", lambda: [{"name": "NVIDIA H200", "clocks.sm": "1980 MHz"}])
    monkeypatch.setattr(bench, "measure_ceilings", lambda: {"copy_bytes_per_s": 4.3e12})
    monkeypatch.setattr(bench, "save", lambda name, record: state.saved.update({name: record}))
    monkeypatch.setattr(kpl_engine.cuda.select, "open_driver", HostDriver)
    monkeypatch.setattr(bench, "measure", lambda context, row, repeats: state.measure(row))
    return state


def measured(is_right=True):
    return {
        "times": times(ours=1.0, torch=300.0, torch_graph=50.0),
        "checks": {"ours": {"is_right": is_right}},
        "ran": {"ours": "dual 2000"},
    }


def test_the_result_file(bench, machine, capsys):
    machine.measure = lambda row: measured()
    assert bench.main(["--rows", "schedule", "schedule-662"]) == 0
    record = json.loads(json.dumps(machine.saved["gpu-bench"]))
    assert {"date", "commit", "versions", "command", "driver", "gpus", "tools", "ceilings", "rows"} <= set(record)
    assert record["gpus"]["before"][0]["clocks.sm"] == "1980 MHz"
    assert [row["row"] for row in record["rows"]] == ["schedule", "schedule-662"]
    assert record["rows"][0]["speedups"] == {"torch": 300.0, "torch graph": 50.0}
    assert set(record["predictions_for_h200"]) == {"schedule", "schedule-662"}
    assert "reached" in capsys.readouterr().out


def test_a_row_without_its_parts_is_skipped_with_the_reason(bench, machine, capsys):
    def measure(row):
        if row.name == "schedule":
            raise ModuleNotFoundError("No module named 'torch'")
        return measured()

    machine.measure = measure
    assert bench.main(["--rows", "schedule", "schedule-662"]) == 0
    assert machine.saved["gpu-bench"]["rows"][0]["skipped"] == "ModuleNotFoundError: No module named 'torch'"
    assert "skipped: ModuleNotFoundError" in capsys.readouterr().out


def test_a_row_that_fails_leaves_the_others(bench, machine, capsys):
    def measure(row):
        if row.name == "schedule":
            raise CudaMemoryError("too little memory")
        return measured()

    machine.measure = measure
    assert bench.main(["--rows", "schedule", "schedule-662"]) == 1
    failed, other = machine.saved["gpu-bench"]["rows"]
    assert failed["failed"] == "CudaMemoryError: too little memory"
    assert other["is_right"]
    assert "failed: CudaMemoryError" in capsys.readouterr().out


def test_nothing_measured_and_wrong_answers_are_failures(bench, machine, capsys):
    def missing(row):
        raise ModuleNotFoundError("No module named 'torch'")

    machine.measure = missing
    assert bench.main(["--rows", "schedule"]) == 1
    assert "no row was measured" in capsys.readouterr().out
    machine.measure = lambda row: measured(is_right=False)
    assert bench.main(["--rows", "schedule"]) == 1
    assert "WRONG ANSWER" in capsys.readouterr().out


def test_the_loop_for_graphs_takes_the_published_steps(monkeypatch):
    """On the CPU and without the graph: the same W as the loop that asks for the norm in each step."""
    torch = pytest.importorskip("torch", reason="needs torch (the export extra)")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_rivals

    random = np.random.default_rng(3)
    X, T = random.normal(size=(30, 8)), random.normal(size=(8, 3))
    X, T = X / np.linalg.norm(X, axis=1, keepdims=True), T / np.linalg.norm(T, axis=0)
    P = random.dirichlet(np.ones(3), 30)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for matrices this small more only wait for each other
    step, reset = gpu_rivals.make_step(*(torch.from_numpy(a).double() for a in (X, T, P)))
    W = reset()
    for _ in range(gpu_rivals.STEPS):
        step()
    expected = gpu_rivals.torch_loop(*(torch.from_numpy(a).double() for a in (X, T, P)))
    torch.set_num_threads(threads)
    # The very same operations in the same precision: bits differ at most where lr/2 is a tensor instead of a number.
    np.testing.assert_allclose(W.numpy(), expected.numpy(), rtol=0, atol=1e-12)


def test_the_readme_shows_what_is_predicted_now(bench, capsys):
    """Repeat with: python benchmarks/gpu_bench.py --dry-run."""
    bench.main(["--dry-run"])
    wanted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    text = (ROOT / "benchmarks" / "README.md").read_text()
    shown = text.split("--dry-run -->\n")[1].split("\n<!-- end")[0].splitlines()
    assert shown == wanted
