"""Which GPU and which adapter. The only place that chooses; nothing of CUDA is imported before it is asked for."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kpl_engine.cuda.base import Driver
from kpl_engine.cuda.failures import release
from kpl_engine.cuda.images import Images, sources
from kpl_engine.cuda.kernel_cache import KernelCache, default_folder
from kpl_engine.cuda.probe import Probe, probe
from kpl_engine.errors import BackendUnavailableError, ConfigError, KplError

__all__ = ["compile_kernels", "describe", "explain_absence", "open_driver", "parse_device"]

_DEVICE = re.compile(r"(auto|cpu|cuda)(?::(\d{1,3}))?")
_ADAPTERS = ("auto", "cuda.core", "pycuda")
_OLDEST_DRIVER = 12000  # R525: the first with modules that belong to no context, which cuda.core loads
_OLDEST_GPU = (
    7,
    5,
)  # the first with a scheduler that lets the threads of a warp wait for each other, still compiled for
_OLDEST_CORE = 1  # before, launches were described in other words (LaunchConfig.cooperative_launch)
_INSTALL = 'pip install "kpl-engine[cuda]"'


def parse_device(device: str) -> tuple[str, int]:
    """``"cuda:1"`` as ``("cuda", 1)``; ``"cuda"``, ``"cpu"`` and ``"auto"`` with ordinal 0. Else `ConfigError`."""
    match = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if match is None or (match.group(2) and match.group(1) != "cuda"):
        raise ConfigError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    return match.group(1), int(match.group(2) or 0)


def explain_absence(ordinal: int = 0, found: Probe | None = None) -> str | None:
    """Why that GPU cannot be used, or None when driver and GPU will do. Costs microseconds without a driver.

    Parameters
    ----------
    ordinal : int
    found : Probe, optional
        What the driver said; asked now by default.
    """
    said = probe() if found is None else found
    if said.absence:
        return said.absence
    if said.driver_version < _OLDEST_DRIVER:
        return (
            f"the NVIDIA driver is too old: expected one for CUDA {release(_OLDEST_DRIVER)} (R525) or newer, "
            f"got CUDA {release(said.driver_version)}; update it"
        )
    if ordinal >= len(said.gpus):
        have = ", ".join(f"cuda:{number} {gpu.name}" for number, gpu in enumerate(said.gpus)) or "none"
        return f"there is no GPU {ordinal}: expected one of {have}; CUDA_VISIBLE_DEVICES may hide others"
    gpu = said.gpus[ordinal]
    if gpu.compute_capability < _OLDEST_GPU:
        return "{} has compute capability {}.{}: expected 7.5 (Turing) or newer; use another GPU".format(
            gpu.name, *gpu.compute_capability
        )
    return None


def open_driver(
    device: str = "cuda", adapter: str = "auto", *, cache_folder: Path | None = None, keeps_kernels: bool = True
) -> Driver:
    """The GPU asked for, opened.

    Parameters
    ----------
    device : "cuda", "cuda:N" or "auto"
        ``auto`` is the first GPU here: whether the CPU will do instead is the caller's choice.
    adapter : "auto", "cuda.core" or "pycuda"
        ``auto`` is pycuda where this thread has a pycuda context, else cuda.core, else pycuda.
    cache_folder : Path, optional
        Where kernels compiled on this machine are kept; by default in the user's cache folder.
    keeps_kernels : bool
        False keeps none.

    Raises
    ------
    BackendUnavailableError
        No driver, an old one, an unsupported GPU, or no adapter; with what to do.
    ConfigError
        Unknown device or adapter.
    """
    kind, ordinal = parse_device(device)
    if kind == "cpu":
        raise ConfigError("device: expected 'cuda' or 'cuda:N' to open a GPU, got 'cpu'")
    if adapter not in _ADAPTERS:
        raise ConfigError(f"adapter: expected one of {', '.join(_ADAPTERS)}, got {adapter!r}")
    said = probe()
    absence = explain_absence(ordinal, said)
    if absence is not None:
        raise BackendUnavailableError(f'cuda:{ordinal} is not available: {absence}. Or use device="cpu"')
    cache = KernelCache((cache_folder or default_folder()) if keeps_kernels else None)
    images = Images(said.gpus[ordinal].compute_capability, said.driver_version, cache)
    passed = []
    for name in _order(adapter):
        missing = _missing(name, said.driver_version)
        if not missing:
            return _open(name, ordinal, images)
        passed.append(missing)
    raise BackendUnavailableError(f'cuda:{ordinal} is not available: {"; ".join(passed)}. Or use device="cpu"')


def compile_kernels(
    device: str = "cuda",
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    cache_folder: Path | None = None,
    found: Probe | None = None,
) -> list[tuple[str, str]]:
    """Have every kernel ready for that GPU, so that no later process compiles any: (source, where its code is from).

    Raises
    ------
    BackendUnavailableError
        There is no such GPU.
    ConfigError
        Not a GPU.
    CudaModuleError
        A kernel cannot be compiled.
    """
    kind, ordinal = parse_device(device)
    if kind == "cpu":
        raise ConfigError("device: expected 'cuda' or 'cuda:N' to compile kernels for, got 'cpu'")
    said = probe() if found is None else found
    absence = explain_absence(ordinal, said)
    if absence is not None:
        raise BackendUnavailableError(f"cuda:{ordinal} is not available: {absence}")
    cache = KernelCache(cache_folder or default_folder())
    images = Images(said.gpus[ordinal].compute_capability, said.driver_version, cache)
    ready = []
    for number, source in enumerate(sources()):
        progress(number, len(sources()))
        ready.append((source, next(images.candidates(source)).origin))
    progress(len(ready), len(ready))
    return ready


def describe(ordinal: int = 0, found: Probe | None = None) -> tuple[bool, str]:
    """Whether GPU work can start here, and with what, or why not: for people. Opens no context, compiles nothing."""
    said = probe() if found is None else found
    absence = explain_absence(ordinal, said)
    if absence is not None:
        return False, absence
    missing = [_missing(name, said.driver_version) for name in _order("auto")]
    if all(missing):
        return False, "; ".join(missing)
    chosen = next(name for name, reason in zip(_order("auto"), missing, strict=True) if not reason)
    gpu = said.gpus[ordinal]
    try:
        kernels = Images(gpu.compute_capability, said.driver_version, KernelCache(default_folder())).describe()
    except KplError as error:
        return False, str(error)
    capability = "{}.{}".format(*gpu.compute_capability)
    return True, (
        f"{adapter_version(chosen)} on {gpu.name} (compute capability {capability}, "
        f"driver for CUDA {release(said.driver_version)}); kernels: {kernels}"
    )


def adapter_version(name: str) -> str:
    """``"cuda.core 1.2.2"``."""
    try:
        return f"{name} {version('cuda-core' if name == 'cuda.core' else name)}"
    except PackageNotFoundError:
        return name


def _order(adapter: str) -> tuple[str, ...]:
    if adapter != "auto":
        return (adapter,)
    return ("pycuda", "cuda.core") if _host_uses_pycuda() else ("cuda.core", "pycuda")


def _host_uses_pycuda() -> bool:
    """Whether this thread has a pycuda context: it need not be the primary one, which is all that cuda.core uses."""
    module: Any = sys.modules.get("pycuda.driver")
    if module is None:
        return False
    return module.Context.get_current() is not None


def _missing(name: str, driver_version: int) -> str:
    """Why that adapter cannot be used, or nothing."""
    if name == "pycuda":
        return "" if importlib.util.find_spec("pycuda") else "pycuda is not installed (pip install pycuda)"
    try:
        bindings = int(version("cuda-bindings").split(".")[0])
        core = version("cuda-core")
    except PackageNotFoundError as error:
        return f"{error.name} is not installed ({_INSTALL})"
    if int(core.split(".")[0]) < _OLDEST_CORE:
        return f"cuda-core {core} is too old: expected {_OLDEST_CORE}.2 or newer ({_INSTALL})"
    major = driver_version // 1000
    if bindings > major:
        return (
            f"cuda-bindings is for CUDA {bindings} and the driver for CUDA {release(driver_version)}: "
            f'update the driver, or pip install "cuda-core[cu{major}]"'
        )
    return ""


def _open(name: str, ordinal: int, images: Images) -> Driver:
    if name == "pycuda":
        from kpl_engine.cuda.pycuda import open_pycuda

        return open_pycuda(ordinal, images)
    from kpl_engine.cuda.cuda_core import open_cuda_core

    return open_cuda_core(ordinal, images)
