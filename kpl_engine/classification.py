"""What `Engine.classify` hands back, and how an answer of the solver becomes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kpl_engine.arrays import Bools, Float32, Float64, Ints
from kpl_engine.config import MethodName, ModeName
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.solver.answering import multiply_rows
from kpl_engine.solver.base import Answer, Notice

__all__ = ["Classification", "Evidence", "Failure", "assemble", "find_evidence"]

_EVIDENCE_ROWS = (
    1024  # images looked at together: with 1000 descriptions 8 MB of cosines, however many images there are
)
_FEW = 8


@dataclass(frozen=True)
class Evidence:
    """One description that speaks for the label: its text and its cosine with the image."""

    description: str
    similarity: float
    is_kept: bool  # one of the k descriptions that made the text proxy


@dataclass(frozen=True)
class Failure:
    """One image that could not be used: its position in the input, its name and why."""

    index: int
    name: str
    message: str


@dataclass(frozen=True)
class Classification:
    """Answers in the order of the input, one entry per image, failed images included.

    ``labels`` holds class names, ``None`` where the image failed (see ``failures``); there the row
    of ``probabilities`` (n, c) and ``margins`` (n,) are NaN and ``class_indices`` is -1.
    ``margins`` are the gap between the two largest probabilities. ``method`` and ``mode`` say what
    was asked for, ``method_used`` what produced the answer (they differ when a guard stepped in,
    which ``warnings`` explains). ``is_undecided`` (n,) marks labels that rounding decided: their margin is
    below what the last bits of the features can move. ``timings_ms`` holds wall milliseconds; read, decode and
    preprocess run beside encode, so stages may add up to more than ``total``.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    class_indices: Ints  # (n,)
    probabilities: Float32  # (n, c)
    margins: Float32  # (n,)
    is_undecided: Bools  # (n,)
    evidence: tuple[tuple[Evidence, ...], ...]
    text_labels: tuple[str | None, ...]
    text_probabilities: Float32  # (n, c)
    knowledge: str
    method: MethodName
    method_used: MethodName
    mode: ModeName
    warnings: tuple[Notice, ...]
    failures: tuple[Failure, ...]
    timings_ms: Mapping[str, float]

    @property
    def is_ok(self) -> Bools:
        """Which images were answered, (n,) bool."""
        return self.class_indices >= 0

    @property
    def agreement(self) -> float:
        """Share of the answered images that the text proxies label alike; NaN when none was answered."""
        pairs = [(a, b) for a, b in zip(self.labels, self.text_labels, strict=True) if a is not None]
        return sum(a == b for a, b in pairs) / len(pairs) if pairs else float("nan")


