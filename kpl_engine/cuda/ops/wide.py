"""Chooses ``kernels/learn_proxies_wide.cu``: the schedule in feature space for many classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.problems import Capacity

__all__ = ["PrimalPlan", "choose_wide"]


@dataclass(frozen=True)
class PrimalPlan:
    """How problems of one capacity are run: a kernel, its launch, scratch of each problem in doubles."""

    source: str
    kernel: str
    launch: Launch
    extra: int  # what this kernel calls its fourth parameter
    workspace_doubles: int


_BLOCK, _TILE_M, _TILE_N, _DEPTH = 256, 128, 64, 16  # of wide_product.cuh
_FIXED = 352  # bytes of WideShared
_SHARED = _FIXED + 2 * max(
    4 * _TILE_M * (_DEPTH + 4) + 8 * _TILE_N * (_DEPTH + 4), 8 * _DEPTH * (_TILE_M + 4) + 4 * _DEPTH * (_TILE_N + 8)
)


def choose_wide(context: Context, capacity: Capacity, num_blocks: int | None = None) -> PrimalPlan:
    """See `kpl_engine.cuda.ops.primal.choose_primal`."""
    driver, (n, d, c) = context.driver, (capacity.n, capacity.d, capacity.c)
    kernel = context.kernel("learn_proxies_wide", "learn_proxies_wide")
    per_sm = max(1, driver.blocks_per_multiprocessor(kernel, _BLOCK, _SHARED))
    logit_tiles = math.ceil(n / _TILE_M) * math.ceil(c / _TILE_N)
    gradient_tiles = math.ceil(c / _TILE_M) * math.ceil(d / _TILE_N)
    most = per_sm * driver.info.num_multiprocessors
    grid = min(most, max(logit_tiles, gradient_tiles)) if num_blocks is None else num_blocks
    grid = grid if driver.features.has_cooperative else 1
    splits = _choose_splits(gradient_tiles, grid, n)
    launch = Launch(grid, _BLOCK, _SHARED, is_cooperative=driver.features.has_cooperative)
    doubles = n * c + splits * c * d + 3 * grid
    return PrimalPlan("learn_proxies_wide", "learn_proxies_wide", launch, splits, doubles)


def _choose_splits(tiles: int, grid: int, n: int) -> int:
    """Ranges of rows for the gradient: the few that leave the fewest blocks without work in the last round."""
    most = max(1, min(n // _TILE_M, 4 * grid // tiles))
    return max(range(1, most + 1), key=lambda splits: (_share_busy(splits * tiles, grid), -splits))


def _share_busy(items: int, grid: int) -> float:
    return round(items / (math.ceil(items / grid) * grid), 2)
