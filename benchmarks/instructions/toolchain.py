"""What decides an instruction count besides this repository: compilers, interpreters, libraries."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import which

from instructions.callgrind import run

__all__ = ["cmake", "compiler", "libraries", "missing", "of_cmake", "python"]


def missing() -> str:
    """Why nothing can be counted on this machine, or nothing."""
    if which("valgrind") is None:
        return "valgrind is not installed (Debian: valgrind)"
    if not any(which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        return "there is no C++ compiler (Debian: g++)"
    return "" if cmake() else "CMake is not installed (Debian: cmake)"


def cmake() -> str:
    """The system's, or the one of this Python's environment; empty where there is none."""
    return which("cmake") or which("cmake", path=str(Path(sys.executable).parent)) or ""


def of_cmake(build: Path) -> dict[str, str]:
    """Compiler and flags of a configured build folder, as CMake's cache tells them. Flags that the repository adds are
    not among them: a change of those is a change to be compared.
    """
    cache = (build / "CMakeCache.txt").read_text("utf-8")
    kept = dict(re.findall(r"^(CMAKE_\w+):\w+=(.*)$", cache, re.MULTILINE))
    kind = kept["CMAKE_BUILD_TYPE"]
    flags = f"{kept['CMAKE_CXX_FLAGS']} {kept[f'CMAKE_CXX_FLAGS_{kind.upper()}']}"
    return {"compiler": compiler(kept["CMAKE_CXX_COMPILER"]), "flags": f"{kind}: {' '.join(flags.split())}"}


def compiler(command: str) -> str:
    """Version and target."""
    return f"{_first_line(command, '--version')}, {_first_line(command, '-dumpmachine')}"


def libraries() -> dict[str, str]:
    """What every counted program stands on."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else None
    return {
        "machine": platform.machine(),
        "libc": libc or " ".join(platform.libc_ver()),
        "valgrind": _first_line("valgrind", "--version"),
    }


def python() -> dict[str, str]:
    """The interpreter, its build included, and NumPy's."""
    import numpy as np

    config = np.show_config(mode="dicts") or {}
    built_by: Mapping[str, str] = config.get("Compilers", {}).get("c", {})
    return {
        "python": " ".join(sys.version.split()),
        "numpy": f"{np.__version__}, {built_by.get('name', '?')} {built_by.get('version', '?')}",
    }


def _first_line(*command: str) -> str:
    return run(command, {**os.environ, "LC_ALL": "C"}).partition("\n")[0].strip()
