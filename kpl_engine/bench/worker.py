"""The process of one scenario, or of the probes of the peak: ``python -m kpl_engine.bench.worker``."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from dataclasses import dataclass
from typing import Any

from kpl_engine.bench.channel import Channel, Job
from kpl_engine.bench.loadgen import Outcome, run_load
from kpl_engine.bench.plan import MOST_QUERIES, MULTI_STREAM_PICTURES, Plan
from kpl_engine.bench.resources import Meter
from kpl_engine.bench.session import Session
from kpl_engine.bench.settings import ScenarioName
from kpl_engine.bench.told import probe_of, speed_fields, verdict_fields
from kpl_engine.bench.warmup import ask, closed_loop_rate, offline_rate, warm_up
from kpl_engine.errors import KplError

__all__ = ["main"]

_SHARE_OF_CAPACITY = 0.7
# LoadGen stops where the queries that it made beforehand are used up, before the duration is over; so it is told of
# somewhat more speed than was measured.
_HASTE = 2.0
_OFFLINE_HASTE = 1.1
_BEAT_S = 1.0
# 1 % of a probe's queries are five: with fewer the 99th percentile is one query's luck. A slow rate runs longer for it.
_LEAST_QUERIES, _MOST_PROBE_S = 500, 60.0


@dataclass
class _WarmUp:
    """What was learned before LoadGen began."""

    first_ms: float
    calls_ms: list[float]
    plan: Plan
    notes: list[str]


def main() -> None:
    """Do the job on standard input, tell its record part by part, and end without waiting for anybody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    channel = Channel()
    job = Job.from_json(channel.read())
    beat = threading.Event()
    threading.Thread(target=_beat, args=(channel, beat), daemon=True).start()
    try:
        if job.scenario is None:
            _probe(job, channel)
        else:
            _run_scenario(job, channel)
    except KplError as error:
        channel.send("end", error=str(error))
    else:
        channel.send("end", error="")
    os._exit(0)  # LoadGen's thread of a run that was given up would be waited for


def _beat(channel: Channel, over: threading.Event) -> None:
    while not over.wait(_BEAT_S):
        try:
            channel.send("alive")
        except BrokenPipeError:
            os._exit(1)  # whoever started this is gone: a load that nobody waits for is a nuisance


def _run_scenario(job: Job, channel: Channel) -> None:
    name: ScenarioName = job.scenario  # type: ignore[assignment]
    channel.progress(f"{name}: loading", 0.0)
    session = Session(job.settings, name, job.folder)
    channel.part({"how": session.target.how})
    warm = _warm_up(session, name, channel)
    if warm is None:
        return
    meter = Meter(job.settings)
    outcome = run_load(warm.plan, session.target, job.folder, lambda share: channel.progress(name, share), meter)
    fields: dict[str, Any] = {**verdict_fields(outcome, warm.plan)}
    fields["notes"] = [*session.notes, *warm.notes, *fields["notes"]]
    if not _is_right_after(session, outcome, channel, fields):
        return
    num_samples = len(outcome.trace.query)
    fields |= {
        **speed_fields(name, outcome.trace),
        "first_ms": warm.first_ms,
        "warm_up_ms": warm.calls_ms,
        "resources": meter.resources(num_samples),
    }
    channel.part(fields)


