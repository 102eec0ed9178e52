"""Fresh processes: from start to the first answer, as after a restart of the service."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine.bench.intervals import interval_of
from kpl_engine.bench.records import ColdStart
from kpl_engine.bench.samples import smooth_jpeg
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.errors import KplError

__all__ = ["measure_cold"]

_PATIENCE_S = 300.0
_MOST_TOLD = 600


def measure_cold(settings: BenchSettings, repeats: int) -> ColdStart:
    """Start ``repeats`` processes, one after the other, and one before them that is left out.

    That one brings the files into the page cache: it is a restart that is measured and not a first boot. ``import_ms``
    begins before the process does and has the start of the interpreter in it; ``load_ms`` is `Engine.load`, which
    verifies every byte of the bundle; ``first_ms`` answers one JPEG file. Where ``mode`` is left open and the bundle
    has no fitted proxies the first answer is of mode "batch". ``resident_bytes`` is what the process held after its
    answer.

    Parameters
    ----------
    settings : BenchSettings
    repeats : int
        Two at least: of one there is no median.

    Raises
    ------
    KplError
        A process that failed, with its last words, or that gave no answer within five minutes.
    """
    keys = ("import_ms", "load_ms", "first_ms", "total_ms", "resident_bytes")
    with tempfile.TemporaryDirectory(prefix="kpl-bench-") as folder:
        picture = Path(folder) / "first.jpg"
        picture.write_bytes(smooth_jpeg(np.random.default_rng(settings.seed)))
        runs = [_start(settings, picture) for _ in range(repeats + 1)][1:]
    of = {key: [run[key] for run in runs] for key in keys}
    return {
        "count": repeats,
        "import_ms": interval_of(of["import_ms"], "50"),
        "load_ms": interval_of(of["load_ms"], "50"),
        "first_ms": interval_of(of["first_ms"], "50"),
        "total_ms": interval_of(of["total_ms"], "50"),
        "resident_bytes": int(statistics.median(of["resident_bytes"])),
    }


def _start(settings: BenchSettings, picture: Path) -> dict[str, Any]:
    options = {name: getattr(settings, name) for name in ("device", "knowledge", "method", "mode")}
    arguments = [str(settings.bundle), str(picture), json.dumps(options)]
    command = [sys.executable, "-m", "kpl_engine.bench.first_answer", *arguments]
    began = time.monotonic()  # one clock for all processes of the machine
    try:
        # This interpreter and a module of ours.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise KplError(f"cold start: a new process gave no answer within {_PATIENCE_S:g} s") from None
    if done.returncode:
        said = done.stderr.strip()[-_MOST_TOLD:]
        raise KplError(f"cold start: a new process ended with exit code {done.returncode}: ...{said}")
    marks = json.loads(done.stdout.splitlines()[-1])
    times = {
        "import_ms": marks["imported"] - began,
        "load_ms": marks["loaded"] - marks["imported"],
        "first_ms": marks["answered"] - marks["loaded"],
        "total_ms": marks["answered"] - began,
    }
    return {**{name: seconds * 1e3 for name, seconds in times.items()}, "resident_bytes": marks["resident_bytes"]}
