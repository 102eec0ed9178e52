"""A service whose encoder and solver take no time, and whose turns are taken by hand in one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from kpl_engine.classification import Classification
from kpl_engine.config import MethodConfig
from kpl_engine.encoder.pipeline import Prepared
from kpl_engine.server import stages
from kpl_engine.server.parts import Lane
from kpl_engine.server.port import IndexEntry, ModelInfo
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.ticket import Job

__all__ = ["SQUARE", "Desk"]

_WIDTH = 4
_BUCKETS = (1, 2, 4, 8)
SQUARE = np.zeros((4, 4, 3), np.uint8)  # a picture of the model's size


class _InstantEncoder:
    image_size, embed_dim, preprocess, fingerprint = (4, 4), _WIDTH, None, "f"
    _rows = np.full((_BUCKETS[-1], _WIDTH), 0.5, np.float32)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        return self._rows[: len(pixels)]


class _InstantModel:
    """One knowledge base with fitted proxies; an answer is made once for each number of images."""

    def __init__(self, name: str) -> None:
        self.lane = Lane(name, (_InstantEncoder(),), _BUCKETS, pads=False)
        self.method_config = MethodConfig()
        self.info = ModelInfo(name, "1", "instant", _WIDTH, (4, 4), _BUCKETS[-1], (), ("cpu",), "f")
        self._base, self._frozen = SimpleNamespace(name="k", classes=("a", "b")), object()
        self._answers: dict[int, Classification] = {}

    def base(self, task: str | None) -> Any:
        return self._base

    def frozen(self, task: str) -> Any:
        return self._frozen

    def check(self, task: str, method: str | None, mode: str, prior: Mapping[str, float] | None) -> None:
        pass

    def solve(self, queries: Sequence[Any], instance: int = 0) -> list[Classification]:
        return [self._answer(query.encoded.names) for query in queries]

    def _answer(self, names: Sequence[str]) -> Classification:
        n = len(names)
        if n not in self._answers:
            nothing = np.zeros((n, 2), np.float32)
            self._answers[n] = Classification(
                ("a", "b"), tuple(names), ("a",) * n, np.zeros(n, np.int64), nothing, nothing[:, 0], nothing[:, 0] > 1,
                ((),) * n, ("a",) * n, nothing, "k", "kpl", "kpl", "frozen", (), (), {},
            )  # fmt: skip
        return self._answers[n]


@dataclass
class _Models:
    models: Mapping[str, _InstantModel]

    def start(self) -> None:
        pass

    def acquire(self, name: str, version: str = "") -> _InstantModel:
        return self.models[name]

    def release(self, model: _InstantModel) -> None:
        pass

    def lanes(self) -> list[Lane]:
        return [model.lane for model in self.models.values()]

    def index(self) -> list[IndexEntry]:
        return [IndexEntry(name, "1", "READY") for name in self.models]


class _Clock:
    """A millisecond later each time it is read."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        self._now += 1e-3
        return self._now


def _decode_instantly(*_: Any) -> Prepared:
    return _PREPARED


_PREPARED = Prepared(SQUARE, (), (0.0, 0.0, 0.0))


class Desk(BatchingService):
    """Models "m" and "other" behind the real admission, lines and statistics; ``turns`` are its threads', by name."""

    def __init__(self) -> None:
        stages.prepare_picture = _decode_instantly
        models = _Models({name: _InstantModel(name) for name in ("m", "other")})
        settings = ServerSettings(decode_threads=1, max_inflight_images=1024)
        super().__init__(models, settings, clock=_Clock())
        self.turns: dict[str, Callable[[], bool]] = {}
        self.start()
        self.decode, self.encode, self.solve = (self.turns[f"kpl-{name}"] for name in ("decode", "encode", "solve"))

    def ask(self, **options: Any) -> Job:
        """A request is submitted."""
        return self.submit(ClassifyRequest(**{"model": "m", **options}))

    def empty(self) -> None:
        """Whatever waits for an encoder or the solver is answered."""
        while self._flow.num_to_encode:
            self.encode()
            while len(self._flow._to_solve):
                self.solve()

    def _work(self, name: str, turn: Callable[[], bool]) -> None:
        self.turns[name] = turn
