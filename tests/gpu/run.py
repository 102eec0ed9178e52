"""`make test-gpu`: every test that needs a GPU, on the GPU of this machine, and a result file.

    python3 tests/gpu/run.py [--stages tests memcheck racecheck] [--no-sanitizer] [--no-save]

Three stages: tests/cuda and tests/gpu on the GPU; then, under compute-sanitizer's memcheck and racecheck, the tests of
small sizes (those that the host shim runs with its own race check), which must launch every kernel. A run in which no
test ran on a GPU has failed, and so has a sanitizer that met no kernel. Settings of the GPU are read, never changed.
Where a machine is lent for minutes, ask for one stage at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_machine import PACKAGES, Refusal, describe_gpu, environment, find_python, refuse_without_gpu, versions  # noqa: E402
from record import machine_record, save  # noqa: E402

FOLDERS = ("tests/cuda", "tests/gpu")
SANITIZER_ERROR = 86  # what compute-sanitizer returns for errors of its own finding
TOOLS = {
    # Python's own allocations are none of ours: leaks are looked for by tests/gpu/test_gpu_memory.py
    # A status that is no success is no finding: the adapters look at every one, and ask cuPointerGetAttribute of memory
    # that CUDA may not know; cuda.bindings asks for functions that a driver may lack.
    "memcheck": ["--leak-check", "no", "--report-api-errors", "no"],
    "racecheck": ["--racecheck-report", "all"],
}
STAGES = ("tests", *TOOLS)
Call = Callable[[Sequence[str]], int]


def call(command: Sequence[str]) -> int:
    """Run a stage with its output shown; its exit status."""
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def kernel_names(folder: Path = ROOT / "kernels") -> set[str]:
    """Every kernel of ``kernels/*.cu``."""
    text = "".join(path.read_text() for path in sorted(folder.glob("*.cu")))
    return set(re.findall(r"^KPL_EXPORT_KERNEL\((\w+)\)", text, flags=re.MULTILINE))


def pytest_command(python: str, report: Path, *options: str) -> list[str]:
    own = ["--gpu", "-p", "tests.gpu.plugin", f"--gpu-report={report}", "-p", "no:cacheprovider", "-q"]
    return [python, "-m", "pytest", *own, *options, *FOLDERS]


def run_stage(name: str, command: Sequence[str], report: Path, call: Call) -> dict[str, Any]:
    """One run of pytest: its status, what its plugin wrote, and in ``problems`` why it counts as failed."""
    print(f"== {name}", flush=True)
    report.unlink(missing_ok=True)
    status = call(command)
    found = json.loads(report.read_text()) if report.exists() else {}
    problems = []
    if status:
        problems.append("compute-sanitizer found errors" if status == SANITIZER_ERROR else f"exit status {status}")
    if not found:
        problems.append("pytest wrote no report")
    elif found["num_on_gpu"] == 0:
        problems.append("no test ran on a GPU")
    problems += found.get("failed", [])
    return {"status": status, **found, "problems": problems}


def run_all(
    python: str, call: Call, sanitizer: str | None, kernels: set[str], asked: Sequence[str] = STAGES
) -> dict[str, Any]:
    """The stages asked for by name. ``sanitizer`` is where compute-sanitizer is, None leaves it out."""
    stages = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if "tests" in asked:
            stages["tests"] = run_stage("tests", pytest_command(python, report), report, call)
        for tool, options in TOOLS.items() if sanitizer else ():
            if tool not in asked:
                continue
            prefix = [str(sanitizer), "--tool", tool, *options, "--error-exitcode", str(SANITIZER_ERROR)]
            command = [*prefix, *pytest_command(python, report, "--small-only")]
            stages[tool] = run_stage(f"compute-sanitizer {tool}", command, report, call)
    for name, stage in stages.items():
        missed = sorted(kernels - set(stage.get("kernels", ())))
        if missed:
            stage["problems"].append(f"kernels never launched in {name}: {', '.join(missed)}")
    return stages


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="by default all")
    parser.add_argument("--no-sanitizer", action="store_true", help="tests only")
    parser.add_argument("--no-save", action="store_true", help="write no result file")
    options = parser.parse_args(arguments)
    if options.no_sanitizer:
        options.stages = ["tests"]
    refuse_without_gpu("make test-gpu")
    python = find_python(ROOT / ".venv-gpu")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None and set(options.stages) & set(TOOLS):
        raise Refusal(
            "make test-gpu needs compute-sanitizer, which comes with the CUDA toolkit: put it on the PATH, or run "
            "python3 tests/gpu/run.py --no-sanitizer"
        )
    before = describe_gpu()
    stages = run_all(python, call, sanitizer, kernel_names(), options.stages)
    record = {
        **machine_record(PACKAGES),
        "gpus": {"before": before, "after": describe_gpu()},
        "tools": versions(),
        "stages": stages,
        "passed": not any(stage["problems"] for stage in stages.values()),
    }
    for name, stage in stages.items():
        print(f"{name}: {stage.get('num_on_gpu', 0)} tests on a GPU, {len(stage.get('kernels', ()))} kernels")
        print("".join(f"  FAILED: {problem}\n" for problem in stage["problems"]), end="")
        print("".join(f"  skipped: {reason}\n" for reason in stage.get("skipped", ())), end="")
    if not options.no_save:
        # Of single stages: one does not overwrite the other
        name = "gpu-tests" if "tests" in options.stages else "-".join(("gpu-tests", *options.stages))
        print(f"written: {save(name, record)}")
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
