"""What a run used: processor, memory, and of the GPU what its driver tells. What cannot be measured is absent."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from kpl_engine.bench.nvml import Gpu, open_gpu
from kpl_engine.bench.records import Resources
from kpl_engine.bench.settings import BenchSettings

__all__ = ["Meter"]

_PERIOD_S = 0.1  # between samples of what has no counter: device memory, power, a peak that cannot be reset
_RESET_PEAK = "5"  # written to clear_refs: the peak of resident memory becomes what is resident now


@dataclass
class _Sampled:
    """What was seen from time to time."""

    resident: list[int] = field(default_factory=list)
    device_memory: list[int] = field(default_factory=list)
    power: list[float] = field(default_factory=list)


class Meter:
    """Measures one process between entering and leaving.

    ``with Meter(settings) as meter: ...``, then ``meter.resources(num_samples)``. A thread wakes ten times a second
    for what has no counter; where everything has one it is not started.

    Parameters
    ----------
    settings : BenchSettings
        With a ``url`` the process is the client, and the GPU of this machine says nothing of the server's.
    pid : int, optional
        Default: this process.
    gpu : Gpu, optional
        Default: the one the process computes on, if `open_gpu` finds it. Closed on leaving.
    proc : Path
        Where the kernel tells; without it the fields are absent.
    """

    def __init__(
        self,
        settings: BenchSettings,
        *,
        pid: int | None = None,
        gpu: Gpu | None = None,
        proc: Path = Path("/proc"),
    ) -> None:
        self._of = "this process" if settings.url is None else "the client"
        self._pid = os.getpid() if pid is None else pid
        self._proc = proc
        if gpu is None and settings.url is None:
            gpu = open_gpu(settings.device, self._pid)
        self._gpu = gpu
        self._sampled = _Sampled()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._resets_peak = False

    def resources(self, num_samples: int) -> Resources:
        """What was used, after leaving; ``num_samples`` divides what is told for each of them."""
        found: Resources = {"of": self._of}
        seconds = self._seconds
        if self._cpu_s is not None:
            found["cpu_cores"] = self._cpu_s / seconds
            if num_samples:
                found["cpu_s_per_sample"] = self._cpu_s / num_samples
            if self._busy_s is not None:
                # Both count in ticks of 10 ms at different moments, so that a quiet machine may seem less than idle.
                found["other_cores"] = max(0.0, (self._busy_s - self._cpu_s) / seconds)
        if self._resident is not None:
            found["resident_bytes"] = self._resident
        if self._sampled.device_memory:
            found["device_memory_bytes"] = max(self._sampled.device_memory)
        if self._energy_j is not None:
            found["device_power_w"] = self._energy_j / seconds
            if num_samples:
                found["device_j_per_sample"] = self._energy_j / num_samples
        return found

    def __enter__(self) -> Meter:
        self._resets_peak = self._reset_peak()
        if self._gpu is not None or not self._resets_peak:
            self._sample()
            self._thread = threading.Thread(target=self._watch, name="kpl-meter", daemon=True)
            self._thread.start()
        self._energy = None if self._gpu is None else self._gpu.energy_j()
        self._cpu, self._busy, self._started = self._cpu_seconds(), self._busy_seconds(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seconds = time.perf_counter() - self._started
        self._cpu_s = _difference(self._cpu, self._cpu_seconds())
        self._busy_s = _difference(self._busy, self._busy_seconds())
        counted = _difference(self._energy, None if self._gpu is None else self._gpu.energy_j())
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._sample()
        self._energy_j = counted
        if counted is None and self._sampled.power:
            self._energy_j = sum(self._sampled.power) / len(self._sampled.power) * self._seconds
        self._resident = self._status("VmHWM") if self._resets_peak else max(self._sampled.resident, default=None)
        if self._gpu is not None:
            self._gpu.close()

    def _watch(self) -> None:
        while not self._over.wait(_PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        if not self._resets_peak and (resident := self._status("VmRSS")) is not None:
            self._sampled.resident.append(resident)
        if self._gpu is not None:
            if (memory := self._gpu.memory_bytes()) is not None:
                self._sampled.device_memory.append(memory)
            if (power := self._gpu.power_w()) is not None:
                self._sampled.power.append(power)

    def _reset_peak(self) -> bool:
        try:
            (self._proc / str(self._pid) / "clear_refs").write_text(_RESET_PEAK)
        except OSError:
            return False
        return True

    def _status(self, name: str) -> int | None:
        """A size in /proc/<pid>/status, in bytes."""
        with suppress(OSError):
            for line in (self._proc / str(self._pid) / "status").read_text().splitlines():
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
        return None

    def _cpu_seconds(self) -> float | None:
        """Of all threads of the process, those that ended included."""
        if self._pid == os.getpid():
            return time.process_time()
        with suppress(OSError):
            # The name of the program, in brackets, may hold spaces and brackets itself.
            fields = (self._proc / str(self._pid) / "stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None

    def _busy_seconds(self) -> float | None:
        """Of all cores, by anybody: user, nice, system, interrupts. What a hypervisor stole is not work done here."""
        with suppress(OSError):
            ticks = [int(each) for each in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:8]]
            user, nice, system, _idle, _waiting, hard, soft = ticks
            return (user + nice + system + hard + soft) / os.sysconf("SC_CLK_TCK")
        return None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
