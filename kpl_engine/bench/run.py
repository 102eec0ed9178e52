"""One run of the benchmark from settings to result; what is measured is on disk before the next part begins."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kpl_engine.bench import batches, cold, machine, peak, samples, scenarios, served_stages, stages
from kpl_engine.bench.checking import prepare_frozen
from kpl_engine.bench.records import FORMAT, Probe, Result, Scenario, Subject
from kpl_engine.bench.results import check_writable, write_result
from kpl_engine.bench.samples import Samples
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine
from kpl_engine.errors import KplError

__all__ = ["Progress", "run_bench"]

Progress = Callable[[str, float], None]
_PART_S = 10.0  # of the stages and of the batch sizes, at most
_COLD_STARTS = 9  # fewer have no interval


def run_bench(settings: BenchSettings, path: Path, progress: Progress = lambda _what, _share: None) -> Result:
    """Measure and write ``path`` after each part.

    Parts, in this order: scenarios (`scenarios`), the peak (`peak`), stages, batch sizes, cold starts. A part that
    fails ends the run with ``status`` "failed" and ``error``; the parts before it stay. A wrong answer makes it
    "wrong", and that scenario has no speed.

    Raises
    ------
    KplError
        What can be known before anything is measured: a bundle that does not open, settings that do not fit it, a
        server that does not answer, a missing extra, a folder that cannot be written.
    """
    check_writable(path)
    with Engine.load(settings.bundle, settings.device) as engine:
        made = samples.make_samples(settings, engine)
        if settings.url is None:
            prepare_frozen(engine, made, settings)  # raises here what each scenario would find out for itself
        header = _header(settings, engine, made)
        if settings.scenarios:
            scenarios.check_target(settings, engine)
    # Closed while the scenarios run: on a small device its memory would be part of what is measured.
    run = _Run(settings, path, progress, header)
    try:
        run.measure(made)
    except (KplError, OSError, RuntimeError) as error:
        run.fail(str(error))
    except KeyboardInterrupt:
        run.fail("interrupted")
        raise
    else:
        run.finish()
    return run.result


class _Run:
    """The result as it grows."""

    def __init__(self, settings: BenchSettings, path: Path, progress: Progress, header: Result) -> None:
        self.result = header
        self._settings, self._path, self._progress = settings, path, progress

    def measure(self, made: Samples) -> None:
        """Every part that was asked for."""
        settings, result = self._settings, self.result
        result["scenarios"], result["probes"] = [], []
        self.save()
        scenarios.run_scenarios(settings, self._keep_scenario, self._progress)
        if settings.find_peak:
            best, _ = peak.find_peak(settings, self._keep_probe, self._progress)
            if best is not None:
                result["peak_qps"] = best
            self.save()
        if settings.url is None:
            self._measure_engine(made)
        elif "stages" in settings.parts:
            self._progress("stages", 0.0)
            with Engine.load(settings.bundle, "cpu") as engine:
                seconds = min(settings.duration_s, _PART_S)
                result["stages"] = served_stages.measure_served_stages(engine, made, settings, seconds)
            self.save()

    def _measure_engine(self, made: Samples) -> None:
        settings, result, parts = self._settings, self.result, self._settings.parts
        seconds = min(settings.duration_s, _PART_S)
        if {"stages", "batches"} & set(parts):
            with Engine.load(settings.bundle, settings.device) as engine:
                prepare_frozen(engine, made, settings)
                if "stages" in parts:
                    self._progress("stages", 0.0)
                    result["stages"] = stages.measure_stages(engine, made, settings, seconds)
                    self.save()
                if "batches" in parts:
                    self._progress("batch sizes", 0.0)
                    result["batches"] = batches.measure_batches(engine, made, settings, seconds)
                    self.save()
        if "cold" in parts:
            self._progress("cold starts", 0.0)
            result["cold_start"] = cold.measure_cold(settings, _COLD_STARTS)
            self.save()

    def finish(self) -> None:
        """Tell the status of what was measured."""
        if any(not each.get("is_speed_told", True) for each in self.result["scenarios"]):
            self.result["status"] = "wrong"
            self.result["error"] = "answers differ from the float64 reference; see the checks of the scenarios"
        else:
            errors = [f"{each['scenario']}: {each['error']}" for each in self.result["scenarios"] if "error" in each]
            self.result["status"] = "failed" if errors else "complete"
            self.result["error"] = "; ".join(errors)
            if not errors:
                del self.result["error"]
        self.save()

    def fail(self, why: str) -> None:
        """Keep what was measured, and why the rest is missing."""
        self.result["status"] = "failed"
        self.result["error"] = why
        self.save()

    def save(self) -> None:
        write_result(self._path, self.result)

    def _keep_scenario(self, found: Scenario) -> None:
        self.result["scenarios"].append(found)
        self.save()

    def _keep_probe(self, found: Probe) -> None:
        self.result["probes"].append(found)
        self.save()


def _header(settings: BenchSettings, engine: Engine, made: Samples) -> Result:
    return {
        "kpl_engine_bench": FORMAT,
        "status": "failed",
        "error": "ended before it was complete",  # what a kill -9 leaves
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["kpl-engine", *sys.argv[1:]]),
        "versions": machine.versions(),
        "machine": machine.describe_machine(),
        "subject": _subject(settings, engine, made),
        "settings": _plain(asdict(settings)),
    }


def _subject(settings: BenchSettings, engine: Engine, made: Samples) -> Subject:
    base = engine.knowledge(settings.knowledge)
    frozen = engine.frozen_proxies(base.name)
    mode = settings.mode or "frozen"
    method = settings.method or (frozen.method if mode == "frozen" and frozen else "kpl")
    return {
        "bundle": settings.bundle.name,
        "encoder": engine.encoder.name,
        "fingerprint": engine.encoder.fingerprint,
        "knowledge": base.name,
        "method": method,
        "mode": mode,
        "where": settings.url or "in process",
        "device": engine.encoder.providers[0],
        "threads": machine.num_threads(engine),
        "input": settings.input_kind,
        "samples": made.description,
        "samples_sha256": made.sha256,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
