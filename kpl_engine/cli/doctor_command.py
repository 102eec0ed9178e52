"""``kpl-engine doctor``: what this machine has and what each back end is missing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kpl_engine import __version__
from kpl_engine.cli.common import format_table, progress_bar, to_json
from kpl_engine.cuda.failures import release
from kpl_engine.cuda.probe import Probe, probe
from kpl_engine.cuda.select import compile_kernels, describe, explain_absence
from kpl_engine.encoder import tensorrt_library
from kpl_engine.solver import cpu

__all__ = ["add_parser", "examine", "run"]

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "pycuda",
    "pillow",
    "safetensors",
    "ftfy",
    "regex",
    "tokenizers",
)
_EXPORT_PACKAGES = ("torch", "open_clip_torch", "onnx", "onnxscript", "transformers")
_CPU_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_tile", "asimd", "asimddp", "sve")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has and what is missing",
        description="Versions, providers, CPU features, GPU, and what is missing for each back end.",
        epilog="examples:\n  kpl-engine doctor --json\n  kpl-engine doctor --compile-kernels --device cuda:1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print a record")
    parser.add_argument(
        "--compile-kernels",
        action="store_true",
        help="compile the GPU kernels that are not yet, so that no later process has to",
    )
    parser.add_argument("--device", default="cuda", help="the GPU they are for: cuda or cuda:N (default: cuda)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit code 1 when the CPU back end cannot work."""
    compiled = _compile(args.device) if args.compile_kernels else None
    found = examine()
    if compiled is not None:
        found["kernels"] = compiled
    if args.json:
        print(to_json(found))
    else:
        print(f"kpl-engine {found['kpl_engine']}, Python {found['python']}, {found['platform']}")
        print(f"cpu: {found['cpu']['model']}, {found['cpu']['cores']} cores, {' '.join(found['cpu']['features'])}")
        print(f"gpu: {found['gpu']}")
        print(f"onnxruntime providers: {', '.join(found['providers']) or 'none'}")
        packages = [[name, number or "not installed"] for name, number in found["packages"].items()]
        print(f"\n{format_table(['package', 'version'], packages)}")
        backends = [[b["name"], "ready" if b["ready"] else "missing", b["detail"]] for b in found["backends"]]
        print(f"\n{format_table(['back end', 'state', 'detail'], backends)}")
        if compiled is not None:
            print(f"\n{format_table(['kernels', 'from'], [list(pair) for pair in compiled.items()])}")
    return 0 if next(b for b in found["backends"] if b["name"] == "encoder: cpu")["ready"] else 1


def _compile(device: str) -> dict[str, str]:
    with progress_bar("compiling kernels") as progress:
        return dict(compile_kernels(device, progress))


def examine() -> dict[str, Any]:
    """Everything `run` prints, as plain data. Changes nothing and starts no back end."""
    packages = {name: _version(name) for name in (*_PACKAGES, *_EXPORT_PACKAGES, "pydicom")}
    providers = _providers()
    found = probe()
    return {
        "kpl_engine": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "features": _cpu_features()},
        "gpu": _gpus(found),
        "gpus": [{"name": gpu.name, "compute_capability": gpu.compute_capability} for gpu in found.gpus],
        "cuda_driver": release(found.driver_version) if found.driver_version else None,
        "providers": providers,
        "packages": packages,
        "backends": _backends(packages, providers, found),
    }


def _backends(packages: dict[str, str | None], providers: list[str], found: Probe) -> list[dict[str, Any]]:
    absent = [name for name in _EXPORT_PACKAGES if packages[name] is None]
    cuda_provider = "CUDAExecutionProvider" in providers
    # The first sentence: what to do about it stands in the line on the GPU.
    absence = (explain_absence(found=found) or "").split(". ")[0]
    missing_cuda = absence or ("" if cuda_provider else "needs onnxruntime-gpu")
    can_solve, how = describe(found=found)

    def entry(name: str, ready: bool, detail: str) -> dict[str, Any]:
        return {"name": name, "ready": ready, "detail": detail}

    return [
        entry("encoder: cpu", "CPUExecutionProvider" in providers, "ONNX Runtime CPU"),
        entry("encoder: cuda", not missing_cuda, missing_cuda or "ONNX Runtime CUDA"),
        entry("encoder: tensorrt", *_tensorrt(absence)),
        entry("solver: cpu", True, cpu.describe()),
        entry("solver: cuda", can_solve, how if can_solve else how.split(". ")[0]),
        _optional("tokenizer: Hugging Face", packages["tokenizers"], "tokenizers"),
        _optional("images: DICOM", packages["pydicom"], "dicom"),
        entry("export", not absent, f'missing {", ".join(absent)}: pip install "kpl-engine[export]"' if absent else ""),
    ]


def _tensorrt(absence: str) -> tuple[bool, str]:
    """Not imported without a GPU: it takes a second and needs the driver's library."""
    return (False, absence) if absence else tensorrt_library.describe()


def _optional(name: str, installed: str | None, extra: str) -> dict[str, Any]:
    detail = "" if installed else f'pip install "kpl-engine[{extra}]"'
    return {"name": name, "ready": installed is not None, "detail": detail}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_model() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _gpus(found: Probe) -> str:
    """The GPUs as the driver lists them, or why there is none."""
    if found.absence:
        return f"none: {found.absence}"
    named = [
        "cuda:{} {} (compute capability {}.{})".format(ordinal, gpu.name, *gpu.compute_capability)
        for ordinal, gpu in enumerate(found.gpus)
    ]
    return f"{'; '.join(named)}; driver for CUDA {release(found.driver_version)}"
