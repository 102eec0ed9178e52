"""OpenTelemetry spans of each request, sent over OTLP/HTTP by a thread; a collector that is away costs nothing.

A request that came with a W3C ``traceparent`` is a child of it, and is sampled as it says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kpl_engine import __version__
from kpl_engine.errors import MissingExtraError
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.status import status_of

__all__ = ["Tracing", "traces_url"]

_EXPORT_TIMEOUT_S = 5.0
_MAX_WAITING = 2048  # spans beyond are dropped


class Tracing:
    """An `Observer`. ``exporter`` replaces OTLP in tests.

    Raises `MissingExtraError` without the extra [otel].
    """

    def __init__(self, endpoint: str, exporter: Any = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            exporter = _exporter(endpoint) if exporter is None else exporter
        except ImportError as error:
            name = (error.name or "opentelemetry").partition(".")[0]
            raise MissingExtraError(name, "otel", "--otlp-endpoint (tracing)") from error
        resource = Resource.create({"service.name": "kpl-engine", "service.version": __version__})
        self._provider: Any = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_MAX_WAITING))
        self._tracer: Any = self._provider.get_tracer("kpl_engine.server", __version__)
        self._propagator: Any = TraceContextTextMapPropagator()
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def accepted(self, request: ClassifyRequest) -> _Spans:
        """See `Observer`."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({"traceparent": request.traceparent}) if request.traceparent else None
        given = {
            "kpl.model": request.model,
            "kpl.task": request.task,
            "kpl.method": request.method,
            "kpl.mode": request.mode,
            "kpl.num_images": request.num_images,
            "kpl.request_id": request.request_id,
        }
        attributes = {name: value for name, value in given.items() if value not in (None, "")}
        span = self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER, attributes=attributes)
        return _Spans(self._tracer, span, self._epoch_ns)

    def rejected(self, reason: str, num_images: int) -> None:
        """See `Observer`; a refusal has no span."""

    def cancelled(self, stage: str, num_images: int) -> None:
        """See `Observer`; the request's span says so."""

    def batch(self, model: str, num_images: int, seconds: float) -> None:
        """See `Observer`; a batch belongs to several requests."""

    def answered(
        self, model: str, num_images: int, timings_ms: Mapping[str, float], error: BaseException | None
    ) -> None:
        """See `Observer`."""

    def gauges(self, values: Mapping[str, float]) -> None:
        """See `Observer`."""

    def queue(self, task: str, num_images: int) -> None:
        """See `Observer`."""

    def model_ready(self, name: str, is_ready: bool) -> None:
        """See `Observer`."""

    def snapshot(self, stream: str, error: BaseException | None) -> None:
        """See `Observer`; no request's doing."""

    def replied(self, door: str, operation: str, code: str, seconds: float) -> None:
        """See `Observer`."""

    def close(self, timeout_s: float = _EXPORT_TIMEOUT_S) -> None:
        """Send what waits, for at most ``timeout_s``; what is left then is lost."""
        import threading

        sender = threading.Thread(target=self._provider.shutdown, name="kpl-traces-last", daemon=True)
        sender.start()
        sender.join(timeout_s)


class _Spans:
    """``decode``, ``queue`` and ``execute`` below ``request``."""

    def __init__(self, tracer: Any, span: Any, epoch_ns: int) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span, self._epoch_ns = tracer, span, epoch_ns
        self._context = set_span_in_context(span)

    def _ns(self, monotonic_s: float) -> int:
        return self._epoch_ns + int(monotonic_s * 1e9)

    def stage(self, name: str, start_s: float, end_s: float, attributes: Mapping[str, int | float | str]) -> None:
        """See `RequestSpans`."""
        started = self._ns(start_s)
        span = self._tracer.start_span(name, self._context, attributes=dict(attributes), start_time=started)
        span.end(max(self._ns(end_s), started))

    def finish(self, error: BaseException | None) -> None:
        """See `RequestSpans`; of an error its kind, not its text, which may name an image."""
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            found = status_of(error)
            self._span.set_attribute("error.type", found.reason)
            if found.http >= 500:
                self._span.set_status(Status(StatusCode.ERROR, found.reason))
        self._span.end()


def traces_url(endpoint: str) -> str:
    """Where traces go: ``/v1/traces`` of the collector, unless the address has a path of its own.

    >>> traces_url("http://collector:4318")
    'http://collector:4318/v1/traces'
    """
    parts = urlsplit(endpoint)
    return urlunsplit(parts if parts.path.strip("/") else parts._replace(path="/v1/traces"))


def _exporter(endpoint: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=_EXPORT_TIMEOUT_S)
