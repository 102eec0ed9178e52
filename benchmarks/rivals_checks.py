"""No time is told of a wrong answer: features against the float32 torch model, labels against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from rivals_pictures import FEWEST_PER_CLASS

from kpl_engine.solver import reference

__all__ = ["FEATURE_BOUND", "LOGIT_BOUNDS", "Check", "adapts", "check_features", "check_labels", "exact_logits"]

# Coordinates of unit rows. Measured: at most 3e-7 between four float32 back ends. bfloat16 is off by 1.4e-3.
FEATURE_BOUND = 5e-6
# Logits after 2000 steps: ours keep to CONTRIBUTING.md, rule 2; a float32 loop was measured at 3e-5 at most.
LOGIT_BOUNDS = {True: 1e-5, False: 1e-4}
# Where a rival tells no logits: labels count where float64's margin is larger. Twice what float32 loops were off by.
MARGIN = 5e-6
SMALLEST_MARGIN = 2.5e-7  # two last bits of a float32 logit below 1
MOST_UNDECIDED = 0.5


class Check(TypedDict, total=False):
    """How near an answer came; ``reason`` is "" where it is right."""

    is_right: bool
    reason: str
    max_error: float | None
    bound: float
    other_labels: int
    undecided: int
    count: int


def check_features(found: Any, expected: Any) -> Check:
    """(n, d) against those of the float32 torch model."""
    if found.shape != expected.shape:
        return {"is_right": False, "reason": f"expected features {expected.shape}, got {found.shape}"}
    error = float(np.abs(found.astype(np.float64) - expected).max())
    is_right = error <= FEATURE_BOUND  # False for NaN too
    reason = "" if is_right else f"features differ from torch's by {error:.1e}, more than {FEATURE_BOUND:.0e}"
    return {"is_right": is_right, "reason": reason, "max_error": error, "bound": FEATURE_BOUND, "count": len(found)}


def adapts(count: int, num_classes: int) -> bool:
    """Whether there are pictures enough to adapt to."""
    return count >= FEWEST_PER_CLASS * num_classes


def exact_logits(X: Any, texts: Sequence[Any]) -> Any:
    """Logits (n, c) of the published method in float64; those of the text proxies where pictures are too few."""
    T = reference.text_proxies(X, texts)[0]
    S = X.astype(np.float64) @ T
    if not adapts(len(X), len(texts)):
        return S
    return X.astype(np.float64) @ reference.schedule(X, T, reference.greenkhorn_labels(S))[0]


def check_labels(labels: Any, logits: Any, exact: Any, bound: float) -> Check:
    """Labels (n,), and logits (n, c) where the rival tells them, against float64's (n, c).

    ``bound`` is that of the logits. A label may differ where the margin is within twice the error of the logits: there
    the rounding decided. A check that leaves more than half of the labels undecided is no check, and fails.
    """
    if labels.shape != exact.shape[:1]:
        return {"is_right": False, "reason": f"expected {exact.shape[:1]} labels, got {labels.shape}"}
    error = None if logits is None else float(np.abs(logits - exact).max())
    margin = MARGIN if error is None else max(2 * error, SMALLEST_MARGIN)
    ordered = np.sort(exact, axis=1)
    is_decided = ordered[:, -1] - ordered[:, -2] > margin
    found: Check = {
        "other_labels": int(np.sum(is_decided & (labels != exact.argmax(axis=1)))),
        "undecided": int(np.sum(~is_decided)),
        "count": len(labels),
        "max_error": error,
        "bound": bound,
    }
    found["reason"] = _fault(found)
    found["is_right"] = not found["reason"]
    return found


def _fault(found: Check) -> str:
    count, error = found["count"], found["max_error"]
    if error is not None and not error <= found["bound"]:
        return f"logits differ from the float64 reference by {error:.1e}, more than {found['bound']:.0e}"
    if found["other_labels"]:
        return f"{found['other_labels']} of {count} labels are not those of the float64 reference"
    if found["undecided"] > MOST_UNDECIDED * count:
        return f"{found['undecided']} of {count} labels are undecided in float64; use other pictures"
    return ""
