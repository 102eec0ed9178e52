"""What the service stands on: loaded models, and the encoders they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kpl_engine.classification import Classification
from kpl_engine.config import MethodConfig, MethodName, ModeName
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.errors import KplError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.port import IndexEntry, ModelInfo
from kpl_engine.solver.base import FrozenProxies

__all__ = ["Lane", "Model", "Models", "Query"]


@dataclass(frozen=True, eq=False)
class Lane:
    """One encoder, in as many copies as there are instances; images of all models on it are batched together.

    ``buckets`` are the batch sizes it was warmed with, ascending (1, 2, 4 .. max). ``pads``: a GPU runs the next
    larger bucket, padded; a CPU the next smaller one, and leaves the rest waiting.
    """

    key: str
    encoders: tuple[Encoder, ...]
    buckets: tuple[int, ...]
    pads: bool


@dataclass(frozen=True, eq=False)
class Query:
    """Features of one request, and what is asked of them. ``mode`` is "batch" or "frozen"; streams have their own."""

    encoded: EncodedImages
    knowledge: str
    method: MethodName | None
    mode: ModeName
    prior: Mapping[str, float] | None
    top_evidence: int


class Model(Protocol):
    """A loaded bundle. It stays usable as long as someone holds it, also when another has taken its place."""

    @property
    def info(self) -> ModelInfo:
        """What doors tell of it."""

    @property
    def lane(self) -> Lane:
        """Where its images are encoded."""

    @property
    def method_config(self) -> MethodConfig:
        """The numbers it answers with."""

    def base(self, task: str | None) -> KnowledgeBase:
        """Its knowledge base of that name; None is the only one. `KnowledgeError` naming the choices."""

    def frozen(self, task: str) -> FrozenProxies | None:
        """Proxies fitted for that knowledge base."""

    def check(self, task: str, method: MethodName | None, mode: ModeName, prior: Mapping[str, float] | None) -> None:
        """Raise what `solve` would raise for these (`InputError` ...), before anything is decoded."""

    def solve(self, queries: Sequence[Query], instance: int = 0) -> list[Classification | KplError]:
        """Answers in the order of the queries, an error in the place of a query that has one.

        Queries of mode "frozen" and one knowledge base are multiplied at once and then told apart again: notices,
        labels and probabilities are those of each alone.
        """


class Models(Protocol):
    """The models of a server. Safe from any thread."""

    def start(self) -> None:
        """Load and warm every bundle of the settings; raises what the first unusable one raises."""

    def acquire(self, name: str, version: str = "") -> Model:
        """A loaded model, held until `release`; `UnknownModelError`, or `NotReadyError` where it is not loaded."""

    def release(self, model: Model) -> None:
        """Give back what `acquire` gave; the last one out of a replaced model closes it."""

    def lanes(self) -> Sequence[Lane]:
        """The encoders in use now."""

    def index(self) -> Sequence[IndexEntry]:
        """As `port.Service.index`."""

    def load(self, name: str) -> None:
        """As `port.Service.load`."""

    def unload(self, name: str) -> None:
        """As `port.Service.unload`; waits until nobody holds it."""

    def close(self) -> None:
        """Free everything."""
