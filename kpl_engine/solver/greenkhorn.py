"""Greedy Sinkhorn in the log domain, O(n + c) a step: the plain twin of kernels/cpu/greenkhorn.h."""

from __future__ import annotations

import numpy as np

from kpl_engine.arrays import Bools, Float64

__all__ = ["greenkhorn"]


def greenkhorn(logs: Float64, targets: Float64, iters: int) -> Float64:
    """``iters`` greedy steps from ``exp(logs)`` towards rows ``1/n`` and columns ``targets``.

    A step takes the column with the largest ``|colsum_j - targets_j|`` if that is strictly larger
    than the largest ``|rowsum_i - 1/n|``, else that row, and rescales it to its target. The first
    index wins among equals.

    Parameters
    ----------
    logs : (n, c) float64
        Logarithms with rows that sum to 1 in probability; -inf allowed. Not changed.
    targets : (c,) float64
        Column masses, summing to 1; 0 empties a column.
    iters : int
        Greedy steps.

    Returns
    -------
    (n, c) float64

    Notes
    -----
    The state is one potential per row and per column; the marginals are carried along and
    corrected by what a step changed, n + c numbers. They only choose the next row or column: the
    factor of a step comes from a fresh log-sum-exp of that one line, so no error accumulates in
    the labels. Rows start at exactly 1, which they are by construction: their computed sums differ
    in the last bit and would break ties at random. A line without any mass cannot be rescaled and
    is left out of the race.
    """
    n, c = logs.shape
    rows, columns = np.zeros(n), np.zeros(c)  # log potentials, float64
    row_sums, column_sums = np.ones(n), np.exp(logs).sum(axis=0)
    row_alive: Bools = np.ones(n, dtype=np.bool_)
    column_alive: Bools = np.asarray(np.isfinite(logs).any(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(iters):
            row_gaps = np.where(row_alive, np.abs(row_sums - 1.0 / n), -1.0)
            column_gaps = np.where(column_alive, np.abs(column_sums - targets), -1.0)
            i, j = int(row_gaps.argmax()), int(column_gaps.argmax())
            if max(row_gaps[i], column_gaps[j]) <= 0:
                break
            if column_gaps[j] > row_gaps[i]:
                column_alive[j] = _rescale(logs[:, j] + rows, columns, j, targets[j], column_sums, row_sums)
            else:
                row_alive[i] = _rescale(logs[i] + columns, rows, i, 1.0 / n, row_sums, column_sums)
    return np.asarray(np.exp(logs + rows[:, None] + columns), dtype=np.float64)


def _rescale(
    line: Float64, potentials: Float64, index: int, target: float, own_sums: Float64, cross_sums: Float64
) -> bool:
    """Give ``line`` (log masses without its own potential) the mass ``target``; False if it has none.

    Updates the potential, its own marginal, and the marginals that the line crosses.
    """
    peak = line.max()
    if peak == -np.inf:
        own_sums[index] = 0.0
        return False
    potential = np.log(target) - (peak + np.log(np.exp(line - peak).sum()))
    cross_sums += np.exp(line + potential) - np.exp(line + potentials[index])
    potentials[index] = potential
    own_sums[index] = target
    return bool(target > 0)
