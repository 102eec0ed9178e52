"""What the decode and encoder threads do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.config import DecodeConfig
from kpl_engine.encoder.base import Encoder
from kpl_engine.encoder.pipeline import Prepared, prepare_picture
from kpl_engine.errors import CudaStickyError, KplError
from kpl_engine.server.batcher import padded_size
from kpl_engine.server.flow import Flow
from kpl_engine.server.parts import Lane
from kpl_engine.server.ticket import Picture

__all__ = ["decode_next", "encode_next"]

_LOG = logging.getLogger(__name__)
Report = Callable[[Sequence[Picture], float], None]


def decode_next(flow: Flow, config: DecodeConfig, clock: Callable[[], float]) -> bool:
    """One turn of a decode thread; False when the server closes.

    A picture that trips over a bug fails alone: the next one may be fine.
    """
    picture = flow.take_raw()
    if picture is None:
        return False
    job, start = picture.job, clock()
    name = job.names[picture.index]
    prepared: Prepared | Exception
    try:
        prepared = prepare_picture(picture.data, name, job.model.lane.encoders[0].preprocess, config)
    except Exception as error:
        _LOG.exception("request %s: unexpected error while decoding image %d", job.request.request_id, picture.index)
        prepared = error
    flow.decoded(picture, prepared, start, clock())
    return True


def encode_next(flow: Flow, instance: int, clock: Callable[[], float], report: Report) -> bool:
    """One turn of the encoder thread ``instance``, which runs that copy of every lane's encoder; False at the close.

    An error of a batch does not say which picture it is due to, so its pictures are run again one by one. A
    `CudaStickyError` and whatever nobody expected are raised: they end the thread, and with it the server.
    """
    work = flow.take_batch(instance)
    if work is None:
        return False
    lane, pictures = work
    start = clock()
    rows = _encode(lane, lane.encoders[instance], pictures)
    end = clock()
    report(pictures, end - start)
    flow.encoded(pictures, rows, start, end)
    return True


def _encode(lane: Lane, encoder: Encoder, pictures: Sequence[Picture]) -> Sequence[Float32 | Exception]:
    try:
        return list(encoder.encode_images(_stack(lane, [picture.data for picture in pictures]))[: len(pictures)])
    except CudaStickyError:
        raise
    except KplError as error:
        if len(pictures) > 1:
            return [row for picture in pictures for row in _encode(lane, encoder, [picture])]
        job = pictures[0].job
        _LOG.error("request %s: image %d: %s", job.request.request_id, pictures[0].index, error)
        return [error]


def _stack(lane: Lane, pictures: Sequence[bytes | UInt8]) -> UInt8:
    """(b, h, w, 3) uint8, b a size the encoder was warmed with; rows beyond the pictures repeat the first."""
    first = np.asarray(pictures[0])
    size = padded_size(lane, len(pictures))
    if size == 1:
        return first[None]
    stacked = np.empty((size, *first.shape), np.uint8)  # (b, h, w, 3) uint8
    for i, picture in enumerate(pictures):
        stacked[i] = picture
    stacked[len(pictures) :] = first
    return stacked
