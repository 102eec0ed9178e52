"""Classification metrics on plain arrays; scikit-learn is the oracle in the tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float64, Ints, check_array
from kpl_engine.errors import ShapeError

__all__ = ["ClassMetrics", "Metrics", "confusion_matrix", "expected_calibration_error", "measure", "roc_auc"]


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall, F1 and one-against-rest AUROC of one class; NaN where it is not defined."""

    support: int
    precision: float
    recall: float
    f1: float
    auroc: float


@dataclass(frozen=True)
class Metrics:
    """Figures of one method on one set of n images.

    ``accuracy`` is top-1. ``balanced_accuracy`` is the mean recall and ``macro_f1`` the mean F1 over
    classes that occur among the true labels (F1: or among the predictions), ``auroc`` the mean
    one-against-rest area. ``ece`` is the expected calibration error in 15 equal bins of the top
    probability.
    """

    num_images: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    auroc: float
    ece: float
    confusion: Ints  # (c, c): rows true, columns predicted
    per_class: tuple[ClassMetrics, ...]


def confusion_matrix(truth: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> Ints:
    """Counts (c, c) int64; entry (i, j) is the number of images of class i called j."""
    pairs = np.asarray(truth, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def roc_auc(is_positive: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve by the Mann-Whitney statistic, ties counted half; NaN with one class only."""
    positive = np.asarray(is_positive, dtype=bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2.0)[inverse]  # (n,) float64, mean rank of each tie group
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def expected_calibration_error(is_right: npt.ArrayLike, confidence: npt.ArrayLike, num_bins: int = 15) -> float:
    """``Σ_b n_b / n · |accuracy_b − confidence_b|`` over equal bins of confidence (Guo et al., ICML 2017)."""
    right = np.asarray(is_right, dtype=np.float64)  # (n,)
    sure = np.asarray(confidence, dtype=np.float64)  # (n,)
    bins = np.clip(np.ceil(sure * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=right - sure, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(right))


def measure(truth: npt.ArrayLike, predicted: npt.ArrayLike, probabilities: npt.ArrayLike) -> Metrics:
    """All figures from true classes (n,), predicted classes (n,) and probabilities (n, c)."""
    p: Float64 = check_array("probabilities", probabilities, ("n", "c"), np.float64)
    y = check_array("truth", truth, (p.shape[0],), np.int64)
    z = check_array("predicted", predicted, (p.shape[0],), np.int64)
    num_classes = p.shape[1]
    if len(y) == 0:
        raise ShapeError("truth: expected at least one image, got none")
    if not ((y >= 0) & (y < num_classes) & (z >= 0) & (z < num_classes)).all():
        raise ShapeError(f"truth and predicted: expected class indices 0 .. {num_classes - 1}")
    table = confusion_matrix(y, z, num_classes)
    per_class = tuple(_measure_class(table, j, roc_auc(y == j, p[:, j])) for j in range(num_classes))
    present = [m for m in per_class if m.support > 0]
    seen = [m for j, m in enumerate(per_class) if m.support > 0 or table[:, j].any()]
    areas = [m.auroc for m in present if not np.isnan(m.auroc)]  # NaN where only one class occurs
    return Metrics(
        num_images=len(y),
        accuracy=float(np.mean(y == z)),
        balanced_accuracy=float(np.mean([m.recall for m in present])),
        macro_f1=float(np.mean([m.f1 for m in seen])),
        auroc=float(np.mean(areas)) if areas else float("nan"),
        ece=expected_calibration_error(y == z, p[np.arange(len(z)), z]),
        confusion=table,
        per_class=per_class,
    )


def _measure_class(table: Ints, index: int, area: float) -> ClassMetrics:
    hits, support, called = int(table[index, index]), int(table[index].sum()), int(table[:, index].sum())
    return ClassMetrics(
        support=support,
        precision=hits / called if called else float("nan"),
        recall=hits / support if support else float("nan"),
        f1=2 * hits / (support + called) if support + called else float("nan"),
        auroc=area,
    )
