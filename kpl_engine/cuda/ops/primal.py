"""Launches the schedule in feature space: ``kernels/learn_proxies_primal.cu`` for few classes, `wide` for many."""

from __future__ import annotations

import math

import numpy as np

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.ops.wide import PrimalPlan, choose_wide
from kpl_engine.cuda.problems import Capacity, ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["PrimalPlan", "choose_primal", "launch_primal"]

_ROWS = {1: 8, 2: 8, 4: 4, 8: 4}  # of a tile, by columns of the kernel
_OWN = 4  # coordinates of a thread, kOwn of primal_rows.cuh
_MAX_D = 1024  # 256 threads
_SLOTS = 2  # tiles under way, kSlots
_BLOCKS_PER_SM = 4  # each adds a partial sum to read: more cost the exchange more than they hide
_SYSTEM_SHARED = 1024  # bytes of each block that the GPU keeps


def choose_primal(
    context: Context, capacity: Capacity, is_split_allowed: bool = False, num_blocks: int | None = None
) -> PrimalPlan:
    """The kernel, its grid and its scratch for problems of at most ``capacity``.

    Parameters
    ----------
    is_split_allowed : bool
        Whether products may be made of float16 halves on tensor cores, where there are many classes: only with labels
        of mass n (softmax, Sinkhorn), docs/method.md 3b.
    num_blocks : int, optional
        Of the grid; by default as many as are resident at once. Another number rounds differently.
    """
    if capacity.c - 1 > max(_ROWS) or capacity.d > _MAX_D:
        return choose_wide(context, capacity, is_split_allowed, num_blocks)
    columns = next(count for count in _ROWS if count >= capacity.c - 1)
    rows, block = _ROWS[columns], 32 * math.ceil(capacity.d / (32 * _OWN))
    kernel = context.kernel("learn_proxies_primal", f"learn_proxies_primal_{columns}")
    tiles, tile_bytes = math.ceil(capacity.n / rows), 4 * _OWN * block * rows
    fixed = 96 + 72 * columns * rows + 64 * (columns + 4) + 8 * _OWN * block * capacity.c + _SLOTS * tile_bytes
    driver, most = context.driver, context.driver.info.max_shared_bytes
    if fixed > most:
        return choose_wide(context, capacity, is_split_allowed, num_blocks)
    per_sm = 1
    for count in range(2, _BLOCKS_PER_SM + 1):
        share = _share(most, count)
        if share >= fixed and driver.blocks_per_multiprocessor(kernel, block, share) >= count:
            per_sm = count
    grid = min(tiles, per_sm * driver.info.num_multiprocessors) if num_blocks is None else num_blocks
    grid = grid if driver.features.has_cooperative else 1
    per_sm = math.ceil(grid / driver.info.num_multiprocessors)  # few rows: more shared memory for each block
    resident = min((_share(most, per_sm) - fixed) // tile_bytes, math.ceil(tiles / grid))
    launch = Launch(grid, block, fixed + resident * tile_bytes, is_cooperative=driver.features.has_cooperative)
    width = math.ceil(capacity.d / _OWN) * _OWN
    doubles = width * (1 + capacity.c) + grid * (2 + max(capacity.c - 1, 1) * width)
    return PrimalPlan("learn_proxies_primal", kernel.name, launch, resident, doubles)


def launch_primal(
    context: Context,
    table: ProblemTable,
    plan: PrimalPlan,
    lr: float = 10.0,
    iters: int = 2000,
    tau_i: float = 0.04,
    movement: float = 0.0,
    only_if_fault: bool = False,
) -> None:
    """Put the schedule of every problem into the stream; reads X, T and P, writes W and the record.

    Needs the scratch of the plan in every problem and the counters cleared (`ProblemTable.clear`). No host
    synchronisation; may be captured.

    Parameters
    ----------
    plan : PrimalPlan
        Of `choose_primal` for the table's capacity.
    movement : float
        Steps are left out that are proven not to move a column by more than this share of the usual scale of the class
        differences (docs/method.md 3a); 0 takes them all.
    only_if_fault : bool
        Skip problems whose record says that the closed form stands.

    Notes
    -----
    The record gets ``form`` 2, ``iterations``, ``halvings``, ``converged``, ``frozen``, ``gradient_norm``, ``mass``
    and ``lr``.
    """
    _check(lr, iters, tau_i, movement)
    if table.workspace_doubles < plan.workspace_doubles:
        raise ConfigError(
            f"workspace: expected at least {plan.workspace_doubles} doubles a problem, got {table.workspace_doubles}"
        )
    context.launch(
        context.kernel(plan.source, plan.kernel),
        plan.launch,
        table.device,
        np.int32(table.num_problems),
        table.counters("schedule"),
        np.int32(plan.extra),
        np.float64(lr),
        np.float64(tau_i),
        np.float64(movement),
        np.int64(iters),
        np.int32(only_if_fault),
    )


def _share(most: int, count: int) -> int:
    """Shared memory of each of ``count`` blocks of a multiprocessor, whole vectors."""
    return ((most + _SYSTEM_SHARED) // count - _SYSTEM_SHARED) // 16 * 16


def _check(lr: float, iters: int, tau_i: float, movement: float) -> None:
    if not (math.isfinite(lr) and lr > 0 and math.isfinite(tau_i) and tau_i > 0):
        raise ConfigError(f"lr and tau_i: expected positive numbers, got {lr} and {tau_i}")
    if iters < 0 or not (math.isfinite(movement) and movement >= 0):
        raise ConfigError(f"iters and movement: expected numbers >= 0, got {iters} and {movement}")
