"""What `benchmarks/gpu_bench.py` runs and times, at sizes that the host shim manages: right answers, run after run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.solver import reference


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_bench

    return gpu_bench


@pytest.mark.parametrize(
    ("name", "size", "runs"),
    [
        ("schedule", (20, 24, 2), {"ours": "dual 2000"}),
        ("schedule-50000", (34, 24, 11), {"ours": "", "float16 halves": "primal 2"}),
        ("closed-form", (40, 24, 2), {"ours": "closed form", "auto": "closed form"}),
        ("whole", (40, 24, 3), {"ours": "closed form", "solver alone": "closed form"}),
        ("many", (8, 24, 2), {"2 problems": "dual 2000", "3 problems": "dual 2000"}),
    ],
)
def test_each_row_runs_what_it_says(bench, context, monkeypatch, name, size, runs):
    import gpu_runs

    monkeypatch.setattr(gpu_runs, "COUNTS", (2, 3))
    # With Sinkhorn labels of so few images steps grow the error tenfold each, of float32 as of halves
    steps = 2 if name == "schedule-50000" else 2000
    monkeypatch.setitem(gpu_runs.METHOD, "iters", steps)
    row = replace(next(row for row in bench.ROWS if row.name == name), size=size)
    data = gpu_runs.make_data(row)
    found = gpu_runs.open_run(context, row, data)
    assert found.keys() == runs.keys()
    W = reference.schedule(data.X, data.T, data.P.astype(np.float64), iters=steps)[0]
    exact = data.X.astype(np.float64) @ W
    for key, ran in runs.items():
        assert found[key].ran.startswith(ran)
        for _ in range(2):
            on_gpu, with_host = gpu_runs.timed_run(context, found[key])
            assert on_gpu > 0
            assert with_host > 0
            # The floor of docs/method.md 3b: the answers are float32.
            assert bench.check_answer(*found[key].answer(), exact, exact)["is_right"]


def test_preprocessing_is_timed_and_checked(bench, context, monkeypatch):
    import gpu_preprocess

    monkeypatch.setattr(gpu_preprocess, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(gpu_preprocess, "_torch_resize", lambda images, preprocess: None)
    row = replace(next(row for row in bench.ROWS if row.name == "preprocess"), size=(1, 230, 226))
    found = bench.measure(context, row, 1)
    assert found["checks"]["ours"]["is_right"]
    assert bench.judge(row, found)["figure"] > 0
