"""The scenarios of a run, each in a process of its own: what one of them breaks costs that one only."""

from __future__ import annotations

from collections.abc import Callable

from kpl_engine.bench.records import Scenario
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine

__all__ = ["Progress", "check_target", "run_scenarios"]

Progress = Callable[[str, float], None]


def check_target(settings: BenchSettings, engine: Engine) -> None:
    """Raise what can be known before anything runs: no LoadGen, no server, another model than the bundle."""
    raise NotImplementedError


def run_scenarios(
    settings: BenchSettings, on_scenario: Callable[[Scenario], None], progress: Progress | None = None
) -> list[Scenario]:
    """Run each scenario of the settings; ``on_scenario`` gets each record as soon as it is there."""
    raise NotImplementedError
