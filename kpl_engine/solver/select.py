"""One call from features to an `Answer`: text proxies, labels, proxies, and every guard (method.md 4, 5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Bools, Float32, Float64, Floats, Ints
from kpl_engine.config import LabelMethod, MethodConfig, MethodName, ModeName
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver.base import Answer, FrozenProxies, Notice, Solution, TextProxies, as_float32
from kpl_engine.solver.guards import answer_notices, few_images, input_notices, method_notices
from kpl_engine.solver.labels import refine_labels, resolve_prior
from kpl_engine.solver.online import OnZeta, StreamSums
from kpl_engine.solver.proxies import learn_proxies, rounding_decides
from kpl_engine.solver.softmax import softmax
from kpl_engine.solver.text_proxy import KnowledgeLike, as_knowledge, check_features, select_text_proxies

__all__ = ["METHODS", "StreamSolver", "freeze", "solve", "solve_frozen"]

METHODS: tuple[MethodName, ...] = get_args(MethodName)
_LABELS: dict[MethodName, LabelMethod] = {"proxy": "softmax", "inmap": "sinkhorn", "kpl": "stable_greenkhorn"}


@dataclass(frozen=True)
class _Outcome:
    """What a method found, before it is dressed as an `Answer`. float64 unless said otherwise."""

    probabilities: Float64  # (n, c)
    logits: Float64  # (n, c)
    labels: Ints  # (n,)
    undecided: Bools  # (n,)
    proxies: Float32  # (d, c)
    discriminants: Float32  # (d, c)
    temperature: float
    solution: Solution | None = None


def solve(
    features: npt.ArrayLike,
    knowledge: KnowledgeLike,
    method: MethodName = "kpl",
    config: MethodConfig | None = None,
    prior: npt.ArrayLike | None = None,
) -> Answer:
    """Classify the rows of ``features`` together, by one of the named methods.

    Parameters
    ----------
    features : (n, d) array_like
        Unit rows, n >= 1, all finite.
    knowledge : KnowledgeBase or arrays of embeddings per class
        As in `select_text_proxies`.
    method : {"zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta"}
    config : MethodConfig, optional
        Published defaults when left out.
    prior : (c,) array_like, optional
        Expected class shares; used by ``inmap``, ``kpl`` and ``kpl_stream``.

    Returns
    -------
    Answer
        ``mode`` is "batch". ``timings_ms`` has "text_proxies", "labels" and "proxies".

    Raises
    ------
    ShapeError
        NaN or infinite rows (named), or a width other than the knowledge's.
    ConfigError
        Unknown method, or an option the method does not have.
    """
    settings = config or MethodConfig()
    clock = _Clock()
    X = check_features(features)
    base = as_knowledge(knowledge)
    c = len(base.classes)
    _check_method(method, settings)
    resolve_prior(prior, c, settings.gamma if method in ("inmap", "kpl") else 0.0)
    text = select_text_proxies(X, base, settings.k, settings.retrieval)
    S = _similarities(X, text)  # (n, c) float64
    clock.lap("text_proxies")
    notices = method_notices(method, c, settings, prior is not None) + input_notices(X, text.proxies)
    used = method
    too_few = few_images(len(X), c, settings) if method not in ("zeroshot", "onzeta") else None
    if too_few:
        notices, used = [*notices, too_few], "zeroshot"
    outcome = _apply(used, X, S, text, settings, prior, clock)
    return _answer(X, S, text, outcome, clock, method, used, "batch", settings.tau_t, notices, prior is None)


def freeze(answer: Answer) -> FrozenProxies:
    """Proxies of an answer, kept to classify later images one at a time with `solve_frozen`."""
    return FrozenProxies(
        proxies=answer.proxies,
        discriminants=answer.discriminants,
        temperature=answer.temperature,
        text_proxies=answer.text_proxies.proxies,
        tau_t=answer.tau_t,
        kept=answer.text_proxies.kept,
        method=answer.method_used,
        num_images=len(answer.labels),
    )


def solve_frozen(features: npt.ArrayLike, frozen: FrozenProxies) -> Answer:
    """Classify each row alone: ``softmax(X discriminants / temperature)``.

    The answer of a row does not depend on its neighbours beyond the rounding of a float64 product.
    """
    clock = _Clock()
    X = _of_width(check_features(features), frozen.proxies)
    text = TextProxies(frozen.text_proxies, frozen.kept, ())
    S = _similarities(X, text)
    clock.lap("text_proxies")
    outcome = _linear(X, frozen.proxies, frozen.discriminants, frozen.temperature)
    clock.lap("proxies")
    method = frozen.method
    notices = input_notices(X[:1], frozen.text_proxies) if len(X) == 1 else []
    return _answer(X, S, text, outcome, clock, method, method, "frozen", frozen.tau_t, notices, False)


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
        _check_method(method, self.config)
        self._prior = resolve_prior(prior, len(self._base.classes))
        self.text_proxies: TextProxies | None = None
        self.state: StreamSums | OnZeta | None = None

    def answer(self, features: npt.ArrayLike) -> Answer:
        """Learn from the rows of ``features`` and classify them; `Answer` with mode "stream"."""
        clock = _Clock()
        X = _of_width(check_features(features), self._base.embeddings.T)
        if self.text_proxies is None:
            self.text_proxies = select_text_proxies(X, self._base, self.config.k, self.config.retrieval)
        text = self.text_proxies
        S = _similarities(X, text)
        clock.lap("text_proxies")
        notices = method_notices(self.method, S.shape[1], self.config, self._prior is not None)
        used = self.method
        if self.method == "onzeta":
            self.state = self.state or OnZeta.start(text.proxies, self.horizon, self.config.tau_t, self.config.tau_i)
            outcome = _online(X, self.state, clock)
        else:
            self.state = self.state or StreamSums.empty(text.proxies, self.config.tau_t)
            outcome, too_few = self._from_sums(X, self.state, text, clock)
            if too_few:
                notices, used = [*notices, too_few], "zeroshot"
        return _answer(
            X, S, text, outcome, clock, self.method, used, "stream", self.config.tau_t, notices, self._prior is None
        )

    def _from_sums(
        self, X: Float32, sums: StreamSums, text: TextProxies, clock: _Clock
    ) -> tuple[_Outcome, Notice | None]:
        sums.update(X)
        clock.lap("labels")
        too_few = few_images(round(sums.num_images), text.proxies.shape[1], self.config)
        if too_few:
            outcome = _linear(X, text.proxies, text.proxies, self.config.tau_t)
        else:
            frozen = sums.solve(self.config.tau_i, self._prior)
            outcome = _linear(X, frozen.proxies, frozen.discriminants, frozen.temperature)
        clock.lap("proxies")
        return outcome, too_few


class _Clock:
    """Milliseconds of each stage; a stage that did not run reads 0."""

    def __init__(self) -> None:
        self.laps = {"text_proxies": 0.0, "labels": 0.0, "proxies": 0.0}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] += (now - self._last) * 1e3
        self._last = now


def _check_method(method: str, config: MethodConfig) -> None:
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if config.retrieval == "per_image" and method in ("kpl_stream", "onzeta"):
        raise ConfigError(
            f"retrieval: {method!r} needs one matrix of text proxies, which 'per_image' has not; use 'mean' or 'all'"
        )


def _of_width(X: Float32, proxies: Floats) -> Float32:
    if X.shape[1] != len(proxies):
        raise ShapeError(
            f"features: expected width d = {len(proxies)} as the proxies, got {X.shape[1]}; use the encoder they "
            "were made with"
        )
    return X


def _similarities(X: Float32, text: TextProxies) -> Float64:
    if text.logits is not None:
        return text.logits.astype(np.float64)
    return np.asarray(X.astype(np.float64) @ text.proxies, dtype=np.float64)


def _apply(
    method: MethodName,
    X: Float32,
    S: Float64,
    text: TextProxies,
    config: MethodConfig,
    prior: npt.ArrayLike | None,
    clock: _Clock,
) -> _Outcome:
    if method == "zeroshot":
        outcome = _linear(X, text.proxies, text.proxies, config.tau_t, S)
        clock.lap("proxies")
        return outcome
    if method == "onzeta":
        return _online(X, OnZeta.start(text.proxies, len(X), config.tau_t, config.tau_i), clock)
    if method == "kpl_stream":
        sums = StreamSums.empty(text.proxies, config.tau_t)
        sums.update(X)
        clock.lap("labels")
        frozen = sums.solve(config.tau_i, prior)
        outcome = _linear(X, frozen.proxies, frozen.discriminants, frozen.temperature)
        clock.lap("proxies")
        return outcome
    return _learned(method, X, S, text, config, prior, clock)


def _learned(
    method: MethodName,
    X: Float32,
    S: Float64,
    text: TextProxies,
    config: MethodConfig,
    prior: npt.ArrayLike | None,
    clock: _Clock,
) -> _Outcome:
    """``proxy``, ``inmap`` and ``kpl``: pseudo labels, then proxies learned from them."""
    shares = prior if method != "proxy" else None
    P = refine_labels(S, _LABELS[method], config.tau_t, config.gamma, config.ot_iters, shares)
    clock.lap("labels")
    # Only kpl has a closed form to choose; for the others "auto" is the schedule, not a fallback to it.
    solver = "schedule" if config.solver == "auto" and method != "kpl" else config.solver
    found = learn_proxies(X, text.proxies, P, config.lr, config.proxy_iters, config.tau_i, config.alpha, solver=solver)
    clock.lap("proxies")
    return _Outcome(
        probabilities=softmax(found.scores, config.tau_i),
        logits=found.scores.astype(np.float64),
        labels=found.labels,
        undecided=found.decided_by_rounding,
        proxies=found.proxies,
        discriminants=found.discriminants,
        temperature=config.tau_i,
        solution=found,
    )


def _linear(
    X: Float32, proxies: Float32, discriminants: Float32, temperature: float, scores: Float64 | None = None
) -> _Outcome:
    """``softmax(X discriminants / temperature)``; ``scores`` replaces the product where it differs."""
    if scores is None:
        scores = np.asarray(X.astype(np.float64) @ discriminants, dtype=np.float64)  # (n, c) float64
    return _Outcome(
        probabilities=softmax(scores, temperature),
        logits=scores,
        labels=scores.argmax(axis=1).astype(np.int64),
        undecided=rounding_decides(X, discriminants.astype(np.float64), scores),
        proxies=proxies,
        discriminants=discriminants,
        temperature=temperature,
    )


def _online(X: Float32, state: StreamSums | OnZeta, clock: _Clock) -> _Outcome:
    if not isinstance(state, OnZeta):
        raise ConfigError("stream state: expected the state of OnZeta, got running sums; start a new stream")
    probabilities = state.step(X).astype(np.float64)  # (n, c)
    W = as_float32(state.proxies)
    clock.lap("proxies")
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) * state.tau_i  # softmax(logits / tau_i) is the answer again
    top = -np.sort(-probabilities, axis=1)[:, :2]  # (n, 2 or 1)
    undecided = (top[:, 0] - top[:, -1] <= np.finfo(np.float32).eps) & (probabilities.shape[1] > 1)
    return _Outcome(probabilities, logits, probabilities.argmax(axis=1).astype(np.int64), undecided, W, W, state.tau_i)


def _answer(
    X: Float32,
    S: Float64,
    text: TextProxies,
    outcome: _Outcome,
    clock: _Clock,
    method: MethodName,
    used: MethodName,
    mode: ModeName,
    tau_t: float,
    notices: Sequence[Notice],
    no_prior: bool,
) -> Answer:
    text_labels = S.argmax(axis=1).astype(np.int64)
    balances = no_prior and mode != "frozen" and used in ("inmap", "kpl", "kpl_stream", "onzeta")
    found = answer_notices(outcome.labels, text_labels, S.shape[1], outcome.undecided, assumes_equal_shares=balances)
    learned = outcome.solution.warnings if outcome.solution else ()
    top = -np.sort(-outcome.probabilities, axis=1)  # (n, c), largest first
    return Answer(
        labels=outcome.labels,
        probabilities=as_float32(outcome.probabilities),
        margins=as_float32(top[:, 0] - (top[:, 1] if top.shape[1] > 1 else 0.0)),
        logits=as_float32(outcome.logits),
        text_labels=text_labels,
        text_probabilities=as_float32(softmax(S, tau_t)),
        text_proxies=text,
        solution=outcome.solution,
        proxies=outcome.proxies,
        discriminants=outcome.discriminants,
        temperature=outcome.temperature,
        tau_t=tau_t,
        method=method,
        method_used=used,
        mode=mode,
        warnings=(*notices, *learned, *found),
        timings_ms=dict(clock.laps),
        agreement=float(np.mean(outcome.labels == text_labels)),
        decided_by_rounding=outcome.undecided,
    )
