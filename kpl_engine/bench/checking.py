"""Answers held to the float64 definition of the method; a run with a wrong answer reports no speed.

How far a right answer may be off. Nothing after the encoder adds more than the rounding of the result to float32. The
encoder computes in float32 or less, and sums in another order in a batch of another size, with other threads or on
another processor; so the same picture has features a distance ``delta`` apart. ``delta`` is measured, one picture at
a time against several at once, and at least `_LEAST_DELTA` is allowed.

* One picture alone (frozen): for ``p = softmax(x D / tau)`` the derivative of ``p_a`` along a step ``dx`` is
  ``Σ_b p_a p_b dx·(D_a - D_b) / tau``, at most ``p_a (1 - p_a) ‖dx‖ max_b ‖D_a - D_b‖ / tau``. So
  ``|dp| <= delta / 4 · max_ab ‖D_a - D_b‖ / tau``, everywhere and not to first order alone.
* A batch learns from its features, and no such bound is known: the reference is computed again for features moved by
  ``delta``, and four times the largest change of several such trials is allowed. Greedy labels of a few images can be
  decided by rounding (ties between rows that are all but certain); so before an answer is called wrong there are more
  trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Floats
from kpl_engine.bench.exact import batch_answers, fewest_images, frozen_answers
from kpl_engine.bench.records import Check
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError, InputError
from kpl_engine.solver.base import FrozenProxies

__all__ = ["Reference", "compare_answers", "feature_error", "frozen_tolerance", "prepare_frozen"]

Rows = npt.NDArray[Any]
RowsOf = Callable[[Sequence[int]], Rows]

# Graphs that ONNX Runtime had optimised and had left alone were 2e-7 to 6e-7 apart (demo, ViT-B-32), batches of 1 and
# of 32 by nothing: 16 times that for other processors.
_LEAST_DELTA = 1e-5
_SLACK = 4.0  # pictures that were not tried
_ROUNDING_OF_TEXT = 2.0**-23  # of unit text proxies kept in float32, which moves a cosine as a feature would
_ROUNDING = 2.0**-22  # of the answer: four times half an ulp of a float32 just below 1
# A batch keeps its scores in float32: two of them, of 1 to 2, are wrong by 6e-8 each, over 4 tau_i.
_ROUNDING_OF_SCORES = 2.0**-20
_TRIALS, _MORE_TRIALS = 3, 16
_DRAWS = 4  # of pictures, until there are some whose answers rounding does not decide
_MOST_TOLERANCE = 0.01  # beyond it a check would say nothing
_AT_ONCE = 8  # pictures of one question: a server refuses large ones, and MultiStream asks for as many
_TRIED = 32  # pictures whose features are compared


class Reference:
    """What the answers must be; the engine is needed while it is made, and not afterwards.

    Parameters
    ----------
    engine : Engine
        Its knowledge and, where one picture is answered alone, its fitted proxies.
    samples : Samples
    settings : BenchSettings
    features_of : callable, optional
        The features (n, d) that another encoder has for pictures of these indices: a server's, which may compute in
        less precision than the bundle does here. Left out, they are the engine's.

    Raises
    ------
    InputError
        A mode that cannot be checked, a method that the fitted proxies are not of, features of another picture.
    """

    def __init__(
        self, engine: Engine, samples: Samples, settings: BenchSettings, features_of: RowsOf | None = None
    ) -> None:
        _check_mode(settings)
        base = engine.knowledge(settings.knowledge)
        mode = settings.mode or "frozen"
        engine.check(settings.method, mode, knowledge=base.name)
        self._names = samples.names
        self._class_names = base.classes
        self._count = settings.check_samples
        self._X, self._delta = _features(engine, samples, features_of)
        self._frozen: FrozenProxies | None = engine.frozen_proxies(base.name) if mode == "frozen" else None
        self._classes = [base.class_embeddings(j) for j in range(len(base.classes))]
        self._method = settings.method or "kpl"
        self._config = engine.config.method
        self._rng = np.random.default_rng()  # another choice each time: nothing can be right for one choice alone

    def check(self, answer_of: RowsOf) -> Check:
        """Ask for the probabilities (n, c) of ``check_samples`` pictures chosen anew, and compare.

        In mode "batch" one question has all of them, and no fewer than the method learns from, where there are as many.

        Raises
        ------
        InputError
            The method makes so much of rounding that no answer to these pictures can be called wrong.
        """
        for _ in range(_DRAWS - 1):
            with suppress(_UndecidedError):
                return self._check_once(answer_of)
        return self._check_once(answer_of)

    def _check_once(self, answer_of: RowsOf) -> Check:
        total = len(self._X)
        count = min(self._count, total)
        if self._frozen is None:
            count = min(max(count, fewest_images(len(self._classes), self._config)), total)
        chosen = self._rng.choice(total, count, replace=False)
        size = count if self._frozen is None else _AT_ONCE
        parts = [chosen[start : start + size].tolist() for start in range(0, count, size)]
        names = [self._names[i] for i in chosen.tolist()]
        expected, tolerance = self._expected(self._X[chosen], _TRIALS)
        answers = [np.asarray(answer_of(part)) for part in parts]
        for part, rows in zip(parts, answers, strict=True):
            if rows.shape != (len(part), len(self._classes)):
                return _wrong_shape(count, tolerance, rows.shape, (len(part), len(self._classes)))
        together = np.concatenate(answers)
        found = compare_answers(together, expected, tolerance, names, self._class_names)
        if not found["is_right"] and self._frozen is None:
            expected, tolerance = self._expected(self._X[chosen], _MORE_TRIALS)
            found = compare_answers(together, expected, tolerance, names, self._class_names)
        return found

    def _expected(self, X: Floats, trials: int) -> tuple[Float64, float]:
        if self._frozen is not None:
            tolerance = frozen_tolerance(self._frozen, self._delta)
            return frozen_answers(X, self._frozen), _usable(tolerance, self._delta)
        expected = batch_answers(X, self._classes, self._method, self._config)
        moved = 0.0
        for _ in range(trials):
            step = self._rng.normal(size=X.shape)
            step *= self._delta / np.linalg.norm(step, axis=1, keepdims=True)
            other = batch_answers(X + step, self._classes, self._method, self._config)
            moved = max(moved, float(np.abs(other - expected).max()))
        return expected, _usable(_SLACK * moved + _ROUNDING + _ROUNDING_OF_SCORES, self._delta)


def compare_answers(
    answers: Rows, expected: Float64, tolerance: float, names: Sequence[str], classes: Sequence[str]
) -> Check:
    """Probabilities (n, c) against the float64 ones.

    Labels are compared where the best two of the reference are more than twice the tolerance apart. A probability that
    is no number counts as an error of 1.
    """
    if answers.shape != expected.shape:
        return _wrong_shape(len(expected), tolerance, answers.shape, expected.shape)
    errors = np.abs(answers.astype(np.float64) - expected)
    errors[~np.isfinite(errors)] = 1.0
    i, j = divmod(int(errors.argmax()), errors.shape[1])
    top = -np.sort(-expected, axis=1)
    is_decided = top[:, 0] - (top[:, 1] if expected.shape[1] > 1 else 0.0) > 2 * tolerance
    num_other = int((is_decided & (answers.argmax(axis=1) != expected.argmax(axis=1))).sum())
    largest = float(errors[i, j])
    is_right = largest <= tolerance and num_other == 0
    told = (
        f"{names[i]}: expected probability {expected[i, j]:.7g} of {classes[j]!r} within {tolerance:.2g}, got "
        f"{float(answers[i, j]):.7g}"
    )
    return {
        "num_pictures": len(expected),
        "max_error": largest,
        "tolerance": tolerance,
        "num_other_labels": num_other,
        "is_right": is_right,
        "reason": "" if is_right else told,
    }


def frozen_tolerance(frozen: FrozenProxies, delta: float) -> float:
    """``delta / 4 · max_ab ‖D_a - D_b‖ / tau`` and the rounding to float32; see the head of this file."""
    D = frozen.discriminants.astype(np.float64)
    widest = max(float(np.linalg.norm(D - D[:, [a]], axis=0).max()) for a in range(D.shape[1]))
    return delta / 4 * widest / frozen.temperature + _ROUNDING


def feature_error(one_by_one: Floats, features_of: RowsOf) -> float:
    """Largest distance of a picture's features to those it has among others, in questions of 2, 3, ... pictures."""
    largest, start, size = 0.0, 0, 2
    while start + size <= min(len(one_by_one), _TRIED):
        again = np.asarray(features_of(range(start, start + size)), dtype=np.float64)
        distances = np.linalg.norm(again - one_by_one[start : start + size], axis=1)
        largest = max(largest, float(distances.max()))
        start, size = start + size, min(size + 1, _AT_ONCE)
    return largest


