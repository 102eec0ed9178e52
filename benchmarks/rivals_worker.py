"""One rival in a process of its own, which sleeps between its turns: JSON lines in, JSON lines out.

    rivals_worker.py '{"opens": "rivals_onnx:NumpyLoop", "device": "cpu", "options": {}, "work": ..., "threads": 2, ..}'

Jobs: {"what": "open", "tasks": [...]}, {"what": "answer", "task", "size", "path"}, {"what": "turn", "task", "size",
"seconds"}. What libraries print goes to the log.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def limit_threads(threads: int) -> None:
    """Before any library loads: each reads its own variable when it does."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)


class Turns:
    """Answers and times of one rival."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.work = given, Path(given["work"])
        self.calls: dict[str, Callable[[], Any]] = {}

    def open(self, tasks: list[str]) -> dict[str, Any]:
        """Load the libraries and the model; what is missing is told, not raised."""
        from rivals_list import ADAPT, hint

        begin = time.perf_counter()
        try:
            module, _, name = self.given["opens"].partition(":")
            make = getattr(importlib.import_module(module), name)
            shared = (self.work, self.given["threads"], self.given["batch"], self.given["device"])
            self.opened = make(*shared, **self.given["options"])
            if set(tasks) - {ADAPT}:
                self._open_pictures()
        except ModuleNotFoundError as error:
            missing = error.name or "?"
            return {"skipped": f"{missing} is not installed; {hint(missing)}"}
        except Exception as error:  # of any library
            said = str(error).strip() or "no reason given"
            return {"skipped": f"{type(error).__name__}: {said.splitlines()[0][:300]}"}
        return {"ready_s": time.perf_counter() - begin, "settings": self.opened.settings, **memory()}

    def _open_pictures(self) -> None:
        from rivals_setup import read_pictures

        self.opened.open_pictures()
        self.pictures = read_pictures(self.work)
        for count in (1, self.given["batch"]):  # what a library does at its first call belongs to opening it
            self.opened.features(self.pictures[:count])

    def answer(self, task: str, size: Any, path: str) -> dict[str, Any]:
        """What it answers, in an .npz file: to the pictures of `checked_parts`, or to the one problem."""
        import numpy as np
        from rivals_setup import checked_parts

        found: dict[str, Any] = {}
        if task == "encode":
            found["features"] = np.concatenate([self.opened.features(self.pictures[at]) for at in checked_parts(size)])
        elif task == "whole":
            found["labels"] = np.concatenate([self.opened.labels(self.pictures[at]) for at in checked_parts(size)])
        else:
            labels, logits = self.opened.adapt(self._problem(size))
            found["labels"] = labels
            if logits is not None:
                found["logits"] = logits
        np.savez(path, **found)
        return {"path": path}

    def turn(self, task: str, size: Any, seconds: float) -> dict[str, Any]:
        """Milliseconds of each call for so long. The first, on caches gone cold, counts only if there is no other."""
        call = self._call(task, size)
        before = _cpu_s()
        ms = [first := _timed(call)]
        if first < seconds * 1e3:
            ms, before, begin = [], _cpu_s(), time.perf_counter()
            while not ms or time.perf_counter() - begin < seconds:
                ms.append(_timed(call))
        return {"ms": ms, "first_ms": first, "cpu_s_per_call": (_cpu_s() - before) / len(ms), **memory()}

    def _call(self, task: str, size: Any) -> Callable[[], Any]:
        key = json.dumps([task, size])
        if key not in self.calls:
            self.calls[key] = self._make(task, size)
        return self.calls[key]

    def _make(self, task: str, size: Any) -> Callable[[], Any]:
        if task == "adapt":
            problem = self._problem(size)
            return lambda: self.opened.adapt(problem)
        work = self.opened.features if task == "encode" else self.opened.labels
        parts = self._parts(size)
        number = iter(range(1 << 62))
        return lambda: work(parts[next(number) % len(parts)])  # other pictures in each call

    def _parts(self, size: int) -> list[list[bytes]]:
        return [self.pictures[start : start + size] for start in range(0, len(self.pictures), size)]

    def _problem(self, size: list[int]) -> Any:
        from rivals_setup import adaptation

        return self.opened.open_adaptation(*adaptation((size[0], size[1], size[2])))


def memory() -> dict[str, float]:
    """Resident memory of this process now and at most, in MB (2^20 bytes)."""
    with open("/proc/self/status") as lines:
        status = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    fields = {"resident_mb": "VmRSS", "peak_mb": "VmHWM"}
    return {name: int(status[field].split()[0]) / 1024 for name, field in fields.items()}


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _cpu_s() -> float:
    """Of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    given = json.loads(sys.argv[1])
    limit_threads(given["threads"])
    replies = os.fdopen(os.dup(1), "w")
    with open(given["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    turns = Turns(given)
    for line in sys.stdin:
        job = json.loads(line)
        found = getattr(turns, job.pop("what"))(**job)
        replies.write(json.dumps(found) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
