"""The two programs whose instructions are counted: the core's, which is built first, and the server's."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from instructions import toolchain
from instructions.callgrind import Count, measure, run
from instructions.compare import Part

__all__ = ["CORE_CASES", "SERVER_CASES", "Core", "Program", "Server"]

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
# README.md has the spreads that these follow from.
CORE_TOLERANCE = 0.002
SERVER_TOLERANCE = 0.005
# Nothing of the caller's environment reaches the programs: its size moves the stack, and its variables may mean things.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "LD_BIND_NOW": "1"}
_CMAKE = ("-DKPL_CUDA=OFF", "-DKPL_CORE=ON", "-DKPL_CORE_MODULE=OFF", "-DKPL_CORE_TESTS=ON", "-DKPL_CORE_STRICT=ON")


class Program(Protocol):
    """What is counted."""

    def toolchain(self) -> dict[str, str]:
        """What its counts hold for, as far as it is known before the program ran."""

    def count(self) -> Part:
        """Its counts. `GuardError` where it cannot be built or fails."""

    def trace(self, counted: Part) -> Part:
        """``counted`` with what callgrind cannot see; costs another run."""


class Core:
    """The solver core, built in ``build`` as it is shipped; valgrind shows no AVX-512, so AVX2 is what counts."""

    def __init__(self, build: Path) -> None:
        self._build = build

    def toolchain(self) -> dict[str, str]:
        """See `Program`; configures the build."""
        self._cmake("-S", str(ROOT), "-B", str(self._build), *_CMAKE)
        return {**toolchain.libraries(), **toolchain.of_cmake(self._build)}

    def count(self) -> Part:
        """See `Program`."""
        held_for = self.toolchain()
        self._cmake("--build", str(self._build), "--target", "core_cases", "--parallel", str(os.cpu_count() or 1))
        program = self._build / "kernels" / "cpu" / "instructions" / "core_cases"
        counts, told = _measure([str(program)], CORE_CASES, _ENVIRONMENT)
        return Part({**held_for, "instruction sets": told}, CORE_TOLERANCE, counts)

    def trace(self, counted: Part) -> Part:
        """See `Program`."""
        return counted

    def _cmake(self, *arguments: str) -> None:
        flags = ("CXXFLAGS", "CPPFLAGS", "LDFLAGS")
        run([toolchain.cmake(), *arguments], {name: value for name, value in os.environ.items() if name not in flags})


class Server:
    """The server's way of a request, in Python."""

    def __init__(self) -> None:
        # -S leaves out the import hook of an editable installation, which would find its own sources first.
        self._command = [sys.executable, "-S", "-m", "instructions.turns"]
        paths = [str(ROOT), str(ROOT / "benchmarks"), *(path for path in sys.path[1:] if Path(path).is_dir())]
        self._environment = {
            **_ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def toolchain(self) -> dict[str, str]:
        """See `Program`."""
        return {**toolchain.libraries(), **toolchain.python()}

    def count(self) -> Part:
        """See `Program`."""
        run([*self._command, "trace"], self._environment)  # so that compiled bytecode is there, and stays as it is
        environment = {**self._environment, "PYTHONDONTWRITEBYTECODE": "1"}
        counts, told = _measure([*self._command, "count"], SERVER_CASES, environment)
        return Part({**self.toolchain(), "cpu features": told}, SERVER_TOLERANCE, counts)

    def trace(self, counted: Part) -> Part:
        """See `Program`: the bytecodes of each Python function."""
        found = json.loads(run([*self._command, "trace", *SERVER_CASES], self._environment))
        traced = {case: replace(count, python=found[case]) for case, count in counted.counts.items()}
        return replace(counted, counts=traced)


def _measure(command: Sequence[str], cases: Sequence[str], environment: dict[str, str]) -> tuple[dict[str, Count], str]:
    with tempfile.TemporaryDirectory(prefix="kpl-instructions-") as folder:
        counts, told = measure(command, cases, environment, Path(folder))
    return dict(zip(cases, counts, strict=True)), told
