"""The bare loop: the encoder alone, in a process of its own that waits idle between its turns.

Jobs are JSON lines: {"what": "decode" | "tensor" | "steps", "seconds": s}. "decode" is `encode_stream` over the JPEG
files, "tensor" is `encode_images` in the largest batch, "steps" times each batch size from 1 to the largest.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine import Engine
from kpl_engine.config import EncoderConfig, EngineConfig
from kpl_engine.encoder.pipeline import encode_stream


class Bare:
    """``max_batch``: the server's."""

    def __init__(self, folder: Path, max_batch: int) -> None:
        config = EngineConfig(encoder=EncoderConfig(batch_size=max_batch))
        self.engine = Engine.load(folder / "lung.kpl", "cpu", config)
        self.pixels = np.load(folder / "pixels.npy")
        self.pictures = [path.read_bytes() for path in sorted((folder / "pictures").glob("*.jpg"))]
        self.max_batch = max_batch

    def decode(self, seconds: float) -> dict[str, Any]:
        """Images a second of `encode_stream`; passes so long that the first batch, which waits for decoding, is 1 %."""
        pictures = self.pictures * 2
        return self._passes(seconds, lambda: encode_stream(pictures, self.engine.encoder), len(pictures))

    def tensor(self, seconds: float) -> dict[str, Any]:
        """Images a second of `encode_images` on prepared pixels."""
        batch = self.pixels[: self.max_batch]
        return self._passes(seconds, lambda: self.engine.encoder.encode_images(batch), len(batch))

    def steps(self, seconds: float) -> dict[str, Any]:
        """Median seconds of a batch of each size, and of the whole answer to one JPEG by `Engine.classify`."""
        share = seconds / (self.max_batch + 1)
        medians = {}
        for size in range(1, self.max_batch + 1):
            batch = self.pixels[:size]
            medians[size] = _median_of(lambda batch=batch: self.engine.encoder.encode_images(batch), share)
        one = [self.pictures[0]]
        return {"batch_s": medians, "classify_s": _median_of(lambda: self.engine.classify(one, mode="frozen"), share)}

    @staticmethod
    def _passes(seconds: float, work: Any, images: int) -> dict[str, Any]:
        before, begin, done = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            work()
            done += images
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"images_per_s": done / wall, "cpu_s_per_image": cpu / done, "seconds": wall}


def _median_of(work: Any, seconds: float) -> float:
    work()
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 5:
        begin = time.perf_counter()
        work()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def main() -> None:
    bare = Bare(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(getattr(bare, job["what"])(job["seconds"])), flush=True)


if __name__ == "__main__":
    main()
