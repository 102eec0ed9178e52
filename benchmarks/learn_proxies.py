"""`learn_proxies` against plain PyTorch and NumPy float32 loops of the published schedule.

    OMP_NUM_THREADS=2 python benchmarks/learn_proxies.py

All rivals run in one process, round-robin with a pause between, on the same features and labels and
the same number of threads; the load of the machine is recorded, for threads suffer from neighbours.
The NumPy loop is there because the matrix product of the PyTorch wheel is slow on some processors
when one operand has only a few columns: it shows what the method gains, not what the library does.
Beside each time stand the error of the logits and the share of labels of the float64 schedule
(`solver/reference.py`), the steps really taken, and the time as a share of the machine's limit: the
multiply-adds of the products at the measured peak of the cores, plus the exponentials at their
measured rate (`limit_ms`). With two classes a step reads a matrix for one multiply-add a number, so
that reading is the nearer limit (`reading_ms`, at the rate measured for an array of that size).
Labels are `stable_greenkhorn`, as in the method `kpl`; a second block uses `sinkhorn` labels, for
which there is no closed form. `text + labels` is what comes before the proxies. Short calls are
timed warm; the first one after the pause, on cold caches, stands apart (`first`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))
os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)  # read when the libraries load, hence before they are imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from clip_like import make_clip_like  # noqa: E402
from published_loops import numpy_loop, torch_loop  # noqa: E402
from record import machine_record, save  # noqa: E402

from kpl_engine.knowledge import KnowledgeBase  # noqa: E402
from kpl_engine.solver import cpu, reference  # noqa: E402
from kpl_engine.solver.labels import refine_labels  # noqa: E402
from kpl_engine.solver.proxies import learn_proxies  # noqa: E402
from kpl_engine.solver.text_proxy import select_text_proxies  # noqa: E402

# Speed-ups over the PyTorch loop that were set as goals: all 2000 steps, and what method kpl runs by default.
GOALS = {
    (32, 768, 2): (150, 300),
    (138, 768, 2): (60, 200),
    (516, 768, 5): (12, 50),
    (662, 768, 2): (15, 50),
    (256, 512, 10): (12, 60),
    (1000, 512, 37): (1.5, 30),
    (27558, 768, 2): (2, 100),
}
LABELS = ("stable_greenkhorn", "sinkhorn")
SHORT_MS = 20.0  # a call this short is timed five times more; its first one, on caches gone cold in the pause, apart
PAUSE_S = 0.25  # the threads of OpenBLAS spin for 0.1 s after their last product, on a core that the next rival needs
Rival = Callable[[], tuple[Any, Any, str]]  # logits (n, c), labels (n,), what ran


def make_rivals(X: Any, T: Any, P: Any, labels: str) -> dict[str, Rival]:
    x, t, p = (torch.from_numpy(a) for a in (X, T, P))

    def published() -> tuple[Any, Any, str]:
        logits = (x @ torch_loop(x, t, p)).numpy()
        return logits, logits.argmax(axis=1), "2000"

    def plain() -> tuple[Any, Any, str]:
        logits = X @ numpy_loop(X, T, P)
        return logits, logits.argmax(axis=1), "2000"

    def ours(solver: str) -> Rival:
        def run() -> tuple[Any, Any, str]:
            found = learn_proxies(X, T, P, solver=solver)
            return found.logits, found.labels, f"{found.form} {found.iterations}"

        return run

    def without_core() -> tuple[Any, Any, str]:
        with cpu.numpy_only():
            return ours("schedule")()

    rivals = {"torch float32": published, "numpy float32": plain, "schedule": ours("schedule")}
    if labels == "stable_greenkhorn":
        rivals["auto"] = ours("auto")
    return {**rivals, "schedule, no core": without_core}


def limits(form: str, n: int, d: int, c: int, rates: dict[str, float]) -> dict[str, float]:
    """Milliseconds that 2000 steps take at least, by arithmetic and by reading."""
    products = n * n * (c - 1) if form == "dual" else 2 * n * d * (c - 1)
    once = n * n * d / 2 if form == "dual" else 0
    size = 8 * n * n if form == "dual" else 4 * n * d
    reading = 2000 * size / cpu.core().measure_reads(max(size // THREADS, 4096)) / THREADS
    seconds = (2000 * products + once) / rates["multiply_adds"] + 2000 * n * (c - 1) / rates["exponentials"]
    return {"limit_ms": seconds / THREADS * 1e3, "reading_ms": reading * 1e3}


def timed(run: Rival) -> tuple[float, tuple[Any, Any, str]]:
    """Milliseconds, and what it returned."""
    start = time.perf_counter()
    found = run()
    return (time.perf_counter() - start) * 1e3, found


def measure(size: tuple[int, int, int], labels: str, repeats: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    n, d, c = size
    data = make_clip_like(n, d, c, seed=n)
    X, base = data.features, KnowledgeBase.from_arrays(data.descriptions)
    T = select_text_proxies(X, base).proxies
    P = np.ascontiguousarray(refine_labels(X @ T, labels))
    Z = X.astype(np.float64) @ reference.schedule(X, T, P)[0]

    def before() -> tuple[Any, Any, str]:
        text = select_text_proxies(X, base)
        refine_labels(X @ text.proxies, labels)
        return Z, Z.argmax(axis=1), ""

    rivals = {**make_rivals(X, T, P, labels), "text + labels": before}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    found = {}
    firsts: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            time.sleep(PAUSE_S)
            first, found[name] = timed(run)
            firsts[name].append(first)
            times[name] += [timed(run)[0] for _ in range(5)] if first < SHORT_MS else [first]
    base_ms = statistics.median(times["torch float32"])
    rows = []
    for name, spent in times.items():
        median = statistics.median(spent)
        row = {"n": n, "d": d, "c": c, "labels": labels, "rival": name, "ran": found[name][2], "runs": len(spent)}
        row |= {
            "median_ms": median,
            "min_ms": min(spent),
            "max_ms": max(spent),
            "first_ms": statistics.median(firsts[name]),
            "speedup_over_torch": base_ms / median,
        }
        row["max_error"] = float(np.abs(found[name][0] - Z).max())
        row["label_agreement"] = float(np.mean(found[name][1] == Z.argmax(axis=1)))
        if name == "schedule" and cpu.core():
            row |= limits(found[name][2].split()[0], n, d, c, rates)
        goal = GOALS[size][("schedule", "auto").index(name)] if name in ("schedule", "auto") else None
        row["goal"] = goal if labels == "stable_greenkhorn" else None
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> None:
    size = f"({row['n']}, {row['d']}, {row['c']})"
    spread = f"{row['min_ms']:.2f}..{row['max_ms']:.2f}"
    line = f"{size:>16} {row['labels']:>17} {row['rival']:>17} {row['ran']:>12} {row['median_ms']:10.3f} {spread:>19} "
    line += f"{row['first_ms']:9.3f} "
    line += (
        f"{row['speedup_over_torch']:8.1f} {row['goal'] or '':>5} {row['max_error']:9.1e} {row['label_agreement']:8.4f}"
    )
    if "limit_ms" in row:
        line += f"  limit {row['limit_ms'] / row['median_ms']:.0%}, reading {row['reading_ms'] / row['median_ms']:.0%}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the largest size takes one")
    parser.add_argument(
        "--sizes", type=int, default=len(GOALS), help="how many of the sizes, in the order of the table"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of all but the largest size, `stable_greenkhorn` labels"
    )
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.sizes, args.labels = 2, len(GOALS) - 1, LABELS[:1]
    torch.set_num_threads(THREADS)
    core, load, rates = cpu.core(), os.getloadavg(), {}
    if core:
        rates["multiply_adds"] = max(core.measure_multiply_adds() for _ in range(5))
        rates["exponentials"] = max(core.measure_exponentials() for _ in range(5))
    print(cpu.describe(), {name: f"{rate:.2e}/s a core" for name, rate in rates.items()})
    print(f"{'(n, d, c)':>16} {'labels':>17} {'rival':>17} {'steps':>12} {'median ms':>10} {'min..max':>19} ", end="")
    print(f"{'first':>9} {'speedup':>8} {'goal':>5} {'error':>9} {'labels =':>8}")
    rows = []
    for labels in args.labels:
        for size in list(GOALS)[: args.sizes]:
            if size[0] > 10_000 and labels != "stable_greenkhorn":
                continue  # the rivals take minutes
            for row in measure(size, labels, 1 if size[0] > 10_000 else args.repeats, rates):
                rows.append(row)
                show(row)
    record = {
        **machine_record(("numpy", "torch")),
        "solver": cpu.describe(),
        "rates_per_core": rates,
        "threads": THREADS,
        "load_average": {"before": load, "after": os.getloadavg()},
        "rows": rows,
    }
    if not args.no_save:
        print(f"written: {save('learn_proxies' + ('-quick' if args.quick else ''), record)}")


if __name__ == "__main__":
    main()
