"""The stages of `solve`, apart, so that many problems can share the one in the middle.

`prepare` checks a problem and chooses its text proxies; a problem whose method runs the published schedule has a
`Prepared.task`, which the compiled core takes labels and all; `answer_scheduled` and `answer_alone` make the answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Float64
from kpl_engine.config import LabelMethod, MethodConfig, MethodName, SolverName
from kpl_engine.errors import ConfigError
from kpl_engine.solver.answering import (
    Clock,
    Outcome,
    check_method,
    linear_outcome,
    make_answer,
    online_outcome,
    similarities_of,
)
from kpl_engine.solver.base import Answer, Notice, Solution, TextProxies
from kpl_engine.solver.compiled import LabelChoice, ScheduleTask
from kpl_engine.solver.guards import few_images, input_notices, method_notices, zero_mean
from kpl_engine.solver.labels import refine_labels, resolve_prior
from kpl_engine.solver.online import OnZeta, StreamSums
from kpl_engine.solver.proxies import FORMS, check_options, learn_proxies, solution_of_run
from kpl_engine.solver.schedule import Form, ScheduleRun
from kpl_engine.solver.softmax import softmax
from kpl_engine.solver.text_proxy import KnowledgeLike, as_knowledge, check_features, select_text_proxies

__all__ = ["LABELS", "Prepared", "Problem", "answer_alone", "answer_scheduled", "outcome_of", "prepare"]

LABELS: dict[MethodName, LabelMethod] = {"proxy": "softmax", "inmap": "sinkhorn", "kpl": "stable_greenkhorn"}


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call of `solve` takes: features (n, d), a knowledge base, and how to answer."""

    features: npt.ArrayLike
    knowledge: KnowledgeLike
    method: MethodName = "kpl"
    config: MethodConfig | None = None
    prior: npt.ArrayLike | None = None


@dataclass(frozen=True)
class Prepared:
    """A checked problem with its text proxies; ``method_used`` differs from ``method`` where a notice says why."""

    X: Float32  # (n, d)
    S: Float64  # (n, c) similarities
    text: TextProxies
    shares: Float64 | None  # (c,)
    method: MethodName
    method_used: MethodName
    config: MethodConfig
    notices: list[Notice]
    sums: StreamSums | None
    clock: Clock

    @property
    def solver(self) -> SolverName:
        # Only kpl has a closed form to choose; for the others "auto" is the schedule, not a fallback to it.
        return "schedule" if self.config.solver == "auto" and self.method_used != "kpl" else self.config.solver

    @property
    def runs_schedule(self) -> bool:
        """Whether the labels come from ``X T`` and the proxies from the schedule, so that one call does both."""
        fits = self.method_used in LABELS and self.text.logits is None
        return fits and self.solver not in ("auto", "closed_form")

    @property
    def form(self) -> Form | None:
        return FORMS.get(self.solver)

    @property
    def task(self) -> ScheduleTask:
        """For the methods that run the schedule; `ConfigError` if an option is out of range."""
        config, method = self.config, self.method_used
        check_options(config.lr, config.proxy_iters, config.tau_i, config.alpha, self.solver)
        shares = self.shares if method != "proxy" else None
        labels = LabelChoice(LABELS[method], config.tau_t, config.gamma, config.ot_iters, shares, config.alpha)
        return ScheduleTask(self.X, self.text.proxies, labels, config.lr, config.proxy_iters, config.tau_i)


