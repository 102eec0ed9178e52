"""Text Proxy Optimization: which descriptions of a class speak for these images (method.md 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Float64, Floats, Ints, check_array
from kpl_engine.config import Retrieval
from kpl_engine.errors import ConfigError, KnowledgeError, ShapeError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver import cpu
from kpl_engine.solver.base import TextProxies
from kpl_engine.solver.checks import check_count
from kpl_engine.solver.softmax import check_rows

__all__ = ["KnowledgeLike", "as_knowledge", "check_features", "check_width", "select_text_proxies"]

KnowledgeLike = KnowledgeBase | Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike] | npt.NDArray[np.floating[Any]]
_LONGEST_ROW = 1e12  # features are unit rows; products of longer ones would leave float32
_NUMBERS_A_THREAD = 1 << 22  # 16 MiB, read in about 1 ms; a thread costs about 50 us to start and end
_CANCELLED = 1e-6  # unit float32 vectors that cancel leave a rounding residue of about 1e-7, not a direction


def select_text_proxies(
    features: npt.ArrayLike,
    knowledge: KnowledgeLike,
    k: int = 8,
    retrieval: Retrieval = "mean",
) -> TextProxies:
    """Keep the k best descriptions of each class and average them to one unit column.

    The score of description t is its mean cosine over the images,
    ``(1/n) Σ_i <x_i, t> = <mean(X), t>``, so only the mean image is needed: O(d) a description.
    Equal scores keep the lower index first. A class with fewer than k descriptions keeps all.

    Parameters
    ----------
    features : (n, d) array_like
        Unit rows; n >= 1; taken as float32. Used as they are: a zero row counts in the mean.
    knowledge : KnowledgeBase, mapping of class to (m_j, d), sequence of (m_j, d), or (c, m, d)
        Text embeddings per class, scaled to unit rows if they are not.
    k : int
        Descriptions kept per class, >= 1.
    retrieval : {"mean", "per_image", "all"}
        ``all`` keeps every description. ``per_image`` lets each image keep its own k and fills
        ``logits`` (n, c); its ``proxies`` and ``kept`` are those of ``mean``.

    Returns
    -------
    TextProxies
        If the kept descriptions cancel to zero, the best one alone is the column.

    Raises
    ------
    ShapeError
        NaN or infinite features, or a width d other than the knowledge's.
    ConfigError
        k < 1 or an unknown ``retrieval``.

    Notes
    -----
    Means and scores are float64. In the compiled core the same input on the same machine gives the
    same bits for every layout of the arrays and every number of threads: rows are summed in fixed
    blocks, and the blocks in their order. Identical descriptions score the same wherever they stand.
    """
    check_count("k", k, 1)
    if retrieval not in ("mean", "per_image", "all"):
        raise ConfigError(f"retrieval: expected 'mean', 'per_image' or 'all', got {retrieval!r}")
    core = cpu.core()
    images = check_features(features) if core is None else _as_rows(features)
    base = as_knowledge(knowledge)
    check_width(images, base)
    width = len(base.embeddings) if retrieval == "all" else int(k)
    found = _select_numpy(images, base, width) if core is None else _select_compiled(core, images, base, width)
    return replace(found, logits=_per_image_logits(images, base, int(k))) if retrieval == "per_image" else found


def _select_numpy(images: Float32, base: KnowledgeBase, k: int) -> TextProxies:
    """The plain twin of the compiled core (kernels/cpu/text_proxy.h), and what runs where that is not installed."""
    blocks = [base.class_embeddings(j).astype(np.float64) for j in range(len(base.classes))]  # c of (m_j, d)
    mean = images.mean(axis=0, dtype=np.float64)  # (d,) float64
    # Not a matrix product: BLAS may round two identical rows differently, and ties must stay ties.
    scores = tuple(np.sum(block * mean, axis=1) for block in blocks)  # c of (m_j,) float64
    kept = tuple(np.argsort(-score, kind="stable")[:k].astype(np.int64) for score in scores)
    columns = [_unit_mean(block, best) for block, best in zip(blocks, kept, strict=True)]
    return TextProxies(np.stack(columns, axis=1).astype(np.float32), kept, scores)


def _select_compiled(core: ModuleType, images: Float32, base: KnowledgeBase, k: int) -> TextProxies:
    """One pass over the images, which checks them too."""
    rows = np.ascontiguousarray(base.embeddings, dtype=np.float32)  # (M, d)
    bounds = np.ascontiguousarray(base.offsets, dtype=np.int64)  # (c + 1,)
    ends = bounds.tolist()
    counts = [min(k, end - start) for start, end in pairwise(ends)]
    scores, kept = np.empty(len(rows)), np.empty(sum(counts), dtype=np.int64)
    proxies = np.empty((rows.shape[1], len(counts)), dtype=np.float32)  # (d, c)
    if not core.select_text_proxies(images, rows, bounds, k, _LONGEST_ROW, _threads(images), scores, kept, proxies):
        _check_lengths(images)
    return TextProxies(
        proxies,
        tuple(kept[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)),
        tuple(scores[start:end] for start, end in pairwise(ends)),
    )


def check_features(features: npt.ArrayLike) -> Float32:
    """Features as (n, d) float32 with n, d >= 1 and every row finite and below 1e12 in length, else `ShapeError`."""
    images = _as_rows(features)
    core = cpu.core()
    if core is None or not core.rows_fit(images, _LONGEST_ROW, _threads(images)):
        _check_lengths(images)
    return images


def check_width(images: Float32, base: KnowledgeBase) -> None:
    """`ShapeError` unless images and descriptions have one width d."""
    if base.embeddings.shape[1] != images.shape[1]:
        raise ShapeError(
            f"features: expected width d = {base.embeddings.shape[1]} as in knowledge base {base.name!r}, "
            f"got {images.shape[1]}; embed images and texts with the same encoder"
        )


def _threads(images: Float32) -> int:
    """Every number of threads gives the same bits; a second one pays where reading the images takes a millisecond."""
    return (
        min(1 + images.size // _NUMBERS_A_THREAD, cpu.resolve_threads(None)) if images.size > _NUMBERS_A_THREAD else 1
    )


def _as_rows(features: npt.ArrayLike) -> Float32:
    images: Float32 = check_array("features", features, ("n", "d"), finite=False)
    if 0 in images.shape:
        raise ShapeError(f"features: expected at least one image and one dimension, got shape {images.shape}")
    return images


def _check_lengths(images: Float32) -> None:
    check_rows("features", images, finite=True)
    longest = float(np.sqrt(np.einsum("ij,ij->i", images, images, dtype=np.float64).max()))
    if longest > _LONGEST_ROW:
        raise ShapeError(f"features: expected unit rows, got one of length {longest:.3g}; scale the rows to length 1")


def as_knowledge(knowledge: KnowledgeLike) -> KnowledgeBase:
    """The knowledge base itself, or one made from arrays of embeddings."""
    if isinstance(knowledge, KnowledgeBase):
        return knowledge
    if isinstance(knowledge, (str, bytes)) or not isinstance(knowledge, (Mapping, Sequence, np.ndarray)):
        raise KnowledgeError(
            "knowledge: expected a KnowledgeBase, a mapping of class to (m, d) embeddings, or a sequence of those, "
            f"got {type(knowledge).__name__}"
        )
    return KnowledgeBase.from_arrays(knowledge)


def _unit_mean(block: Float64, best: Ints) -> Float64:
    total = block[best].mean(axis=0)  # (d,) float64
    norm = float(np.linalg.norm(total))
    if norm > _CANCELLED:
        return np.asarray(total / norm, dtype=np.float64)
    return np.asarray(block[best[0]] / np.linalg.norm(block[best[0]]), dtype=np.float64)


def _per_image_logits(images: Floats, base: KnowledgeBase, k: int) -> Float32:
    """``<x_i, unit(mean of the k descriptions nearest to x_i)>`` for every class, (n, c) float32.

    The mean itself is never formed: its product with x_i is the mean of the kept cosines, and its
    squared length is ``aᵀ (B Bᵀ) a / k²`` with a the 0/1 vector of what was kept.
    """
    logits = np.empty((len(images), len(base.classes)), dtype=np.float32)  # (n, c) float32
    for j in range(len(base.classes)):
        block = base.class_embeddings(j).astype(np.float64)  # (m, d)
        width = min(k, len(block))
        cosines = images.astype(np.float64) @ block.T  # (n, m) float64
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :width]  # (n, k)
        chosen = np.zeros_like(cosines)  # (n, m) float64, zeros and ones
        np.put_along_axis(chosen, order, 1.0, axis=1)
        lengths = np.sqrt(np.maximum(np.sum((chosen @ (block @ block.T)) * chosen, axis=1), 0.0)) / width
        means = np.sum(cosines * chosen, axis=1) / width
        cancelled = lengths <= _CANCELLED
        logits[:, j] = np.where(cancelled, cosines.max(axis=1), means / np.where(cancelled, 1.0, lengths))
    return logits
