"""A target made ready in a scenario's own process: samples, what their answers must be, and who answers them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kpl_engine.bench.checking import Reference, prepare_frozen
from kpl_engine.bench.inprocess import EngineTarget, ServiceTarget
from kpl_engine.bench.records import Check
from kpl_engine.bench.remote import Payloads, RemoteTarget
from kpl_engine.bench.samples import make_samples
from kpl_engine.bench.server_model import find_model
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.bench.targets import Target
from kpl_engine.building import add_proxies
from kpl_engine.engine import Engine
from kpl_engine.server.defaults import complete
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings, model_name

__all__ = ["Session"]

_OFFLINE_REQUESTS = 4  # under way at a server: half of what it admits, so that it refuses none
_LEAST_PATIENCE_S, _STREAM_PATIENCE_S = 2.0, 60.0


class Session:
    """Open until left.

    The engine that says what is right is closed before another one, or the batcher, is opened to be measured: the
    first call of that one is a first call.

    Parameters
    ----------
    settings : BenchSettings
    scenario : str
        "Server" in process is the batcher; the others are `Engine.classify`.
    folder : Path
        Takes the bundle with fitted proxies, where the given one has none.

    Attributes
    ----------
    target : Target
    samples : Samples
    notes : list of str
    rng : Generator
    """

    def __init__(self, settings: BenchSettings, scenario: str, folder: Path) -> None:
        self.settings, self.scenario = settings, scenario
        self.notes: list[str] = []
        self.rng = np.random.default_rng(settings.seed)
        self._stack = ExitStack()
        try:
            # A server has the GPU of this machine to itself.
            device = "cpu" if settings.url is not None and settings.device == "auto" else settings.device
            with Engine.load(settings.bundle, device) as engine:
                self.samples = make_samples(settings, engine)
                if settings.url is None:
                    bundle = self._bundle(engine, folder)
                    self._reference = Reference(engine, self.samples, settings)
                else:
                    self.target: Target = self._open_remote(engine)
            if settings.url is None:
                self.target = self._open_service(bundle) if scenario == "Server" else self._open_engine(bundle)
        except BaseException:
            self._stack.close()
            raise

    def check(self) -> Check:
        """Answers of the target against the reference, on samples drawn anew each time."""
        return self._reference.check(self.target.answer_of)

    def _bundle(self, engine: Engine, folder: Path) -> Path:
        """The bundle of the settings; where proxies had to be fitted, a copy that has them."""
        settings = self.settings
        note = prepare_frozen(engine, self.samples, settings)
        base = engine.knowledge(settings.knowledge)
        frozen = engine.frozen_proxies(base.name)
        if note is None or frozen is None:
            return settings.bundle
        self.notes.append(note)
        entry = {"method": frozen.method, "num_images": frozen.num_images, "knowledge_fingerprint": base.fingerprint}
        path = folder / settings.bundle.name
        return add_proxies(settings.bundle, base.name, *frozen.to_tensors(), entry, path)

    @property
    def _options(self) -> dict[str, Any]:
        settings = self.settings
        return {"knowledge": settings.knowledge, "method": settings.method, "mode": settings.mode or "frozen"}

    def _open_engine(self, bundle: Path) -> Target:
        engine = self._stack.enter_context(Engine.load(bundle, self.settings.device))
        return EngineTarget(engine, self.settings.input_kind, self.samples.payloads, **self._options)

    def _open_service(self, bundle: Path) -> Target:
        """The batcher with the settings that `kpl-engine serve` starts with."""
        settings = complete(ServerSettings(bundles=(bundle,), device=self.settings.device))
        service = BatchingService(LoadedModels(settings), settings)
        self._stack.callback(service.close)
        service.start()
        kind, payloads = self.settings.input_kind, self.samples.payloads
        target = ServiceTarget(service, model_name(bundle), kind, payloads, **self._options)
        self._stack.callback(target.close)
        return target

    def _open_remote(self, engine: Engine) -> Target:
        """The server, whose features of the samples are what its answers are held to: it may compute otherwise."""
        settings = self.settings
        model = find_model(settings, engine)
        if model.address.is_loopback:
            self.notes.append("client and server share the cores of this machine")
        bound_s = settings.latency_bound_ms / 1e3
        at_once, patience_s = {
            "Server": (None, max(_LEAST_PATIENCE_S, 2 * bound_s, min(20 * bound_s, _STREAM_PATIENCE_S))),
            "Offline": (_OFFLINE_REQUESTS, _STREAM_PATIENCE_S),
        }.get(self.scenario, (1, _STREAM_PATIENCE_S))
        payloads = Payloads.of(settings.input_kind, self.samples.payloads)
        target = RemoteTarget(model, payloads, at_once=at_once, patience_s=patience_s)
        self._stack.callback(target.close)
        self._reference = Reference(engine, self.samples, settings, target.features_of)
        return target

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
