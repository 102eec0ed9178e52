"""Launches ``kernels/text_proxy.cu``: the descriptions that fit the images, averaged to one column a class."""

from __future__ import annotations

import numpy as np

from kpl_engine.cuda.context import Context
from kpl_engine.cuda.ops.teams import team_launch, team_size
from kpl_engine.cuda.problems import ProblemTable

__all__ = ["launch_text_proxy", "text_proxy_workspace"]

_BLOCK = 1024  # kThreads of text_proxy.cu
_STAGED = 6144  # kStaged there


def _units(n: int, d: int, M: int) -> int:
    nbytes = 4 * d * (n + M)
    return 0 if nbytes < 1 << 20 else nbytes >> 18


def text_proxy_workspace(n: int, d: int, c: int, M: int) -> int:
    """Doubles of `ProblemTable` workspace for problems of at most these sizes: parts of the mean, keys, sums."""
    return (team_size(_units(n, d, M)) + 1) * d + M + c * d


def launch_text_proxy(context: Context, table: ProblemTable) -> None:
    """Put Text Proxy Optimization of every problem into the stream (method.md 1); no host synchronisation.

    Reads X, E and first; writes T (c, d) float32, scores (M) and kept (c, k). ``retrieval="all"`` is k at least the
    size of the largest class. Needs `text_proxy_workspace` of scratch. The same features and descriptions
    give the same bits in every table, but for GPUs too small for the team that a problem wants.

    Raises
    ------
    ConfigError
        Features so wide that one row of float64 leaves the GPU's shared memory.
    """
    size = table.capacity
    shared = 8 * max(_STAGED, size.d)
    units = _units(size.n, size.d, size.M)
    launch, team = team_launch(context, table, "text_proxy", units, _BLOCK, shared)
    context.launch(
        context.kernel("text_proxy", "text_proxy"),
        launch,
        table.device,
        np.int32(table.num_problems),
        np.int32(team),
        table.counters("text_proxy"),
    )