def prepare_frozen(engine: Engine, samples: Samples, settings: BenchSettings) -> str | None:
    """Fit proxies on the samples where ``mode`` is left open and there are none; the note to tell, or None.

    Raises
    ------
    InputError
        Settings that `Engine.classify` refuses, a mode that cannot be checked, or too few pictures to fit on.
    """
    _check_mode(settings)
    base = engine.knowledge(settings.knowledge)
    if settings.mode is not None or engine.frozen_proxies(base.name) is not None:
        engine.check(settings.method, settings.mode or "frozen", knowledge=base.name)
        return None
    method = settings.method or "kpl"
    try:
        frozen, _ = engine.fit(features=samples.features, method=method, knowledge=base.name)
    except InputError as error:
        raise InputError(
            f"{error}; the bundle has no fitted proxies and the benchmark fits some on its pictures: give more of "
            "them, a bundle with proxies (kpl-engine fit), or a mode"
        ) from error
    return f"the bundle has no fitted proxies: {frozen.method!r} was fitted on the {frozen.num_images} samples"


def _check_mode(settings: BenchSettings) -> None:
    if settings.mode == "stream":
        raise ConfigError(
            "mode: expected 'frozen' or 'batch', got 'stream': its answers depend on all before them, in an order "
            "that a load generator does not keep, so they cannot be checked"
        )


