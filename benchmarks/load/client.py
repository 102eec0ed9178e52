"""Starts the load generator and gives it jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_HOME = Path(__file__).parents[1]


class Worker:
    """A module of benchmarks/ in a process of its own that answers a JSON line with a JSON line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=_HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, **job: Any) -> dict[str, Any]:
        """One job; `RuntimeError` when the process is gone."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the worker left with {self._process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Let it finish."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Generator(Worker):
    """`ask(payloads=, host=, port=, seconds=, warm_s=, clients= or rate=)`."""

    def __init__(self) -> None:
        super().__init__("-m", "load")
