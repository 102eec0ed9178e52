"""Peak memory of one call in a process of its own: what it adds to what its inputs already take.

    python benchmarks/scaling_memory.py "text proxies" 662 768 2 12 1

The kernel's own high-water mark (VmHWM, reset through /proc/self/clear_refs) sees NumPy's, the core's and the
libraries' memory alike; a tracer inside Python would not.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PER_KB = 1024


def peak_bytes(name: str, size: tuple[int, ...], timeout_s: float) -> dict[str, int] | None:
    """``added`` by the call at its peak, ``held`` by its result, ``before`` it; None where /proc does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, name, *map(str, size)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if found.returncode != 0:
        raise RuntimeError(f"{name} at {size}: the process of its own failed: {found.stderr.strip()[-400:]}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def available_bytes() -> int:
    """Memory that can be had without swapping, from /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * _PER_KB


def _read(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * _PER_KB


def _child(name: str, numbers: list[int]) -> dict[str, int]:
    from scaling_counts import Size
    from scaling_points import make_call

    with tempfile.TemporaryDirectory() as folder:
        small = Size(16, numbers[1], 2, 2, 1)
        make_call(name, small, Path(folder)).run()  # what is imported and started at the first call of any size
        call = make_call(name, Size(*numbers), Path(folder))
        ctypes.CDLL(None).malloc_trim(0)  # what making the inputs freed would hide what the call takes
        before = _read("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        result = call.run()
        peak, held = _read("VmHWM"), _read("VmRSS")
        del result
    return {"added": max(peak - before, 0), "held": max(held - before, 0), "before": before}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], [int(word) for word in sys.argv[2:]])))
