"""What streams have learned, carried from request to request and over restarts (method.md 3d and 6)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kpl_engine.classification import Classification, assemble
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.snapshots import SnapshotFolder, StreamKey
from kpl_engine.solver.streaming import StreamSolver

__all__ = ["Streams"]

Clock = Callable[[], float]
Report = Callable[[str, BaseException | None], None]
_LOG = logging.getLogger(__name__)
_RETIRED_AFTER_S = 30.0  # longer than a request in flight may last: then nobody asks the replaced model any more


class Streams:
    """The streams of a server: one for each model, knowledge base and method, in O(d² + dc) memory.

    Answers of one stream are given one at a time, in the order in which `answer` was called; different streams do not
    wait for each other. An answer that raises has not happened. With a ``state_dir`` everything that changed is written
    there each ``interval_s`` seconds, so a process that is killed loses at most what came after the last interval.

    A model that was loaded again with other knowledge, another encoder or other numbers starts new streams; what the
    old ones learned is set aside. A disk that cannot be written never fails an answer: `status` and the log tell, and
    the next interval tries again.

    Parameters
    ----------
    state_dir : path, optional
        Belongs to this server alone; made where it is missing. None: streams live as long as the process.
    interval_s : float
        Seconds between snapshots.
    clock : callable
        Monotonic seconds, of which ages are told.
    report : callable, optional
        Called after each attempt to write a stream with ``model/knowledge/method`` and the error or None.
    """

    def __init__(
        self, state_dir: Path | None, interval_s: float, clock: Clock = time.monotonic, report: Report | None = None
    ) -> None:
        if not 0 < interval_s < threading.TIMEOUT_MAX:
            raise ConfigError(f"snapshot_interval_s: expected a number above 0, got {interval_s!r}")
        self._state_dir, self._interval_s, self._clock, self._report = state_dir, interval_s, clock, report
        self._folder: SnapshotFolder | None = None
        self._streams: dict[StreamKey, _Stream] = {}
        self._guard = threading.Lock()  # of the table alone
        self._writing = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_error, self._last_reason, self._last_error_at = "", "", 0.0  # for the log, for clients, when

    def start(self) -> None:
        """Take ``state_dir``, check what lies there, and begin to write; `ConfigError` if another server has it."""
        if self._state_dir is None or self._folder is not None:
            return
        self._folder = SnapshotFolder(self._state_dir)
        self._thread = threading.Thread(target=self._write_each_interval, name="kpl-snapshots", daemon=True)
        self._thread.start()

    def answer(
        self,
        model_name: str,
        base: KnowledgeBase,
        method: MethodName,
        config: MethodConfig,
        encoded: EncodedImages,
        top_evidence: int,
        encoder_fingerprint: str = "",
    ) -> Classification:
        """Learn from the usable pictures and classify them; without any the stream stays as it is.

        Raises what `StreamSolver` raises; the stream is then as before.
        """
        if len(encoded.features) == 0:
            return assemble(base, encoded, None, method, "stream", top_evidence)
        made_with = _fingerprint(base, method, config, encoder_fingerprint)
        with self._turn(StreamKey(model_name, base.name, method, made_with)) as stream:
            if stream.solver is None:
                stream.solver = self._open(stream.key, base, method, config)
                stream.saved = stream.solver
            trial = stream.solver.fork()
            found = assemble(base, encoded, trial.answer(encoded.features), method, "stream", top_evidence)
            stream.solver = trial
        return found

    def snapshot_now(self) -> bool:
        """Write every stream that changed since its last snapshot; whether all of them are on the disk now."""
        with self._writing:
            with self._guard:
                streams = list(self._streams.values())
            missed = [stream for stream in streams if not self._save(stream)]
            self._retire()
        return not missed

    def forget(self, model_name: str) -> None:
        """A model was unloaded: its streams leave memory once they are on the disk, and go on when it is loaded."""
        with self._guard:
            for stream in self._streams.values():
                stream.is_leaving |= stream.key.model == model_name
        self.snapshot_now()

    def close(self) -> None:
        """The last snapshot, and the end of writing; idempotent. Call it when the last answer was given."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._folder is not None:
            self.snapshot_now()
            self._folder.close()
            self._folder = None

    def status(self) -> dict[str, Any]:
        """JSON values: ``is_kept`` (on a disk), ``interval_s``, ``last_error`` (and its age) or null, and each stream.

        No path is in it: it is told to clients.

        A stream has ``model``, ``knowledge``, ``method``, ``images``, ``is_saved``, and ``snapshot_age_s``: seconds
        since it was last written or restored, null before.
        """
        now = self._clock()
        with self._guard:
            streams = list(self._streams.values())
        return {
            "is_kept": self._state_dir is not None,
            "interval_s": self._interval_s,
            "last_error": self._last_reason if self._last_error else None,
            "last_error_age_s": now - self._last_error_at if self._last_error else None,
            "streams": [stream.status(now) for stream in streams],
        }

    @contextlib.contextmanager
    def _turn(self, key: StreamKey) -> Iterator[_Stream]:
        with self._guard:
            stream = self._streams.setdefault(key, _Stream(key))
            stream.is_leaving = False
            stream.used_at = self._clock()
            number = stream.turns.take()
        with stream.turns.at(number):
            yield stream

    def _open(self, key: StreamKey, base: KnowledgeBase, method: MethodName, config: MethodConfig) -> StreamSolver:
        folder = self._folder
        if folder is None:
            self._retire()
            return StreamSolver(base, method, config)
        for other in folder.keys(key.slot):
            with self._guard:
                is_stale = other != key and other not in self._streams
            if is_stale:
                folder.set_aside(other, "it was learned with other knowledge, another encoder or other numbers")
        tensors = folder.load(key) or {}
        try:
            return StreamSolver.from_tensors(tensors, base, method, config)
        except ShapeError as error:
            folder.set_aside(key, str(error))
            return StreamSolver(base, method, config)

    def _write_each_interval(self) -> None:
        due = time.monotonic() + self._interval_s
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - self._interval_s) + self._interval_s
            try:
                self.snapshot_now()
            except Exception as error:
                self._failed(None, error)

    def _save(self, stream: _Stream) -> bool:
        # One read of one attribute: a solver that was published is never written to, so no answer waits for this.
        solver, folder = stream.solver, self._folder
        if folder is None or solver is None or solver is stream.saved:
            return True
        try:
            folder.save(stream.key, solver.to_tensors())
        except Exception as error:
            self._failed(stream.key, error)
            return False
        stream.saved, stream.saved_at = solver, self._clock()
        if self._last_error:
            _LOG.warning("stream snapshots are written again")
            self._last_error = ""
        self._tell(stream.key, None)
        return True

    def _failed(self, key: StreamKey | None, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        if message != self._last_error:  # once, not each interval of a full disk
            _LOG.error(
                "streams could not be written, answers go on: %s", message, exc_info=not isinstance(error, OSError)
            )
        self._last_error, self._last_error_at = message, self._clock()
        self._last_reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        self._tell(key, error)

    def _tell(self, key: StreamKey | None, error: BaseException | None) -> None:
        if self._report is not None:
            self._report("" if key is None else "/".join(key.slot), error)

    def _retire(self) -> None:
        """Drop what is on the disk and not needed in memory: streams of models that were unloaded or replaced."""
        now = self._clock()
        with self._guard:
            latest = {each.key.slot: each for each in sorted(self._streams.values(), key=lambda each: each.used_at)}
            replaced = [
                stream
                for key, stream in self._streams.items()
                if stream is not latest[key.slot] and now - stream.used_at > _RETIRED_AFTER_S
            ]
            leaving = [stream for stream in self._streams.values() if stream.is_leaving]
            gone = [stream for stream in {*replaced, *leaving} if stream.turns.is_idle and self._is_saved(stream)]
            for stream in gone:
                del self._streams[stream.key]
        for stream in set(gone).intersection(replaced):
            if self._folder is not None:
                self._folder.set_aside(stream.key, "its model was replaced by one with other knowledge or encoder")

    def _is_saved(self, stream: _Stream) -> bool:
        return self._folder is None or stream.solver is stream.saved


class _Turns:
    """First come, first served; a plain lock lets any of those who wait go next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = self._next = 0

    @property
    def is_idle(self) -> bool:
        return self._taken == self._next

    def take(self) -> int:
        """A number; `at` must be called with it."""
        with self._changed:
            self._taken += 1
            return self._taken - 1

    @contextlib.contextmanager
    def at(self, number: int) -> Iterator[None]:
        """Wait for the turn of ``number``; it ends with the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


class _Stream:
    """``solver`` is never written to, only exchanged for a later one; ``saved`` is the one that is on the disk."""

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.turns = _Turns()
        self.solver: StreamSolver | None = None
        self.saved: StreamSolver | None = None
        self.saved_at: float | None = None
        self.used_at = 0.0
        self.is_leaving = False

    def status(self, now: float) -> dict[str, Any]:
        solver = self.solver
        return {
            "model": self.key.model,
            "knowledge": self.key.knowledge,
            "method": self.key.method,
            "images": 0 if solver is None else solver.num_images,
            "is_saved": solver is self.saved,
            "snapshot_age_s": None if self.saved_at is None else now - self.saved_at,
        }


def _fingerprint(base: KnowledgeBase, method: MethodName, config: MethodConfig, encoder_fingerprint: str) -> str:
    parts = [base.fingerprint, encoder_fingerprint, method, asdict(config)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()
