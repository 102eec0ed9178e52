"""One run of MLCommons LoadGen over a target."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

import numpy as np

from kpl_engine.bench.loadgen_logs import (
    DETAIL,
    SUMMARY,
    TRACE,
    Summary,
    Trace,
    read_complaints,
    read_summary,
    read_trace,
)
from kpl_engine.bench.plan import Plan, import_loadgen, log_settings, run_settings
from kpl_engine.bench.targets import ANSWERED, GONE, TIMED_OUT, Target

__all__ = ["Outcome", "run_load"]

_IN_A_ROW = 20  # queries without an answer, one after the other: nobody is there
_PAUSE_S = 0.01  # of a closed loop after a failure: hammering would measure refusals
_SLACK_S = 60.0
_TOO_MANY = "Too many outstanding queries"  # LoadGen's words in its detailed log
_FLUSH_S = 0.2  # LoadGen writes its logs every few tens of milliseconds


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run. ``summary`` is None where it was given up; ``error`` says why it ended early, or is ""."""

    summary: Summary | None
    trace: Trace  # of the queries that were answered
    num_issued: int
    num_failed: int
    codes: dict[str, int]
    error: str


def run_load(
    plan: Plan,
    target: Target,
    folder: Path,
    tick: Callable[[float], None] = lambda _share: None,
    meter: AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Run LoadGen until it ends, or until nobody answers any more.

    LoadGen cannot be stopped from outside. Where the target has died the run is given up and LoadGen's thread stays
    behind, waiting: the process is good for nothing but to report and end (`Outcome.summary` is None).

    Parameters
    ----------
    folder : Path
        Where LoadGen writes its logs; what was measured is in them at any time, whatever becomes of this process.
    tick : callable
        Told the share of the duration that has passed, about once a second.
    meter : context manager, optional
        Entered for as long as LoadGen runs, and no longer: its logs are read afterwards.
    """
    lg = import_loadgen()
    issuer = _Issuer(plan, target, lg)
    settings, logs = run_settings(lg, plan), log_settings(lg, folder)
    sut = lg.ConstructSUT(issuer.issue, issuer.flush)
    samples = lg.ConstructQSL(plan.num_samples, plan.num_samples, _nothing, _nothing)
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            lg.StartTestWithLogSettings(sut, samples, settings, logs)
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)
        issuer.over.set()

    with meter or nullcontext():
        threading.Thread(target=run, name="loadgen", daemon=True).start()
        _wait(issuer, plan, tick)
    if not ended:
        sleep(_FLUSH_S)
        return issuer.outcome(None, read_trace(folder / TRACE))
    issuer.close()
    lg.DestroyQSL(samples)
    lg.DestroySUT(sut)
    if ended[0] is not None:
        raise ended[0]
    summary = read_summary((folder / SUMMARY).read_text())
    complaints = read_complaints((folder / DETAIL).read_text(errors="replace"))
    summary = replace(summary, reasons=(*summary.reasons, *complaints))
    return issuer.outcome(summary, read_trace(folder / TRACE))


def _wait(issuer: _Issuer, plan: Plan, tick: Callable[[float], None]) -> None:
    started = monotonic()
    limit_s = 4 * plan.duration_s + 2 * plan.latency_bound_ms / 1e3 + _SLACK_S
    while not issuer.over.wait(1.0):
        passed = monotonic() - started
        tick(min(passed / plan.duration_s, 1.0))
        if passed > limit_s:
            issuer.give_up(f"LoadGen did not end within {limit_s:.0f} s")


class _Issuer:
    """What LoadGen calls with queries, and what the target calls with their ends.

    LoadGen knows no failure: a query is complete, or it is waited for. An unanswered one of ``Server`` is completed
    late, so that LoadGen's own verdict counts it as missed: when all are issued and its bound has passed. Until then
    it is outstanding, and too many of those end the run early (`Plan.most_outstanding`), so that an impossible rate
    takes no longer than a possible one.
    """

    def __init__(self, plan: Plan, target: Target, lg: Any) -> None:
        self._plan, self._target, self._lg = plan, target, lg
        self._is_open_loop = plan.scenario == "Server"
        self._codes: list[str] = []  # appending is atomic, and this is called from several threads
        self._failed: list[range] = []  # samples, counted over the run
        self._num_issued = self._num_samples = 0
        self._in_a_row = 0
        self._error = ""
        self._outstanding_at_end = 0
        self._late: SimpleQueue[tuple[float, list[int]] | None] = SimpleQueue()
        self._is_issued = threading.Event()
        self.over = threading.Event()
        self._releasing = threading.Thread(target=self._release, name="kpl-late", daemon=True)
        self._releasing.start()

    def issue(self, samples: Any) -> None:
        """LoadGen's thread. The scheduled time of the next query does not wait for more than this."""
        ids, indices = [each.id for each in samples], [each.index for each in samples]
        first = self._num_samples
        self._num_issued += 1
        self._num_samples += len(ids)
        most = self._target.most_at_once if self._plan.scenario == "Offline" else len(ids)
        for begin in range(0, len(ids), most):
            part = slice(begin, begin + most)
            self._target.submit(indices[part], partial(self._done, first + begin, ids[part]))

    def flush(self) -> None:
        """LoadGen has issued its last query."""
        self._outstanding_at_end = self._num_issued - (len(self._codes) - len(self._failed))
        self._is_issued.set()

    def _done(self, first: int, ids: list[int], code: str) -> None:
        self._codes.append(code)
        if code in ANSWERED:
            self._in_a_row = 0
            self._complete(ids)
            return
        self._failed.append(range(first, first + len(ids)))
        self._in_a_row += 1
        if self._is_hopeless(code):
            self.give_up(f"{self._in_a_row} queries in a row had no answer, the last: {code}; the run was ended there")
        elif not self._error:
            pause_s = self._plan.latency_bound_ms / 1e3 if self._is_open_loop else _PAUSE_S
            self._late.put((monotonic() + pause_s, ids))

    def _is_hopeless(self, code: str) -> bool:
        if self._is_open_loop:
            return self._in_a_row >= _IN_A_ROW and code in GONE
        # One at a time, and its patience is long: once it is out, another twenty would take all day.
        return self._in_a_row >= _IN_A_ROW or code == TIMED_OUT

    def _complete(self, ids: Sequence[int]) -> None:
        response = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete([response(each, 0, 0) for each in ids])

    def _release(self) -> None:
        while (late := self._late.get()) is not None:
            if self._is_open_loop:
                self._is_issued.wait()
            sleep(max(late[0] - monotonic(), 0.0))
            self._complete(late[1])

    def give_up(self, why: str) -> None:
        """Wait for LoadGen no longer."""
        self._error = self._error or why
        self.over.set()

    def close(self) -> None:
        """LoadGen has ended: nothing is late any more."""
        self._is_issued.set()
        self._late.put(None)
        self._releasing.join()

    def outcome(self, summary: Summary | None, trace: Trace) -> Outcome:
        """What came of it."""
        kept = trace.without([sample for samples in self._failed for sample in samples])
        answered = sum(code in ANSWERED for code in self._codes)
        error = self._error or self._why_early(summary, trace)
        if self._plan.scenario == "Offline":  # its one query has failed where a part of it has
            num_failed = int(bool(self._failed))
        else:
            num_failed = self._num_issued - answered
            num_traced = len(kept.of_queries().query)
            if num_traced < answered and summary is not None:
                error = error or f"LoadGen's trace has {num_traced} of {answered} queries: is the disk full?"
        return Outcome(summary, kept, self._num_issued, num_failed, dict(Counter(self._codes)), error)

    def _why_early(self, summary: Summary | None, trace: Trace) -> str:
        plan = self._plan
        if summary is None or not any(_TOO_MANY in reason for reason in summary.reasons):
            return ""
        issued_s = float(np.ptp(trace.begin_ns)) / 1e9 if len(trace.query) else 0.0
        return (
            f"{plan.rate:g} queries/s are more than this takes: of those due in the first {issued_s:.2g} s (of "
            f"{plan.duration_s:g} s) {self._outstanding_at_end} had no answer, so the run was ended there; "
            "choose a lower target rate"
        )


def _nothing(_indices: Any) -> None:
    """Pictures are in memory before LoadGen asks for them."""
