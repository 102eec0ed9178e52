"""From what happens in the service to statistics and observers."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec

from kpl_engine.errors import RequestCancelledError
from kpl_engine.server.admission import Admission
from kpl_engine.server.flow import Flow, Outcome
from kpl_engine.server.observer import Observer, RequestSpans
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.statistics import Statistics
from kpl_engine.server.ticket import Job, Picture

__all__ = ["Reporting"]

_LOG = logging.getLogger(__name__)
_P = ParamSpec("_P")
_STEPS = 16  # a gauge is told when it moved by this part of the limit, or became 0


def _never_raises(
    told: Callable[Concatenate[Reporting, _P], None],
) -> Callable[Concatenate[Reporting, _P], None]:
    """An observer that fails must neither end a worker thread nor leave a request without its answer."""

    @functools.wraps(told)
    def tell(self: Reporting, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            told(self, *args, **kwargs)
        except Exception:
            _LOG.exception("an observer failed")

    return tell


class Reporting:
    """Keeps `Statistics` and tells the observer, if there is one."""

    def __init__(self, observer: Observer | None, flow: Flow, admission: Admission) -> None:
        self.statistics = Statistics()
        self._observer, self._flow, self._admission = observer, flow, admission
        self._told: dict[str, int] = {}
        # Read and told under it: an older value told last would stand for as long as nothing comes in.
        self._telling = threading.Lock()

    def accepted(self, request: ClassifyRequest) -> RequestSpans | None:
        """A request was admitted."""
        self.statistics.count("requests")
        try:
            return None if self._observer is None else self._observer.accepted(request)
        except Exception:
            _LOG.exception("an observer failed")
            return None

    @_never_raises
    def rejected(self, reason: str, num_images: int) -> None:
        """A request was refused."""
        self.statistics.count("rejected")
        if self._observer is not None:
            self._observer.rejected(reason, num_images)

    @_never_raises
    def cancelled(self, waiting: Mapping[str, int]) -> None:
        """The client left; ``waiting`` has its images at each stage."""
        if self._observer is not None:
            for stage, num_images in waiting.items():
                if num_images:
                    self._observer.cancelled(stage, num_images)

    @_never_raises
    def ran(self, pictures: Sequence[Picture], seconds: float) -> None:
        """An encoder ran a batch."""
        models = {picture.job.model.info.name for picture in pictures}
        self.statistics.ran(models, len(pictures), seconds)
        if self._observer is not None:
            self._observer.batch(pictures[0].job.model.info.name, len(pictures), seconds)
            self.gauges()

    @_never_raises
    def answered(self, job: Job, outcome: Outcome, now: float) -> None:
        """An accepted request is over."""
        error = outcome if isinstance(outcome, Exception) else None
        timings = job.timings_ms(now) if isinstance(outcome, Exception) else outcome.timings_ms
        name = job.model.info.name
        if error is None:
            self.statistics.answered(name, job.num_images, now, timings)
        else:
            self.statistics.failed(name, timings["total"], is_cancelled=isinstance(error, RequestCancelledError))
        if self._observer is not None:
            self._observer.answered(name, job.num_images, timings, error)
            _tell_spans(job, error)
            self.gauges()

    @_never_raises
    def model_ready(self, name: str, is_ready: bool) -> None:
        """A model was loaded or is being taken away."""
        if self._observer is not None:
            self._observer.model_ready(name, is_ready)

    @_never_raises
    def gauges(self) -> None:
        """Tell those that moved much."""
        if self._observer is None:
            return
        with self._telling:
            admission = self._admission
            now = {
                "inflight_images": admission.num_images,
                "inflight_bytes": admission.num_bytes,
                "decoding_images": self._flow.num_to_decode,
            }
            limits = {"inflight_bytes": admission.max_bytes}
            moved = [name for name, value in now.items() if self._has_moved(name, value, limits.get(name))]
            if moved:
                self._told.update(now)
                self._observer.gauges({name: float(value) for name, value in now.items()})
            for task, num_images in self._flow.queued_now().items():
                if self._has_moved(task, num_images):
                    self._told[task] = num_images
                    self._observer.queue(task, num_images)

    def _has_moved(self, name: str, value: int, limit: int | None = None) -> bool:
        told = self._told.get(name, 0)
        return value != told and (value == 0 or abs(value - told) * _STEPS >= (limit or self._admission.max_images))


def _tell_spans(job: Job, error: Exception | None) -> None:
    if job.spans is None:
        return
    decode, encode, solve = job.decode_s, job.encode_s, job.solve_s
    if decode is not None:
        job.spans.stage("decode", *decode, {"images": job.num_images})
    begun = encode or solve
    if begun is not None:
        waited_from = job.submitted_s if decode is None else min(decode[1], begun[0])
        job.spans.stage("queue", waited_from, begun[0], {"images": job.num_images})
        seconds = {
            "encode_s": encode[1] - encode[0] if encode else 0.0,
            "solve_s": solve[1] - solve[0] if solve else 0.0,
        }
        job.spans.stage("execute", begun[0], (solve or begun)[1], {"images": job.num_images, **seconds})
    job.spans.finish(error)
