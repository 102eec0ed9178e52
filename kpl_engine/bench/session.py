"""A target made ready in a scenario's own process: bundle, samples, what its answers must be, and how it warms up."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kpl_engine.bench.checking import Reference, prepare_frozen
from kpl_engine.bench.inprocess import EngineTarget, ServiceTarget
from kpl_engine.bench.records import Check
from kpl_engine.bench.remote import Payloads, RemoteTarget
from kpl_engine.bench.samples import Samples, make_samples
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
_LEAST_PATIENCE_S, _BOUNDS_OF_PATIENCE, _STREAM_PATIENCE_S = 2.0, 20.0, 60.0


class Session:
    """Open until left.

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
    notes : list of str
    """

    def __init__(self, settings: BenchSettings, scenario: str, folder: Path) -> None:
        self.settings, self.scenario = settings, scenario
        self.notes: list[str] = []
        self.rng = np.random.default_rng(settings.seed)
        self._stack = ExitStack()
        try:
            self._engine, self.samples = self._open_engine(folder)
            self.target: Target = self._open_target()
            self._stack.callback(self.target.close)
        except BaseException:
            self._stack.close()
            raise
        self._reference: Reference | None = None

    def check(self) -> Check:
        """Answers of the target against the reference, on samples drawn anew each time."""
        if self._reference is None:
            self._reference = Reference(self._engine, self.samples, self.settings)
        return self._reference.check(self.target.answer_of)

    def _open_engine(self, folder: Path) -> tuple[Engine, Samples]:
        settings = self.settings
        engine = self._stack.enter_context(Engine.load(settings.bundle, settings.device))
        samples = make_samples(settings, engine)
        if settings.url is not None:
            return engine, samples
        had = engine.frozen_proxies(settings.knowledge)
        note = prepare_frozen(engine, samples, settings)
        if note:
            self.notes.append(note)
        if self.scenario != "Server":
            return engine, samples
        bundle = settings.bundle if had is engine.frozen_proxies(settings.knowledge) else self._fitted(engine, folder)
        self._stack.pop_all().close()  # the batcher opens its own
        return self._open_service(bundle), samples

    def _fitted(self, engine: Engine, folder: Path) -> Path:
        base = engine.knowledge(self.settings.knowledge)
        frozen = engine.frozen_proxies(base.name)
        if frozen is None:
            raise ValueError("expected fitted proxies")
        entry = {
            "method": frozen.method,
            "num_images": frozen.num_images,
            "knowledge_fingerprint": base.fingerprint,
        }
        path = folder / f"{model_name(self.settings.bundle)}.kpl"
        return add_proxies(self.settings.bundle, base.name, *frozen.to_tensors(), entry, path)

    def _open_service(self, bundle: Path) -> Engine:
        """Start the batcher with the settings that `kpl-engine serve` starts with; an `Engine` over its encoder."""
        settings = complete(ServerSettings(bundles=(bundle,), device=self.settings.device))
        models = LoadedModels(settings)
        self._service = BatchingService(models, settings)
        self._stack.callback(self._service.close)
        self._service.start()
        model = models.acquire(model_name(bundle))
        base = model.base(self.settings.knowledge)
        frozen = model.frozen(base.name)
        models.release(model)
        known: Mapping[str, Any] = {} if frozen is None else {base.name: frozen}
        return Engine(model.lane.encoders[0], [base], frozen=known, device=self.settings.device)

    def _open_target(self) -> Target:
        settings, samples = self.settings, self.samples
        kind, payloads = settings.input_kind, samples.payloads
        if settings.url is not None:
            return self._open_remote()
        options: dict[str, Any] = {
            "knowledge": settings.knowledge,
            "method": settings.method,
            "mode": settings.mode or "frozen",
        }
        if self.scenario == "Server":
            return ServiceTarget(self._service, model_name(settings.bundle), kind, payloads, **options)
        return EngineTarget(self._engine, kind, payloads, **options)

    def _open_remote(self) -> Target:
        settings = self.settings
        model = find_model(settings, self._engine)
        if model.address.is_loopback:
            self.notes.append("client and server share the cores of this machine")
        if self.scenario == "Server":
            patience_s = max(_LEAST_PATIENCE_S, _BOUNDS_OF_PATIENCE * settings.latency_bound_ms / 1e3)
            return RemoteTarget(model, Payloads.of(settings.input_kind, self.samples.payloads), patience_s=patience_s)
        at_once = _OFFLINE_REQUESTS if self.scenario == "Offline" else 1
        payloads = Payloads.of(settings.input_kind, self.samples.payloads)
        return RemoteTarget(model, payloads, at_once, _STREAM_PATIENCE_S)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
