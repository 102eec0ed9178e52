"""Launches ``kernels/refine_labels.cu``: similarities, pseudo labels, hardened rows and their mass."""

from __future__ import annotations

import math

import numpy as np

from kpl_engine.config import LabelMethod, OtIters
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.ops.teams import product_units, team_launch, team_size
from kpl_engine.cuda.problems import ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["labels_workspace", "launch_labels"]

_METHODS: dict[LabelMethod, int] = {"softmax": 0, "sinkhorn": 1, "stable_greenkhorn": 2, "stream": 3}
_CONVERGED = -1
_MOST_ITERS = 2**62  # more than any run takes; the kernel counts in 64 bits
_BLOCK = 256  # kThreads of project.cuh
_STAGED = 6144  # kStaged there
_REDUCE_BYTES = 1024  # BlockReduce::kBytes


def labels_workspace(n: int, d: int, c: int) -> int:
    """Doubles of `ProblemTable` workspace for problems of at most these sizes: column sums, targets, greedy state."""
    team = team_size(product_units(n, d, c))
    return 2 * team * (c + 1) + 3 * c + 2 * n + 3 * c


def launch_labels(
    context: Context,
    table: ProblemTable,
    method: LabelMethod = "stable_greenkhorn",
    tau_t: float = 0.01,
    gamma: float = 0.0,
    iters: OtIters = 20,
    alpha: float | None = 0.6,
) -> None:
    """Put the pseudo labels of every problem into the stream (method.md 2); no host synchronisation.

    Reads X, T and, where a problem has one, the prior (which replaces ``gamma``). Writes S = X T and P (n, c) float64,
    and ``mass`` and ``num_hardened`` of the record. Needs `labels_workspace`. The options are those
    of `kpl_engine.solver.labels.refine_labels` and of `harden`; ``alpha=None`` hardens nothing.

    Raises
    ------
    ConfigError
        An option out of range, or more classes than the GPU's shared memory holds two numbers of.
    """
    _check_options(method, tau_t, gamma, iters)
    size = table.capacity
    shared = _REDUCE_BYTES + 8 * max(_STAGED, _BLOCK + 2 * size.c)
    units = product_units(size.n, size.d, size.c)
    launch, team = team_launch(context, table, "refine_labels", units, _BLOCK, shared)
    context.launch(
        context.kernel("refine_labels", "refine_labels"),
        launch,
        table.device,
        np.int32(table.num_problems),
        np.int32(team),
        table.counters("labels"),
        np.int32(_METHODS[method]),
        np.float64(tau_t),
        np.float64(gamma),
        np.int64(_CONVERGED if isinstance(iters, str) else min(int(iters), _MOST_ITERS)),
        np.float64(math.inf if alpha is None else alpha),
    )


def _check_options(method: LabelMethod, tau_t: float, gamma: float, iters: OtIters) -> None:
    if method not in _METHODS:
        raise ConfigError(f"method: expected one of {', '.join(map(repr, _METHODS))}, got {method!r}")
    if not 0 < tau_t < math.inf or not 0 <= gamma <= 1:
        raise ConfigError(f"labels: expected tau_t > 0 and gamma from 0 to 1, got tau_t = {tau_t}, gamma = {gamma}")
    if iters != "converged" and (isinstance(iters, str) or iters < 0):
        raise ConfigError(f"iters: expected 'converged' or a count >= 0, got {iters!r}")
