"""Time and peak memory of what runs in a call, against n, c, d, descriptions and knowledge bases.

    OMP_NUM_THREADS=2 python benchmarks/scaling.py            # writes results/scaling-<date>.json and docs/scaling.svg
    python benchmarks/scaling.py --quick                      # under 2 minutes, results/scaling-quick-<date>.json

Each axis is varied alone, the others at n = 662, d = 768, c = 2 (c = 10 along m and b), m = 12, b = 1. The calls of
an axis are timed in turns, one after the other over all points, and the medians are fitted in log-log with intervals
by resampling (`scaling_fit.py`). A point that would take longer than ``--limit``, or more memory than there is, is
predicted from its neighbour by the counted work (`scaling_counts.py`) and marked so; it takes no part in a fit. The
shares of a point are the times its counted bytes and its counted flops take at least, at this machine's ceilings
(`scaling_ceilings.py`), over the time measured; a share of bytes above 1 says that a cache held them. Every answer is
held to the float64 reference before it is timed (`scaling_points.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))
os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)  # read when NumPy loads, hence before it is imported

import scaling_ceilings  # noqa: E402
import scaling_fit  # noqa: E402
import scaling_points  # noqa: E402
from record import ROOT, machine_record, save  # noqa: E402
from scaling_counts import Size, Work  # noqa: E402
from scaling_expected import expected, regimes  # noqa: E402
from scaling_memory import available_bytes, peak_bytes  # noqa: E402
from scaling_picture import draw  # noqa: E402
from scaling_points import WORK, Call, inputs, make_call  # noqa: E402

from kpl_engine.solver import cpu  # noqa: E402

_SOLVER = ("text proxies", "labels", "schedule", "auto", "classify batch", "classify frozen")
AXES: dict[str, tuple[Size, tuple[int, ...], tuple[str, ...]]] = {
    "n": (Size(662, 768, 2, 12), (1, 4, 16, 64, 138, 320, 662, 1500, 4000, 10000, 25000, 50000), _SOLVER),
    "c": (Size(662, 768, 2, 12), (2, 3, 5, 8, 12, 14, 20, 50, 100, 160, 200, 500, 1000), _SOLVER),
    "d": (Size(662, 768, 2, 12), (256, 384, 512, 640, 768, 896, 1024, 1280), _SOLVER),
    "m": (Size(662, 768, 10, 12), (10, 30, 100, 200, 400, 700, 1000), ("text proxies", *_SOLVER[-2:])),
    "b": (Size(662, 768, 10, 12), (1, 2, 4, 8, 16, 32, 64), ("load", "classify each")),
}
QUICK = {"n": (16, 138, 662, 1500), "c": (2, 5, 12, 50), "d": (256, 512, 1024), "m": (10, 100, 1000), "b": (1, 4, 16)}
_SHORT_S = 0.02  # shorter calls are timed five times a turn
_PAUSE_S = 0.12  # OpenBLAS's threads spin for 0.1 s after a product, on a core that the next call needs
_HEADROOM = 0.6  # of the memory available, at most


@dataclass
class Point:
    """One call at one size."""

    call: str
    axis: str
    x: int
    size: Size
    regime: str
    counted: Work
    ceiling_s: float
    status: str = "measured"  # or "predicted: why"
    seconds: float = 0.0
    runs: list[float] = field(default_factory=list)
    share_bytes: float = 0.0  # of the copy's rate; above 1 what was counted came from a cache
    share_flops: float = 0.0  # of the float64 product's rate, exponentials among them at their own
    checked_on: str = ""
    wrong: str = ""
    memory: dict[str, int] | None = None

    @property
    def path(self) -> str:
        """The regime without its counts."""
        return ", ".join(self.regime.split(", ")[:2])

    @property
    def is_measured(self) -> bool:
        """Whether the time was measured and its answer is right."""
        return self.status == "measured" and not self.wrong


def make_points(axis: str, values: tuple[int, ...], ceilings: scaling_ceilings.Ceilings) -> list[Point]:
    """All points of an axis, in order of x, nothing measured yet."""
    default, _, names = AXES[axis]
    points = []
    for x in values:
        size = default._replace(**{axis: x})
        for name in names:
            work = WORK[name](size)
            least = ceilings.seconds(work)
            points.append(Point(name, axis, x, size, regimes(name, size), work, least))
    return points


def input_bytes(size: Size) -> int:
    """Inputs of a point with the float64 copies its making and checking take."""
    return (
        8 * size.d * (6 * size.n + 3 * size.c * size.m + 3 * size.d)
        + 64 * size.n * size.c
        + 4 * size.b * size.c * size.m * size.d
    )


def why_not(point: Point, before: Point | None, limit_s: float) -> str:
    """Why a point is predicted instead of measured, or nothing; sets its predicted time."""
    # Where no neighbour on the same path says more: shares of a third of a ceiling are the rule for large sizes.
    is_alike = before is not None and before.path == point.path
    ratio = before.seconds / before.ceiling_s if before is not None and is_alike else 3.0
    point.seconds = point.ceiling_s * ratio
    needed, there = input_bytes(point.size), available_bytes()
    if needed > _HEADROOM * there:
        return f"needs about {needed / 2**30:.1f} GiB, {there / 2**30:.1f} are available"
    if point.seconds > limit_s:
        return f"about {point.seconds:.3g} s a call, more than the limit of {limit_s:g} s"
    return ""


def scout(points: list[Point], limit_s: float, folder: Path, ceilings: scaling_ceilings.Ceilings) -> dict[int, Call]:
    """Make, check and run each call once; what would take too long is predicted."""
    calls: dict[int, Call] = {}
    last: dict[str, Point] = {}
    beside: dict[int, Any] = {}
    for index, point in enumerate(points):
        reason = why_not(point, last.get(point.call), limit_s)
        if reason:
            point.status = f"predicted: {reason}"
            continue
        call = make_call(point.call, point.size, folder)
        point.checked_on, point.wrong = call.checked_on, call.check()
        start = time.perf_counter()
        result = call.run()
        point.seconds = time.perf_counter() - start
        count_steps(point, result, beside, ceilings)
        calls[index], last[point.call] = call, point
    inputs.cache_clear()
    return calls


def take_turns(points: list[Point], calls: dict[int, Call], rounds: int) -> None:
    """Time every call once a round (five times if short), so that a disturbance hits all points alike."""
    for _ in range(rounds):
        for index, call in calls.items():
            time.sleep(_PAUSE_S)
            for _ in range(5 if points[index].seconds < _SHORT_S else 1):
                start = time.perf_counter()
                call.run()
                points[index].runs.append(time.perf_counter() - start)
    for index in calls:
        points[index].seconds = statistics.median(points[index].runs)


def curves(points: list[Point]) -> list[dict[str, Any]]:
    """Fitted exponents of each call along its axis, beside the expected ones."""
    found = []
    for name in dict.fromkeys(point.call for point in points):
        mine = [point for point in points if point.call == name and point.is_measured]
        pieces = scaling_fit.fit([point.x for point in mine], [point.runs for point in mine])
        for piece in pieces:
            part = [point for point in mine if piece.first <= point.x <= piece.last]
            wanted = expected(name, part[0].axis, [p.size for p in part], [p.ceiling_s for p in part])
            found.append(
                {
                    "call": name,
                    "axis": part[0].axis,
                    **asdict(piece),
                    "expected": [wanted.low, wanted.high],
                    "reason": wanted.reason,
                    "leaves_expected": scaling_fit.leaves(piece, (wanted.low, wanted.high)),
                    "regimes": list(dict.fromkeys(p.regime for p in part if p.regime)),
                }
            )
    return found


def share_out(point: Point, ceilings: scaling_ceilings.Ceilings) -> None:
    """The shares of a point in the copy's rate and in the product's."""
    point.share_bytes = ceilings.moving(point.counted) / point.seconds
    point.share_flops = ceilings.computing(point.counted) / point.seconds


def count_steps(point: Point, result: Any, beside: dict[int, Any], ceilings: scaling_ceilings.Ceilings) -> None:
    """Count the steps that were taken, and say which path: a schedule may end early, a closed form be refused."""
    if point.call in ("schedule", "auto"):
        beside[point.x] = result
    took = beside.get(point.x)
    if took is None or point.call not in ("schedule", "auto", "classify batch") or "text" in point.regime:
        return
    point.regime = f"{took.solver.replace('_', ' ')}, {took.form}, {took.iterations} steps"
    if took.solver == "closed_form":
        point.regime = f"closed form, n {'<' if point.size.n < point.size.d else '>='} d, {took.iterations} corrections"
    point.counted = WORK[point.call](point.size, took.iterations)
    point.ceiling_s = ceilings.seconds(point.counted)


def measure_axis(axis: str, args: argparse.Namespace, ceilings: scaling_ceilings.Ceilings) -> list[Point]:
    """Points of one axis with times, shares and memory."""
    values = QUICK[axis] if args.quick else AXES[axis][1]
    points = make_points(axis, args.values or values, ceilings)
    with tempfile.TemporaryDirectory(prefix="kpl-scaling-") as folder:
        calls = scout(points, args.limit, Path(folder), ceilings)
        take_turns(points, calls, args.rounds)
    for index, point in enumerate(points):
        share_out(point, ceilings)
        # A process takes seconds to make its inputs: in short only the largest size of each call has one.
        if index in calls and not args.no_memory and (not args.quick or point.x == points[-1].x):
            point.memory = peak_bytes(point.call, tuple(point.size), 60 + 4 * args.limit)
    return points


def show(points: list[Point], fits: list[dict[str, Any]]) -> None:
    """The terminal tables of one axis."""
    head = f"{'call':>16} {'size':>9} {'median ms':>11} {'bytes':>6} {'flops':>6} {'added MiB':>10} {'held MiB':>9}"
    print(f"{head}  path, status")
    for point in points:
        values = ", ".join(f"{key}={value}" for key, value in point.size._asdict().items() if key == point.axis)
        memory = point.memory or {}
        added, held = (f"{memory[key] / 2**20:.1f}" if memory else "-" for key in ("added", "held"))
        words = ", ".join(filter(None, (point.regime, point.status, f"WRONG: {point.wrong}" if point.wrong else "")))
        shares = f"{point.share_bytes:6.0%} {point.share_flops:6.0%}"
        line = f"{point.call:>16} {values:>9} {point.seconds * 1e3:11.3f} {shares} {added:>10} {held:>9}"
        print(f"{line}  {words}")
    for fit in fits:
        low, high = fit["expected"]
        mark = "  LEAVES THE EXPECTED" if fit["leaves_expected"] else ""
        print(
            f"  {fit['call']:>16} ~ {fit['axis']}^{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}] ", end=""
        )
        print(f"for {fit['axis']} = {fit['first']:g} .. {fit['last']:g}; counted {low:.2f} .. {high:.2f}{mark}", end="")
        print(f" ({fit['reason']})", flush=True)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, two rounds, no picture; under 2 minutes")
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--values", nargs="+", type=int, help="points instead of the stated ones, with one --axes")
    parser.add_argument("--rounds", type=int, default=None, help="turns over all points (7; quick: 2)")
    parser.add_argument(
        "--limit", type=float, default=None, help="seconds of one call above which it is predicted (30; 1)"
    )
    parser.add_argument("--no-memory", action="store_true", help="no processes that measure peak memory")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--picture", type=Path, default=None, help="default docs/scaling.svg, none with --quick")
    args = parser.parse_args(words)
    if args.values and (len(args.axes) != 1 or min(args.values) < 1):
        parser.error("--values: expected numbers >= 1 and exactly one axis in --axes")
    args.values = tuple(sorted(set(args.values))) if args.values else None
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.limit = args.limit or (1.0 if args.quick else 30.0)
    return args


def main(words: list[str] | None = None) -> int:
    """0 if every measured answer was right, else 1."""
    args = arguments(words)
    if args.quick:
        scaling_points.CHECKED = 30_000  # 2000 reference steps in a tenth of a second
    load, ceilings = os.getloadavg(), scaling_ceilings.measure(THREADS)
    print(f"{cpu.describe()}; {THREADS} threads; copy {ceilings.copy_bytes / 1e9:.1f} GB/s, ", end="")
    print(
        f"products {ceilings.float32_flops / 1e9:.0f} (float32), {ceilings.float64_flops / 1e9:.0f} (float64) GFLOP/s"
    )
    points: list[Point] = []
    fits: list[dict[str, Any]] = []
    for axis in args.axes:
        mine = measure_axis(axis, args, ceilings)
        found = curves(mine)
        show(mine, found)
        points, fits = points + mine, fits + found
    record = {
        **machine_record(("numpy", "kpl-engine")),
        "solver": cpu.describe(),
        "threads": THREADS,
        "rounds": args.rounds,
        "limit_s": args.limit,
        "load_average": {"before": load, "after": os.getloadavg()},
        "ceilings": ceilings.record(),
        "points": [{**asdict(point), "size": point.size._asdict()} for point in points],
        "fits": fits,
    }
    if not args.no_save:
        print(f"written: {save('scaling' + ('-quick' if args.quick else ''), record)}")
    picture = args.picture or (None if args.quick or args.no_save else ROOT / "docs" / "scaling.svg")
    if picture:
        picture.write_text(draw(record))
        print(f"written: {picture}")
    return 1 if any(point.wrong for point in points) else 0


if __name__ == "__main__":
    raise SystemExit(main())
