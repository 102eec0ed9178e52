"""One call from features to an `Answer`: text proxies, labels, proxies, and every guard (method.md 4, 5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Float64
from kpl_engine.config import LabelMethod, MethodConfig, MethodName
from kpl_engine.solver.answering import (
    METHODS,
    Clock,
    Outcome,
    check_method,
    linear_outcome,
    make_answer,
    of_width,
    online_outcome,
    similarities_of,
)
from kpl_engine.solver.base import Answer, FrozenProxies, TextProxies
from kpl_engine.solver.guards import few_images, input_notices, method_notices, zero_mean
from kpl_engine.solver.labels import refine_labels, resolve_prior
from kpl_engine.solver.online import OnZeta, StreamSums
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.solver.softmax import softmax
from kpl_engine.solver.streaming import StreamSolver
from kpl_engine.solver.text_proxy import KnowledgeLike, as_knowledge, check_features, select_text_proxies

__all__ = ["METHODS", "StreamSolver", "freeze", "solve", "solve_frozen"]

_LABELS: dict[MethodName, LabelMethod] = {"proxy": "softmax", "inmap": "sinkhorn", "kpl": "stable_greenkhorn"}


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
        Expected class shares; used by ``inmap``, ``kpl`` and ``kpl_stream``. A share of 0 leaves a
        class without pseudo labels; the proxies of ``kpl`` and ``kpl_stream`` can answer with it all the same.

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
    settings = MethodConfig() if config is None else config
    check_method(method, settings)
    clock = Clock()
    X = check_features(features)
    base = as_knowledge(knowledge)
    c = len(base.classes)
    shares = resolve_prior(prior, c, settings.gamma if method in ("inmap", "kpl") else 0.0)
    text = select_text_proxies(X, base, settings.k, settings.retrieval)
    S = similarities_of(X, text)  # (n, c) float64
    clock.lap("text_proxies")
    notices = method_notices(method, c, settings, shares) + input_notices(X, text.proxies)
    used = method
    reason = few_images(len(X), c, settings) if method not in ("zeroshot", "onzeta") else None
    sums = None
    if method == "kpl_stream" and not reason:
        sums = StreamSums.empty(text.proxies, settings.tau_t)
        sums.update(X)
        clock.lap("labels")
        reason = zero_mean(sums)
    if reason:
        notices, used = [*notices, reason], "zeroshot"
    outcome = _apply(used, X, S, text, settings, prior, clock, sums)
    return make_answer(X, S, text, outcome, clock, method, used, "batch", settings.tau_t, notices, prior is None)


def freeze(answer: Answer) -> FrozenProxies:
    """Proxies of an answer, kept to classify later images one at a time with `solve_frozen`.

    The method is the one that answered (`Answer.method_used`): proxies of too few images are those
    of the text, and say "zeroshot". Two answers have no exact linear counterpart: with
    ``retrieval="per_image"`` the mean-retrieval text proxies stand for the per-image ones, and for
    ``onzeta`` its last vision proxies stand for the mixture.
    """
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
    clock = Clock()
    X = of_width(check_features(features), frozen.proxies)
    text = TextProxies(frozen.text_proxies, frozen.kept, ())
    S = similarities_of(X, text)
    clock.lap("text_proxies")
    outcome = linear_outcome(X, frozen.proxies, frozen.discriminants, frozen.temperature)
    clock.lap("proxies")
    method = frozen.method
    notices = input_notices(X, frozen.text_proxies, learns=False)
    return make_answer(X, S, text, outcome, clock, method, method, "frozen", frozen.tau_t, notices, False)


def _apply(
    method: MethodName,
    X: Float32,
    S: Float64,
    text: TextProxies,
    config: MethodConfig,
    prior: npt.ArrayLike | None,
    clock: Clock,
    sums: StreamSums | None,
) -> Outcome:
    if method == "zeroshot":
        outcome = linear_outcome(X, text.proxies, text.proxies, config.tau_t, S)
        clock.lap("proxies")
        return outcome
    if method == "onzeta":
        return online_outcome(X, OnZeta.start(text.proxies, len(X), config.tau_t, config.tau_i), clock)
    if method == "kpl_stream" and sums is not None:
        frozen = sums.solve(config.tau_i, prior)
        outcome = linear_outcome(X, frozen.proxies, frozen.discriminants, frozen.temperature)
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
    clock: Clock,
) -> Outcome:
    """``proxy``, ``inmap`` and ``kpl``: pseudo labels, then proxies learned from them."""
    shares = prior if method != "proxy" else None
    P = refine_labels(S, _LABELS[method], config.tau_t, config.gamma, config.ot_iters, shares)
    clock.lap("labels")
    # Only kpl has a closed form to choose; for the others "auto" is the schedule, not a fallback to it.
    solver = "schedule" if config.solver == "auto" and method != "kpl" else config.solver
    found = learn_proxies(X, text.proxies, P, config.lr, config.proxy_iters, config.tau_i, config.alpha, solver=solver)
    clock.lap("proxies")
    return Outcome(
        probabilities=softmax(found.scores, config.tau_i),
        logits=found.scores.astype(np.float64),
        labels=found.labels,
        undecided=found.decided_by_rounding,
        proxies=found.proxies,
        discriminants=found.discriminants,
        temperature=config.tau_i,
        solution=found,
    )
