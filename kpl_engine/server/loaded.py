"""One loaded bundle: what it answers, where its images are encoded, and what is told of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import kpl_engine
from kpl_engine.answers import Answers
from kpl_engine.bundle import Bundle
from kpl_engine.classification import Classification
from kpl_engine.config import EngineConfig, MethodConfig, MethodName, ModeName
from kpl_engine.errors import InputError, KplError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.opening import read_frozen, read_knowledge
from kpl_engine.server.lanes import LanePool
from kpl_engine.server.parts import Lane, Query
from kpl_engine.server.port import KnowledgeInfo, ModelInfo
from kpl_engine.server.warm import warm_answers
from kpl_engine.solver.base import FrozenProxies

__all__ = ["VERSION", "LoadedModel"]

VERSION = "1"


class LoadedModel:
    """`parts.Model` of one bundle. Nothing of it is read from the disk again; its lane is held until `close`.

    ``holders``, ``is_retired`` and ``is_closed`` belong to whoever shares it out.
    """

    def __init__(self, name: str, lane: Lane, answers: Sequence[Answers], give_back: Callable[[Lane], None]) -> None:
        self.holders = 0
        self.is_retired = False
        self.is_closed = False
        self._lane = lane
        self._answers = tuple(answers)
        self._give_back = give_back
        self._info = _describe(name, lane, self._answers[0])

    @classmethod
    def open(cls, name: str, path: Path, lanes: LanePool, config: EngineConfig, device: str) -> LoadedModel:
        """Read, verify and warm the bundle at ``path``; nothing stays open when that fails.

        Raises
        ------
        BundleError, KnowledgeError, ShapeError
            The bundle, or something in it, cannot be used.
        EncoderError
            Its encoder does not open or run.
        """
        # The bundle is closed when the encoder has its graph: a server embeds no texts, and reads no file twice.
        with Bundle.open(path) as bundle:
            bases = [read_knowledge(bundle, each) for each in bundle.manifest.get("knowledge", {})]
            frozen = {base.name: found for base in bases if (found := read_frozen(bundle, base)) is not None}
            lane = lanes.hold(bundle)
        answers: list[Answers] = []
        try:
            for encoder in lane.encoders:
                answers.append(Answers(encoder, bases, frozen, config, device))
                if not answers[-1].is_on_gpu:
                    break  # the CPU's have no state of their own: one serves all instances
            for each in answers:
                warm_answers(each)
            return cls(name, lane, answers, lanes.give_back)
        except BaseException:
            for each in answers:
                each.close()
            lanes.give_back(lane)
            raise

    @property
    def info(self) -> ModelInfo:
        """What doors tell of it."""
        return self._info

    @property
    def lane(self) -> Lane:
        """Where its images are encoded."""
        return self._lane

    @property
    def method_config(self) -> MethodConfig:
        """The numbers it answers with."""
        return self._answers[0].config.method

    def base(self, task: str | None) -> KnowledgeBase:
        """Its knowledge base of that name; None is the only one. `KnowledgeError` naming the choices."""
        return self._answers[0].base(task)

    def frozen(self, task: str) -> FrozenProxies | None:
        """Proxies fitted for that knowledge base."""
        return self._answers[0].frozen.get(self.base(task).name)

    def check(self, task: str, method: MethodName | None, mode: ModeName, prior: Mapping[str, float] | None) -> None:
        """Raise what `solve` would raise for these (`InputError` ...), before anything is decoded."""
        if mode == "stream" and prior is not None:
            raise InputError("prior: a stream of this server is shared by its clients and takes none; leave it out")
        self._answers[0].check(self.base(task), method, mode, prior)

    def solve(self, queries: Sequence[Query], instance: int = 0) -> list[Classification | KplError]:
        """Answers in the order of the queries, an error in the place of a query that has one."""
        return self._answers[instance % len(self._answers)].answer_many(queries)

    def close(self) -> None:
        """Free the solver's memory and give the lane back; to be called once."""
        for each in self._answers:
            each.close()
        self._give_back(self._lane)


def _describe(name: str, lane: Lane, answers: Answers) -> ModelInfo:
    first = lane.encoders[0]
    known = tuple(
        KnowledgeInfo(
            base.name,
            base.classes,
            len(base.embeddings),
            answers.frozen[base.name].method if base.name in answers.frozen else None,
        )
        for base in answers.bases.values()
    )
    return ModelInfo(
        name=name,
        version=VERSION,
        encoder=first.name,
        embed_dim=first.embed_dim,
        image_size=first.image_size,
        max_batch=lane.buckets[-1],
        knowledge=known,
        providers=first.providers,
        fingerprint=_fingerprint(first.fingerprint, lane, answers),
        notices=(*first.notices, *answers.notices),
    )


def _fingerprint(encoder: str, lane: Lane, answers: Answers) -> str:
    """Of everything that an answer depends on: another one may answer otherwise."""
    digest = hashlib.sha256()
    told = (kpl_engine.__version__, encoder, lane.key, lane.encoders[0].providers, answers.config)
    digest.update(repr(told).encode("utf-8", "backslashreplace"))
    for name in sorted(answers.bases):
        digest.update(f"\0{name}\0{answers.bases[name].fingerprint}\0".encode())
        frozen = answers.frozen.get(name)
        tensors, metadata = ({}, {}) if frozen is None else frozen.to_tensors()
        digest.update(repr(sorted(metadata.items())).encode())
        for key in sorted(tensors):
            digest.update(f"{key} {tensors[key].dtype} {tensors[key].shape}".encode())
            digest.update(tensors[key].tobytes())
    return digest.hexdigest()
