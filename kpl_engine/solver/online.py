"""Classification of streams: KPL from running sums (method.md 3d) and OnZeta (method.md 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, Float64, Ints, check_array
from kpl_engine.errors import ConfigError, ShapeError, SolverError
from kpl_engine.solver.base import FrozenProxies, as_float32
from kpl_engine.solver.checks import check_count, check_magnitude, check_positive
from kpl_engine.solver.closed_form import first_order, has_direction, project_both_sides
from kpl_engine.solver.labels import resolve_prior
from kpl_engine.solver.softmax import log_softmax, softmax
from kpl_engine.solver.text_proxy import check_features

__all__ = ["OnZeta", "StreamSums"]


def _required(tensors: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...], owner: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ShapeError(
            f"{owner}: expected tensors {list(names)}, missing {missing}; the snapshot is not one of these"
        )


def _own(array: npt.NDArray[Any]) -> Float64:
    """A float64 copy, row by row; what is read from a file is a view of its bytes."""
    return np.array(array, dtype=np.float64, order="C")


def _features_of_width(features: npt.ArrayLike, d: int) -> Float32:
    X = check_features(features)
    if X.shape[1] != d:
        raise ShapeError(f"features: expected width d = {d} as the text proxies, got {X.shape[1]}; use one encoder")
    return X


@dataclass
class StreamSums:
    """Everything KPL needs to know of the images it has seen, in d(d + c + 1) + c + 1 numbers.

    With ``p = softmax(X T / tau_t)``: ``n``, ``Σ x``, ``Σ x xᵀ``, ``s_j = Σ_i p_ij`` and
    ``M_j = Σ_i p_ij x_i``, all float64. They add up, so shards merged in any order give the same
    sums to rounding, and forgetting is one multiplication. The text proxies T stay fixed while
    sums are kept: choosing them again starts new sums.

    Arrays are replaced, never written to, so ``dataclasses.replace(sums)`` is a copy in O(1). They lie row by row:
    BLAS rounds another layout otherwise, and a snapshot keeps none.
    """

    text_proxies: Float32  # (d, c)
    tau_t: float
    num_images: float  # a float because of forgetting
    feature_sum: Float64  # (d,)
    second_moment: Float64  # (d, d) sum, not mean
    class_mass: Float64  # (c,)
    class_sums: Float64  # (d, c)

    @classmethod
    def empty(cls, text_proxies: npt.ArrayLike, tau_t: float = 0.01) -> StreamSums:
        """Sums over no image yet. ``text_proxies`` is (d, c); it is copied."""
        check_positive("tau_t", tau_t)
        T = as_float32(check_array("text_proxies", text_proxies, ("d", "c")))
        d, c = T.shape
        return cls(T, float(tau_t), 0.0, np.zeros(d), np.zeros((d, d)), np.zeros(c), np.zeros((d, c)))

    @property
    def fingerprint(self) -> str:
        """Hex digest of what must agree before two sums may be merged: T and tau_t."""
        digest = hashlib.sha256(np.array([self.tau_t, *self.text_proxies.shape], dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.text_proxies).tobytes())
        return digest.hexdigest()

    @property
    def has_direction(self) -> bool:
        """Whether there are images and their mean is not zero, without which `solve` has nothing to go by."""
        n = self.num_images
        return n > 0 and has_direction(self.feature_sum / n, float(np.trace(self.second_moment)) / n)

    def update(self, features: npt.ArrayLike) -> None:
        """Add images, (n, d) finite rows. On an error nothing has been added."""
        X = _features_of_width(features, len(self.text_proxies)).astype(np.float64)  # (n, d) float64
        p = softmax(X @ self.text_proxies, self.tau_t)  # (n, c) float64
        self.num_images += len(X)
        self.feature_sum = self.feature_sum + X.sum(axis=0)
        self.second_moment = self.second_moment + X.T @ X
        self.class_mass = self.class_mass + p.sum(axis=0)
        self.class_sums = self.class_sums + X.T @ p

    def forget(self, factor: float) -> None:
        """Weigh everything seen so far by ``factor``, above 0 and at most 1."""
        if not 0 < factor <= 1:
            raise ConfigError(f"factor: expected a number above 0 and at most 1, got {factor!r}")
        self.num_images *= factor
        self.feature_sum = self.feature_sum * factor
        self.second_moment = self.second_moment * factor
        self.class_mass = self.class_mass * factor
        self.class_sums = self.class_sums * factor

    def merge(self, other: StreamSums) -> StreamSums:
        """Sums over the images of both, as a new object. `SolverError` if T or tau_t differ."""
        if self.fingerprint != other.fingerprint:
            raise SolverError(
                f"merge: expected sums made with the same text proxies and tau_t (fingerprint "
                f"{self.fingerprint[:12]}), got {other.fingerprint[:12]}; sums of another epoch cannot be added"
            )
        return replace(
            self,
            num_images=self.num_images + other.num_images,
            feature_sum=self.feature_sum + other.feature_sum,
            second_moment=self.second_moment + other.second_moment,
            class_mass=self.class_mass + other.class_mass,
            class_sums=self.class_sums + other.class_sums,
        )

    def solve(
        self, tau_i: float = 0.04, prior: npt.ArrayLike | None = None, kept: tuple[Ints, ...] = ()
    ) -> FrozenProxies:
        """Regularised linear discriminant analysis on the soft class means ``M_j / s_j``.

        ``XᵀP = M diag(q / s)`` with ``q`` the prior or 1/c stands for the published labels; the
        rest is the closed form (`closed_form.py`) to first order: ``discriminants = c tau_i
        (S + tau_i mu I)^-1 D``. Costs one (d, d) solve. A class that no image was likely to be
        has no mean: it counts as the mean image.

        Raises `SolverError` before the first image, or if the mean feature is zero.
        """
        check_magnitude("tau_i", tau_i)
        d, c = self.text_proxies.shape
        shares = resolve_prior(prior, c)
        q = np.full(c, 1.0 / c) if shares is None else shares
        if not self.has_direction:
            raise SolverError(
                f"no proxies from {self.num_images:g} images with mean feature zero: expected at least one image "
                "and a mean with a direction; update with image features first"
            )
        mean = self.feature_sum / self.num_images
        mu = float(np.linalg.norm(mean))
        present = self.class_mass > 0
        means = np.where(present, self.class_sums / np.where(present, self.class_mass, 1.0), mean[:, None])
        matrix = project_both_sides(self.second_moment / self.num_images, mean / mu)
        matrix[np.diag_indices(d)] += tau_i * mu

        def inverse(F: Float64) -> Float64:
            try:
                return np.asarray(np.linalg.solve(matrix, F), dtype=np.float64)
            except np.linalg.LinAlgError as error:
                raise SolverError(f"the ridge tau_i = {tau_i:g} is lost in rounding; use a larger tau_i") from error

        W, e = first_order(mean, means * q, inverse, self.num_images, tau_i)
        return FrozenProxies(
            proxies=as_float32(W),
            discriminants=as_float32(e * self.num_images),
            temperature=tau_i,
            text_proxies=self.text_proxies,
            tau_t=self.tau_t,
            kept=kept,
            method="kpl_stream",
            num_images=round(self.num_images),
        )

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for a snapshot; `from_tensors` reads them back bit for bit."""
        return {
            "text_proxies": self.text_proxies,
            "scalars": np.array([self.tau_t, self.num_images], dtype=np.float64),
            "feature_sum": self.feature_sum,
            "second_moment": self.second_moment,
            "class_mass": self.class_mass,
            "class_sums": self.class_sums,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> StreamSums:
        """Rebuild from `to_tensors`; raises `ShapeError` when a tensor is missing or does not fit."""
        names = ("text_proxies", "scalars", "feature_sum", "second_moment", "class_mass", "class_sums")
        _required(tensors, names, "stream sums")
        T = as_float32(check_array("text_proxies", tensors["text_proxies"], ("d", "c")))
        d, c = T.shape
        tau_t, num_images = check_array("scalars", tensors["scalars"], (2,), np.float64).tolist()
        class_mass = check_array("class_mass", tensors["class_mass"], (c,), np.float64)
        if tau_t <= 0 or num_images < 0 or (class_mass < 0).any():
            raise ShapeError(
                f"stream sums: expected tau_t > 0 and counts >= 0, got tau_t {tau_t}, {num_images} images, "
                f"smallest class mass {class_mass.min()}; the snapshot is damaged"
            )
        return cls(
            text_proxies=T,
            tau_t=tau_t,
            num_images=num_images,
            feature_sum=_own(check_array("feature_sum", tensors["feature_sum"], (d,), np.float64)),
            second_moment=_own(check_array("second_moment", tensors["second_moment"], (d, d), np.float64)),
            class_mass=_own(class_mass),
            class_sums=_own(check_array("class_sums", tensors["class_sums"], (d, c), np.float64)),
        )


@dataclass
class OnZeta:
    """Online zero-shot transfer: one answer and one small update per image, in arrival order.

    For the i-th feature x::

        p ∝ softmax(x·T / tau_t) exp(rho),   v = softmax(x·W / tau_i)
        answer  b v + (1 - b) p,             b = 0.8 min(1, sqrt(i / horizon))
        rho <- max(0, rho - 20/sqrt(i) (p - 1/c))
        W   <- unit columns of W - 0.5/(sqrt(i) tau_i) x (v - p)ᵀ

    The answer uses rho and W from before its own update. ``rho`` pushes towards equal shares, so
    a stream sorted by class with few classes is answered badly; shuffle it or use sums. The first
    steps are long (0.5 / tau_i = 12.5), so the recursion amplifies rounding: a relative change of
    1e-12 in the features moved answers of 132 images by 0.8, and accuracy by several points. Two
    correct programs agree step by step, not at the end of a stream.
    Arrays are replaced, never written to, and lie row by row, as in `StreamSums`.
    Source: OnZeta, arXiv 2408.13320.
    """

    text_proxies: Float32  # (d, c)
    horizon: int
    tau_t: float
    tau_i: float
    proxies: Float64  # (d, c), unit columns
    rho: Float64  # (c,)
    num_images: int

    @classmethod
    def start(cls, text_proxies: npt.ArrayLike, horizon: int, tau_t: float = 0.01, tau_i: float = 0.04) -> OnZeta:
        """State before the first image; ``horizon`` is the expected number of images, >= 1."""
        T = as_float32(check_array("text_proxies", text_proxies, ("d", "c")))
        check_count("horizon", horizon, 1)
        check_magnitude("tau_t", tau_t)
        check_magnitude("tau_i", tau_i)
        return cls(T, int(horizon), float(tau_t), float(tau_i), T.astype(np.float64), np.zeros(T.shape[1]), 0)

    def step(self, features: npt.ArrayLike) -> Float32:
        """Answer and learn from the rows of (n, d) in order; probabilities (n, c) float32.

        All rows are checked before the first is used, so an error changes nothing.
        """
        X = _features_of_width(features, len(self.text_proxies)).astype(np.float64)
        answers = np.empty((len(X), self.text_proxies.shape[1]))  # (n, c) float64
        for row, x in enumerate(X):
            answers[row] = self._one(x)
        return as_float32(answers)

    def _one(self, x: Float64) -> Float64:
        self.num_images += 1
        root = float(np.sqrt(self.num_images))
        # exp(rho) as a shift of the logits: rho can pass 709 in a long stream that lacks a class.
        # In NumPy, core or not: a stream makes differences of 1e-16 large, and both installs should answer alike.
        p = np.exp(log_softmax((x @ self.text_proxies / self.tau_t + self.rho)[None]))[0]  # (c,)
        v = np.exp(log_softmax((x @ self.proxies)[None], self.tau_i))[0]  # (c,)
        b = 0.8 * min(1.0, float(np.sqrt(self.num_images / self.horizon)))
        self.rho = np.maximum(0.0, self.rho - 20.0 / root * (p - 1.0 / len(p)))
        moved = self.proxies - 0.5 / (root * self.tau_i) * np.outer(x, v - p)
        norms = np.linalg.norm(moved, axis=0)
        self.proxies = np.where(norms > 0, moved / np.where(norms > 0, norms, 1.0), self.proxies)
        return np.asarray(b * v + (1 - b) * p, dtype=np.float64)

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays for a snapshot; `from_tensors` reads them back bit for bit."""
        return {
            "text_proxies": self.text_proxies,
            "scalars": np.array([self.horizon, self.tau_t, self.tau_i, self.num_images], dtype=np.float64),
            "proxies": self.proxies,
            "rho": self.rho,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> OnZeta:
        """Rebuild from `to_tensors`; raises `ShapeError` when a tensor is missing or does not fit."""
        _required(tensors, ("text_proxies", "scalars", "proxies", "rho"), "OnZeta state")
        T = as_float32(check_array("text_proxies", tensors["text_proxies"], ("d", "c")))
        horizon, tau_t, tau_i, count = check_array("scalars", tensors["scalars"], (4,), np.float64).tolist()
        rho = check_array("rho", tensors["rho"], (T.shape[1],), np.float64)
        if min(horizon, tau_t, tau_i) <= 0 or count < 0 or (rho < 0).any():
            raise ShapeError("OnZeta state: expected positive settings and rho >= 0; the snapshot is damaged")
        W = check_array("proxies", tensors["proxies"], T.shape, np.float64)
        return cls(T, int(horizon), tau_t, tau_i, _own(W), _own(rho), int(count))
