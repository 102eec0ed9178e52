"""`make bench-gpu`: the goals on an H200, each beside the published schedule in PyTorch, with and without CUDA graphs.

    python3 benchmarks/gpu_bench.py [--rows schedule many] [--repeats 9] [--dry-run] [--no-save]

Answers are checked first, against the published schedule in float64 by PyTorch on the same GPU: no further away than
twice the float32 loop or 1e-5, and the same labels wherever the float64 margin exceeds that (docs/method.md 3b). Then
rivals run in turn, each time between two events of the GPU; medians and spreads. The ceilings of the GPU (a copy,
matrix products) are measured in the same run. A row whose parts are not there is skipped with the reason.
``--dry-run`` needs no GPU: it prints what is predicted for an H200 from counted bytes and flops, and the commands that
will measure it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from gpu_machine import PACKAGES, describe_gpu, refuse_without_gpu, versions  # noqa: E402
from gpu_model import H200, ROWS, Row, predict  # noqa: E402
from record import machine_record, save  # noqa: E402

FLOOR = 1e-5  # docs/method.md 3b
COMMAND = "python3 benchmarks/gpu_bench.py"


def check_answer(found: Any, labels: Any, exact: Any, float32: Any) -> dict[str, Any]:
    """Errors of logits (n, c) and labels (n,) against float64; ``is_right`` as method.md 3b says."""
    import numpy as np

    error = float(np.abs(found - exact).max())
    allowed = max(2 * float(np.abs(float32 - exact).max()), FLOOR)
    top = np.sort(exact, axis=1)
    margin = top[:, -1] - top[:, -2] if exact.shape[1] > 1 else np.full(len(exact), np.inf)
    differs = labels != exact.argmax(axis=1)
    return {
        "max_error": error,
        "allowed_error": allowed,
        "label_agreement": float(1 - differs.mean()),
        "is_right": bool(error <= allowed and not (differs & (margin > 2 * allowed)).any()),
    }


def measure(context: Any, row: Row, repeats: int) -> dict[str, Any]:
    """One row: rivals checked, then timed in turn."""
    if row.kind == "preprocess":
        from gpu_preprocess import measure_preprocess

        return measure_preprocess(context, row, repeats)
    import gpu_rivals
    from gpu_runs import make_data, open_run, timed_run

    data = make_data(row)
    ours = open_run(context, row, data)
    makers = {"torch": gpu_rivals.plain_loop, "torch graph": gpu_rivals.graph_loop}
    rivals = {name: make(data.X, data.T, data.P) for name, make in makers.items()}
    exact = gpu_rivals.float64_schedule(data.X, data.T, data.P).numpy()
    float32 = data.X.astype("f8") @ rivals["torch"]().double().cpu().numpy()
    checks = {}
    for name, run in ours.items():
        run.launch()
        checks[name] = check_answer(*run.answer(), exact, float32)
    found: dict[str, Any] = {"ran": {name: run.ran for name, run in ours.items()}, "checks": checks}
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, run in ours.items():
            on_gpu, with_host = timed_run(context, run)
            times.setdefault(name, []).append(on_gpu)
            times.setdefault(f"{name}, host", []).append(with_host)
        for name, work in rivals.items():
            times.setdefault(name, []).append(gpu_rivals.timed_torch(work)[0])
    found["times"] = {
        name: {"median_ms": statistics.median(spent), "min_ms": min(spent), "max_ms": max(spent), "runs": len(spent)}
        for name, spent in times.items()
    }
    return found


def judge(row: Row, found: dict[str, Any]) -> dict[str, Any]:
    """The row's figure in its unit, and whether it reaches the goal."""
    median = {name: spent["median_ms"] for name, spent in found["times"].items()}
    if row.kind == "many":
        figure, one = 1000 * median["2 problems"] / median["1000 problems"], median["1000 problems"] / 1000
    elif row.kind == "whole":
        figure, one = median["ours"] - median["solver alone"], median["ours"]
    elif row.kind == "preprocess":
        one = median["ours"]
        figure = found["bytes"] / (one / 1e3) / found["copy_bytes_per_s"]
    else:
        figure = one = median["ours"]
    reached = figure >= row.goal if row.is_rate else figure <= row.goal
    speedups = {name: median[name] / one for name in ("torch", "torch graph") if name in median}
    if row.min_speedup is not None:
        reached = reached and speedups["torch"] >= row.min_speedup
    is_right = all(check["is_right"] for check in found["checks"].values())
    return {"figure": figure, "speedups": speedups, "reached": bool(reached and is_right), "is_right": is_right}


