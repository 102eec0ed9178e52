"""The machine and the versions that a result names."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kpl_engine import __version__
from kpl_engine.bench.records import Machine
from kpl_engine.cuda.probe import probe
from kpl_engine.engine import Engine
from kpl_engine.solver import cpu

__all__ = ["describe_machine", "num_cores", "num_threads", "versions"]

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "pillow",
    "mlcommons-loadgen",
    "nvidia-ml-py",
    "cuda-core",
    "pycuda",
    "grpcio",
)
_GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


def describe_machine(root: Path = Path("/")) -> Machine:
    """Processor, memory, system, GPUs, clock governor, and the load before the run.

    ``cores`` are those that this process may use. ``root`` is where ``proc`` and ``sys`` are; on systems without them
    what they would say is empty, 0 or False.
    """
    processor = _fields(root / "proc/cpuinfo")
    memory = _fields(root / "proc/meminfo").get("MemTotal", "0 kB").split()
    return {
        "cpu": processor.get("model name") or platform.processor() or platform.machine(),
        "cores": num_cores(),
        "memory_bytes": int(memory[0]) * 1024,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "gpus": [gpu.name for gpu in probe().gpus],
        "governor": _text(root / _GOVERNOR),
        "is_virtual": "hypervisor" in processor.get("flags", "").split(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with; a package that is not installed is absent."""
    found = {"kpl-engine": __version__, "solver": cpu.describe()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    driver = probe().driver_version
    if driver:
        found["CUDA of the driver"] = f"{driver // 1000}.{driver % 1000 // 10}"
    return found


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(engine: Engine) -> int:
    """Threads of the encoder: as many as it was told, or one a core."""
    return engine.config.encoder.num_threads or num_cores()


def _fields(path: Path) -> dict[str, str]:
    """``name: value`` lines; of a name that stands several times, as one core after the other, the first."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
