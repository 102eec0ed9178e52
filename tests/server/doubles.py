"""A service without batching, for the tests of the doors: each request goes to an `Engine` in a thread."""

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter

from kpl_engine.errors import NotReadyError, OverloadedError, RequestCancelledError, TooLargeError, UnknownModelError
from kpl_engine.server.port import IndexEntry, KnowledgeInfo, ModelInfo, ModelStatistics, StageTotal
from kpl_engine.server.requests import Reply
from kpl_engine.server.settings import ServerSettings


class FakeTicket:
    def __init__(self):
        self.future = Future()
        self.is_cancelled = False

    def cancel(self):
        self.is_cancelled = True
        with contextlib.suppress(Exception):
            self.future.set_exception(RequestCancelledError("the client left"))


class FakeLease:
    def __init__(self, service):
        self._service, self.num_bytes = service, 0

    def grow(self, num_bytes):
        settings = self._service.settings
        self.num_bytes += num_bytes
        self._service.inflight_bytes += num_bytes
        if self.num_bytes > settings.max_body_bytes:
            raise TooLargeError(f"body: expected at most {settings.max_body_bytes} bytes, got more; send fewer images")
        if self._service.inflight_bytes > settings.max_inflight_bytes:
            raise OverloadedError("too many bytes in flight; come again")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._service.inflight_bytes -= self.num_bytes
        self.num_bytes = 0


class EngineService:
    """``fail_with``: what `submit` raises; ``hold``: an event that answers wait for; ``tickets``: all so far."""

    def __init__(self, engine, name="demo", settings=None):
        self.engine, self.name = engine, name
        self.settings = settings or ServerSettings()
        self.fail_with = None
        self.hold = None
        self.tickets, self.requests = [], []
        self.inflight_bytes = 0
        self.live = self.ready = self.loaded = True
        self._pool = ThreadPoolExecutor(2)
        self._lock = threading.Lock()

    def lease(self):
        if not self.ready:
            raise NotReadyError("the server is stopping; send the request to another")
        return FakeLease(self)

    def submit(self, request):
        if self.fail_with is not None:
            raise self.fail_with
        self.model(request.model, request.version)
        if request.num_images > self.settings.max_images:
            raise TooLargeError(f"expected at most {self.settings.max_images} images, got {request.num_images}")
        ticket = FakeTicket()
        self.tickets.append(ticket)
        self.requests.append(request)
        self._pool.submit(self._run, request, ticket)
        return ticket

    def _run(self, request, ticket):
        if self.hold is not None:
            self.hold.wait(20)
        try:
            reply = self._answer(request)
        except BaseException as error:
            with contextlib.suppress(Exception):
                ticket.future.set_exception(error)
            return
        with contextlib.suppress(Exception):
            ticket.future.set_result(reply)

    def _answer(self, request):
        started = perf_counter()
        base = self.engine.knowledge(request.task)
        mode = request.mode or ("frozen" if self.engine.frozen_proxies(base.name) else "batch")
        given = request.images if request.images is not None else request.pixels
        if request.features is None:
            encoded = self.engine.encode(list(given))
            features = encoded.features
            if encoded.failures and not request.skips_bad:
                raise encoded.failures[0][2]
            names = request.names or tuple(f"image {i}" for i in range(len(given)))
            source = {"images": list(given)}
        else:
            features, names, source = request.features, request.names, {"features": request.features}
        found = self.engine.classify(
            **source,
            method=request.method,
            mode=mode,
            knowledge=base.name,
            prior=request.prior,
            top_evidence=request.top_k,
        )
        if request.names:
            found = replace(found, names=tuple(names))
        total = (perf_counter() - started) * 1e3
        timings = {"decode": 1.0, "queue": 0.5, "encode": 2.0, "solve": 0.25, "total": total}
        return Reply(request.model, "1", found, features, timings, request.request_id)

    def model(self, name, version=""):
        if name != self.name or version not in ("", "1"):
            raise UnknownModelError(f"no model {name!r} version {version or '1'!r}; this server has: {self.name}")
        if not self.loaded:
            raise NotReadyError(f"model {name!r} is not loaded")
        engine = self.engine
        known = []
        for each in engine.knowledge_names:
            base, frozen = engine.knowledge(each), engine.frozen_proxies(each)
            known.append(
                KnowledgeInfo(each, base.classes, len(base.embeddings), None if frozen is None else frozen.method)
            )
        encoder = engine.encoder
        return ModelInfo(
            self.name,
            "1",
            encoder.name,
            encoder.embed_dim,
            encoder.image_size,
            8,
            tuple(known),
            encoder.providers,
            encoder.fingerprint,
        )

    def index(self):
        return [
            IndexEntry(self.name, "1", "READY" if self.loaded else "UNAVAILABLE", "" if self.loaded else "unloaded")
        ]

    def is_live(self):
        return self.live

    def is_ready(self):
        return self.live and self.ready and self.loaded

    def statistics(self, name="", version=""):
        if name:
            self.model(name, version)
        done = StageTotal(3, 6_000_000)
        return {
            self.name: ModelStatistics(3, 2, 1_790_000_000_000, done, StageTotal(), done, done, done, done, {2: done})
        }

    def snapshot(self):
        return {
            "uptime_s": 1.0,
            "is_ready": self.is_ready(),
            "inflight_images": 0,
            "queue_images": 0,
            "decoding_images": 0,
            "max_inflight_images": 64,
            "totals": {"requests": 3, "images": 3, "rejected": 0, "failed": 0, "cancelled": 0, "batches": 2},
            "latency_ms": {"p50": 2.0, "p90": 3.0, "p99": 4.0},
            "stages_ms": {"decode": 1.0, "queue": 0.5, "encode": 2.0, "solve": 0.25},
            "streams": None,
        }

    def load(self, name):
        if name != self.name:
            raise UnknownModelError(f"no bundle {name!r} in this server")
        self.loaded = True

    def unload(self, name):
        if name != self.name:
            raise UnknownModelError(f"no model {name!r} in this server")
        self.loaded = False