def assemble(
    base: KnowledgeBase,
    encoded: EncodedImages,
    answer: Answer | None,
    method: MethodName,
    mode: ModeName,
    top_evidence: int,
    evidence: Sequence[tuple[Evidence, ...]] | None = None,
) -> Classification:
    """Spread the answers of the usable images over the positions of the input.

    ``evidence``, one entry a usable image, is what `find_evidence` found before for the same answer.
    """
    if answer is not None and evidence is None:
        evidence = find_evidence(encoded.features, base, answer, top_evidence)
    if answer is not None and evidence is not None and len(encoded.ok_index) == len(encoded.names):
        rows = _Rows(
            answer.labels,
            answer.text_labels,
            answer.probabilities,
            answer.text_probabilities,
            answer.margins,
            answer.decided_by_rounding,
            tuple(evidence),
        )
    else:
        rows = _spread(encoded, len(base.classes), answer, evidence or ())
    names = (*base.classes, None)  # index -1 is the failed image
    return Classification(
        classes=base.classes,
        names=tuple(encoded.names),
        labels=tuple(names[i] for i in rows.indices.tolist()),
        class_indices=rows.indices,
        probabilities=rows.probabilities,
        margins=rows.margins,
        is_undecided=rows.is_undecided,
        evidence=rows.evidence,
        text_labels=tuple(names[i] for i in rows.text_indices.tolist()),
        text_probabilities=rows.text_probabilities,
        knowledge=base.name,
        method=method,
        method_used=answer.method_used if answer is not None else method,
        mode=mode,
        warnings=tuple(Notice("image", text) for text in encoded.notices) + (answer.warnings if answer else ()),
        failures=tuple(Failure(i, name, str(error)) for i, name, error in encoded.failures),
        timings_ms={**encoded.timings_ms, **(answer.timings_ms if answer else {})},
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """One entry for each position of the input."""

    indices: Ints  # (n,)
    text_indices: Ints  # (n,)
    probabilities: Float32  # (n, c)
    text_probabilities: Float32  # (n, c)
    margins: Float32  # (n,)
    is_undecided: Bools  # (n,)
    evidence: tuple[tuple[Evidence, ...], ...]


def _spread(encoded: EncodedImages, c: int, answer: Answer | None, evidence: Sequence[tuple[Evidence, ...]]) -> _Rows:
    n = len(encoded.names)
    indices = np.full(n, -1, dtype=np.int64)
    text_indices = np.full(n, -1, dtype=np.int64)
    probabilities = np.full((n, c), np.nan, dtype=np.float32)
    text_probabilities = np.full((n, c), np.nan, dtype=np.float32)
    margins = np.full(n, np.nan, dtype=np.float32)
    is_undecided = np.zeros(n, dtype=np.bool_)
    reasons: list[tuple[Evidence, ...]] = [()] * n
    if answer is not None:
        ok = encoded.ok_index
        indices[ok], text_indices[ok] = answer.labels, answer.text_labels
        probabilities[ok], text_probabilities[ok] = answer.probabilities, answer.text_probabilities
        margins[ok], is_undecided[ok] = answer.margins, answer.decided_by_rounding
        for position, found in zip(ok, evidence, strict=True):
            reasons[int(position)] = found
    return _Rows(indices, text_indices, probabilities, text_probabilities, margins, is_undecided, tuple(reasons))


def find_evidence(features: Float32, base: KnowledgeBase, answer: Answer, top: int) -> list[tuple[Evidence, ...]]:
    """For each image the ``top`` descriptions of its class with the largest cosine, best first.

    Cosines are float64 products, rounded once: in the compiled core those of an image do not depend on its neighbours.
    """
    found: list[tuple[Evidence, ...]] = [()] * len(features)
    for j in np.unique(answer.labels).tolist() if top else ():
        embeddings, texts = base.class_embeddings(j).T, base.descriptions[j]
        kept = set(answer.text_proxies.kept[j].tolist())
        members = np.flatnonzero(answer.labels == j)
        for start in range(0, len(members), _EVIDENCE_ROWS):
            rows = members[start : start + _EVIDENCE_ROWS]
            best, values = _largest(multiply_rows(features[rows], embeddings), top)
            for row, order, similarities in zip(rows.tolist(), best.tolist(), values.tolist(), strict=True):
                found[row] = tuple(Evidence(texts[i], s, i in kept) for i, s in zip(order, similarities, strict=True))
    return found


def _largest(cosines: Float64, top: int) -> tuple[Ints, Float32]:
    """Columns and values of the ``top`` largest of each row of (rows, m), best first, the first of equals first.

    ``cosines`` is overwritten where ``top`` is small: looking for each of two maxima costs a fraction of a sort.
    """
    if top > _FEW:
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
        return best, np.take_along_axis(cosines, best, axis=1).astype(np.float32)
    count = min(top, cosines.shape[1])
    best = np.empty((len(cosines), count), dtype=np.int64)
    values = np.empty((len(cosines), count), dtype=np.float32)
    every = np.arange(len(cosines))
    for place in range(count):
        found = cosines.argmax(axis=1)
        best[:, place], values[:, place] = found, cosines[every, found]
        cosines[every, found] = -np.inf
    return best, values
