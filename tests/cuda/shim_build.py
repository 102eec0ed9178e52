"""Compiles kernels and the host shim for this CPU, once for each state of their sources.

The libraries lie in the system's temporary folder under a key of everything that went into them; several processes may
ask at once.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from kpl_engine.errors import CudaModuleError

KERNELS = (Path(__file__).parents[2] / "kernels").resolve()
SHIM = KERNELS / "host_shim"
_COMPILER = "g++"
_COMMON = ["-std=c++17", "-fPIC", "-g", "-Wall", "-Wextra"]
# nvcc fuses multiply and add where it can, so these builds do too. A kernel must not lean on either rounding.
# Large frames are touched page by page, so that they end at the guard page of their stack and not beyond.
_KERNEL = [
    *_COMMON,
    "-march=native",
    "-fstack-clash-protection",
    "-ffp-contract=fast",
    "-Wno-unused-function",
    "-Wno-unknown-pragmas",
]
_FLAVOURS = {
    "fast": ["-O2"],
    # Every access calls a hook of race_hooks.cpp. Loops turned into memset would not.
    "checked": ["-O1", "-fsanitize=thread", "-fno-tree-loop-distribute-patterns"],
}
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_BOUNDS = re.compile(r"__launch_bounds__\s*\(([^;{]*?)\)\s*(?:void\s+)?(\w+)\s*\(\s*(?:const\b|\w|\))")


@functools.cache
def runtime() -> ctypes.CDLL:
    """The shim itself; its symbols are global, so that kernels find them.

    One for the whole process: sources edited meanwhile would bring a second one with the same globals.
    """
    return _load(_runtime_path(), ctypes.RTLD_GLOBAL)


def kernels(source: str, is_checked: bool) -> ctypes.CDLL:
    """The kernels of ``kernels/<source>.cu``."""
    runtime()
    return _load(library(source, is_checked), ctypes.RTLD_LOCAL)


@functools.cache
def _load(path: Path, mode: int) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=mode)


def _runtime_path() -> Path:
    sources = sorted(SHIM.glob("*.cpp"))
    flags = [*_COMMON, "-O2", "-march=native"]
    texts = [*sources, *sorted(SHIM.glob("*.h"))]
    return _built("shim", _key(texts, flags), flags, [str(path) for path in sources])


def library(source: str, is_checked: bool) -> Path:
    """Where the compiled kernels of that source are; compiles them if need be."""
    path = KERNELS / f"{source}.cu"
    if not path.is_file():
        raise CudaModuleError(f"no kernel source {path}; expected the name of a .cu file under {KERNELS}")
    flags = [*_KERNEL, *_FLAVOURS["checked" if is_checked else "fast"]]
    texts = _with_includes(path)
    wrapper = _wrapper(path, texts)
    folder = _folder()
    name = source.replace("/", "-")
    key = _key(texts, [*flags, wrapper])
    unit = folder / f"{name}-{key}.{os.getpid()}.cpp"
    unit.write_text(wrapper)
    try:
        return _built(name, key, [*flags, "-I", str(KERNELS)], [str(unit)])
    finally:
        unit.unlink()


def _wrapper(path: Path, texts: list[Path]) -> str:
    """The source and, for each kernel, the first argument of its ``__launch_bounds__`` as a symbol."""
    lines = [f'#include "{path}"', "using namespace kpl;"]
    for text in texts:
        if text.is_relative_to(SHIM) and text.suffix == ".h":
            continue
        for bounds, name in _BOUNDS.findall(text.read_text()):
            first = bounds.split(",")[0]
            lines.append(f'extern "C" {{ extern const int kpl_bound_{name}; const int kpl_bound_{name} = ({first}); }}')
    return "\n".join(lines) + "\n"


def _with_includes(path: Path) -> list[Path]:
    found: list[Path] = []
    waiting = [path]
    while waiting:
        here = waiting.pop().resolve()
        if here in found:
            continue
        found.append(here)
        for name in _INCLUDE.findall(here.read_text()):
            waiting += [place for place in (here.parent / name, KERNELS / name) if place.is_file()][:1]
    return sorted(found)


@functools.cache
def _machine() -> str:
    version = subprocess.run([_COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    cpu = Path("/proc/cpuinfo").read_text()
    features = re.search(r"^(flags|Features)\s*:.*$", cpu, re.MULTILINE)
    return version + (features.group() if features else "")


def _key(texts: list[Path], flags: list[str]) -> str:
    digest = hashlib.sha256(_machine().encode())
    for text in texts:
        digest.update(f"{text}\0".encode() + text.read_bytes() + b"\0")
    digest.update("\0".join(flags).encode())
    return digest.hexdigest()[:24]


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"kpl-host-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _built(name: str, key: str, flags: list[str], sources: list[str]) -> Path:
    target = _folder() / f"{name}-{key}.so"
    if target.exists():
        return target
    with (_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(target, flags, sources)
            _drop_old(name, target)
    return target


def _compile(target: Path, flags: list[str], sources: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Linked without the flags: -fsanitize=thread would bring the sanitizer's own library.
        _run([_COMPILER, *flags, "-c", *sources], folder)
        unfinished = f"{folder}/library.so"
        _run([_COMPILER, "-shared", "-o", unfinished, *(str(path) for path in Path(folder).glob("*.o"))], folder)
        Path(unfinished).replace(target)


def _run(command: list[str], folder: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CudaModuleError(f"{' '.join(command)}\nfailed:\n{result.stderr}", log=result.stderr)


def _drop_old(name: str, keep: Path) -> None:
    """Leaves the newest few builds of a source: each edit makes another one."""
    builds = sorted(_folder().glob(f"{name}-*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in builds[8:]:
        if path != keep:
            path.unlink(missing_ok=True)


def with_lines(message: str, library: str) -> str:
    """Places in the code, ``[pc 1234]`` in ``message``, as file and line."""

    def place(match: re.Match[str]) -> str:
        address = int(match.group(1))
        for line in Path("/proc/self/maps").read_text().splitlines():
            low, _, rest = line.partition("-")
            high = rest.split()[0]
            if library in line and int(low, 16) <= address < int(high, 16):
                offset = int(rest.split()[2], 16)
                command = ["addr2line", "-i", "-s", "-e", library, hex(address - int(low, 16) + offset)]
                found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
                return "at " + " in ".join(filter(None, found))
        return ""

    return re.sub(r"\[pc (\d+)\]", place, message)
