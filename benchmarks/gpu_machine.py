"""The GPU machine that tests and benchmarks need: found or refused, set up, described. Reads settings, changes none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import ROOT

__all__ = ["PACKAGES", "Refusal", "describe_gpu", "environment", "find_python", "refuse_without_gpu", "versions"]

PACKAGES = (
    "numpy",
    "cuda-core",
    "cuda-bindings",
    "pycuda",
    "torch",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
)
# What a run cannot do without: module -> what pip calls it.
NEEDED = {"numpy": "numpy", "pytest": "pytest", "cuda.core": "cuda-core[cu13]"}
_QUERY = (
    *("name", "uuid", "driver_version", "memory.total", "compute_cap", "compute_mode", "mig.mode.current", "pstate"),
    *("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw", "power.limit"),
    "clocks_event_reasons.active",
)
Run = Callable[[Sequence[str]], str]


class Refusal(SystemExit):
    """This machine cannot do what was asked; the message says what is missing and what to do."""


def read_output(command: Sequence[str]) -> str:
    """What a command prints; `OSError` or `CalledProcessError` if it cannot be run."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def describe_gpu(run: Run = read_output) -> list[dict[str, str]]:
    """Every GPU as ``nvidia-smi`` sees it: name, driver, clocks, power. Fields an old driver lacks stay out."""
    fields = list(_QUERY)
    while True:
        try:
            lines = run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]).splitlines()
        except subprocess.CalledProcessError as error:
            # The whole query fails for one unknown field, which the message names in quotes.
            unknown = [name for name in fields if f'"{name}"' in f"{error.stdout}{error.stderr}"]
            if not unknown:
                raise
            fields = [name for name in fields if name not in unknown]
            continue
        return [dict(zip(fields, (value.strip() for value in line.split(",")), strict=True)) for line in lines if line]


def refuse_without_gpu(what: str, absence: Callable[[], str | None] | None = None) -> None:
    """`Refusal` that says why there is no GPU to work on.

    ``absence`` says that, or None; by default it is the engine's own question to the driver.
    """
    if absence is None:
        from kpl_engine.cuda.select import explain_absence

        absence = explain_absence
    reason = absence()
    if reason:
        raise Refusal(
            f"{what} needs an NVIDIA GPU, and there is none to use: {reason}\n"
            "Nothing was run and no result was written. `make test` runs the same kernels on the CPU."
        )


def find_python(
    folder: Path,
    is_there: Callable[[str], bool] | None = None,
    call: Callable[[Sequence[str]], None] | None = None,
) -> str:
    """An interpreter with all of `NEEDED`: this one, or an environment in ``folder`` that adds what it lacks.

    The environment sees the packages of this interpreter too, so that the torch and CUDA that are there are used.
    Raises `Refusal` when something is missing and cannot be fetched.
    """
    is_there = _has_module if is_there is None else is_there
    call = _call if call is None else call
    missing = [package for module, package in NEEDED.items() if not is_there(module)]
    if not missing:
        return sys.executable
    python = folder / "bin" / "python"
    try:
        call([sys.executable, "-m", "venv", "--clear", str(folder)])
        _link_packages(folder)
        call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing])
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refusal(
            f"missing Python packages: {', '.join(missing)}; pip could not fetch them ({error}). Without a network "
            f"install them into {sys.executable} by hand, then run again"
        ) from error
    return str(python)


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a child process that imports the checkout as it is, installed or not."""
    paths = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _call(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, timeout=900)


def _link_packages(folder: Path) -> None:
    """Let the environment see this interpreter's packages, an environment's too: --system-site-packages would not."""
    (site,) = folder.glob("lib/python*/site-packages")
    own = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "parent.pth").write_text("".join(f"{path}\n" for path in own))


def versions() -> dict[str, Any]:
    """CUDA tools beside the packages of `machine_record`."""
    found = {}
    for name, command in {
        "nvcc": ["nvcc", "--version"],
        "compute-sanitizer": ["compute-sanitizer", "--version"],
    }.items():
        try:
            found[name] = read_output(command).strip().splitlines()[-1]
        except (OSError, subprocess.CalledProcessError, IndexError):
            found[name] = None
    return found
