"""Fit the cost model of `kpl_engine/solver/cost.py` to this machine.

    python benchmarks/calibrate_solver.py

Times one step of each form of the schedule on one thread over a grid of sizes (time of 2k steps less time of k steps,
so that set-up falls out), fits the coefficients of the model by non-negative least squares on relative errors, and
prints them with the largest miss and how often the model picks the slower form. Needs SciPy, which the test extra
brings with scikit-learn.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy loads

import numpy as np
from record import machine_record, save
from scipy.optimize import nnls

from kpl_engine.solver import compiled, cost, cpu, schedule
from kpl_engine.solver.compiled import ScheduleTask

GRID = {"n": (16, 64, 138, 320, 662, 1500, 4000), "d": (256, 768), "c": (2, 5, 12, 40)}
BUDGET_S = 0.15  # aimed at for one timing


def make_task(n: int, d: int, c: int) -> ScheduleTask:
    random = np.random.default_rng(n + d + c)
    X = random.normal(size=(n, d)) + 2.0 * random.normal(size=d)
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    T = random.normal(size=(d, c))
    P = random.dirichlet(np.ones(c), n)
    return ScheduleTask(X, (T / np.linalg.norm(T, axis=0)).astype(np.float32), P, 10.0, 0, 0.04)


def step_seconds(task: ScheduleTask, name: str, form: str, guess: float) -> float:
    steps = max(4, min(2000, int(BUDGET_S / max(guess, 1e-7))))
    samples = []
    for _ in range(3):
        spent = []
        for iters in (steps, 2 * steps):
            now = ScheduleTask(task.X, task.T, task.labels, task.lr, iters, task.tau_i)
            start = time.perf_counter()
            if name == "numpy":
                run = schedule.run_dual if form == "dual" else schedule.run_primal
                run(now.X, now.T, now.labels, now.lr, now.iters, now.tau_i)
            else:
                compiled.run_compiled(cpu.core(), now, form, 1, early_exit=False)
            spent.append(time.perf_counter() - start)
        samples.append((spent[1] - spent[0]) / steps)
    return max(statistics.median(samples), 1e-9)


def fit(name: str, form: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    rows = []
    for n, d, c in itertools.product(*GRID.values()):
        if form == "dual" and n > 2000:
            continue
        guess = cost.step_seconds(name, form, n, d, c)
        rows.append({"n": n, "d": d, "c": c, "seconds": step_seconds(make_task(n, d, c), name, form, guess)})
    terms = [cost.terms(name, form, row["n"], row["d"], row["c"]) for row in rows]
    names = list(terms[0])
    seconds = np.array([row["seconds"] for row in rows])
    design = np.array([[each[term] for term in names] for each in terms]) / seconds[:, None]  # relative errors
    weights = nnls(design, np.ones(len(rows)))[0]
    for row, ratio in zip(rows, design @ weights, strict=True):
        row["predicted_over_measured"] = float(ratio)
    return dict(zip(names, weights.tolist(), strict=True)), rows


def main() -> None:
    names = ("core", "numpy") if cpu.core() else ("numpy",)
    record: dict[str, Any] = {**machine_record(("numpy",)), "solver": cpu.describe(), "fits": {}}
    for name in names:
        found = {form: fit(name, form) for form in ("dual", "primal")}
        for form, (weights, rows) in found.items():
            ratios = [row["predicted_over_measured"] for row in rows]
            text = ", ".join(f'"{term}": {weight:.2e}' for term, weight in weights.items())
            print(f"{name} {form}: {{{text}}}  predicted/measured {min(ratios):.2f} .. {max(ratios):.2f}", flush=True)
            record["fits"][f"{name} {form}"] = {"seconds_per_term": weights, "rows": rows}
        seconds = {form: {(r["n"], r["d"], r["c"]): r for r in rows} for form, (_, rows) in found.items()}
        losses = []
        for size in seconds["dual"].keys() & seconds["primal"].keys():
            both = {form: seconds[form][size] for form in seconds}
            chosen = min(both, key=lambda form: both[form]["seconds"] * both[form]["predicted_over_measured"])
            losses.append(both[chosen]["seconds"] / min(row["seconds"] for row in both.values()))
        wrong = sum(loss > 1 for loss in losses)
        print(f"{name}: the model picks the slower form in {wrong} of {len(losses)} sizes, at worst {max(losses):.2f}x")
        record["fits"][name] = {"worst_choice": max(losses), "wrong": wrong, "sizes": len(losses)}
    print(f"written: {save('calibrate_solver', record)}")


if __name__ == "__main__":
    main()
