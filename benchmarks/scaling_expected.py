"""The exponent each curve should have, from docs/method.md and kpl_engine/solver/cost.py, with its reason."""

from __future__ import annotations

import math

import scaling_counts as counts
from scaling_counts import Expected, Size
from scaling_points import WORK

_REASONS = {
    ("text proxies", "n"): "1: one pass over X for the mean image (method.md 1)",
    ("text proxies", "c"): "1: one dot product a description once cm exceeds n",
    ("text proxies", "d"): "1: every pass is over rows of d numbers",
    ("text proxies", "m"): "1: one dot product of d numbers a description, none of them times n (method.md 1)",
    ("labels", "n"): "1: a softmax of n rows, 20 greedy steps of n + c (method.md 2)",
    ("labels", "c"): "1: a softmax of c columns, 20 greedy steps of n + c (method.md 2)",
    ("labels", "d"): "0: labels see S (n, c), not the features",
    ("schedule", "n"): "2 in the dual form (n² (c-1) a step), 1 in the primal (2nd(c-1)); solver/cost.py chooses",
    ("schedule", "c"): "1: c-1 columns a step; below where reading K or X dominates (c = 2 reads it for one column)",
    ("schedule", "d"): "0 in the dual form but for K = X Xᵀ once, 1 in the primal",
    ("auto", "n"): "2 below d (n²d for B Bᵀ, with n³/3 for its factor), 1 above (nd² and d³/3); solver/closed_form.py",
    ("auto", "c"): "near 0: the matrix has no c; 1 beyond c = 14, where the schedule takes over (method.md 3c)",
    ("auto", "d"): "1 above n (n²d), 2 below (nd² and d³/3)",
    (
        "classify batch",
        "n",
    ): "that of its parts: text proxies, products, labels, closed form; text proxies below n = 4c",
    ("classify batch", "c"): "that of its parts; back to products of n d c at c > n/4, which the text proxies answer",
    ("classify batch", "d"): "that of its parts: the closed form's matrix for few classes",
    (
        "classify batch",
        "m",
    ): "0 while nmd stays below the closed form's n²d, 1 beyond: evidence compares an image with m descriptions",
    ("classify frozen", "n"): "1: products of n rows with (d, c), no row with another",
    ("classify frozen", "c"): "1: products of n rows with (d, c)",
    ("classify frozen", "d"): "1: products of n rows with (d, c)",
    ("classify frozen", "m"): "1 for m > c: evidence compares an image with the m descriptions of its class",
    ("classify each", "b"): "1: features are encoded once, answered once a base",
    ("load", "b"): "1: bytes read, hashed and checked once a base",
}
_OVERHEAD_S = 2e-5  # of a call from Python; below a few times that a curve is flat whatever is counted


def expected(name: str, axis: str, sizes: list[Size], seconds: list[float]) -> Expected:
    """The range of local slopes of the counted time between neighbouring points, with the overhead of a call.

    ``seconds`` are the ceilings' times of the counted work. The low end is the slope with the overhead, the high end
    that without: a measured curve lies between as its constant is above its ceiling.
    """
    slopes = []
    for a, b, left, right in zip(sizes, sizes[1:], seconds, seconds[1:], strict=False):
        run = math.log(getattr(b, axis) / getattr(a, axis))
        slopes.append(math.log(right / left) / run)
        slopes.append(math.log((right + _OVERHEAD_S) / (left + _OVERHEAD_S)) / run)
    return Expected(min(slopes), max(slopes), _REASONS.get((name, axis), "that of the counted work"))


def regimes(name: str, size: Size) -> str:
    """Which path a call takes at this size, where the method has more than one."""
    if name == "schedule":
        return counts.form(size)
    if name in ("auto", "classify batch", "classify each"):
        if name != "auto" and counts.few_images(size):
            return "text proxies answer"
        if not counts.closed_form_asked(size):
            return f"schedule, {counts.form(size)}"
        return "closed form, n < d" if size.n < size.d else "closed form, n >= d"
    return ""


def formula(name: str, size: Size) -> str:
    """The counted work in words."""
    return WORK[name](size).formula
