"""What the service tells of itself; metrics and traces listen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kpl_engine.server.requests import ClassifyRequest

__all__ = ["Observer", "Observers", "RequestSpans"]


class RequestSpans(Protocol):
    """One accepted request: times are seconds of `time.monotonic`, called from any thread."""

    def stage(self, name: str, start_s: float, end_s: float, attributes: Mapping[str, int | float | str]) -> None:
        """A stage is over: "decode", "queue" or "execute" (encode and solve, with their own seconds as attributes)."""

    def finish(self, error: BaseException | None) -> None:
        """The request is answered, with a reply (None) or an error."""


class Observer(Protocol):
    """Called from any thread; must be quick and must not raise."""

    def accepted(self, request: ClassifyRequest) -> RequestSpans | None:
        """A request was admitted."""

    def rejected(self, reason: str, num_images: int) -> None:
        """A request was refused at admission; ``reason`` is `status.reason_of` of its error."""

    def cancelled(self, stage: str, num_images: int) -> None:
        """Images were dropped since their client left: at "decode", "queue" or "solve"."""

    def batch(self, model: str, num_images: int, seconds: float) -> None:
        """The encoder ran."""

    def answered(
        self, model: str, num_images: int, timings_ms: Mapping[str, float], error: BaseException | None
    ) -> None:
        """An accepted request got its answer or its error."""

    def gauges(self, values: Mapping[str, float]) -> None:
        """inflight_images, inflight_bytes, decoding_images; called when they change much, not for each image."""

    def queue(self, task: str, num_images: int) -> None:
        """Images of a task (model/knowledge base) that wait for the encoder."""

    def model_ready(self, name: str, is_ready: bool) -> None:
        """A model was loaded or unloaded."""

    def snapshot(self, stream: str, error: BaseException | None) -> None:
        """A stream's state (model/knowledge base/method) was written to disk, or could not be."""

    def replied(self, door: str, operation: str, code: str, seconds: float) -> None:
        """A door sent a reply: "http" or "grpc", for example ("http", "infer", "200", 0.01)."""


class Observers:
    """Several observers as one; spans of each are told in turn."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def accepted(self, request: ClassifyRequest) -> RequestSpans | None:
        """See `Observer`."""
        spans = [found for each in self._observers if (found := each.accepted(request)) is not None]
        return _Spans(spans) if spans else None

    def rejected(self, reason: str, num_images: int) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.rejected(reason, num_images)

    def cancelled(self, stage: str, num_images: int) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.cancelled(stage, num_images)

    def batch(self, model: str, num_images: int, seconds: float) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.batch(model, num_images, seconds)

    def answered(
        self, model: str, num_images: int, timings_ms: Mapping[str, float], error: BaseException | None
    ) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.answered(model, num_images, timings_ms, error)

    def gauges(self, values: Mapping[str, float]) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.gauges(values)

    def queue(self, task: str, num_images: int) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.queue(task, num_images)

    def model_ready(self, name: str, is_ready: bool) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.model_ready(name, is_ready)

    def snapshot(self, stream: str, error: BaseException | None) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.snapshot(stream, error)

    def replied(self, door: str, operation: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        for each in self._observers:
            each.replied(door, operation, code, seconds)


class _Spans:
    def __init__(self, spans: list[RequestSpans]) -> None:
        self._spans = spans

    def stage(self, name: str, start_s: float, end_s: float, attributes: Mapping[str, int | float | str]) -> None:
        for each in self._spans:
            each.stage(name, start_s, end_s, attributes)

    def finish(self, error: BaseException | None) -> None:
        for each in self._spans:
            each.finish(error)
