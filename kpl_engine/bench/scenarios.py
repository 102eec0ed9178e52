"""The scenarios of a run, each in a process of its own: what one of them breaks costs that one only."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from kpl_engine.bench.channel import Job
from kpl_engine.bench.child import Child, ChildError
from kpl_engine.bench.loadgen_logs import TRACE, read_trace
from kpl_engine.bench.plan import Plan, import_loadgen
from kpl_engine.bench.records import Scenario
from kpl_engine.bench.server_model import find_model
from kpl_engine.bench.settings import BenchSettings, ScenarioName
from kpl_engine.bench.told import speed_fields
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError

__all__ = ["Progress", "check_target", "run_scenarios"]

Progress = Callable[[str, float], None]
StartChild = Callable[[Job], Child]


def check_target(settings: BenchSettings, engine: Engine) -> None:
    """Raise what can be known before anything runs.

    Raises
    ------
    MissingExtraError
        No LoadGen, or no gRPC for an address of it.
    ConfigError
        A mode or a rate that cannot be run; a server's model that is not the bundle.
    ServiceError
        The server does not answer, or not with that model.
    """
    import_loadgen()
    if settings.mode == "stream":
        raise ConfigError("mode: expected frozen or batch, got stream: its answers depend on all pictures before them")
    if settings.target_qps is not None and "Server" in settings.scenarios:
        Plan("Server", settings.duration_s, settings.num_samples, settings.seed, rate=settings.target_qps)
    if settings.url is not None:
        find_model(settings, engine)


def run_scenarios(
    settings: BenchSettings,
    on_scenario: Callable[[Scenario], None],
    progress: Progress | None = None,
    *,
    start: StartChild = Child,
) -> list[Scenario]:
    """Run each scenario of the settings; ``on_scenario`` gets each record as soon as it is there.

    A scenario that fails, crashes or hangs has ``error`` in its record, beside what was measured until then, and the
    next one begins. ``start`` starts a process; tests pass their own.
    """
    found = []
    for name in settings.scenarios:
        with tempfile.TemporaryDirectory(prefix="kpl-bench-") as folder:
            record = _run_one(Job(settings, name, Path(folder)), name, progress or _silent, start)
        on_scenario(record)
        found.append(record)
    return found


def _run_one(job: Job, name: ScenarioName, progress: Progress, start: StartChild) -> Scenario:
    record: Scenario = {"scenario": name, "is_valid": False, "notes": []}
    with start(job) as child:
        try:
            for message in child.messages():
                if message["kind"] == "part":
                    record.update(message["record"])
                elif message["kind"] == "progress":
                    progress(message["what"], message["share"])
                elif message["kind"] == "end":
                    if message["error"]:
                        record["error"] = message["error"]
                    return record
        except ChildError as error:
            record["error"] = f"{name}: {error}"
    return _with_what_was_measured(record, name, job.folder / TRACE)


def _with_what_was_measured(record: Scenario, name: ScenarioName, path: Path) -> Scenario:
    """A process that was lost left the times of its queries on the disk."""
    wrong = [check for check in (record.get("check_before"), record.get("check_after")) if check]
    if all(check["is_right"] for check in wrong) and "latency" not in record:
        trace = read_trace(path)
        if len(trace.query):
            record.update(speed_fields(name, trace))
            record["notes"] = [*record["notes"], "the answers after the run could not be checked: its process was lost"]
    return record


def _silent(_what: str, _share: float) -> None:
    """Nobody watches."""
