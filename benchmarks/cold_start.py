"""Seconds from process start to the first answer, and resident memory, of the runtime install alone.

Makes a fresh virtual environment with the runtime only (no torch), then starts new processes that
load a bundle and classify one image. Bundles take turns; the figures are medians. The first round
warms the page cache and is left out: what is measured is a restart, not a first boot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from end_to_end import make_bundle, make_images
from record import ROOT, machine_record, save

# Memory from /proc: getrusage counts what the parent held when it forked.
CHILD = """
import json, sys, time
from kpl_engine import Engine
imported = time.time()
engine = Engine.load(sys.argv[1], "cpu")
loaded = time.time()
result = engine.classify([sys.argv[2]])
answered = time.time()
if result.labels[0] is None or "torch" in sys.modules:
    sys.exit("no answer, or torch was imported")
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
peak_mb, resident_mb = (int(status[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS"))
marks = {"imported": imported, "loaded": loaded, "answered": answered}
print(json.dumps({**marks, "peak_mb": peak_mb, "resident_mb": resident_mb}))
"""


def runtime_python(folder: Path) -> Path:
    """A virtual environment with ``pip install .`` and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", ROOT], check=True)
    return python


def start_once(python: Path, bundle: Path, image: Path) -> dict[str, float]:
    """One new process; seconds since it was started, and its resident memory in MB."""
    began = time.time()
    done = subprocess.run([python, "-c", CHILD, bundle, image], capture_output=True, text=True, check=True, cwd="/")
    marks = json.loads(done.stdout)
    return {
        "import_s": marks["imported"] - began,
        "load_s": marks["loaded"] - marks["imported"],
        "first_answer_s": marks["answered"] - marks["loaded"],
        "total_s": marks["answered"] - began,
        "peak_mb": marks["peak_mb"],
        "resident_mb": marks["resident_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    args = parser.parse_args()
    if args.quick:
        args.repeats = 3
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        python = runtime_python(folder / "venv")
        installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
        size_mb = sum(f.stat().st_size for f in (folder / "venv").rglob("*") if f.is_file()) / 2**20
        image = make_images(folder / "images", 1)[0]
        bundles = {"demo": ROOT / "kpl_engine/data/demo.kpl", "ViT-B-32": make_bundle(folder, "ViT-B-32")}
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in bundles}
        for turn in range(args.repeats + 1):
            for name, bundle in bundles.items():
                sample = start_once(python, bundle, image)
                if turn:
                    samples[name].append(sample)
    rows = {name: {key: statistics.median(s[key] for s in runs) for key in runs[0]} for name, runs in samples.items()}
    for name, row in rows.items():
        print(f"{name:10s} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(f"environment {size_mb:.0f} MB")
    record = machine_record(("kpl-engine", "onnxruntime", "numpy", "pillow"))
    record |= {"environment_mb": size_mb, "installed": installed.split("\n"), "median": rows, "samples": samples}
    print(f"-> {save('cold_start' + ('-quick' if args.quick else ''), record)}")


if __name__ == "__main__":
    main()
