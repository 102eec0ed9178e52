"""`kpl-engine serve` against the bare encoder, against itself under load, and against a real Triton.

One ViT-B-32 with random weights (the time of a matrix product does not depend on what is in it) and fitted proxies;
64 JPEG files of 500 x 375. Every reply is compared with the answer to its picture alone. The load generator is a
process of its own on the same cores: the shares of images/s carry its cost, `cpu share` does not.

    python benchmarks/serving.py --quick                       # under four minutes
    python benchmarks/serving.py --triton VENV      # under twenty, with the rival (serving_rivals.py)
    python benchmarks/serving.py --soak 60                     # an hour of mixed load instead
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load.client import Generator, Worker
from record import ROOT, machine_record, save
from serving_processes import Served, start_kpl
from serving_rivals import start_triton, version_in
from serving_rounds import MAX_BATCH, Bench, ideal_open_loop, run_open, run_overload, run_rounds, shares
from serving_setup import make_work
from tables_serving import millis, open_rows, share_rows

PACKAGES = ("kpl-engine", "onnxruntime", "numpy", "pillow", "starlette", "uvicorn", "grpcio", "tritonclient")
OURS = ["--drain-accept", "0s"]  # only how it stops; all else is the default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short turns")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "serving", help="bundle and requests are kept here"
    )
    parser.add_argument("--triton", type=Path, help="virtual environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load for so long instead of the figures")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    record = machine_record(PACKAGES) | {"load_average": os.getloadavg(), "work": make_work(args.work)}
    if args.soak is not None:
        from serving_soak import soak

        record["soak"] = soak(args.work, args.soak, OURS)
        told = ("counts", "slope", "p99_ms", "wrong", "is_running_after", "exit_code")
        print(json.dumps({name: record["soak"][name] for name in told}, indent=1))
        print(f"-> {save('serving-soak', record)}")
        return
    record |= measure(args)
    print(f"-> {save('serving-quick' if args.quick else 'serving', record)}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures but the soak."""
    rounds, seconds, open_s, windows = (3, 4.0, 12.0, 1) if args.quick else (7, 6.0, 50.0, 2)
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(Worker("serving_bare.py", str(args.work), str(MAX_BATCH)))
        kpl = stack.enter_context(start_kpl([args.work / "lung.kpl"], args.work, OURS))
        footprint = {"kpl-engine": {"ready_s": kpl.ready_s, **kpl.usage()}}
        rivals = [stack.enter_context(each) for each in _rivals(args)]
        footprint |= {each.name: {"ready_s": each.ready_s, **each.usage()} for each in rivals}
        bench = Bench(args.work, stack.enter_context(Generator()), bare, kpl, rivals)
        samples = run_rounds(bench, rounds, seconds)
        table = shares(samples)
        print_shares(table)
        steps = bare.ask(what="steps", seconds=9 if args.quick else 27)
        capacity = {kind: table[f"kpl http {kind}"]["images_per_s"] for kind in ("jpeg", "pixels")}
        opened = run_open(bench, capacity, open_s, windows)
        opened["ideal_pixels"] = ideal_open_loop(steps["batch_s"], 0.7 * capacity["pixels"])
        print_open(opened)
        over = run_overload(bench, capacity["jpeg"], open_s)
        print_overload(over)
        footprint["kpl-engine after"] = kpl.usage()
    print_footprint(footprint)
    packages = ("nvidia-pytriton", "onnxruntime") if args.triton else ()
    versions = {package: version_in(args.triton, package) for package in packages}
    return {
        "rival_versions": versions,
        "shares": table,
        "samples": samples,
        "bare_steps": steps,
        "open_loop": opened,
        "overload": over,
        "footprint": footprint,
    }


def _rivals(args: argparse.Namespace) -> Iterator[Served]:
    """Triton with ONNX Runtime's threads asleep between batches, and with them spinning: which is the stronger rival
    depends on who else needs the cores, so both are measured and both are told."""
    for name, spins in {"triton": False, "triton-spinning": True}.items() if args.triton else ():
        threads = os.cpu_count() or 1
        yield start_triton(args.triton, args.work, name, max_batch=MAX_BATCH, threads=threads, spins=spins)


def print_shares(table: dict[str, dict[str, Any]]) -> None:
    """Rows of the README."""
    print("\n".join(share_rows(table)))
    most = max(row["foreign_cpu_cores"] for row in table.values())
    print(f"other processes kept up to {most:.2f} cores busy{'' if most < 0.1 else ': NOT a quiet machine'}\n")


def print_open(opened: dict[str, Any]) -> None:
    """Rows of the README; the median over windows, with the count of each."""
    single = {"jpeg": opened["single_jpeg"]["p50_ms"], "pixels": opened["single_pixels"]["p50_ms"]}
    print(f"one request alone: jpeg {single['jpeg']:.1f} ms, pixels {single['pixels']:.1f} ms (p50)")
    print("\n".join(open_rows(opened)) + "\n")


def print_overload(over: dict[str, Any]) -> None:
    """One line."""
    rss, refusal = over["rss_mib"], over["refusal"]
    print(
        f"200 %: goodput {over['goodput_share']:.1%} of peak; {refusal['count']} refusals, "
        f"p50 {millis(refusal['p50_ms'])}, p99 {millis(refusal['p99_ms'])}; "
        f"RSS {rss['first']:.0f} -> {rss['last']:.0f} MiB (most {rss['most']:.0f}); {over['codes']}\n"
    )


def print_footprint(footprint: dict[str, dict[str, float]]) -> None:
    """One line a server."""
    for name, row in footprint.items():
        ready = f"ready after {row['ready_s']:.2f} s, " if "ready_s" in row else ""
        print(f"{name}: {ready}{row['rss_mib']:.0f} MiB, {row['threads']:.0f} threads, {row['fds']:.0f} files")


if __name__ == "__main__":
    main()
