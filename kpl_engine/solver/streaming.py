"""`StreamSolver`: answers over a stream of calls, with state carried between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, check_array
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.solver.answering import (
    Clock,
    Outcome,
    check_method,
    linear_outcome,
    make_answer,
    of_width,
    online_outcome,
    similarities_of,
)
from kpl_engine.solver.base import Answer, Notice, TextProxies, as_float32
from kpl_engine.solver.guards import few_images, method_notices, zero_mean
from kpl_engine.solver.labels import resolve_prior
from kpl_engine.solver.online import OnZeta, StreamSums
from kpl_engine.solver.text_proxy import KnowledgeLike, as_knowledge, check_features, select_text_proxies

__all__ = ["StreamSolver"]


class StreamSolver:
    """State carried across calls: running sums (``kpl_stream``) or `OnZeta` (``onzeta``).

    The first call is the warm-up: its mean image chooses the text proxies, which then stay fixed.
    ``kpl_stream`` adds the images of a call to its sums and answers them with the new proxies;
    until ``min_batch`` images have been seen the text proxies answer. ``horizon`` is the stream
    length that `OnZeta` expects.
    """

    def __init__(
        self,
        knowledge: KnowledgeLike,
        method: MethodName = "kpl_stream",
        config: MethodConfig | None = None,
        prior: npt.ArrayLike | None = None,
        horizon: int = 1000,
    ) -> None:
        if method not in ("kpl_stream", "onzeta"):
            raise ConfigError(f"method: mode 'stream' expects 'kpl_stream' or 'onzeta', got {method!r}")
        self.method: MethodName = method
        self.config = config or MethodConfig()
        self.horizon = horizon
        self._base = as_knowledge(knowledge)
        check_method(method, self.config)
        self._prior = resolve_prior(prior, len(self._base.classes))
        self.text_proxies: TextProxies | None = None
        self.sums: StreamSums | None = None
        self.onzeta: OnZeta | None = None

    def answer(self, features: npt.ArrayLike) -> Answer:
        """Learn from the rows of ``features`` and classify them; `Answer` with mode "stream"."""
        clock = Clock()
        X = of_width(check_features(features), self._base.embeddings.T)
        if self.text_proxies is None:
            found = select_text_proxies(X, self._base, self.config.k, self.config.retrieval)
            self.text_proxies = replace(found, proxies=as_float32(found.proxies))
        text = self.text_proxies
        S = similarities_of(X, text)
        clock.lap("text_proxies")
        notices = method_notices(self.method, S.shape[1], self.config, self._prior)
        used = self.method
        if self.method == "onzeta":
            if self.onzeta is None:
                self.onzeta = OnZeta.start(text.proxies, self.horizon, self.config.tau_t, self.config.tau_i)
            outcome = online_outcome(X, self.onzeta, clock)
        else:
            if self.sums is None:
                self.sums = StreamSums.empty(text.proxies, self.config.tau_t)
            outcome, reason = self._from_sums(X, self.sums, text, clock)
            if reason:
                notices, used = [*notices, reason], "zeroshot"
        return make_answer(
            X, S, text, outcome, clock, self.method, used, "stream", self.config.tau_t, notices, self._prior is None
        )

    @property
    def num_images(self) -> int:
        """Images seen so far."""
        state = self.sums or self.onzeta
        return 0 if state is None else round(state.num_images)

    def fork(self) -> StreamSolver:
        """Another solver in the same state, in O(1): the arrays are shared, and `answer` replaces what it changes."""
        other = copy.copy(self)
        other.sums = None if self.sums is None else replace(self.sums)
        other.onzeta = None if self.onzeta is None else replace(self.onzeta)
        return other

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for a snapshot, sharing memory with the state; `from_tensors` reads them back bit for bit.

        None before the first answer. With them: ``text_proxies`` (d, c), ``kept`` and ``kept_counts`` (c,),
        ``scores`` (M,), and those of `StreamSums` or `OnZeta`.
        """
        state = self.sums or self.onzeta
        if self.text_proxies is None or state is None:
            return {}
        text = self.text_proxies
        return {
            **state.to_tensors(),
            "kept": np.concatenate(text.kept),
            "kept_counts": np.array([len(indices) for indices in text.kept], dtype=np.int64),
            "scores": np.concatenate(text.scores),
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, npt.NDArray[Any]],
        knowledge: KnowledgeLike,
        method: MethodName = "kpl_stream",
        config: MethodConfig | None = None,
        prior: npt.ArrayLike | None = None,
        horizon: int = 1000,
    ) -> StreamSolver:
        """Rebuild from `to_tensors` and the arguments it was made with: it answers as if it had never stopped.

        Raises `ShapeError` when a tensor is missing, or does not fit the knowledge or the settings.
        """
        solver = cls(knowledge, method, config, prior, horizon)
        if tensors:
            solver._restore(tensors)
        return solver

    def _restore(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        state: StreamSums | OnZeta
        settings: tuple[float, ...]
        expected: tuple[float, ...]
        if self.method == "onzeta":
            state = self.onzeta = OnZeta.from_tensors(tensors)
            settings = (state.tau_t, state.tau_i, state.horizon)
            expected = (self.config.tau_t, self.config.tau_i, self.horizon)
        else:
            state = self.sums = StreamSums.from_tensors(tensors)
            settings, expected = (state.tau_t,), (self.config.tau_t,)
        shape = (self._base.embeddings.shape[1], len(self._base.classes))
        if settings != expected or state.text_proxies.shape != shape:
            raise ShapeError(
                f"stream: expected text proxies of shape {shape} and settings {expected}, got "
                f"{state.text_proxies.shape} and {settings}; the snapshot is of another knowledge base or method"
            )
        self.text_proxies = _text_proxies(tensors, state.text_proxies, self._base)

    def _from_sums(
        self, X: Float32, sums: StreamSums, text: TextProxies, clock: Clock
    ) -> tuple[Outcome, Notice | None]:
        sums.update(X)
        clock.lap("labels")
        reason = few_images(round(sums.num_images), text.proxies.shape[1], self.config) or zero_mean(sums)
        if reason:
            outcome = linear_outcome(X, text.proxies, text.proxies, self.config.tau_t)
        else:
            frozen = sums.solve(self.config.tau_i, self._prior)
            outcome = linear_outcome(X, frozen.proxies, frozen.discriminants, frozen.temperature)
        clock.lap("proxies")
        return outcome, reason


def _text_proxies(tensors: Mapping[str, npt.NDArray[Any]], T: Float32, base: KnowledgeBase) -> TextProxies:
    """What `StreamSolver.to_tensors` kept of them, checked against the knowledge base."""
    missing = [name for name in ("kept", "kept_counts", "scores") if name not in tensors]
    if missing:
        raise ShapeError(f"stream: expected the tensors of its text proxies, missing {missing}; it is no snapshot")
    c, bounds = len(base.classes), base.offsets.tolist()
    sizes = np.diff(base.offsets)  # (c,)
    counts = check_array("kept_counts", tensors["kept_counts"], (c,), np.int64)
    kept = check_array("kept", tensors["kept"], ("K",), np.int64)
    scores = check_array("scores", tensors["scores"], (bounds[-1],), np.float64)
    fits = (counts >= 1).all() and (counts <= sizes).all() and int(counts.sum()) == len(kept)
    if not fits or (kept < 0).any() or (kept >= np.repeat(sizes, counts)).any():
        raise ShapeError("stream: kept descriptions that the knowledge base has not; the snapshot is of another one")
    ends = [0, *accumulate(counts.tolist())]
    return TextProxies(
        T,
        tuple(kept[start:end].copy() for start, end in pairwise(ends)),
        tuple(scores[start:end].copy() for start, end in pairwise(bounds)),
    )
