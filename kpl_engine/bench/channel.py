"""How a scenario's process and the one that started it talk: a job on standard input, JSON lines back."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kpl_engine.bench.settings import BenchSettings

__all__ = ["Channel", "Job"]

_TUPLES = ("scenarios", "images", "batch_sizes", "parts")


@dataclass(frozen=True)
class Job:
    """What a process is for: one ``scenario``, or the probes of the peak (``scenario`` None), logs in ``folder``."""

    settings: BenchSettings
    scenario: str | None
    folder: Path

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {"settings": asdict(self.settings), "scenario": self.scenario, "folder": self.folder}, default=str
        )

    @classmethod
    def from_json(cls, line: str) -> Job:
        """The reverse."""
        given = json.loads(line)
        fields = given["settings"]
        for name in _TUPLES:
            fields[name] = tuple(fields[name])
        fields["images"] = tuple(Path(each) for each in fields["images"])
        for name in ("bundle", "token_file"):
            fields[name] = None if fields[name] is None else Path(fields[name])
        return cls(BenchSettings(**fields), given["scenario"], Path(given["folder"]))


class Channel:
    """The child's end. Whatever else writes to standard output then writes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def read(self) -> str:
        """The next line that the parent sent; "" when it has closed its end."""
        return sys.stdin.readline()

    def send(self, kind: str, **fields: Any) -> None:
        """One message."""
        with self._lock:
            self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
            self._file.flush()

    def part(self, record: Mapping[str, Any]) -> None:
        """Fields of the record that are known now: the parent keeps them whatever happens next."""
        self.send("part", record=dict(record))

    def progress(self, what: str, share: float) -> None:
        """Also a sign of life."""
        self.send("progress", what=what, share=share)
