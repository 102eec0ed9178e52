"""Work of each measured call, counted: bytes and flops by a written formula, and the exponents that follow from it.

Letters of docs/method.md; ``m`` descriptions a class, ``b`` knowledge bases. Flops count a multiply-add as two. Bytes
count each array once a pass over it, features in float32 (4 bytes) and what the solver keeps in float64 (8 bytes);
of the schedule, whose 2000 steps read the same matrix, only once if it fits `CACHE`: a copy's rate bounds memory alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kpl_engine.solver import cost

STEPS = 2000
CACHE = 32 << 20  # bytes that a last-level cache keeps from step to step; 32 MiB on the machines of the results
GREEDY = 20
CORRECTIONS = 5  # at most, of a closed form
_PASSES = 4  # over X in the closed form: sums, matrix, and about two gradients


_R = "t steps taken; r = t, or 1 where the bytes of a step fit the cache"


class Size(NamedTuple):
    """One point."""

    n: int
    d: int
    c: int
    m: int
    b: int = 1


@dataclass(frozen=True)
class Work:
    """Counted work of one call."""

    bytes: float
    flops: float
    exponentials: float
    formula: str
    flops32: float = 0.0  # of float32 arithmetic, at the rate of its own products


@dataclass(frozen=True)
class Expected:
    """Exponents between which a curve should run, and why."""

    low: float
    high: float
    reason: str


def few_images(s: Size) -> bool:
    """Whether a batch is answered by its text proxies: fewer than four images a class (method.md 5)."""
    return s.n < 4 * s.c


def closed_form_asked(s: Size) -> bool:
    """Whether method.md 3c lets the closed form stand for the schedule, for features of mean length 0.9."""
    return s.n >= 4 * s.c and 10.0 * 0.9 / (0.04 * s.c) >= 16


def form(s: Size) -> str:
    """The form of the schedule that the cost model chooses."""
    return cost.choose_form("core", s.n, s.d, s.c, STEPS)


def text(s: Size) -> Work:
    """One mean over the images, one dot product a description, k of them averaged."""
    numbers = s.n * s.d + s.c * s.m * s.d
    return Work(4 * numbers, s.n * s.d + 2 * s.c * s.m * s.d, 0, "4(nd + cmd) bytes, nd + 2cmd flops")


def labels(s: Size) -> Work:
    """log-softmax, then 20 greedy steps on running marginals."""
    formula = "8(3nc + 20(n + c)) bytes, 5nc + 40(n + c) flops, nc exponentials"
    per_step = s.n + s.c
    flops = 5 * s.n * s.c + 2 * GREEDY * per_step
    return Work(8 * (3 * s.n * s.c + GREEDY * per_step), flops, s.n * s.c, formula)


def _reads(size: float, steps: int) -> int:
    return steps if size > CACHE else 1


def schedule(s: Size, steps: int = STEPS) -> Work:
    """The steps taken of the cheaper form; one of c columns follows from the others."""
    exponentials = steps * s.n * max(s.c - 1, 1)
    columns = max(s.c - 1, 1)
    if form(s) == "dual":
        once = s.n * s.n * s.d
        formula = "r(8n² + 32nc) + 4nd bytes, t·2n²(c-1) + n²d flops, tn(c-1) exponentials; "
        once_a_step = 8 * s.n * s.n + 32 * s.n * s.c
        moved = _reads(once_a_step, steps) * once_a_step + 4 * s.n * s.d
        return Work(moved, steps * 2 * s.n * s.n * columns + once, exponentials, formula + _R)
    formula = "r(4nd + 16nc + 16cd) bytes, t·4nd(c-1) flops, tn(c-1) exponentials; "
    once_a_step = 4 * s.n * s.d + 16 * s.n * s.c + 16 * s.c * s.d
    moved = _reads(once_a_step, steps) * once_a_step
    return Work(moved, steps * 4 * s.n * s.d * columns, exponentials, formula + _R)


def auto(s: Size, steps: int | None = None) -> Work:
    """The closed form where its condition holds, else the schedule; ``steps`` says which of them answered.

    None: as the condition says. 0 steps or a few are the corrections of a closed form, more are a schedule's.
    """
    is_closed = closed_form_asked(s) if steps is None else steps <= CORRECTIONS
    if not is_closed:
        return schedule(s, STEPS if steps is None else steps)
    small, large = sorted((s.n, s.d))
    formula = "4·4nd + 4 min(n,d)² bytes, 16ndc flops and min²·max + min³/3 in float32, 2nc exponentials"
    moved = 4 * _PASSES * s.n * s.d + 4 * small * small
    return Work(moved, 4 * _PASSES * s.n * s.d * s.c, 2 * s.n * s.c, formula, small * small * large + small**3 / 3)


def batch(s: Size, steps: int | None = None) -> Work:
    """Text proxies, similarities, labels, proxies and the answer; without proxies where images are few."""
    parts = [text(s), Work(4 * s.n * s.d, 4 * s.n * s.d * s.c, s.n * s.c, "+ 4nd bytes, 4ndc flops"), _evidence(s)]
    parts += [] if few_images(s) else [labels(s), auto(s, steps)]
    return _total(parts)


def frozen(s: Size) -> Work:
    """Two products of the features with (d, c) columns, two softmaxes, and the evidence of each answer."""
    both = Work(8 * s.n * s.d, 4 * s.n * s.d * s.c, 2 * s.n * s.c, "8nd bytes, 4ndc flops, 2nc exponentials")
    return _total([both, _evidence(s)])


def each(s: Size, steps: int | None = None) -> Work:
    """`batch` once a knowledge base."""
    one = batch(s, steps)
    return Work(s.b * one.bytes, s.b * one.flops, s.b * one.exponentials, f"b times ({one.formula})", s.b * one.flops32)


def load(s: Size) -> Work:
    """Embeddings read, hashed, checked for length."""
    return Work(s.b * 3 * 4 * s.c * s.m * s.d, s.b * 2 * s.c * s.m * s.d, 0, "12bcmd bytes, 2bcmd flops")


def _evidence(s: Size) -> Work:
    """Each image against the m descriptions of its class, and (n, m) float64 cosines that are sorted whole."""
    formula = "+ 4cmd + 16nm bytes, 2nmd flops (evidence)"
    return Work(4 * s.c * s.m * s.d + 16 * s.n * s.m, 2 * s.n * s.m * s.d, 0, formula)


def _total(parts: list[Work]) -> Work:
    moved, flops, exponentials, flops32 = (
        sum(getattr(part, name) for part in parts) for name in ("bytes", "flops", "exponentials", "flops32")
    )
    return Work(moved, flops, exponentials, "; ".join(part.formula for part in parts), flops32)
