"""What this machine can do at most: a copy for bytes, matrix products for flops, measured with the threads of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from scaling_counts import Work

from kpl_engine.solver import cpu

_REPEATS = 5
_COPY_BYTES = 256 << 20  # eight times the 32 MiB of the largest cache met so far: no part of it stays
_PRODUCT = 1536  # rows of a square product: 0.1 to 0.3 s on two cores, and panels fill every cache level


@dataclass(frozen=True)
class Ceilings:
    """Rates a second with ``threads`` threads; a copy counts what it reads and what it writes."""

    threads: int
    copy_bytes: float
    float32_flops: float
    float64_flops: float
    exponentials: float | None  # of the compiled core; None where it is not installed

    def moving(self, work: Work) -> float:
        """The least seconds in which the counted bytes can be copied."""
        return work.bytes / self.copy_bytes

    def computing(self, work: Work) -> float:
        """The least seconds of the counted flops at the rates of products, and of the exponentials at theirs."""
        rest = work.exponentials / self.exponentials if self.exponentials else 0.0
        return work.flops / self.float64_flops + work.flops32 / self.float32_flops + rest

    def seconds(self, work: Work) -> float:
        """The least time of this work: bytes move while the processor computes."""
        return max(self.moving(work), self.computing(work))

    def record(self) -> dict[str, float | None]:
        """For a result file."""
        return asdict(self)


def measure(threads: int, copy_bytes: int = _COPY_BYTES, product: int = _PRODUCT) -> Ceilings:
    """Best of a few runs each: a ceiling is what can be reached, not what neighbours leave."""
    core = cpu.core()
    exponentials = max(core.measure_exponentials() for _ in range(_REPEATS)) * threads if core else None
    return Ceilings(
        threads=threads,
        copy_bytes=_copy_rate(threads, copy_bytes),
        float32_flops=_product_rate(np.float32, product),
        float64_flops=_product_rate(np.float64, product),
        exponentials=exponentials,
    )


def _copy_rate(threads: int, size: int) -> float:
    source, target = np.ones(size // 8), np.zeros(size // 8)  # written once, so that every page is there
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # NumPy copies without the interpreter's lock
        return 2 * source.nbytes / _best(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))


def _product_rate(dtype: type[np.floating], size: int) -> float:
    random = np.random.default_rng(0)
    left, right = (random.normal(size=(size, size)).astype(dtype) for _ in range(2))
    out = np.empty_like(left)
    return 2 * size**3 / _best(lambda: np.matmul(left, right, out=out))


def _best(run: Callable[[], object]) -> float:
    run()
    spent = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)
