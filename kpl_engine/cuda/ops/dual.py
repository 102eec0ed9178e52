"""Launches ``kernels/learn_proxies_dual.cu``: the published schedule in the dual form, all steps in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.problems import ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["DualPlan", "DualVersion", "choose_dual", "launch_dual", "workspace_doubles"]

DualVersion = Literal["registers", "block", "cluster", "grid"]

_SOURCE = "learn_proxies_dual"
_MAX_DRIFT = 1e4  # ulps of column length, MAX_DRIFT of kpl_engine/solver/schedule.py
_CAPACITIES = {32: 32, 64: 128, 96: 256, 144: 256}  # images of the kernels with K in registers: threads of a block
_BLOCK = 256  # threads of the other kernels
_MOST_BLOCKS = 256  # of one problem; the workspace has room for their sums
_TILE = 32  # kTile of gram.cuh: rows of K that one block makes
_GRAM_BLOCK, _GRAM_SHARED = 64, 2 * 16 * 36 * 8
_FEW_CLASSES = 15  # kFewClasses of dual_task.cuh
_COLUMN, _STEP = 6, 7  # doubles of kpl::Column and kpl::StepSize
_ROWS_WORTH_A_BLOCK = 8  # one row of K a warp
_SHARE_IN_SHARED = 0.75  # of K; with more of it in the L2 cache a cluster is no faster than a grid


@dataclass(frozen=True)
class DualPlan:
    """How the dual form is launched for problems of at most ``n_max`` images."""

    version: DualVersion
    kernel: str
    launch: Launch
    gram: Launch
    n_max: int
    d: int
    c: int
    num_problems: int
    blocks: int  # that work on one problem together


def workspace_doubles(n: int, d: int, c: int) -> int:
    """Scratch of one problem, in float64 numbers: K (n, n), R (c, n), sums and state of up to 256 blocks."""
    most = n + _MOST_BLOCKS
    state = 4 * (c * most + _MOST_BLOCKS) + most + _MOST_BLOCKS
    return _even(n * n) + _even(c * n) + _MOST_BLOCKS * _slot(c) + state


def choose_dual(
    context: Context,
    n_max: int,
    d: int,
    c: int,
    num_problems: int = 1,
    version: DualVersion | None = None,
    blocks: int | None = None,
) -> DualPlan | None:
    """The fastest version that this GPU and driver have for problems of at most this size.

    Parameters
    ----------
    context : Context
    n_max, d, c : int
        The most that any of the problems has.
    num_problems : int
        Problems of one launch.
    version : {"registers", "block", "cluster", "grid"}, optional
        Demand this one.
    blocks : int, optional
        Blocks that work on one problem together; for "cluster" and "grid".

    Returns
    -------
    DualPlan or None
        None where no version fits: too many classes for shared memory. The primal form has no such limit.
    """
    plans = _Planner(context, n_max, d, c, num_problems, blocks)
    if version is not None:
        chosen: DualPlan | None = getattr(plans, version)()
        return chosen
    if num_problems * 2 > context.driver.info.num_multiprocessors:  # problems enough to fill the GPU
        return plans.registers() or plans.cluster() or plans.block()
    return plans.registers() or plans.cluster() or plans.grid() or plans.block()


def launch_dual(
    context: Context,
    problems: ProblemTable,
    plan: DualPlan,
    lr: float = 10.0,
    iters: int = 2000,
    tau_i: float = 0.04,
    movement: float = 0.0,
    only_if_fault: bool = False,
    max_drift: float = _MAX_DRIFT,
    early_exit: bool = True,
) -> None:
    """From ``X``, ``T`` and hardened labels ``P`` to proxies ``W`` (c, d) float64, and the record (method.md 3a).

    Two launches, nothing waits for the host; problems of any sizes up to those of ``plan``.

    Parameters
    ----------
    context : Context
    problems : ProblemTable
        With ``workspace_doubles(n_max, d, c)`` of workspace, cleared since the last run.
    plan : DualPlan
        Of `choose_dual`.
    lr, iters, tau_i : float, int, float
        As in `learn_proxies`.
    movement : float
        Stop when the steps left are proven not to move a column of W by more than
        ``movement * min(1, sum(P) / n)``; 0 takes every step. 1e-9 is what ``solver="auto"`` leaves out.
        Ignored where a text proxy is zero, as there.
    only_if_fault : bool
        Skip problems that the closed form has solved (``record.form`` 3 and ``record.fault`` 0).
    max_drift : float
        Ulps of column length that pass before the run starts afresh from W.
    early_exit : bool
        False runs every step even where no bit changes any more; the result is the same.

    Raises
    ------
    ConfigError
        Problems that the plan was not made for.
    """
    _check(problems, plan, iters)
    skip, table, count = np.int32(only_if_fault), problems.device, np.int32(plan.num_problems)
    tiles = plan.gram.grid // plan.num_problems
    context.launch(context.kernel(_SOURCE, "gram"), plan.gram, table, count, np.int32(tiles), skip)
    numbers = (np.float64(lr), np.int64(iters), np.float64(tau_i), np.float64(movement), np.float64(max_drift))
    arguments = [table, count, *numbers, np.int32(early_exit), skip]
    if plan.version != "registers":
        arguments.append(np.int32(plan.launch.shared_bytes))
    if plan.version == "grid":
        arguments += [problems.counters("schedule"), np.int32(plan.blocks)]
    context.launch(context.kernel(_SOURCE, plan.kernel), plan.launch, *arguments)


@dataclass(frozen=True)
class _Planner:
    context: Context
    n: int
    d: int
    c: int
    num_problems: int
    blocks: int | None

    def registers(self) -> DualPlan | None:
        capacity = next((most for most in _CAPACITIES if self.n <= most), None)
        if capacity is None or self.c > _FEW_CLASSES:
            return None
        threads = _CAPACITIES[capacity]
        doubles = _sums(threads, self.c) + _even(self.c * capacity) + 4 * _even(self.c * self.n) + _even(self.n)
        if 8 * doubles > self._most_shared:
            return None
        return self._plan("registers", f"dual_{capacity}", 1, Launch(self.num_problems, threads, 8 * doubles))

    def block(self) -> DualPlan | None:
        if 8 * _sums(_BLOCK, self.c) > self._most_shared:
            return None
        return self._plan("block", "dual_block", 1, Launch(self.num_problems, _BLOCK, self._shared(1, 0)))

    def cluster(self) -> DualPlan | None:
        if self.context.driver.info.compute_capability < (9, 0):
            return None
        for size in self._cluster_sizes():
            slots = size * _slot(self.c)
            needed = 8 * (_sums(_BLOCK, self.c) + slots + _even(self.c * self.n))
            if needed > self._most_shared:
                continue
            launch = Launch(self.num_problems * size, _BLOCK, self._shared(size, slots), cluster=size)
            kernel = self.context.kernel(_SOURCE, "dual_cluster")
            if self.context.driver.clusters_at_once(kernel, launch) > 0:
                return self._plan("cluster", "dual_cluster", size, launch)
        return None

    def grid(self) -> DualPlan | None:
        driver = self.context.driver
        shared = self._shared(1, 0)
        if not driver.features.has_cooperative or 8 * _sums(_BLOCK, self.c) > self._most_shared:
            return None
        kernel = self.context.kernel(_SOURCE, "dual_grid")
        resident = driver.info.num_multiprocessors * min(1, driver.blocks_per_multiprocessor(kernel, _BLOCK, shared))
        useful = max(1, min(_MOST_BLOCKS, -(-self.n // _ROWS_WORTH_A_BLOCK)))
        size = self.blocks or min(resident, useful)
        if not 1 <= size <= min(resident, _MOST_BLOCKS):
            return None
        teams = min(self.num_problems, resident // size)
        launch = Launch(teams * size, _BLOCK, self._shared(size, 0), is_cooperative=True)
        return self._plan("grid", "dual_grid", size, launch)

    @property
    def _most_shared(self) -> int:
        return self.context.driver.info.max_shared_bytes

    def _shared(self, blocks: int, slots: int) -> int:
        """Bytes for everything that one of ``blocks`` blocks would like to have in shared memory."""
        rows = -(-self.n // blocks)
        state = _even(self.c * self.n) + 4 * _even(self.c * rows) + _even(rows)
        return min(self._most_shared // 16 * 16, 8 * (_sums(_BLOCK, self.c) + slots + state + _even(rows * self.n)))

    def _share(self, blocks: int) -> float:
        """Part of its rows of K that a block of a cluster can hold."""
        rows = -(-self.n // blocks)
        state = _even(self.c * self.n) + 4 * _even(self.c * rows) + _even(rows)
        left = self._most_shared // 8 - _sums(_BLOCK, self.c) - blocks * _slot(self.c) - state
        return left // self.n / rows

    def _cluster_sizes(self) -> list[int]:
        """Sizes worth a try, best first."""
        most = self.context.driver.features.max_cluster
        sizes = [size for size in (2, 4, 8, 16) if size <= most]
        if self.blocks is not None:
            return [size for size in sizes if size == self.blocks]
        # Larger ones read K faster, as long as no block idles and the problems do not queue for multiprocessors.
        busy = [size for size in sizes if self._share(size) >= _SHARE_IN_SHARED]
        idle = self.context.driver.info.num_multiprocessors
        large = [size for size in busy if self.num_problems * size <= idle and self.n >= size * _ROWS_WORTH_A_BLOCK]
        return large[::-1] + [size for size in busy if size not in large]

    def _plan(self, version: DualVersion, kernel: str, blocks: int, launch: Launch) -> DualPlan:
        side = -(-self.n // _TILE)
        gram = Launch(self.num_problems * side * (side + 1) // 2, _GRAM_BLOCK, _GRAM_SHARED)
        return DualPlan(version, kernel, launch, gram, self.n, self.d, self.c, self.num_problems, blocks)


def _even(count: int) -> int:
    return -(-count // 2) * 2


def _slot(c: int) -> int:
    """slot_size of dual_task.cuh: sums of one warp."""
    return (c + 4) // 4 * 8


def _sums(threads: int, c: int) -> int:
    """Doubles of shared memory for the warps' sums and the columns, for any number of classes up to c."""
    warps = threads // 32
    return warps * _slot(c) + _even(warps * _STEP) + _even(max(warps * min(c, _FEW_CLASSES), c) * _COLUMN)


def _check(problems: ProblemTable, plan: DualPlan, iters: int) -> None:
    sizes = problems.sizes
    fits = all((sizes[name] <= most).all() for name, most in (("n", plan.n_max), ("d", plan.d), ("c", plan.c)))
    if problems.num_problems != plan.num_problems or not fits:
        raise ConfigError(
            f"schedule on the GPU: expected {plan.num_problems} problems of n <= {plan.n_max}, d <= {plan.d}, "
            f"c <= {plan.c}, got {problems.num_problems} of other sizes; make a plan for these with choose_dual"
        )
    needed = workspace_doubles(plan.n_max, plan.d, plan.c)
    if problems.workspace_doubles < needed:
        raise ConfigError(
            f"schedule on the GPU: expected {needed} doubles of workspace, got {problems.workspace_doubles}; "
            "make the table with workspace_doubles(n_max, d, c)"
        )
    if iters < 0:
        raise ConfigError(f"iters: expected 0 or more, got {iters}")
