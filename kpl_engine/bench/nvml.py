"""What NVIDIA's driver tells of one GPU, through NVML; whatever it does not tell is None."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Gpu", "open_gpu"]

_T = TypeVar("_T")


class Gpu:
    """One GPU. A driver that refuses or fails gives None, now and later; it never ends the run.

    Parameters
    ----------
    nvml : module
        ``pynvml``, initialised.
    handle
        Of the GPU.
    pid : int
        The process whose memory is told.
    """

    def __init__(self, nvml: Any, handle: Any, pid: int) -> None:
        self._nvml, self._handle, self._pid = nvml, handle, pid

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded, of the whole board and whoever uses it."""
        told = self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if told is None else told / 1e3

    def power_w(self) -> float | None:
        """Watts of the whole board, as the driver averages them."""
        told = self._ask(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle))
        return None if told is None else told / 1e3

    def memory_bytes(self) -> int | None:
        """Device memory of the process. None also in a container, where the driver knows it by another number."""
        found = self._ask(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        used = [each.usedGpuMemory for each in found if each.pid == self._pid]
        return int(used[0]) if used and used[0] is not None else None

    def close(self) -> None:
        """Leave NVML."""
        self._ask(self._nvml.nvmlShutdown)

    def _ask(self, question: Callable[[], _T]) -> _T | None:
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def open_gpu(device: str, pid: int | None = None) -> Gpu | None:
    """The GPU that the process computes on, or None.

    CUDA and NVML number GPUs differently, so it is found by the process: the one that lists it. Where none does (a
    container has numbers of its own) it is the only one, if a GPU was asked for by name; among several nothing is
    guessed. None also without the package ``nvidia-ml-py`` or without a driver.
    """
    if device == "cpu":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    pid = os.getpid() if pid is None else pid
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    gpus = _list_gpus(pynvml, pid)
    mine = [gpu for gpu in gpus if gpu.memory_bytes() is not None]
    if not mine and len(gpus) == 1 and device.startswith("cuda"):
        mine = gpus
    if len(mine) == 1:
        return mine[0]
    pynvml.nvmlShutdown()
    return None


def _list_gpus(nvml: Any, pid: int) -> list[Gpu]:
    try:
        return [Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(i), pid) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
