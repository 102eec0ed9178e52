"""`learn_proxies` against plain PyTorch and NumPy float32 loops of the published schedule.

    OMP_NUM_THREADS=2 python benchmarks/learn_proxies.py

All rivals run in one process, round-robin, on the same features and labels and the same number of
threads; the load of the machine is recorded, for torch's threads suffer most from neighbours. The
NumPy loop is there because the matrix product of the PyTorch wheel is slow on some processors when
one operand has only a few columns (0.5 ms against 0.008 ms for (138, 768) x (768, 2) on the machine
of the recorded results): it shows what the method gains, not what the library does.
Beside each time stand the error of the logits and the share of labels of the float64 schedule
(`solver/reference.py`). Labels are `stable_greenkhorn`, as in the method `kpl`; a second block uses
`sinkhorn` labels, for which there is no closed form.
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
from record import machine_record, save  # noqa: E402

from kpl_engine.solver import reference  # noqa: E402
from kpl_engine.solver.labels import refine_labels  # noqa: E402
from kpl_engine.solver.proxies import learn_proxies  # noqa: E402
from kpl_engine.solver.text_proxy import select_text_proxies  # noqa: E402

SIZES = ((32, 768, 2), (138, 768, 2), (662, 768, 2), (516, 768, 5), (256, 512, 10), (1000, 512, 37))
LABELS = ("stable_greenkhorn", "sinkhorn")
SOLVERS = ("schedule_dual", "schedule_primal", "auto")


def torch_loop(X: torch.Tensor, T: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """The published schedule, 2000 steps, float32, as one would write it from the paper."""
    P = P.clone()
    hard = P.max(dim=1).values > 0.6
    P[hard] = torch.nn.functional.one_hot(P[hard].argmax(dim=1), P.shape[1]).to(P.dtype)
    W, lr, last = T.clone(), 10.0, float("inf")
    for _ in range(2000):
        G = X.T @ (torch.softmax(X @ W / 0.04, dim=1) - P)
        norm = torch.linalg.norm(G).item()
        if norm > last:
            lr /= 2
        last = norm
        W = torch.nn.functional.normalize(W - lr / (len(X) * 0.04) * G, dim=0)
    return W


def numpy_loop(X: Any, T: Any, P: Any) -> Any:
    """`torch_loop` in NumPy, float32 throughout."""
    P = P.copy()
    hard = P.max(axis=1) > 0.6
    P[hard] = np.eye(P.shape[1], dtype=np.float32)[P[hard].argmax(axis=1)]
    W, lr, last = T.copy(), 10.0, np.inf
    for _ in range(2000):
        Z = X @ W / np.float32(0.04)
        Z = np.exp(Z - Z.max(axis=1, keepdims=True))
        G = X.T @ (Z / Z.sum(axis=1, keepdims=True) - P)
        norm = np.linalg.norm(G)
        if norm > last:
            lr /= 2
        last = norm
        W = W - np.float32(lr / (len(X) * 0.04)) * G
        W = W / np.linalg.norm(W, axis=0)
    return W


def _rivals(X: Any, T: Any, P: Any) -> dict[str, Callable[[], tuple[Any, Any, str]]]:
    """Each returns logits (n, c), labels (n,) and which solver ran."""
    x, t, p = (torch.from_numpy(a) for a in (X, T, P))

    def published() -> tuple[Any, Any, str]:
        logits = (x @ torch_loop(x, t, p)).numpy()
        return logits, logits.argmax(axis=1), "torch"

    def plain() -> tuple[Any, Any, str]:
        logits = X @ numpy_loop(X, T, P)
        return logits, logits.argmax(axis=1), "numpy"

    def ours(solver: str) -> Callable[[], tuple[Any, Any, str]]:
        def run() -> tuple[Any, Any, str]:
            found = learn_proxies(X, T, P, solver=solver)
            return found.logits, found.labels, f"{found.form} {found.iterations}"

        return run

    return {"torch float32": published, "numpy float32": plain, **{solver: ours(solver) for solver in SOLVERS}}


def measure(size: tuple[int, int, int], labels: str, repeats: int) -> list[dict[str, Any]]:
    n, d, c = size
    data = make_clip_like(n, d, c, seed=n)
    X = data.features
    T = select_text_proxies(X, data.descriptions).proxies
    P = np.ascontiguousarray(refine_labels(X @ T, labels))
    Z = X.astype(np.float64) @ reference.schedule(X, T, P)[0]
    rivals = _rivals(X, T, P)
    times: dict[str, list[float]] = {name: [] for name in rivals}
    found = {}
    for _ in range(repeats):
        for name, run in rivals.items():
            start = time.perf_counter()
            found[name] = run()
            times[name].append((time.perf_counter() - start) * 1e3)
    base = statistics.median(times["torch float32"])
    return [
        {
            "n": n,
            "d": d,
            "c": c,
            "labels": labels,
            "rival": name,
            "ran": found[name][2],
            "median_ms": statistics.median(spent),
            "min_ms": min(spent),
            "max_ms": max(spent),
            "speedup_over_torch": base / statistics.median(spent),
            "max_error": float(np.abs(found[name][0] - Z).max()),
            "label_agreement": float(np.mean(found[name][1] == Z.argmax(axis=1))),
        }
        for name, spent in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, smallest first")
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    load = os.getloadavg()
    rows = []
    print(f"{'n':>5} {'d':>4} {'c':>3} {'labels':>17} {'rival':>15} {'ran':>14} {'median ms':>10} ", end="")
    print(f"{'min..max':>16} {'speedup':>8} {'max error':>10} {'labels =':>9}")
    for labels in args.labels:
        for size in SIZES[: args.sizes]:
            for row in measure(size, labels, args.repeats):
                rows.append(row)
                spread = f"{row['min_ms']:.1f}..{row['max_ms']:.1f}"
                print(f"{row['n']:5} {row['d']:4} {row['c']:3} {labels:>17} {row['rival']:>15} ", end="")
                print(
                    f"{row['ran']:>14} {row['median_ms']:10.1f} {spread:>16} {row['speedup_over_torch']:8.1f} ", end=""
                )
                print(f"{row['max_error']:10.1e} {row['label_agreement']:9.4f}", flush=True)
    record = {
        **machine_record(("numpy", "torch")),
        "threads": THREADS,
        "repeats": args.repeats,
        "load_average": {"before": load, "after": os.getloadavg()},
        "rows": rows,
    }
    print(f"written: {save('learn_proxies', record)}")


if __name__ == "__main__":
    main()
