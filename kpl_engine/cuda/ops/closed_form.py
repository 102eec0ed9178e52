"""Launches ``kernels/closed_form.cu``: the fixed point of the schedule, or why it does not stand for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kpl_engine.cuda.base import DeviceInfo, Features, Kernel, Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.problems import Capacity, ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["choose_team", "fault_text", "launch_closed_form", "workspace_doubles"]

_BLOCK = 256  # kThreads of closed_form.cu
_MAX_TEAM = 132  # blocks of one problem
_ROWS = 16  # fewer rows of a block do not pay for their share of the meetings
_MAX_WORKSPACE = 1 << 25  # doubles that the parts of a team may take, 256 MiB; more classes get a smaller team
_MAX_CORRECTIONS, _TOLERANCE = 5, 1e-9  # as in closed_form.cu and in kpl_engine/solver/closed_form.py


def workspace_doubles(n: int, d: int, c: int) -> int:
    """Scratch of one problem of at most these sizes, the ``workspace`` of its ``kpl::Problem``.

    Vectors of the team, ``8 c + 3`` of d; and for each of its blocks the sums it hands over, ``2 c + 1`` vectors.
    """
    padded, team = -(-d // 4) * 4, _largest_team(n, d, c)
    return padded * (8 * c + 3) + n + team * ((2 * c + 1) * padded + 4 * c + 16) + 64


def choose_team(info: DeviceInfo, features: Features, capacity: Capacity, num_problems: int) -> int:
    """Blocks for each problem.

    The largest cluster with `_ROWS` rows or more a block whose shared memory holds X, for its meetings cost a fifth of
    those of a grid; else blocks of a cooperative grid, while multiprocessors are idle; one where the driver launches
    neither.
    """
    wanted = math.ceil(capacity.n / _ROWS)
    most = min(max(1, info.num_multiprocessors // num_problems), _largest_team(capacity.n, capacity.d, capacity.c))
    cluster = 1
    while 2 * cluster <= min(features.max_cluster, wanted, most):
        cluster *= 2
    if not features.has_cooperative or cluster * _rows_in_shared(info, capacity) >= capacity.n:
        return cluster
    return min(wanted, most)


def launch_closed_form(
    context: Context,
    table: ProblemTable,
    tau_i: float,
    lr: float,
    iters: int,
    must_reach_schedule: bool,
    team: int | None = None,
) -> None:
    """Put the closed form of every problem into the stream; reads X, P and the record, writes W and the record.

    Needs `workspace_doubles` of scratch a problem and the counters cleared (`ProblemTable.clear`). No host
    synchronisation; may be captured.

    Parameters
    ----------
    tau_i, lr, iters : numbers
        The schedule whose fixed point is meant.
    must_reach_schedule : bool
        Also refuse where ``iters`` steps at ``lr`` might not arrive, as ``solver="auto"`` does.
    team : int, optional
        Blocks for each problem, by default `choose_team`.

    Notes
    -----
    The record gets ``form`` 3, ``fault`` (see `fault_text`), ``iterations`` (corrections), ``residual``,
    ``converged``, ``mass`` and ``lr``. W is undefined after a fault.
    """
    _check(tau_i, lr, iters)
    driver, capacity = context.driver, table.capacity
    team = choose_team(driver.info, driver.features, capacity, table.num_problems) if team is None else team
    if not 1 <= team <= _largest_team(capacity.n, capacity.d, capacity.c):
        raise ConfigError(f"team: expected 1 to {_largest_team(capacity.n, capacity.d, capacity.c)}, got {team}")
    needed = workspace_doubles(capacity.n, capacity.d, capacity.c)
    if table.workspace_doubles < needed:
        raise ConfigError(f"workspace: expected at least {needed} doubles a problem, got {table.workspace_doubles}")
    kernel = context.kernel("closed_form", "closed_form")
    launch = _shape(context, kernel, team, table)
    context.launch(
        kernel,
        launch,
        table.device,
        np.int32(table.num_problems),
        np.int32(team),
        np.int32(launch.shared_bytes),
        table.counters("closed_form"),
        np.float64(tau_i),
        np.float64(lr),
        np.int64(iters),
        np.int32(must_reach_schedule),
    )


def fault_text(record: Mapping[str, float | int], n: int, c: int, lr: float, iters: int) -> str:
    """The ``fault`` of a record in the words of `kpl_engine.solver.closed_form`; empty where there is none."""
    fault, figure = int(record["fault"]), float(record["residual"])
    return {
        0: "",
        1: "the gradient of a class vanished",
        2: f"corrections stopped shrinking at a relative error of {figure:.1e}",
        3: f"not within {_TOLERANCE:g} after {_MAX_CORRECTIONS} corrections",
        4: "the ridge is lost in rounding",
        16: f"{int(record['num_hardened'])} of {n} label rows exceed alpha and were hardened",
        17: "the mean feature is zero",
        18: f"labels are not O(1/n): c · (largest column mass) / n is {figure:.3g}, at most 0.5 expected",
        19: f"lr · mu / (tau_i c) is {figure:.3g}, below 16: such steps can freeze before the fixed point",
        20: f"{n} images are fewer than four per class: their steps can freeze before the fixed point",
        21: f"{iters} steps at lr = {lr:g} may stop short of the fixed point",
        22: f"{c} classes need more shared memory than this GPU has",
    }[fault]


def _shape(context: Context, kernel: Kernel, team: int, table: ProblemTable) -> Launch:
    """A grid of single blocks, a grid of clusters, or as many teams as a cooperative launch holds."""
    driver, shared = context.driver, _shared_bytes(context.driver.info, table.capacity, team)
    launch = Launch(team * table.num_problems, _BLOCK, shared, cluster=team)
    if team == 1 or driver.clusters_at_once(kernel, launch) > 0:
        return launch
    if not driver.features.has_cooperative:
        raise ConfigError(f"team: expected 1, since clusters of {team} and cooperative grids do not run here")
    resident = driver.blocks_per_multiprocessor(kernel, _BLOCK, shared) * driver.info.num_multiprocessors
    teams = min(table.num_problems, resident // team)
    if teams < 1:
        raise ConfigError(f"team: expected at most {resident} blocks, which run at once here, got {team}")
    return Launch(teams * team, _BLOCK, shared, is_cooperative=True)


def _largest_team(n: int, d: int, c: int) -> int:
    most = _MAX_WORKSPACE // ((2 * c + 1) * (d + 3))
    return max(1, min(_MAX_TEAM, math.ceil(n / 4), most))


def _rows_in_shared(info: DeviceInfo, capacity: Capacity) -> int:
    """Rows of X that one block can keep beside its vectors."""
    padded = -(-capacity.d // 4) * 4
    free = info.max_shared_bytes - _vector_bytes(capacity)
    return max(0, free // (4 * padded + 8 * (capacity.c + 2)))


def _vector_bytes(capacity: Capacity) -> int:
    """Scalars and operand, as `shared_layout` of closed_form.cu deals them out."""
    padded, m = -(-capacity.d // 4) * 4, max(capacity.c - 1, 1)
    return 8 * (padded * m + 32 * capacity.c + 512)


def _shared_bytes(info: DeviceInfo, capacity: Capacity, team: int) -> int:
    padded, rows = -(-capacity.d // 4) * 4, math.ceil(capacity.n / team)
    wanted = _vector_bytes(capacity) + rows * (4 * padded + 8 * (capacity.c + 2)) + 256
    return min(wanted, info.max_shared_bytes) // 16 * 16


def _check(tau_i: float, lr: float, iters: int) -> None:
    if not (tau_i > 0 and lr > 0 and math.isfinite(tau_i) and math.isfinite(lr)) or iters < 0:
        raise ConfigError(f"closed form: expected tau_i > 0, lr > 0 and iters >= 0, got {tau_i}, {lr} and {iters}")
