"""The row `preprocess` of `gpu_bench.py`: pictures to model input, against what a copy of the same bytes takes.

Timed are the kernels, from pictures on the device to model input on the device. The share counts the bytes that must
be moved (what is kept of each picture, once, and the output, once) over the rate of a copy, whose reads and writes
both count. PyTorch's antialiased bicubic resize of one batch of equal pictures stands beside it where torch is there;
it works in float32 and rounds once, so its levels differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_model import Row

from kpl_engine.cuda.context import Context
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["measure_preprocess", "moved_bytes"]

COPY_BYTES = 1 << 30
MAX_LEVELS = 1  # how far from the CPU path a level may be


def moved_bytes(preprocess: Preprocess, num_pictures: int, height: int, width: int) -> int:
    """What is read once of each picture, without the taps beyond the crop, and the output."""
    plan = preprocess.plan(height, width)
    kept = (plan.window[2] * height / plan.size[0]) * (plan.window[3] * width / plan.size[1])
    return num_pictures * round(3 * (kept + preprocess.height * preprocess.width))


def measure_preprocess(context: Context, row: Row, repeats: int) -> dict[str, Any]:
    """Times of the kernels, of a copy and of PyTorch; the answer against the CPU path, level by level."""
    from kpl_engine.cuda.ops.preprocess import launch_preprocess, upload_images

    n, width, height = row.size
    preprocess, random = Preprocess(), np.random.default_rng(7)
    images = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]
    recorder, pictures = _Recorder(context), upload_images(context, images)
    out = launch_preprocess(recorder, pictures, preprocess)
    context.driver.synchronize()
    graph = context.driver.capture(context.stream, recorder.replay)
    context.driver.fill(out.address, 0xAA, out.nbytes, context.stream)
    graph.launch(context.stream)
    got = context.download(out).astype(np.int16)
    differences = [int(np.abs(got[i] - preprocess.apply(images[i])).max()) for i in range(0, n, 7)]
    source, target = (context.zeros((COPY_BYTES,), np.uint8) for _ in range(2))
    works = {
        "ours": lambda: graph.launch(context.stream),
        "copy": lambda: context.driver.copy_on(target.address, source.address, COPY_BYTES, context.stream),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    rival = _torch_resize(images, preprocess)
    for _ in range(repeats + 2):
        for name, work in works.items():
            times[name].append(_elapsed(context, work))
        if rival is not None:
            times.setdefault("torch", []).append(rival())
    pictures.clear()  # the graph read their memory until here
    medians = {name: statistics.median(spent[2:]) for name, spent in times.items()}
    return {
        "ran": {"ours": "two kernels, as one graph"},
        "checks": {"ours": {"max_levels": max(differences), "is_right": max(differences) <= MAX_LEVELS}},
        "bytes": moved_bytes(preprocess, n, height, width),
        "copy_bytes_per_s": 2 * COPY_BYTES / (medians["copy"] / 1e3),
        "times": {
            name: {"median_ms": medians[name], "min_ms": min(spent[2:]), "max_ms": max(spent[2:]), "runs": repeats}
            for name, spent in times.items()
        },
    }


class _Recorder:
    """A context that remembers launches, and their memory: what the host does between those of an op is not timed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._launches: list[tuple[Any, ...]] = []

    def launch(self, *args: Any) -> None:
        self._launches.append(args)
        self._context.launch(*args)

    def replay(self) -> None:
        for args in self._launches:
            self._context.launch(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _elapsed(context: Context, work: Callable[[], None]) -> float:
    driver, stream = context.driver, context.stream
    start, end = driver.new_event(), driver.new_event()
    driver.record(start, stream)
    work()
    driver.record(end, stream)
    return driver.elapsed_ms(start, end)


def _torch_resize(images: list[Any], preprocess: Preprocess) -> Callable[[], float] | None:
    """Milliseconds of the same transform in PyTorch; None without it."""
    try:
        import torch
        from gpu_rivals import timed_torch
    except ImportError:
        return None
    pixels = torch.from_numpy(np.stack(images)).cuda().permute(0, 3, 1, 2)
    plan = preprocess.plan(*images[0].shape[:2])
    top, left, rows, columns = plan.window

    def work() -> Any:
        resized = torch.nn.functional.interpolate(pixels.float(), plan.size, mode="bicubic", antialias=True)
        kept = resized[:, :, top : top + rows, left : left + columns]
        return kept.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    return lambda: timed_torch(work)[0]
