"""Compiles every kernel for every GPU architecture and holds its resources against bounds.json.

    python kernels/check_bounds.py                         all architectures, fully optimised (minutes)
    python kernels/check_bounds.py --figures 75,90,120     figures of these; the others are compiled without optimising
    python kernels/check_bounds.py --write                 writes bounds.json anew

Needs nvcc and no GPU. A kernel may use at most the registers, stack, spilled bytes and static shared memory of its
bounds: more registers mean fewer blocks at once, and a spill where there was none is traffic that no formula counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BOUNDS = HERE / "bounds.json"
ARCHITECTURES = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
# Compiling without optimising, which nvcc knows since CUDA 12.9: twenty times as fast, and still every line of PTX and
# machine code is made.
_QUICK = ["-Ofc", "max"]


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture, as ptxas tells them; bytes but for ``registers``."""

    registers: int
    spill: int
    stack: int
    static_shared: int


@dataclass(frozen=True)
class Task:
    source: Path
    architecture: int
    is_quick: bool


def parse(log: str) -> dict[str, Resources]:
    """What ``-Xptxas -v`` printed. Functions that were not inlined follow the kernel that they are compiled for."""
    found: dict[str, Resources] = {}
    kernel, spill, stack = "", 0, 0
    for line in log.splitlines():
        if begin := re.search(r"Compiling entry function '(\w+)'", line):
            kernel, spill, stack = begin.group(1), 0, 0
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spill += int(frame.group(2)) + int(frame.group(3))
            stack = max(stack, int(frame.group(1)))
            if kernel in found:
                used = found[kernel]
                found[kernel] = Resources(used.registers, spill, max(used.stack, stack), used.static_shared)
        elif (used_line := re.search(r"Used (\d+) registers", line)) and kernel:
            shared = re.search(r"(\d+) bytes smem", line)
            cumulative = re.search(r"(\d+) bytes cumulative stack", line)
            whole = max(stack, int(cumulative.group(1)) if cumulative else 0)
            found[kernel] = Resources(int(used_line.group(1)), spill, whole, int(shared.group(1)) if shared else 0)
    return found


def compile_one(task: Task, nvcc: str) -> dict[str, Resources]:
    """The resources of the kernels of one source; `SystemExit` with the compiler's log if it does not compile."""
    with tempfile.TemporaryDirectory(prefix="kpl-bounds-") as folder:
        command = [nvcc, "-std=c++17", f"-arch=sm_{task.architecture}", "-Wno-deprecated-gpu-targets", "-I", str(HERE)]
        command += ["-Xptxas", "-v", "-cubin", "-o", f"{folder}/kernel.cubin", str(task.source)]
        command += _QUICK if task.is_quick else []
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode != 0:
        raise SystemExit(f"{task.source.name} does not compile for sm_{task.architecture}:\n{result.stderr}")
    return parse(result.stderr)


def compare(bounds: dict[str, dict[str, dict[str, int]]], found: dict[str, dict[str, Resources]]) -> Iterator[str]:
    """What is above its bound, and what has none. Both map kernel, then architecture."""
    for kernel, per_architecture in sorted(found.items()):
        for architecture, resources in per_architecture.items():
            bound = bounds.get(kernel, {}).get(architecture)
            if bound is None:
                yield f"{kernel} on {architecture}: no bound; make cuda-bounds writes it"
                continue
            for name, value in asdict(resources).items():
                if value > bound[name]:
                    yield f"{kernel} on {architecture}: {name} expected at most {bound[name]}, got {value}"
    yield from (f"{kernel}: in bounds.json, but no such kernel" for kernel in sorted(set(bounds) - set(found)))


def write(found: dict[str, dict[str, Resources]], version: str) -> None:
    """One line a kernel and architecture, so that a change is one line in a review. Bounds of architectures whose
    figures were not read stay.
    """
    before = json.loads(BOUNDS.read_text())["kernels"] if BOUNDS.exists() else {}
    kernels = []
    for kernel, per_architecture in sorted(found.items()):
        merged = before.get(kernel, {}) | {name: asdict(used) for name, used in per_architecture.items()}
        lines = [
            f'      "{name}": {json.dumps(merged[name])}' for name in sorted(merged, key=lambda name: int(name[3:]))
        ]
        kernels.append(f'    "{kernel}": {{\n' + ",\n".join(lines) + "\n    }")
    BOUNDS.write_text(f'{{\n  "nvcc": "{version}",\n  "kernels": {{\n' + ",\n".join(kernels) + "\n  }\n}\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="write bounds.json (those of --figures) instead of checking it"
    )
    parser.add_argument("--figures", metavar="75,90", help="architectures whose figures are read (default: all)")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.figures = [int(word) for word in options.figures.split(",")] if options.figures else list(ARCHITECTURES)
    if unknown := set(options.figures) - set(ARCHITECTURES):
        parser.error(f"--figures: expected numbers among {ARCHITECTURES}, got {sorted(unknown)}")
    return options


def main() -> None:
    options = arguments()
    started = time.monotonic()
    told = subprocess.run([options.nvcc, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    release = re.search(r"release (\d+)\.(\d+)", told)
    version = f"{release.group(1)}.{release.group(2)}" if release else "unknown"
    sources = sorted(HERE.glob("*.cu"))
    architectures = options.figures if options.write else ARCHITECTURES
    tasks = [Task(source, number, number not in options.figures) for number in architectures for source in sources]
    tasks.sort(key=lambda task: task.is_quick)  # the slow ones first, so that none is left for the end
    found: dict[str, dict[str, Resources]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for task, kernels in zip(tasks, pool.map(lambda task: compile_one(task, options.nvcc), tasks), strict=True):
            for kernel, resources in kernels.items():
                if not task.is_quick:
                    found.setdefault(kernel, {})[f"sm_{task.architecture}"] = resources
    print(
        f"{len(sources)} sources, {len(found)} kernels, {len(architectures)} architectures compiled with nvcc {version}"
    )
    print(f"figures of {', '.join(f'sm_{number}' for number in options.figures)}: {time.monotonic() - started:.0f} s")
    if options.write:
        write(found, version)
        return
    committed = json.loads(BOUNDS.read_text())
    if committed["nvcc"] != version:
        print(f"NOT CHECKED: the bounds are of nvcc {committed['nvcc']}; another one allocates registers otherwise")
        return
    wrong = list(compare(committed["kernels"], found))
    spilling = sorted(kernel for kernel, each in found.items() if any(used.spill for used in each.values()))
    print(f"{len(wrong)} above their bounds; kernels that spill: {', '.join(spilling) or 'none'}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
