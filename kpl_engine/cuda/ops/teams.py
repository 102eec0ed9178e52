"""The grid for kernels in which a team of blocks solves one problem (kernels/device/block_team.cuh)."""

from __future__ import annotations

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.problems import ProblemTable
from kpl_engine.errors import ConfigError

__all__ = ["MOST_BLOCKS", "product_units", "team_launch", "team_size"]

MOST_BLOCKS = 128  # kMostBlocks of block_team.cuh


def product_units(n: int, d: int, columns: int) -> int:
    """Work of ``X (n, d)`` times ``columns`` columns as `product_work` of block_team.cuh counts it."""
    return n * max(d, 64) * max(columns, 4) >> 19


def team_size(units: int) -> int:
    """Blocks that a problem of this work wants."""
    return min(units + 1, MOST_BLOCKS)


def team_launch(
    context: Context, table: ProblemTable, source: str, units: int, block: int, shared_bytes: int
) -> tuple[Launch, int]:
    """The launch of kernel ``source`` for problems of at most this work, and how many blocks a team has in it.

    Teams of several blocks need a cooperative launch, and all blocks resident: on a GPU with fewer places than a team
    wants, or a driver without such launches, teams are smaller. Their counters are zeroed, for a barrier that starts
    from a count of other teams would never open. `ConfigError` where not even one block fits.
    """
    driver = context.driver
    at_once = driver.blocks_per_multiprocessor(context.kernel(source, source), block, shared_bytes)
    if at_once < 1:
        raise ConfigError(
            f"{source}: expected a GPU with {shared_bytes} bytes of shared memory for a block, got "
            f"{driver.info.max_shared_bytes} on {driver.info.name}; use fewer classes or narrower features"
        )
    places = at_once * driver.info.num_multiprocessors
    team = min(team_size(units), places) if driver.features.has_cooperative else 1
    if team == 1:
        return Launch(table.num_problems, block, shared_bytes), 1
    table.clear_counters()
    return Launch(team * min(table.num_problems, places // team), block, shared_bytes, is_cooperative=True), team
