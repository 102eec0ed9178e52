"""The service behind the doors: admission, decode threads, encoder and solver threads an instance, answers."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kpl_engine.config import DecodeConfig
from kpl_engine.errors import ForbiddenError, KplError, NotReadyError, RequestCancelledError
from kpl_engine.server.admission import Admission, Lease
from kpl_engine.server.checking import check_request
from kpl_engine.server.flow import Flow, Outcome
from kpl_engine.server.observer import Observer
from kpl_engine.server.parts import Model, Models
from kpl_engine.server.port import IndexEntry, ModelInfo, ModelStatistics
from kpl_engine.server.reporting import Reporting
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.settings import ServerSettings, model_name
from kpl_engine.server.solving import StreamsPort, solve_next
from kpl_engine.server.stages import decode_next, encode_next
from kpl_engine.server.status import status_of
from kpl_engine.server.ticket import Job

__all__ = ["BatchingService"]

_LOG = logging.getLogger(__name__)
_JOIN_S = 30.0


class BatchingService:
    """`port.Service`: batches images of all requests for the encoders, then solves request by request.

    Life: `start`, then `stop_being_ready` (not ready, still accepting), `drain`, `close`. Every accepted request is
    answered exactly once: with a reply, or with the error that ended it.

    Parameters
    ----------
    models : Models
        Started and closed by the service.
    settings : ServerSettings
    streams : StreamsPort, optional
        Started and closed by the service; without, a request of mode "stream" is refused.
    observer : Observer, optional
    on_death : callable, optional
        Told the error that ended a worker thread, once everything in flight has failed: the process must be restarted.
    clock : callable
        Seconds, monotonic; spans are in it.
    """

    def __init__(
        self,
        models: Models,
        settings: ServerSettings,
        *,
        streams: StreamsPort | None = None,
        observer: Observer | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._models, self._streams, self._clock = models, streams, clock
        self._on_death = on_death
        self._admission = Admission(settings, clock)
        self._flow = Flow(clock, self._settle, models.release)
        self._reporting = Reporting(observer, self._flow, self._admission)
        self._state = "starting"
        self._state_lock = threading.Lock()
        self._death: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._started_s = clock()

    def start(self) -> None:
        """Load and warm the models, start the threads; raises what `Models.start` raises."""
        self._models.start()
        if self._streams is not None:
            self._streams.start()
        self._derive_limit()
        settings, flow, clock = self.settings, self._flow, self._clock
        config = DecodeConfig(max_file_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
        for _ in range(settings.decode_threads or _cores()):
            self._work("kpl-decode", lambda: decode_next(flow, config, clock))
        for instance in range(settings.instances):
            self._work("kpl-encode", lambda i=instance: encode_next(flow, i, clock, self._reporting.ran))  # type: ignore[misc]
            self._work("kpl-solve", lambda i=instance: solve_next(flow, i, self._streams, clock))  # type: ignore[misc]
        self._work("kpl-deadlines", flow.expire_next)
        self._move("starting", "ready")
        for entry in self._models.index():
            self._reporting.model_ready(entry.name, entry.state == "READY")

    def lease(self) -> Lease:
        """See `port.Service`."""
        self._check_accepting()
        lease = self._admission.lease(self._lease_ended)
        if self._state in ("draining", "stopped"):  # it began meanwhile, and may not have seen this lease
            lease.close()
            self._check_accepting()
        return lease

    def submit(self, request: ClassifyRequest) -> Job:
        """See `port.Service`. Whoever opened a lease before the drain began may still submit."""
        now = self._clock()
        try:
            if not (self._state == "draining" and self._admission.num_leases):
                self._check_accepting()
            model = self._models.acquire(request.model, request.version)
            try:
                return self._admit(request, model, now)
            except BaseException:
                self._models.release(model)
                raise
        except KplError as error:
            self._reporting.rejected(status_of(error).reason, request.num_images)
            raise

    def model(self, name: str, version: str = "") -> ModelInfo:
        """See `port.Service`."""
        model = self._models.acquire(name, version)
        try:
            return model.info
        finally:
            self._models.release(model)

    def index(self) -> Sequence[IndexEntry]:
        """See `port.Service`."""
        return self._models.index()

    def is_live(self) -> bool:
        """See `port.Service`."""
        return self._death is None

    def is_ready(self) -> bool:
        """See `port.Service`."""
        if self._death is not None or self._state != "ready":
            return False
        ready = {entry.name for entry in self._models.index() if entry.state == "READY"}
        return all(model_name(path) in ready for path in self.settings.bundles)

    def statistics(self, name: str = "", version: str = "") -> Mapping[str, ModelStatistics]:
        """See `port.Service`."""
        if name:
            names = [self.model(name, version).name]
        else:
            names = [entry.name for entry in self._models.index() if entry.state == "READY"]
        return {each: self._reporting.statistics.of(each) for each in names}

    def snapshot(self) -> Mapping[str, Any]:
        """See `port.Service`."""
        now = self._clock()
        return {
            "uptime_s": now - self._started_s,
            "is_ready": self.is_ready(),
            "inflight_images": self._admission.num_images,
            "queue_images": self._flow.num_to_encode,
            "decoding_images": self._flow.num_to_decode,
            "max_inflight_images": self._admission.max_images,
            **self._reporting.statistics.snapshot(now),
            "streams": None if self._streams is None else self._streams.status(),
        }

    def load(self, name: str) -> None:
        """See `port.Service`."""
        self._check_model_control()
        self.reload(name)

    def reload(self, name: str) -> None:
        """`load` by the operator of the process, whom `model_control` does not bind."""
        self._models.load(name)
        self._derive_limit()
        self._reporting.statistics.forget(name)
        self._reporting.model_ready(name, True)

    def unload(self, name: str) -> None:
        """See `port.Service`."""
        self._check_model_control()
        self._reporting.model_ready(name, False)
        try:
            self._models.unload(name)
        finally:
            is_left = any(entry.name == name and entry.state == "READY" for entry in self._models.index())
            if is_left:
                self._reporting.model_ready(name, True)
        self._reporting.statistics.forget(name)
        if self._streams is not None:
            self._streams.forget(name)

    def stop_being_ready(self) -> None:
        """`is_ready` turns False, so that balancers look elsewhere; everything is accepted as before."""
        self._move("ready", "lame")

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing new and wait until all that was accepted is answered, at most ``timeout_s``; blocks.

        What is left then fails with `NotReadyError`; False says that there was some.
        """
        with self._state_lock:
            if self._state != "stopped":
                self._state = "draining"
        is_empty = self._flow.wait_until_empty(timeout_s, lambda: self._admission.num_leases > 0)
        self._flow.finish_all(
            NotReadyError(f"the server stopped before this was answered ({timeout_s:g} s); send it again")
        )
        return is_empty

    def close(self) -> None:
        """Fail what is left, end the threads, close streams and models; idempotent."""
        with self._state_lock:
            if self._state == "stopped":
                return
            self._state = "stopped"
        self._flow.close()
        self._flow.finish_all(NotReadyError("the server has stopped; send the request to another"))
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                _LOG.error("thread %s does not end: it has been at one picture or batch for %g s", thread.name, _JOIN_S)
        if self._streams is not None:
            self._streams.close()
        self._models.close()

    def _admit(self, request: ClassifyRequest, model: Model, now: float) -> Job:
        num_images = request.num_images
        self._admission.admit(num_images)
        try:
            checked = check_request(request, model, self._streams is not None)
            allowed = min(self.settings.deadline_s, request.timeout_s or self.settings.deadline_s)
            job = Job(checked.request, model, checked.base, checked.mode, now, now + allowed, self._cancel)
            raw, ready = checked.split(job)
            job.spans = self._reporting.accepted(request)
            self._flow.enter(job, raw, ready)
        except BaseException:
            self._admission.release(num_images)
            raise
        self._reporting.gauges()
        return job

    def _cancel(self, job: Job) -> None:
        waiting = {"decode": job.num_to_decode, "queue": job.num_left - job.num_to_decode}
        waiting["solve"] = job.num_images - sum(waiting.values())
        if self._flow.finish(job, RequestCancelledError("the client left before this was answered")):
            self._reporting.cancelled(waiting)

    def _settle(self, job: Job, outcome: Outcome) -> None:
        is_error = isinstance(outcome, Exception)
        self._admission.release(job.num_images, 0 if is_error else job.num_images)
        self._reporting.answered(job, outcome, self._clock())
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    def _work(self, name: str, turn: Callable[[], bool]) -> None:
        thread = threading.Thread(target=self._live, args=(turn,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _live(self, turn: Callable[[], bool]) -> None:
        try:
            while turn():
                pass
        except BaseException as error:  # whatever ends a worker ends the server: half of one answers nobody
            self._die(error)

    def _die(self, error: BaseException) -> None:
        with self._state_lock:
            if self._death is not None:
                return
            self._death = error
        _LOG.critical("a worker thread died; the process must be restarted", exc_info=error)
        self._flow.close()
        self._flow.finish_all(NotReadyError("a part of the server failed and it will be restarted; send it again"))
        if self._on_death is not None:
            self._on_death(error)

    def _lease_ended(self) -> None:
        self._reporting.gauges()
        if self._state == "draining":
            self._flow.wake_waiters()

    def _check_accepting(self) -> None:
        if self._death is not None:
            raise NotReadyError("a part of the server failed and it will be restarted; send it again")
        if self._state == "starting":
            raise NotReadyError("the server is starting; come again when /v2/health/ready says so")
        if self._state in ("draining", "stopped"):
            raise NotReadyError("the server is stopping; send the request to another")

    def _check_model_control(self) -> None:
        if not self.settings.model_control:
            raise ForbiddenError("this server does not load or unload at run time; start it with model control")

    def _derive_limit(self) -> None:
        sizes = [lane.buckets[-1] for lane in self._models.lanes()]
        self._admission.derive_limit(max(sizes, default=self.settings.max_batch or 8))

    def _move(self, from_: str, to: str) -> None:
        with self._state_lock:
            if self._state == from_:
                self._state = to


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
