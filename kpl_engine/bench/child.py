"""A scenario's process from the outside: started, listened to, and ended whatever it does."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

from kpl_engine.bench.channel import Job

__all__ = ["Child", "ChildError"]

# The child shows life every second; what holds the interpreter's lock for minutes is no scenario any more.
_SILENCE_S = 180.0
_LEAVE_S = 10.0
_MOST_TOLD = 600


class ChildError(Exception):
    """The process ended, or hung, before it said so."""


class Child:
    """``python -m kpl_engine.bench.worker`` with one job."""

    def __init__(self, job: Job, command: tuple[str, ...] = ("-m", "kpl_engine.bench.worker")) -> None:
        self._log = job.folder / "stderr.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 this interpreter and a module of ours
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="kpl-child", daemon=True)
        self._reader.start()
        self.tell(job.to_json())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """One line to its standard input; lost where it has left, which `messages` then says."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it sends; the caller stops at the message that ends its job. `ChildError` when none comes any more."""
        while True:
            try:
                line = self._lines.get(timeout=_SILENCE_S)
            except queue.Empty:
                raise ChildError(f"its process was silent for {_SILENCE_S:g} s and was ended; {self._tail()}") from None
            if line is None:
                raise ChildError(f"its process {self._how_it_ended()}; {self._tail()}")
            yield json.loads(line)

    def close(self) -> None:
        """Kill what is left of it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe and did not end"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}" + (" (the machine may be out of memory)" if code == -signal.SIGKILL else "")

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return f"its last words: ...{text[-_MOST_TOLD:]}" if text else "it said nothing on standard error"

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
