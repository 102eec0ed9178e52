"""From what a method found to an `Answer`: shared by batch, frozen and stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from kpl_engine.arrays import Bools, Float32, Float64, Floats, Ints
from kpl_engine.config import MethodConfig, MethodName, ModeName
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver import cpu
from kpl_engine.solver.base import Answer, Notice, Solution, TextProxies, as_float32
from kpl_engine.solver.guards import answer_notices
from kpl_engine.solver.online import OnZeta
from kpl_engine.solver.proxies import rounding_decides
from kpl_engine.solver.softmax import softmax

__all__ = [
    "METHODS",
    "Clock",
    "Outcome",
    "check_method",
    "linear_outcome",
    "make_answer",
    "multiply_rows",
    "of_width",
    "online_outcome",
    "similarities_of",
]

METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True)
class Outcome:
    """What a method found, before it is dressed as an `Answer`. float64 unless said otherwise."""

    probabilities: Float64  # (n, c)
    logits: Float64  # (n, c)
    labels: Ints  # (n,)
    undecided: Bools  # (n,)
    proxies: Float32  # (d, c)
    discriminants: Float32  # (d, c)
    temperature: float
    solution: Solution | None = None


class Clock:
    """Milliseconds of each stage; a stage that did not run reads 0."""

    def __init__(self) -> None:
        self.laps = {"text_proxies": 0.0, "labels": 0.0, "proxies": 0.0}
        self._last = time.perf_counter()

    def restart(self) -> None:
        """The time since the last lap belongs to no stage."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] += (now - self._last) * 1e3
        self._last = now


def check_method(method: str, config: MethodConfig) -> None:
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not isinstance(config, MethodConfig):
        raise ConfigError(f"config: expected a MethodConfig, got {type(config).__name__}")
    if config.retrieval == "per_image" and method in ("kpl_stream", "onzeta"):
        raise ConfigError(
            f"retrieval: {method!r} needs one matrix of text proxies, which 'per_image' has not; use 'mean' or 'all'"
        )


def of_width(X: Float32, proxies: Floats) -> Float32:
    if X.shape[1] != len(proxies):
        raise ShapeError(
            f"features: expected width d = {len(proxies)} as the proxies, got {X.shape[1]}; use the encoder they "
            "were made with"
        )
    return X


def similarities_of(X: Float32, text: TextProxies) -> Float64:
    if text.logits is not None:
        return text.logits.astype(np.float64)
    return multiply_rows(X, text.proxies)


def multiply_rows(X: Float32, columns: Floats) -> Float64:
    """``X columns`` (n, c) in float64. In the core a row does not depend on its neighbours, to the bit."""
    core = cpu.core()
    if core is None:
        return np.asarray(X.astype(np.float64) @ columns, dtype=np.float64)
    product = np.empty((len(X), columns.shape[1]))  # (n, c) float64
    core.multiply_rows(X, columns, product)
    return product


def linear_outcome(
    X: Float32, proxies: Float32, discriminants: Float32, temperature: float, scores: Float64 | None = None
) -> Outcome:
    """``softmax(X discriminants / temperature)``; ``scores`` replaces the product where it differs."""
    if scores is None:
        scores = multiply_rows(X, discriminants)
    return Outcome(
        probabilities=softmax(scores, temperature),
        logits=scores,
        labels=scores.argmax(axis=1).astype(np.int64),
        undecided=rounding_decides(X, discriminants.astype(np.float64), scores),
        proxies=proxies,
        discriminants=discriminants,
        temperature=temperature,
    )


def online_outcome(X: Float32, state: OnZeta, clock: Clock) -> Outcome:
    """Answers of `OnZeta` for the rows in order; the state moves on."""
    probabilities = state.step(X).astype(np.float64)  # (n, c)
    W = as_float32(state.proxies)
    clock.lap("proxies")
    least = float(np.finfo(np.float32).tiny)  # so that a probability that underflowed has a finite logit
    logits = np.log(np.maximum(probabilities, least)) * state.tau_i  # softmax(logits / tau_i) is the answer again
    top = -np.sort(-probabilities, axis=1)[:, :2]  # (n, 2 or 1)
    undecided = (top[:, 0] - top[:, -1] <= np.finfo(np.float32).eps) & (probabilities.shape[1] > 1)
    return Outcome(probabilities, logits, probabilities.argmax(axis=1).astype(np.int64), undecided, W, W, state.tau_i)


def make_answer(
    X: Float32,
    S: Float64,
    text: TextProxies,
    outcome: Outcome,
    clock: Clock,
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
