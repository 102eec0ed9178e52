"""What the server tells people and log collectors: a line a record, text or JSON, written off the event loop.

A line holds counts, codes and times; never a token, a header, image bytes or the name of an image.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, TextIO

from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.settings import LogFormat

__all__ = ["AccessLog", "LineFormatter", "logging_to", "note_request"]

ROOT = "kpl_engine.server"
_FIELDS = ("request_id", "door", "operation", "code", "reason", "ms", "num_images", "model", "client")
_SECRET = re.compile(r"(?i)\b(bearer|basic)(\s+)[^\s,;'\"]+")
_MAX_TEXT = 16384
_QUEUE_LINES = 10_000
_LAST_LINES_S = 2.0
# Probes come every few seconds from each load balancer.
_PROBES = frozenset(
    {"live", "ready", "server_live", "server_ready", "ServerLive", "ServerReady", "health", "watch", "metrics"}
)
_noted: ContextVar[dict[str, Any] | None] = ContextVar("kpl_request_log", default=None)


def note_request(**fields: Any) -> None:
    """Add fields to the access line of the request that this task handles: ``client``, ``request_id`` ...

    Doors call it in the task of the request; each call of the same task adds to what was noted before.
    """
    _noted.set({**(_noted.get() or {}), **fields})


class LineFormatter(logging.Formatter):
    """Records to lines of text or JSON; text that came from outside cannot begin a line or move a cursor."""

    def __init__(self, kind: LogFormat) -> None:
        super().__init__()
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        """One line; in text a traceback follows, indented."""
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment.replace("+00:00", "Z"), "level": record.levelname.lower()}
        line["message"] = _safe(record.getMessage())
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None and value != "":
                line[name] = _safe(value) if isinstance(value, str) else value
        trace = _safe(self.formatException(record.exc_info)) if record.exc_info else ""
        if self._kind == "json":
            return json.dumps({**line, "traceback": trace} if trace else line, allow_nan=False)
        return self._text(line, trace)

    def _text(self, line: dict[str, Any], trace: str) -> str:
        head = f"{line.pop('time')} {line.pop('level'):7} {_printable(line.pop('message'))}"
        fields = "".join(f" {name}={_printable(str(value))}" for name, value in line.items())
        return head + fields + "".join(f"\n    {_printable(each)}" for each in trace.splitlines())


def _safe(text: str) -> str:
    return _SECRET.sub(r"\1\2[not told]", text[-_MAX_TEXT:])


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def logging_to(kind: LogFormat, level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Within the block the server's and its libraries' records become lines on ``stream`` (stderr).

    A thread writes them: a terminal that is stopped, or a full pipe, must not stop the event loop. While 10,000
    lines wait further ones are dropped, and their number is told.
    """
    writer = logging.StreamHandler(sys.stderr if stream is None else stream)
    writer.setFormatter(LineFormatter(kind))
    handler = _Dropping(writer)
    # uvicorn tells of its own start and stop at info; the server does that itself.
    levels = {ROOT: level.upper(), "uvicorn": "WARNING", "grpc": "WARNING", "opentelemetry": "ERROR"}
    before = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in levels}
    for name, wanted in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(wanted)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for name, (old_level, propagates) in before.items():
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagates
        handler.close()


class _Dropping(logging.Handler):
    """Hands records to a thread that writes them, and never waits for it: not even at the end for long."""

    def __init__(self, writer: logging.Handler) -> None:
        super().__init__()
        self._writer = writer
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_LINES)
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._write, name="kpl-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put it, or count it; under the lock of the handler."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._num_dropped += 1

    def close(self) -> None:
        """Write what waits, for at most two seconds."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_LAST_LINES_S)
        self._thread.join(_LAST_LINES_S)
        super().close()

    def _write(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._writer.handle(record)
            self._tell_dropped()
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        with self.lock or contextlib.nullcontext():
            num_dropped, self._num_dropped = self._num_dropped, 0
        if num_dropped:
            text = f"{num_dropped} log lines were dropped: nobody took them"
            self._writer.handle(logging.LogRecord(ROOT, logging.WARNING, "", 0, text, None, None))


class AccessLog:
    """An `Observer` that writes a line a reply; what nobody expected is logged by who caught it."""

    def __init__(self) -> None:
        self._access = logging.getLogger(f"{ROOT}.access")
        self._models = logging.getLogger(f"{ROOT}.models")

    def accepted(self, request: ClassifyRequest) -> None:
        """See `Observer`; called in the task of the door, so what is noted here is in its access line."""
        note_request(request_id=request.request_id, model=request.model, num_images=request.num_images)

    def rejected(self, reason: str, num_images: int) -> None:
        """See `Observer`."""
        note_request(reason=reason, num_images=num_images)

    def cancelled(self, stage: str, num_images: int) -> None:
        """See `Observer`."""
        self._access.debug("cancelled at %s", stage, extra={"num_images": num_images})

    def batch(self, model: str, num_images: int, seconds: float) -> None:
        """See `Observer`; counted, not logged."""

    def answered(
        self, model: str, num_images: int, timings_ms: Mapping[str, float], error: BaseException | None
    ) -> None:
        """See `Observer`; the reply is what is logged."""

    def gauges(self, values: Mapping[str, float]) -> None:
        """See `Observer`; counted, not logged."""

    def queue(self, task: str, num_images: int) -> None:
        """See `Observer`; counted, not logged."""

    def model_ready(self, name: str, is_ready: bool) -> None:
        """See `Observer`."""
        self._models.info("model %s is %s", name, "ready" if is_ready else "not ready", extra={"model": name})

    def snapshot(self, stream: str, error: BaseException | None) -> None:
        """See `Observer`; the streams write the log themselves."""

    def replied(self, door: str, operation: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        level = logging.DEBUG if operation in _PROBES else logging.INFO
        if self._access.isEnabledFor(level):
            told = {"door": door, "operation": operation, "code": code, "ms": round(seconds * 1e3, 3)}
            self._access.log(level, "replied", extra={**(_noted.get() or {}), **told})
        _noted.set(None)  # a task of a door may serve the next request too