def prepare(problem: Problem) -> Prepared:
    """Checks, text proxies, similarities, and the fall-backs that are known before any label is made."""
    if not isinstance(problem, Problem):
        raise ConfigError(f"expected a Problem(features, knowledge, ...), got {type(problem).__name__}")
    method, config = problem.method, MethodConfig() if problem.config is None else problem.config
    check_method(method, config)
    clock = Clock()
    X = check_features(problem.features)
    base = as_knowledge(problem.knowledge)
    c = len(base.classes)
    shares = resolve_prior(problem.prior, c, config.gamma if method in ("inmap", "kpl") else 0.0)
    text = select_text_proxies(X, base, config.k, config.retrieval)
    S = similarities_of(X, text)  # (n, c) float64
    clock.lap("text_proxies")
    notices = method_notices(method, c, config, shares) + input_notices(X, text.proxies)
    reason = few_images(len(X), c, config) if method not in ("zeroshot", "onzeta") else None
    sums = None
    if method == "kpl_stream" and not reason:
        sums = StreamSums.empty(text.proxies, config.tau_t)
        sums.update(X)
        clock.lap("labels")
        reason = zero_mean(sums)
    used: MethodName = "zeroshot" if reason else method
    notices += [reason] if reason else []
    return Prepared(X, S, text, shares, method, used, config, notices, sums, clock)


def answer_scheduled(prepared: Prepared, run: ScheduleRun, num_threads: int | None) -> Answer:
    """The answer of a problem whose `Prepared.task` was run."""
    start = time.perf_counter()
    solution = solution_of_run(run, prepared.X, prepared.config.proxy_iters, num_threads)
    laps, finishing = prepared.clock.laps, time.perf_counter() - start
    laps["labels"] += run.label_seconds * 1e3
    laps["proxies"] += (run.seconds - run.label_seconds + finishing) * 1e3
    return _answer(prepared, outcome_of(solution, prepared.config.tau_i))


def answer_alone(prepared: Prepared, num_threads: int | None) -> Answer:
    """The answer of a problem that does not run the schedule, or not from ``X T``."""
    prepared.clock.restart()
    return _answer(prepared, _apply(prepared, num_threads))


def _apply(prepared: Prepared, num_threads: int | None) -> Outcome:
    method, config, X, text, clock = (
        prepared.method_used,
        prepared.config,
        prepared.X,
        prepared.text,
        prepared.clock,
    )
    if method == "zeroshot":
        outcome = linear_outcome(X, text.proxies, text.proxies, config.tau_t, prepared.S)
    elif method == "onzeta":
        return online_outcome(X, OnZeta.start(text.proxies, len(X), config.tau_t, config.tau_i), clock)
    elif prepared.sums is not None:
        frozen = prepared.sums.solve(config.tau_i, prepared.shares)
        outcome = linear_outcome(X, frozen.proxies, frozen.discriminants, frozen.temperature)
    else:
        outcome = outcome_of(_learn(prepared, num_threads), config.tau_i)
    clock.lap("proxies")
    return outcome


def _learn(prepared: Prepared, num_threads: int | None) -> Solution:
    """Pseudo labels from the similarities, then proxies learned from them."""
    config, method = prepared.config, prepared.method_used
    shares = prepared.shares if method != "proxy" else None
    P = refine_labels(prepared.S, LABELS[method], config.tau_t, config.gamma, config.ot_iters, shares)
    prepared.clock.lap("labels")
    return learn_proxies(
        prepared.X,
        prepared.text.proxies,
        P,
        config.lr,
        config.proxy_iters,
        config.tau_i,
        config.alpha,
        solver=prepared.solver,
        num_threads=num_threads,
    )


def outcome_of(found: Solution, tau_i: float) -> Outcome:
    """What a solution answers."""
    return Outcome(
        probabilities=softmax(found.scores, tau_i),
        logits=np.asarray(found.scores, dtype=np.float64),
        labels=found.labels,
        undecided=found.decided_by_rounding,
        proxies=found.proxies,
        discriminants=found.discriminants,
        temperature=tau_i,
        solution=found,
    )


def _answer(prepared: Prepared, outcome: Outcome) -> Answer:
    return make_answer(
        prepared.X,
        prepared.S,
        prepared.text,
        outcome,
        prepared.clock,
        prepared.method,
        prepared.method_used,
        "batch",
        prepared.config.tau_t,
        prepared.notices,
        prepared.shares is None,
    )
