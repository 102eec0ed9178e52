"""What a request asks, checked against the model before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kpl_engine.arguments import check_choice, check_top
from kpl_engine.arrays import Float32, UInt8, check_array
from kpl_engine.config import ModeName
from kpl_engine.encoder.base import MAX_NORM_ERROR
from kpl_engine.errors import InputError, RequestError, ShapeError
from kpl_engine.knowledge.base import KnowledgeBase
from kpl_engine.server.parts import Model
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.ticket import Job, Picture

__all__ = ["Checked", "check_request"]

_STREAM_METHODS = ("kpl_stream", "onzeta")


@dataclass(frozen=True, eq=False)
class Checked:
    """A request that fits its model. ``mode`` is never None."""

    request: ClassifyRequest
    base: KnowledgeBase
    mode: ModeName
    image_size: tuple[int, int]

    def split(self, job: Job) -> tuple[list[Picture], list[Picture]]:
        """Pictures to decode or resize, and those that have the model's size."""
        request = self.request
        if request.images is not None:
            return [Picture(job, i, data) for i, data in enumerate(request.images)], []
        raw: list[Picture] = []
        ready: list[Picture] = []
        size = (*self.image_size, 3)
        for i, pixels in enumerate(() if request.pixels is None else request.pixels):
            (ready if pixels.shape == size else raw).append(Picture(job, i, pixels))
        return raw, ready


def check_request(request: ClassifyRequest, model: Model, has_streams: bool) -> Checked:
    """Raise for what cannot be answered.

    Raises
    ------
    KnowledgeError, InputError
        A knowledge base, method, mode or prior that the model has not, or that do not go together.
    ShapeError
        Pixels or features of another shape or content.
    """
    base = model.base(request.task)
    mode: ModeName = request.mode or ("batch" if model.frozen(base.name) is None else "frozen")
    check_choice("mode", mode, ("batch", "frozen", "stream"))
    check_top(request.top_k)
    if mode == "stream":
        _check_stream(request, has_streams)
    model.check(base.name, request.method, mode, request.prior)
    if request.priority not in (0, 1, 2, 3):
        raise RequestError(f"priority: expected 0 (ordinary), 1 (first), 2 or 3, got {request.priority!r}")
    timeout = request.timeout_s
    if timeout is not None and not timeout > 0:
        raise RequestError(f"timeout: expected a time above 0, got {timeout!r} s; leave it out for the server's own")
    if request.names and len(request.names) != request.num_images:
        raise RequestError(f"names: expected one for each of {request.num_images} images, got {len(request.names)}")
    if request.num_images == 0:
        raise InputError("expected at least one image, got none")
    info = model.info
    if request.features is not None:
        request = replace(request, features=_check_features(request.features, info.embed_dim))
    elif request.pixels is not None:
        _check_pixels(request.pixels)
    return Checked(request, base, mode, info.image_size)


def _check_stream(request: ClassifyRequest, has_streams: bool) -> None:
    if not has_streams:
        raise InputError("mode 'stream' is not available in this server; expected mode 'batch' or 'frozen'")
    if request.method is not None:
        check_choice("method of mode 'stream'", request.method, _STREAM_METHODS)
    if request.prior is not None:
        raise InputError("a prior is not possible in mode 'stream': its state is shared by all clients; leave it out")


def _check_features(features: Any, embed_dim: int) -> Float32:
    rows: Float32 = check_array("features", features, ("n", embed_dim))
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))  # (n,) float64
    bad = np.flatnonzero(np.abs(norms - 1.0) > MAX_NORM_ERROR)
    if len(bad):
        raise ShapeError(
            f"features: expected rows of length 1 (within {MAX_NORM_ERROR:g}), got {norms[bad[0]]:g} in row {bad[0]}"
            f"{f' and {len(bad) - 1} more like it' if len(bad) > 1 else ''}; divide each row by its length"
        )
    return rows


def _check_pixels(pixels: Sequence[UInt8] | UInt8) -> None:
    for i, picture in enumerate(pixels):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ShapeError(
                f"pixels: expected (h, w, 3) of uint8, got {picture.shape} of {picture.dtype} as image {i}"
            )
