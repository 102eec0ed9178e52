"""Many small questions to one set of frozen proxies: multiplied at once, told apart again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from kpl_engine.arrays import Bools, Float32
from kpl_engine.solver.base import Answer, FrozenProxies, Notice
from kpl_engine.solver.guards import UNIT_SLACK, answer_notices, input_notices
from kpl_engine.solver.moments import squared_lengths
from kpl_engine.solver.select import solve_frozen

__all__ = ["solve_frozen_each"]


def solve_frozen_each(features: Sequence[Float32], frozen: FrozenProxies) -> tuple[Float32, Answer, list[Answer]]:
    """All rows (n, d), `solve_frozen` of them together, and of each set of rows for itself.

    Each answer is that of its set alone, notices included: to the bit in the compiled core, where a row of a product
    does not depend on its neighbours, and to the rounding of a float64 product in NumPy. ``timings_ms`` of each has
    the time of all together.

    Parameters
    ----------
    features : sequence of (n_i, d) float32
        Unit rows; at least one set, each with n_i >= 1.
    frozen : FrozenProxies

    Raises
    ------
    ShapeError
        NaN or infinite rows in any set, or a width other than that of the proxies.
    """
    X = features[0] if len(features) == 1 else np.concatenate(list(features))  # (n, d) float32
    whole = solve_frozen(X, frozen)
    if len(features) == 1:
        return X, whole, [whole]
    bounds = list(accumulate((len(rows) for rows in features), initial=0))
    plain = np.eye(1, X.shape[1], dtype=np.float32)  # a row that nothing can be said of
    of_proxies = tuple(input_notices(plain, frozen.text_proxies, learns=False))
    remarkable = _remarkable(X, whole)
    answers = [
        _slice(whole, X, frozen, slice(start, end), None if remarkable[start:end].any() else of_proxies)
        for start, end in pairwise(bounds)
    ]
    return X, whole, answers


def _remarkable(X: Float32, answer: Answer) -> Bools:
    """Rows without which no notice would be said of images: of odd length, undecided, or labelled otherwise by text."""
    is_odd = ~(np.abs(np.sqrt(squared_lengths(X)) - 1) <= UNIT_SLACK)
    return np.asarray(is_odd | answer.decided_by_rounding | (answer.labels != answer.text_labels), dtype=np.bool_)


def _slice(whole: Answer, X: Float32, frozen: FrozenProxies, rows: slice, notices: tuple[Notice, ...] | None) -> Answer:
    labels, text_labels = whole.labels[rows], whole.text_labels[rows]
    undecided, agreement = whole.decided_by_rounding[rows], 1.0
    if notices is None:
        found = input_notices(X[rows], frozen.text_proxies, learns=False)
        c = frozen.num_classes
        notices = (*found, *answer_notices(labels, text_labels, c, undecided, assumes_equal_shares=False))
        agreement = float(np.mean(labels == text_labels))
    return Answer(
        labels=labels,
        probabilities=whole.probabilities[rows],
        margins=whole.margins[rows],
        logits=whole.logits[rows],
        text_labels=text_labels,
        text_probabilities=whole.text_probabilities[rows],
        text_proxies=whole.text_proxies,
        solution=None,
        proxies=whole.proxies,
        discriminants=whole.discriminants,
        temperature=whole.temperature,
        tau_t=whole.tau_t,
        method=whole.method,
        method_used=whole.method_used,
        mode=whole.mode,
        warnings=notices,
        timings_ms=whole.timings_ms,
        agreement=agreement,
        decided_by_rounding=undecided,
    )
