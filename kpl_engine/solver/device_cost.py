"""What a step of the schedule costs on a GPU: the model that chooses its form.

Counted, not measured: multiply-adds of both forms at the GPU's float64 rate, the bytes that a step reads from where
they fit, and the meetings of the blocks that share a run. Only the ratio of the two forms matters, and it is far from
one at most sizes. The figures of the hardware are NVIDIA's (CUDA programming guide, throughput of native arithmetic;
H200 data sheet) and published measurements of barriers.
"""

from __future__ import annotations

from dataclasses import dataclass

from kpl_engine.cuda.base import DeviceInfo, Features
from kpl_engine.solver.schedule import Form

__all__ = ["choose_form_on", "step_seconds_on"]

_CLOCK = 1.7e9  # Hz; scales nearly every term of both forms alike
_FULL_DOUBLES = frozenset(((8, 0), (9, 0), (10, 0)))  # GPUs with 64 (8.0: 32) float64 multiply-adds a clock an SM
_DOUBLES = {True: 64.0, False: 2.0}  # multiply-adds a clock a multiprocessor
_CONVERSIONS = 16.0  # float32 to float64, a clock a multiprocessor
_SHARED_BYTES = 128.0  # read a clock a multiprocessor
_L2_BYTES = 5e12  # a second
_MEMORY_BYTES = 3.5e12  # a second; a small GPU is ten times slower, in both forms
_REGISTER_BYTES = 1 << 17  # of one multiprocessor that may hold K
_BLOCK_SECONDS = 3.5e-7  # two barriers, three sums over a warp, a root, an exponential, one after the other
_CLUSTER_SECONDS = 9e-7
_GRID_SECONDS = 3.5e-6  # two barriers through the L2 cache


@dataclass(frozen=True)
class _Gpu:
    info: DeviceInfo
    features: Features

    @property
    def doubles(self) -> float:
        return _DOUBLES[self.info.compute_capability in _FULL_DOUBLES] * _CLOCK

    def reading(self, nbytes: float) -> float:
        return nbytes / (_L2_BYTES if nbytes <= self.info.l2_bytes else _MEMORY_BYTES)

    def team(self, nbytes: float) -> tuple[int, float]:
        """Multiprocessors that share a run whose matrix has ``nbytes``, and the seconds of their meetings a step."""
        one = self.info.max_shared_bytes + _REGISTER_BYTES
        if nbytes <= one:
            return 1, _BLOCK_SECONDS
        if nbytes <= one * self.features.max_cluster:
            return self.features.max_cluster, _CLUSTER_SECONDS
        if self.features.has_cooperative:
            return self.info.num_multiprocessors, _GRID_SECONDS
        return 1, _BLOCK_SECONDS


def step_seconds_on(info: DeviceInfo, features: Features, form: Form, n: int, d: int, c: int) -> float:
    """Predicted seconds of one step."""
    gpu, columns = _Gpu(info, features), max(c - 1, 1)
    if form == "dual":
        matrix = 8.0 * n * n
        blocks, meetings = gpu.team(matrix)
        rate = blocks * gpu.doubles
        is_on_chip = matrix <= blocks * (info.max_shared_bytes + _REGISTER_BYTES)
        reading = matrix / (blocks * _SHARED_BYTES * _CLOCK) if is_on_chip else gpu.reading(matrix)
        return meetings + max(float(n) * n * columns / rate, reading)
    blocks, meetings = (info.num_multiprocessors, _GRID_SECONDS) if features.has_cooperative else (1, _BLOCK_SECONDS)
    rate, size = blocks * gpu.doubles, float(n) * d
    return meetings + max(2.0 * size * columns / rate, size / (blocks * _CONVERSIONS * _CLOCK), gpu.reading(4.0 * size))


def choose_form_on(info: DeviceInfo, features: Features, n: int, d: int, c: int, iters: int) -> Form:
    """The form whose ``iters`` steps, with what it does once, are predicted to take less on that GPU."""
    once = 0.5 * n * n * d / (info.num_multiprocessors * _Gpu(info, features).doubles)
    if 8 * n * n > info.total_bytes // 4:
        return "primal"
    dual = once + iters * step_seconds_on(info, features, "dual", n, d, c)
    return "dual" if dual <= iters * step_seconds_on(info, features, "primal", n, d, c) else "primal"