def _features(engine: Engine, samples: Samples, features_of: RowsOf | None) -> tuple[Floats, float]:
    """Features one picture at a time, and how far apart those of one picture may be."""
    if samples.kind == "features":
        return samples.features, _ROUNDING_OF_TEXT
    if features_of is None:
        X, error = (
            samples.features,
            feature_error(samples.features, lambda i: engine.encoder.encode_images(samples.pixels[list(i)])),
        )
    else:
        X = np.concatenate([np.asarray(features_of([i])) for i in range(len(samples.features))])
        _check_own(X, samples)
        error = feature_error(X, features_of)
    return X, max(_SLACK * error, _LEAST_DELTA)


def _check_own(X: Floats, samples: Samples) -> None:
    """Each picture's features must be nearer to ours of that picture than to ours of any other."""
    if X.shape != samples.features.shape:
        raise InputError(f"expected features of shape {samples.features.shape}, got {X.shape}")
    cosines = X.astype(np.float64) @ samples.features.T.astype(np.float64)
    for i in np.flatnonzero(~(cosines.diagonal() >= cosines.max(axis=1) - 1e-6)):
        raise InputError(
            f"{samples.names[i]}: the features answered for it are nearer to those of "
            f"{samples.names[int(cosines[i].argmax())]}; is it the same bundle?"
        )


class _UndecidedError(InputError):
    """Of these pictures; others may do."""


def _usable(tolerance: float, delta: float) -> float:
    if tolerance > _MOST_TOLERANCE:
        raise _UndecidedError(
            f"the answers cannot be checked: where features move by {delta:.2g}, which is rounding here, probabilities "
            f"may move by {tolerance:.2g}, more than {_MOST_TOLERANCE:g}; benchmark another method or mode"
        )
    return tolerance


def _wrong_shape(count: int, tolerance: float, got: tuple[int, ...], expected: tuple[int, ...]) -> Check:
    return {
        "num_pictures": count,
        "max_error": 1.0,
        "tolerance": tolerance,
        "num_other_labels": 0,
        "is_right": False,
        "reason": f"expected probabilities of shape {expected}, got {got}",
    }
