"""What the server chooses where a setting leaves it the choice."""

from __future__ import annotations

import os
from dataclasses import replace

from kpl_engine.cuda.select import explain_absence, parse_device
from kpl_engine.server.settings import ServerSettings

__all__ = ["CHOSEN", "complete"]

CHOSEN = ("max_batch", "max_inflight_images", "threads", "decode_threads")
_BATCH_ON_GPU, _BATCH_ON_CPU = 64, 8
_BATCHES_IN_FLIGHT = 8  # decoded, waiting and being encoded: enough to keep an encoder busy, few enough to answer soon


def complete(settings: ServerSettings, *, is_gpu: bool | None = None, cores: int | None = None) -> ServerSettings:
    """``settings`` with every ``0 = chosen`` replaced by a number; what was given stays.

    Parameters
    ----------
    settings : ServerSettings
    is_gpu : bool, optional
        Whether the images are encoded on a GPU; by default what ``device`` says, for "auto" whether there is a
        usable GPU.
    cores : int, optional
        By default those this process may use; a container's quota of processor time is not seen.
    """
    is_gpu = _runs_on_gpu(settings.device) if is_gpu is None else is_gpu
    cores = _cores() if cores is None else cores
    max_batch = settings.max_batch or (_BATCH_ON_GPU if is_gpu else _BATCH_ON_CPU)
    wanted = max(_BATCHES_IN_FLIGHT * max_batch * settings.instances, settings.max_images)
    return replace(
        settings,
        max_batch=max_batch,
        max_inflight_images=settings.max_inflight_images or wanted,
        threads=settings.threads or max(1, cores // settings.instances),
        decode_threads=settings.decode_threads or cores,
    )


def _runs_on_gpu(device: str) -> bool:
    kind, ordinal = parse_device(device)
    return kind == "cuda" or (kind == "auto" and explain_absence(ordinal) is None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
