"""The two programs whose instructions are counted: the core's, which is built first, and the server's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from instructions import toolchain
from instructions.callgrind import GuardError, measure
from instructions.compare import Part

__all__ = ["CORE_CASES", "SERVER_CASES", "count_core", "count_server", "trace_server"]

ROOT = Path(__file__).parents[2]
CORE_CASES = (
    "schedule_dual",
    "schedule_primal",
    "closed_form_tall",
    "closed_form_wide",
    "labels_greenkhorn",
    "labels_sinkhorn",
    "text_proxies",
    "frozen_queries",
)
SERVER_CASES = ("one_image", "waiting_images", "encoded_images", "features", "crowd")
CORE_TOLERANCE = 0.002
SERVER_TOLERANCE = 0.003
# Nothing of the caller's environment reaches the programs: its size moves the stack, and its variables may mean things.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "LD_BIND_NOW": "1"}
_CMAKE = ("-DKPL_CUDA=OFF", "-DKPL_CORE=ON", "-DKPL_CORE_MODULE=OFF", "-DKPL_CORE_TESTS=ON", "-DKPL_CORE_STRICT=ON")


def count_core(build: Path) -> Part:
    """The solver core, built in ``build`` as it is shipped; valgrind shows no AVX-512, so AVX2 is what counts.

    Raises
    ------
    GuardError
        It does not build, or fails.
    """
    program = _build_core(build)
    with tempfile.TemporaryDirectory(prefix="kpl-instructions-") as folder:
        counts, told = measure([str(program)], CORE_CASES, _ENVIRONMENT, Path(folder))
    held_for = {**toolchain.libraries(), **toolchain.of_cmake(build), "instruction sets": told}
    return Part(held_for, CORE_TOLERANCE, dict(zip(CORE_CASES, counts, strict=True)))


def count_server() -> Part:
    """The server's way of a request.

    Raises
    ------
    GuardError
        It fails.
    """
    environment = _python_environment()
    _run_python("trace", [], environment)  # the files of compiled bytecode are there or not, and stay so
    command = [sys.executable, "-S", "-m", "instructions.turns", "count"]
    with tempfile.TemporaryDirectory(prefix="kpl-instructions-") as folder:
        counts, told = measure(command, SERVER_CASES, {**environment, "PYTHONDONTWRITEBYTECODE": "1"}, Path(folder))
    held_for = {**toolchain.libraries(), **toolchain.python(), "cpu features": told}
    return Part(held_for, SERVER_TOLERANCE, dict(zip(SERVER_CASES, counts, strict=True)))


def trace_server(counted: Part) -> Part:
    """``counted`` with the bytecodes of each Python function, which tell what callgrind cannot see."""
    found = json.loads(_run_python("trace", SERVER_CASES, _python_environment()))
    return replace(counted, counts={case: replace(counted.counts[case], python=found[case]) for case in counted.counts})


def _build_core(build: Path) -> Path:
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise GuardError("CMake is not installed (Debian: cmake, or pip install cmake)")
    environment = {name: value for name, value in os.environ.items() if name not in ("CXXFLAGS", "CPPFLAGS", "LDFLAGS")}
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(build), *_CMAKE],
        [cmake, "--build", str(build), "--target", "core_cases", "--parallel", str(os.cpu_count() or 1)],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode != 0:
            raise GuardError(
                f"{' '.join(command)}: exit status {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
            )
    return build / "kernels" / "cpu" / "instructions" / "core_cases"


def _python_environment() -> dict[str, str]:
    # -S below leaves out the import hook of an editable installation, which would find its own sources first.
    paths = [str(ROOT), str(ROOT / "benchmarks"), *(path for path in sys.path[1:] if Path(path).is_dir())]
    return {
        **_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _run_python(mode: str, cases: Sequence[str], environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-S", "-m", "instructions.turns", mode, *cases]
    ran = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False, timeout=300)
    if ran.returncode != 0:
        raise GuardError(f"{' '.join(command)}: exit status {ran.returncode}\n{ran.stderr[-3000:]}")
    return ran.stdout
