"""The known failure modes of method.md section 5, each as one `Notice` or none."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kpl_engine.arrays import Bools, Float32, Float64, Floats, Ints
from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.solver.base import Notice
from kpl_engine.solver.moments import squared_lengths
from kpl_engine.solver.online import StreamSums

__all__ = ["UNIT_SLACK", "answer_notices", "few_images", "input_notices", "method_notices", "zero_mean"]

UNIT_SLACK = 1e-2  # half-precision encoders leave lengths within about 1e-3 of 1
_SAMPLED_COLUMNS = 16  # compared before whole rows are
_SKEW = 0.4  # share of the largest possible imbalance; with two classes it is a 70 : 30 split


def few_images(n: int, c: int, config: MethodConfig) -> Notice | None:
    """Below ``min_batch`` images (default four per class) learning from the batch is noise."""
    fewest = 4 * c if config.min_batch is None else config.min_batch
    if n >= fewest:
        return None
    return Notice(
        "few_images",
        f"{n} images are fewer than min_batch = {fewest} for {c} classes, so the text proxies answered (zeroshot); "
        "send more images at once, use proxies fitted before, or lower min_batch",
    )


def zero_mean(sums: StreamSums) -> Notice | None:
    """Images whose mean is zero: the closed form has no direction to start from."""
    if sums.has_direction:
        return None
    return Notice(
        "zero_mean",
        f"the mean of {sums.num_images:g} features is zero, so kpl_stream has nothing to go by and the text proxies "
        "answered (zeroshot); check that the encoder gave features",
    )


def method_notices(method: MethodName, c: int, config: MethodConfig, shares: Float64 | None) -> list[Notice]:
    """What the choice of method and options already tells, before any image."""
    notices = []
    if method == "kpl" and config.ot_iters != "converged" and c > config.ot_iters:
        notices.append(
            Notice(
                "many_classes",
                f"{c} classes are more than ot_iters = {config.ot_iters} greedy steps, which then only empty the most "
                "predicted classes; use method 'inmap', or ot_iters = 'converged'",
            )
        )
    if method == "kpl" and config.ot_iters == "converged":
        notices.append(
            Notice("converged_plan", "labels are a converged transport plan, not the greedy steps published as KPL")
        )
    if shares is not None and method in ("zeroshot", "proxy", "onzeta"):
        notices.append(
            Notice("prior_unused", f"method {method!r} takes no prior; 'inmap', 'kpl' and 'kpl_stream' use it")
        )
    if shares is not None and method in ("kpl", "kpl_stream") and not shares.all():
        notices.append(
            Notice(
                "zero_share",
                f"a prior of 0 empties the pseudo labels of a class, but {method!r} can still answer with it; "
                "leave the class out of the knowledge base, or use method 'inmap'",
            )
        )
    return notices


def input_notices(X: Float32, T: Float32, *, learns: bool = True) -> list[Notice]:
    """Zero or non-unit vectors, duplicated images (where the batch is learned from), identical classes."""
    notices = []
    lengths = np.sqrt(squared_lengths(X))  # (n,) float64
    num_zero = int((lengths == 0).sum())
    if num_zero:
        notices.append(
            Notice("zero_vectors", f"{num_zero} of {len(X)} features are zero vectors; their labels carry no evidence")
        )
    num_long = int((np.abs(lengths[lengths > 0] - 1) > UNIT_SLACK).sum())
    if num_long:
        notices.append(
            Notice(
                "not_unit",
                f"{num_long} of {len(X)} features are not unit vectors (lengths {lengths.min():.3g} to "
                f"{lengths.max():.3g}); the temperatures are meant for unit vectors: divide each by its length",
            )
        )
    num_repeated = _num_repeated(X) if learns else 0
    if num_repeated:
        notices.append(
            Notice("duplicate_images", f"{num_repeated} of {len(X)} features repeat an earlier one and count twice")
        )
    if len({column.tobytes() for column in T.T}) < T.shape[1]:
        notices.append(
            Notice("identical_classes", "two classes have the same text proxy and cannot be told apart; edit the texts")
        )
    return notices


def _num_repeated(X: Float32) -> int:
    """Rows that repeat an earlier one, byte for byte."""
    # A few columns first: rows that differ there need not be read, and nearly all do.
    sample = np.ascontiguousarray(X[:, :: max(1, X.shape[1] // _SAMPLED_COLUMNS)])
    keys = [row.tobytes() for row in sample]
    counts = Counter(keys)
    if len(counts) == len(keys):
        return 0
    suspects = X[[counts[key] > 1 for key in keys]]
    return len(suspects) - len({row.tobytes() for row in suspects})


def answer_notices(
    labels: Ints, text_labels: Ints, c: int, undecided: Bools, *, assumes_equal_shares: bool
) -> list[Notice]:
    """Label flip, imbalance, and labels that rounding decided."""
    notices = []
    agreement = float(np.mean(labels == text_labels))
    if agreement < 1.0 / c:
        notices.append(
            Notice(
                "label_flip",
                f"only {agreement:.0%} of the labels agree with the text proxies, below chance ({1 / c:.0%}): "
                "classes may be swapped; check the descriptions or use method 'zeroshot' or 'proxy'",
            )
        )
    shares: Floats = np.bincount(text_labels, minlength=c) / len(text_labels)  # (c,)
    if assumes_equal_shares and c > 1 and np.abs(shares - 1 / c).sum() / 2 > _SKEW * (1 - 1 / c):
        notices.append(
            Notice(
                "imbalance",
                f"the text proxies give {shares.max():.0%} of the images to one of {c} classes, while the labels "
                "assume equal shares; if the classes are unequal, give their shares as prior",
            )
        )
    if undecided.any():
        notices.append(
            Notice(
                "decided_by_rounding",
                f"{int(undecided.sum())} of {len(labels)} labels have a margin below float32 rounding of the features; "
                "treat them as undecided",
            )
        )
    return notices
