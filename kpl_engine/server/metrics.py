"""The figures of the server for Prometheus: a registry of its own, and the small page that tells them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from kpl_engine import __version__
from kpl_engine.errors import KplError
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.status import status_of

__all__ = ["Metrics", "metrics_app"]

# Seconds: from a request of features alone to the deadline of ten seconds.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MAX_VALUES = 256  # of one label; each is a time series that the operator's database keeps
_OTHER = "other"
_Scope = MutableMapping[str, Any]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Metrics:
    """An `Observer` that counts. Durations are seconds; a label never holds what a client made up."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        ProcessCollector(registry=registry)
        Gauge("kpl_build_info", "The version that runs", ["version"], registry=registry).labels(__version__).set(1)
        self._requests = Counter(
            "kpl_requests_total", "Replies of a door", ["door", "operation", "code"], registry=registry
        )
        self._images = Counter("kpl_images_total", "Images that were answered", ["model"], registry=registry)
        self._rejected = Counter("kpl_rejected_total", "Requests refused at admission", ["reason"], registry=registry)
        self._failed = Counter(
            "kpl_failed_total", "Accepted requests answered with an error", ["reason"], registry=registry
        )
        self._cancelled = Counter(
            "kpl_cancelled_total", "Images dropped since their client left", ["stage"], registry=registry
        )
        self._durations = {
            "total": self._seconds("request", "From admission to answer"),
            "decode": self._seconds("decode", "From the first picture begun to the last decoded"),
            "queue": self._seconds("queue", "Waiting between the stages"),
            "execute": self._seconds("execute", "Encode and solve"),
        }
        self._batches = Histogram("kpl_batch_images", "Images of an encoder batch", buckets=_BATCHES, registry=registry)
        self._encoder = Counter("kpl_encoder_seconds_total", "Time the encoders ran", ["model"], registry=registry)
        self._gauges = {
            name: Gauge(f"kpl_{name}", text, registry=registry)
            for name, text in (
                ("inflight_images", "Images admitted and not answered"),
                ("inflight_bytes", "Bytes of bodies held"),
                ("decoding_images", "Images admitted and not decoded"),
            )
        }
        self._queue = Gauge("kpl_queue_images", "Images that wait for the encoder", ["task"], registry=registry)
        self._ready = Gauge("kpl_model_ready", "1 where the model is loaded", ["model"], registry=registry)
        self._snapshots = Counter(
            "kpl_snapshots_total", "States of streams written to disk, or not", ["result"], registry=registry
        )
        self._known: dict[str, set[str]] = {}

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"kpl_{name}_duration_seconds", text, buckets=_SECONDS, registry=self.registry)

    def accepted(self, request: ClassifyRequest) -> None:
        """See `Observer`; the times are taken from `answered`."""

    def rejected(self, reason: str, num_images: int) -> None:
        """See `Observer`."""
        self._rejected.labels(self._bounded("reason", reason)).inc()

    def cancelled(self, stage: str, num_images: int) -> None:
        """See `Observer`."""
        self._cancelled.labels(self._bounded("stage", stage)).inc(num_images)

    def batch(self, model: str, num_images: int, seconds: float) -> None:
        """See `Observer`."""
        self._batches.observe(num_images)
        self._encoder.labels(self._bounded("model", model)).inc(max(seconds, 0.0))

    def answered(
        self, model: str, num_images: int, timings_ms: Mapping[str, float], error: BaseException | None
    ) -> None:
        """See `Observer`."""
        if error is not None:
            reason = status_of(error).reason if isinstance(error, KplError) else "internal"
            self._failed.labels(reason).inc()
        else:
            self._images.labels(self._bounded("model", model)).inc(num_images)
        times = dict(timings_ms)
        if "encode" in times or "solve" in times:
            times["execute"] = times.get("encode", 0.0) + times.get("solve", 0.0)
        for name, histogram in self._durations.items():
            if name in times:
                histogram.observe(times[name] / 1e3)

    def gauges(self, values: Mapping[str, float]) -> None:
        """See `Observer`; a name that is not listed there is passed over."""
        for name, value in values.items():
            if name in self._gauges:
                self._gauges[name].set(value)

    def queue(self, task: str, num_images: int) -> None:
        """See `Observer`."""
        self._queue.labels(self._bounded("task", task)).set(num_images)

    def model_ready(self, name: str, is_ready: bool) -> None:
        """See `Observer`."""
        self._ready.labels(self._bounded("model", name)).set(float(is_ready))

    def snapshot(self, stream: str, error: BaseException | None) -> None:
        """See `Observer`."""
        self._snapshots.labels("written" if error is None else "failed").inc()

    def replied(self, door: str, operation: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        self._requests.labels(door, self._bounded("operation", operation), self._bounded("code", code)).inc()

    def _bounded(self, label: str, value: str) -> str:
        """``value`` while the label has few of them; models come and go at run time, but not without end."""
        known = self._known.setdefault(label, set())
        if value not in known:
            if len(known) >= _MAX_VALUES:
                return _OTHER
            known.add(value)
        return value


def metrics_app(registry: CollectorRegistry) -> Callable[[_Scope, _Receive, _Send], Awaitable[None]]:
    """An ASGI application that answers ``GET /metrics``: Prometheus text, or OpenMetrics where it is asked for."""

    async def app(scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = _page(scope, registry)
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def _page(scope: _Scope, registry: CollectorRegistry) -> tuple[int, str, bytes]:
    if scope["path"].rstrip("/") not in ("/metrics", ""):
        return 404, "text/plain; charset=utf-8", b"this port has only /metrics\n"
    if scope["method"] not in ("GET", "HEAD"):
        return 405, "text/plain; charset=utf-8", b"/metrics is read with GET\n"
    accept = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"accept"), "")
    encode, kind = choose_encoder(accept)
    return 200, kind, encode(registry)
