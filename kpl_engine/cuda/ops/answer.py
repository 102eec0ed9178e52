"""Launches ``kernels/answer.cu``: from proxies to discriminants, scores, labels and probabilities."""

from __future__ import annotations

import math

import numpy as np

from kpl_engine.cuda.context import Context
from kpl_engine.cuda.ops.teams import product_units, team_launch, team_size
from kpl_engine.cuda.problems import ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["answer_workspace", "launch_answer"]

_BLOCK = 256  # kThreads of project.cuh
_SHARED_BYTES = 1024 + 8 * 6144  # BlockReduce::kBytes and kStaged


def answer_workspace(n: int, d: int, c: int) -> int:
    """Doubles of `ProblemTable` workspace for problems of at most these sizes: mean and lengths of W, products."""
    return d + c + n + n * (c + 1) + team_size(product_units(n, d, c + 1))


def launch_answer(context: Context, table: ProblemTable, tau: float) -> None:
    """Put the answer of every problem into the stream; no host synchronisation.

    Reads X, W (c, d) float64 and the record's ``mass``; writes all ``out_`` arrays as `solution_of` of
    solver/finishing.py does, ``out_probabilities = softmax(out_scores / tau)``, and ``fits`` of the record: 1 where
    all is finite in float32. Needs `answer_workspace`.

    Raises
    ------
    ConfigError
        A temperature that is not above 0.
    """
    if not 0 < tau < math.inf:
        raise ConfigError(f"tau: expected a temperature > 0, got {tau!r}")
    size = table.capacity
    units = product_units(size.n, size.d, size.c + 1)
    launch, team = team_launch(context, table, "answer", units, _BLOCK, _SHARED_BYTES)
    context.launch(
        context.kernel("answer", "answer"),
        launch,
        table.device,
        np.int32(table.num_problems),
        np.int32(team),
        table.counters("answer"),
        np.float64(tau),
    )