def run_row(context: Any, row: Row, repeats: int) -> dict[str, Any]:
    """A measured row; or why it was skipped, a part of the engine or PyTorch that is not there, or how it failed."""
    named = {"row": row.name, "size": row.size, "goal": row.goal, "unit": row.unit}
    try:
        found = measure(context, row, repeats)
    except (ImportError, NotImplementedError) as error:
        return {**named, "skipped": f"{type(error).__name__}: {error}"}
    except Exception as error:  # the other rows are worth as much: minutes on a GPU are dear
        traceback.print_exc()
        return {**named, "failed": f"{type(error).__name__}: {error}"}
    return {**named, **found, **judge(row, found)}


def show(result: dict[str, Any]) -> None:
    title = f"{result['row']:>16} {result['size']!s:>18}"
    for state in ("skipped", "failed"):
        if state in result:
            print(f"{title} {state}: {result[state]}", flush=True)
            return
    state = "reached" if result["reached"] else "MISSED" if result["is_right"] else "WRONG ANSWER"
    faster = ", ".join(f"{ratio:.0f}x {name}" for name, ratio in result["speedups"].items())
    print(
        f"{title} {result['figure']:10.3f} {result['unit']:<12} goal {result['goal']:g} {state}; {faster}", flush=True
    )
    for name, spent in result["times"].items():
        print(f"{'':>37}{name}: {spent['median_ms']:.3f} ms ({spent['min_ms']:.3f}..{spent['max_ms']:.3f})")


def show_predictions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table of predictions, marked as such, with the command that measures each row."""
    print(f"PREDICTED for an {H200.name} from counted bytes and flops; nothing here was measured.\n")
    print("| work | goal | predicted | PyTorch, predicted | with CUDA graphs, predicted | counted | measure with |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for row in rows:
        said = predict(row)
        bound = ">=" if row.is_rate else "<="
        rivals = [f"{said[key]:.0f} ms" if key in said else "-" for key in ("torch_ms", "torch_graph_ms")]
        print(
            f"| {row.title} | {bound} {row.goal:g} {row.unit} | {said['prediction']:.3g} {row.unit} | {rivals[0]} | "
            f"{rivals[1]} | {said['counted']} | `{COMMAND} --rows {row.name}` |"
        )
        found.append({"row": row.name, "size": row.size, **said})
    print("\nAll of them, on a machine with a GPU: make bench-gpu")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print predictions for an H200 and stop")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if row.name in options.rows]
    if options.dry_run:
        show_predictions(rows)
        return 0
    refuse_without_gpu("make bench-gpu")
    return run_all(rows, options.repeats, not options.no_save)


def run_all(rows: Sequence[Row], repeats: int, saves: bool) -> int:
    from kpl_engine.cuda.context import Context
    from kpl_engine.cuda.select import open_driver

    before, results = describe_gpu(), []
    with Context(open_driver()) as context:
        limits = measure_ceilings()
        for row in rows:
            results.append(run_row(context, row, repeats if row.size[0] < 20_000 else min(repeats, 3)))
            show(results[-1])
        record = {
            **machine_record(PACKAGES),
            "driver": context.driver.name,
            "gpus": {"before": before, "after": describe_gpu()},
            "tools": versions(),
            "ceilings": limits,
            "rows": results,
            "predictions_for_h200": {row.name: predict(row) for row in rows},
        }
    if saves:
        print(f"written: {save('gpu-bench', record)}")
    tried = [result for result in results if "skipped" not in result]
    if not tried:
        print("no row was measured: this run counts as failed")
    return 0 if tried and all(result.get("is_right", False) for result in tried) else 1


def measure_ceilings() -> dict[str, Any]:
    try:
        from gpu_rivals import ceilings
    except ImportError as error:
        return {"skipped": f"{error}"}
    return ceilings()


if __name__ == "__main__":
    sys.exit(main())
