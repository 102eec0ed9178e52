"""What the solver room hands back: frozen records, no behaviour beyond their own storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Bools, Float32, Float64, Floats, Ints, check_array
from kpl_engine.config import MethodName, ModeName
from kpl_engine.errors import ShapeError

__all__ = ["Answer", "FrozenProxies", "Notice", "Solution", "TextProxies"]


@dataclass(frozen=True)
class Notice:
    """Something the caller should know: a stable ``code`` for machines, a sentence for people."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class TextProxies:
    """One text direction per class, and how it was chosen.

    ``proxies`` (d, c) float32 has unit columns. ``kept[j]`` are indices into the descriptions of
    class j, best first; ``scores[j]`` the mean cosine over the images of every description of
    class j. ``logits`` (n, c) is set by ``retrieval="per_image"`` alone, where each image keeps
    its own descriptions and no single matrix of proxies gives its logits.
    """

    proxies: Float32  # (d, c)
    kept: tuple[Ints, ...]  # c arrays (k_j,)
    scores: tuple[Float64, ...]  # c arrays (m_j,)
    logits: Float32 | None = None  # (n, c)


@dataclass(frozen=True)
class Solution:
    """Vision proxies and what they say about the images they were learned on.

    ``logits = X W`` is what the published program ranks. With labels of total mass 1 its columns
    agree to O(1/n), so in float32 the ranking is lost; ``scores = X discriminants`` carries the
    same differences at a scale that float32 can hold (`discriminants` in `proxies.py`), and
    ``labels`` are the argmax of the float64 scores. ``softmax(scores / tau_i)`` are the
    probabilities. ``decided_by_rounding[i]`` says that a change of row i in its last float32 bits
    could change its label. ``residual`` is ‖G‖_F of the last step for a schedule (the norm in the
    published stopping rule; it does not tend to zero) and the largest relative change of the
    class differences for a closed form.
    """

    proxies: Float32  # (d, c), unit columns
    logits: Float32  # (n, c)
    iterations: int
    converged: bool
    solver: Literal["schedule", "closed_form"]
    form: Literal["dual", "primal", "closed_form"]
    halvings: int
    residual: float
    discriminants: Float32  # (d, c)
    scores: Float32  # (n, c)
    labels: Ints  # (n,)
    decided_by_rounding: Bools  # (n,)
    warnings: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class FrozenProxies:
    """Proxies fitted before, ready to classify one image at a time.

    Class probabilities of a unit feature x are ``softmax(xᵀ discriminants / temperature)``.
    """

    proxies: Float32  # (d, c) vision proxies
    discriminants: Float32  # (d, c)
    temperature: float
    text_proxies: Float32  # (d, c)
    tau_t: float
    kept: tuple[Ints, ...]  # c arrays (k_j,)
    method: MethodName
    num_images: int

    @property
    def num_classes(self) -> int:
        return int(self.proxies.shape[1])

    def to_tensors(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """Named arrays and metadata for a safetensors file; `from_tensors` reads them back bit for bit."""
        widths = np.array([len(indices) for indices in self.kept], dtype=np.int64)  # (c,) int64
        tensors: dict[str, npt.NDArray[Any]] = {
            "proxies": self.proxies,
            "discriminants": self.discriminants,
            "text_proxies": self.text_proxies,
            "temperatures": np.array([self.temperature, self.tau_t], dtype=np.float64),
            "num_images": np.array([self.num_images], dtype=np.int64),
            "kept": np.concatenate([np.zeros(0, np.int64), *self.kept]).astype(np.int64),
            "kept_counts": widths,
        }
        return tensors, {"method": self.method}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> FrozenProxies:
        """Rebuild from `to_tensors`; raises `ShapeError` when a tensor is missing or does not fit."""
        method = metadata.get("method")
        if method not in get_args(MethodName):
            raise ShapeError(f"frozen proxies: expected a method of {get_args(MethodName)}, got {method!r}")
        names = (
            "proxies",
            "discriminants",
            "text_proxies",
            "temperatures",
            "num_images",
            "kept",
            "kept_counts",
        )
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ShapeError(f"frozen proxies: expected tensors {list(names)}, missing {missing}; fit them again")
        proxies = check_array("proxies", tensors["proxies"], ("d", "c"))
        d, c = proxies.shape
        temperatures = check_array("temperatures", tensors["temperatures"], (2,), np.float64)
        if not (temperatures > 0).all():
            raise ShapeError(f"temperatures: expected two numbers > 0, got {temperatures.tolist()}; fit them again")
        counts = check_array("kept_counts", tensors["kept_counts"], (c,), np.int64)
        kept = check_array("kept", tensors["kept"], ("K",), np.int64)
        if (counts < 0).any() or int(counts.sum()) != len(kept) or (kept < 0).any():
            raise ShapeError(f"kept: expected {int(counts.sum())} indices >= 0, got {len(kept)}; fit them again")
        num_images = int(check_array("num_images", tensors["num_images"], (1,), np.int64)[0])
        if num_images < 0:
            raise ShapeError(f"num_images: expected a count >= 0, got {num_images}; fit them again")
        return cls(
            proxies=proxies,
            discriminants=check_array("discriminants", tensors["discriminants"], (d, c)),
            temperature=float(temperatures[0]),
            text_proxies=check_array("text_proxies", tensors["text_proxies"], (d, c)),
            tau_t=float(temperatures[1]),
            kept=tuple(np.split(kept, np.cumsum(counts)[:-1])),
            method=cast(MethodName, method),
            num_images=num_images,
        )


@dataclass(frozen=True)
class Answer:
    """Labels and probabilities of a set of images, and everything that explains them.

    ``probabilities = softmax(logits / temperature)`` except for ``onzeta``, whose answer is a
    mixture of two softmaxes. ``margins`` is the largest probability less the second largest
    (1 with one class). ``method`` was asked for; ``method_used`` gave the answer and differs only
    when a warning says so. ``agreement`` is the share of images with the text proxies' label.
    """

    labels: Ints  # (n,)
    probabilities: Float32  # (n, c), rows sum to 1
    margins: Float32  # (n,)
    logits: Float32  # (n, c)
    text_labels: Ints  # (n,)
    text_probabilities: Float32  # (n, c)
    text_proxies: TextProxies
    solution: Solution | None
    proxies: Float32  # (d, c)
    discriminants: Float32  # (d, c)
    temperature: float
    tau_t: float
    method: MethodName
    method_used: MethodName
    mode: ModeName
    warnings: tuple[Notice, ...]
    timings_ms: dict[str, float]
    agreement: float
    decided_by_rounding: Bools  # (n,)


def as_float32(array: Floats) -> Float32:
    """C-contiguous float32 copy for a record, so that no record aliases a caller's array."""
    return np.array(array, dtype=np.float32, order="C")
