"""`StreamSolver`: answers over a stream of calls, with state carried between them."""

from __future__ import annotations

import numpy.typing as npt

from kpl_engine.arrays import Float32
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.errors import ConfigError
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
from kpl_engine.solver.base import Answer, Notice, TextProxies
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
            self.text_proxies = select_text_proxies(X, self._base, self.config.k, self.config.retrieval)
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
