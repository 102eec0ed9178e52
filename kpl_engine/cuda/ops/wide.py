"""Chooses ``kernels/learn_proxies_wide.cu`` or ``learn_proxies_split.cu``: the schedule for many classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.problems import Capacity

__all__ = ["PrimalPlan", "can_split", "choose_wide"]


@dataclass(frozen=True)
class PrimalPlan:
    """How problems of one capacity are run: a kernel, its launch, scratch of each problem in doubles."""

    source: str
    kernel: str
    launch: Launch
    extra: int  # what this kernel calls its fourth parameter
    workspace_doubles: int


_BLOCK = 256
_FIXED = 352  # bytes of WideShared
_TILE_M, _TILE_N, _DEPTH = 128, 64, 16  # of wide_product.cuh
_SHARED = _FIXED + 3 * max(
    4 * _TILE_M * (_DEPTH + 4) + 8 * _TILE_N * (_DEPTH + 4), 8 * _DEPTH * (_TILE_M + 4) + 4 * _DEPTH * (_TILE_N + 8)
)
_SPLIT_TILE, _SPLIT_DEPTH = 128, 32  # of split_product.cuh
_SPLIT_SHARED = _FIXED + 3 * 2 * 2 * 2 * _SPLIT_TILE * (_SPLIT_DEPTH + 8)


def choose_wide(
    context: Context, capacity: Capacity, is_split_allowed: bool = False, num_blocks: int | None = None
) -> PrimalPlan:
    """See `kpl_engine.cuda.ops.primal.choose_primal`."""
    if is_split_allowed and can_split(context):
        return _plan(context, capacity, "learn_proxies_split", (_SPLIT_TILE, _SPLIT_TILE), _SPLIT_SHARED, num_blocks)
    return _plan(context, capacity, "learn_proxies_wide", (_TILE_M, _TILE_N), _SHARED, num_blocks)


def can_split(context: Context) -> bool:
    """Whether this GPU has the tensor cores and the shared memory."""
    info = context.driver.info
    return info.compute_capability >= (8, 0) and info.max_shared_bytes >= _SPLIT_SHARED


def _plan(
    context: Context, capacity: Capacity, name: str, tile: tuple[int, int], shared: int, num_blocks: int | None
) -> PrimalPlan:
    driver, (n, d, c) = context.driver, (capacity.n, capacity.d, capacity.c)
    per_sm = max(1, driver.blocks_per_multiprocessor(context.kernel(name, name), _BLOCK, shared))
    logit_tiles = math.ceil(n / tile[0]) * math.ceil(c / tile[1])
    gradient_tiles = math.ceil(c / tile[0]) * math.ceil(d / tile[1])
    grid = min(per_sm * driver.info.num_multiprocessors, max(logit_tiles, gradient_tiles))
    grid = grid if num_blocks is None else num_blocks
    grid = grid if driver.features.has_cooperative else 1
    splits = _choose_splits(gradient_tiles, grid, n)
    arrays = _split_doubles(n, d, c) if name == "learn_proxies_split" else n * c
    launch = Launch(grid, _BLOCK, shared, is_cooperative=driver.features.has_cooperative)
    return PrimalPlan(name, name, launch, splits, arrays + splits * c * d + 3 * grid)


def _split_doubles(n: int, d: int, c: int) -> int:
    """Z in float32, and two float16 halves of X, its transpose, W and the transpose of R."""
    padded_n, padded_d = (math.ceil(size / _SPLIT_DEPTH) * _SPLIT_DEPTH for size in (n, d))
    halves = 2 * (n * padded_d + d * padded_n + c * padded_d + c * padded_n)
    return n * math.ceil(c / 4) * 2 + halves // 4


def _choose_splits(tiles: int, grid: int, n: int) -> int:
    """Ranges of rows for the gradient: the few that leave the fewest blocks without work in the last round."""
    most = max(1, min(n // _TILE_M, 4 * grid // tiles))
    return max(range(1, most + 1), key=lambda splits: (_share_busy(splits * tiles, grid), -splits))


def _share_busy(items: int, grid: int) -> float:
    return round(items / (math.ceil(items / grid) * grid), 2)