def _warm_up(session: Session, name: ScenarioName, channel: Channel) -> _WarmUp | None:
    """First call, check, warm-up, plan; None where an answer is wrong."""
    pictures = MULTI_STREAM_PICTURES if name == "MultiStream" else 1
    num_samples = len(session.samples.payloads)
    first_ms = ask(session.target, [i % num_samples for i in range(pictures)])
    channel.progress(f"{name}: answers before", 0.0)
    check = session.check()
    channel.part({"check_before": check})
    if not check["is_right"]:
        channel.part({"is_speed_told": False, "is_valid": False, "notes": [*session.notes]})
        return None
    channel.progress(f"{name}: warm-up", 0.0)
    calls = warm_up(session.target, num_samples, pictures, session.rng)
    plan, notes = _plan(session, name, sorted(calls[len(calls) // 2 :]))
    return _WarmUp(first_ms, calls, plan, notes)


def _plan(session: Session, name: ScenarioName, ordered_ms: list[float]) -> tuple[Plan, list[str]]:
    settings, num_samples = session.settings, len(session.samples.payloads)
    typical_ms = ordered_ms[len(ordered_ms) // 2]
    rate, notes = 1.0, []
    if name == "Server":
        rate = settings.target_qps or 0.0
        if not rate:
            clients, capacity = _capacity(session)
            rate = _SHARE_OF_CAPACITY * capacity
            notes.append(
                f"target rate {rate:.4g}/s chosen here: {_SHARE_OF_CAPACITY:.0%} of the {capacity:.4g}/s of a closed "
                f"loop with {clients} clients"
            )
    elif name == "Offline":
        rate = settings.target_qps or _OFFLINE_HASTE * offline_rate(
            session.target, num_samples, typical_ms, session.rng
        )
    plan = Plan(
        name,
        settings.duration_s,
        num_samples,
        settings.seed,
        expected_ms=max(typical_ms / _HASTE, settings.duration_s * 1e3 / MOST_QUERIES),
        rate=rate,
        latency_bound_ms=settings.latency_bound_ms,
    )
    return plan, notes


def _capacity(session: Session) -> tuple[int, float]:
    clients = 2 * session.target.most_at_once  # one batch being encoded, one waiting
    return clients, closed_loop_rate(session.target, len(session.samples.payloads), clients, session.rng)


def _is_right_after(session: Session, outcome: Outcome, channel: Channel, fields: dict[str, Any]) -> bool:
    """Send the check; where an answer is wrong, also the fields without any speed."""
    channel.progress(f"{session.scenario}: answers after", 1.0)
    try:
        check = session.check()
    except KplError as error:
        if not outcome.error:
            raise
        fields["notes"].append(f"the answers could not be checked after the run: {error}")
        return True
    channel.part({"check_after": check})
    if not check["is_right"]:
        told = ("notes", "is_valid", "verdict", "reasons", "error")
        channel.part({"is_speed_told": False, **{key: fields[key] for key in told if key in fields}})
    return check["is_right"]


def _probe(job: Job, channel: Channel) -> None:
    """Rates come in, one a line; a record goes out for each, until the parent closes its end."""
    channel.progress("peak: loading", 0.0)
    session = Session(job.settings, "Server", job.folder)
    warm = _warm_up(session, "Server", channel)
    if warm is None:
        raise KplError("the answers before the search for the peak differ from the float64 reference")
    _, capacity = _capacity(session)
    channel.send("capacity", qps=capacity, alone_ms=min(warm.calls_ms))
    while line := channel.read():
        _one_probe(job, session, channel, float(line))


def _one_probe(job: Job, session: Session, channel: Channel, rate: float) -> None:
    settings = job.settings
    folder = job.folder / "probe"
    folder.mkdir()
    plan = Plan(
        "Server",
        max(settings.duration_s, min(_LEAST_QUERIES / rate, _MOST_PROBE_S)),
        len(session.samples.payloads),
        settings.seed,
        rate=rate,
        latency_bound_ms=settings.latency_bound_ms,
    )
    outcome = run_load(plan, session.target, folder, lambda share: channel.progress(f"peak: {rate:.4g}/s", share))
    if outcome.summary is None:
        raise KplError(f"at {rate:g} queries/s: {outcome.error}")
    check = session.check()
    if not check["is_right"]:
        raise KplError(f"after {rate:g} queries/s an answer differs from the float64 reference: {check['reason']}")
    channel.send("probe", record=probe_of(outcome, plan))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
