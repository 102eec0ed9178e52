"""What the rows of `gpu_bench.py` should take on an H200, from counted bytes and flops. Predictions, not measurements.

Hardware: NVIDIA's H200 data sheet and CUDA programming guide (132 multiprocessors, 64 float64 multiply-adds and 16
float64 conversions a clock and multiprocessor, 67 TFLOP/s of float64 on tensor cores, 4.8 TB/s, 50 MB of L2). Meetings
of blocks and the time of a PyTorch step are published measurements (docs/method.md 7: 174 us a step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from kpl_engine.cuda.base import DeviceInfo, Features
from kpl_engine.solver.device_cost import choose_form_on, step_seconds_on

__all__ = ["H200", "ROWS", "Row", "predict"]

H200 = DeviceInfo(0, "NVIDIA H200", (9, 0), 132, 232448, 50 << 20, 141 << 30, 13000)
_FEATURES = Features(has_graphs=True, has_cooperative=True, max_cluster=16)
_CLOCK, _BYTES, _TENSOR_DOUBLES, _TENSOR_HALVES = 1.7e9, 4.8e12, 67e12, 990e12
_GRID_MEETING, _CLUSTER_MEETING = 3.5e-6, 9e-7
_COPY_SHARE = 0.9  # of the data sheet's bandwidth that a plain copy reaches
_TORCH_STEP, _GRAPH_STEP = 174e-6, 25e-6  # seconds: about ten kernels, with a host synchronisation, and in a graph


@dataclass(frozen=True)
class Row:
    """One line of the table: ``kind`` says what runs, the goal is milliseconds unless it says otherwise."""

    name: str
    kind: str
    size: tuple[int, int, int]
    goal: float
    unit: str = "ms"
    labels: str = "stable_greenkhorn"
    min_speedup: float | None = None  # over plain PyTorch

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.kind in ("many", "preprocess")

    @property
    def title(self) -> str:
        return f"{self.name} {self.size}"


ROWS = (
    Row("schedule", "schedule", (138, 768, 2), 2.0, min_speedup=80),
    Row("schedule-662", "schedule", (662, 768, 2), 6.0),
    Row("schedule-27558", "schedule", (27558, 768, 2), 90.0),
    Row("schedule-50000", "schedule", (50000, 768, 1000), 2000.0, labels="sinkhorn"),
    Row("closed-form", "closed_form", (662, 768, 2), 0.5),
    Row("closed-form-1000", "closed_form", (1000, 768, 2), 0.5),
    Row("many", "many", (64, 768, 4), 100, unit="problems in the time of 2"),
    Row("whole", "whole", (64, 768, 5), 0.15, unit="ms beside the solver"),
    Row("preprocess", "preprocess", (64, 1920, 1080), 0.5, unit="of copy bandwidth"),
)


def _schedule(row: Row) -> tuple[float, str]:
    n, d, c = row.size
    form = choose_form_on(H200, _FEATURES, n, d, c, 2000)
    if form == "dual":
        step = step_seconds_on(H200, _FEATURES, form, n, d, c)
        return (
            2e6 * step,
            f"dual, {step * 1e6:.2f} us a step: 8 n^2 bytes from the chip, {2 * n * n * (c - 1):.2g} flops",
        )
    if c <= 9:
        resident = H200.num_multiprocessors * 1e5 + H200.l2_bytes / 2  # kept in shared memory, found in L2
        reading = (4 * n * d - resident) / _BYTES
        converting = n * d / (H200.num_multiprocessors * 16 * _CLOCK)
        step = max(reading, converting) + 2 * _GRID_MEETING
        return (
            2e6 * step,
            f"primal, {step * 1e6:.0f} us a step: {(4 * n * d - resident) / 1e6:.0f} MB read, 2 grid meetings",
        )
    flops = 4 * n * d * c
    step = flops / (0.7 * _TENSOR_DOUBLES) + 40 * n * c / _BYTES + 5 * _GRID_MEETING
    halves = 3 * flops / (0.42 * _TENSOR_HALVES) + 28 * n * c / (_COPY_SHARE * _BYTES) + 5 * _GRID_MEETING
    return 2e6 * step, (
        f"primal, {step * 1e3:.1f} ms a step: {flops:.3g} flops at 70 % of the float64 tensor cores; with products of "
        f"float16 halves, where labels allow them, {halves * 2e6:.0f} ms in all"
    )


def _closed_form(row: Row) -> tuple[float, str]:
    n, d, _ = row.size
    passes, cluster = 16, 16
    reading = 4 * ceil(n / cluster) * d / (128 * _CLOCK)  # X from shared memory
    step = reading + 2 * _CLUSTER_MEETING + 1e-6
    return 1e3 * (
        passes * step + 3e-5
    ), f"{passes} passes of {step * 1e6:.1f} us over X in shared memory, 30 us around them"


def _many(row: Row) -> tuple[float, str]:
    waves = ceil(1000 / H200.num_multiprocessors)
    return (
        1000 / waves,
        f"1000 blocks on {H200.num_multiprocessors} multiprocessors are {waves} waves of the time of one",
    )


def _whole(row: Row) -> tuple[float, str]:
    parts = {"text proxies": 8, "labels": 23}  # kernels/text_proxy.cu, refine_labels.cu
    return sum(parts.values()) / 1e3, ", ".join(f"{name} {spent} us" for name, spent in parts.items())


def _preprocess(row: Row) -> tuple[float, str]:
    n, width, height = row.size
    moved = n * 3 * (min(width, height) ** 2 + 224 * 224)
    instructions = n * height * 1.07 * 7 * 190  # of a warp; 7 strips of 32 columns, kernels/preprocess.cu
    seconds = max(instructions / (2.5 * H200.num_multiprocessors * _CLOCK), moved / (_COPY_SHARE * _BYTES))
    counted = f"{moved / 1e6:.0f} MB in {seconds * 1e3:.2f} ms: {instructions:.2g} instructions of a warp, 2.5 a clock"
    return moved / seconds / (_COPY_SHARE * _BYTES), counted


_KINDS: dict[str, Callable[[Row], tuple[float, str]]] = {
    "schedule": _schedule,
    "closed_form": _closed_form,
    "many": _many,
    "whole": _whole,
    "preprocess": _preprocess,
}


def predict(row: Row) -> dict[str, object]:
    """The figure in the row's unit, how it was counted, and the two PyTorch rivals of one problem in ms."""
    figure, counted = _KINDS[row.kind](row)
    found: dict[str, object] = {"prediction": figure, "unit": row.unit, "goal": row.goal, "counted": counted}
    if row.kind != "preprocess":
        n, d, c = row.size
        products = max(4 * n * d * c / 40e12, 8 * n * d / _BYTES)  # two passes over X; float32 on the plain units
        found["torch_ms"] = 2e6 * max(_TORCH_STEP, products)
        found["torch_graph_ms"] = 2e6 * max(_GRAPH_STEP, products)
    return found
