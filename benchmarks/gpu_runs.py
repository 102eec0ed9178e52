"""What the engine runs in each row of `gpu_bench.py`: set up once, then repeated and timed by events of its stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from clip_like import make_clip_like
from gpu_model import Row

from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.cuda.problems import RECORD, Capacity, ProblemTable
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver.compiled import LabelChoice
from kpl_engine.solver.hardening import harden
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.text_proxy import select_text_proxies

__all__ = ["Data", "Run", "make_data", "open_run", "timed_run"]

METHOD = {"lr": 10.0, "iters": 2000, "tau_i": 0.04}
ALPHA = 0.6
COUNTS = (2, 1000)  # of problems, in the row `many`


@dataclass(frozen=True)
class Data:
    """Features (n, d), knowledge base, text proxies (d, c) and labels (n, c) of one row."""

    X: Any
    base: KnowledgeBase
    T: Any
    P: Any


@dataclass(frozen=True)
class Run:
    """``launch`` puts one run into the stream; ``answer`` waits for the last one and gives logits (n, c) and labels."""

    launch: Callable[[], None]
    answer: Callable[[], tuple[Any, Any]]
    ran: str


def make_data(row: Row) -> Data:
    n, d, c = row.size
    data = make_clip_like(n, d, c, seed=n)
    base = KnowledgeBase.from_arrays(data.descriptions)
    T = select_text_proxies(data.features, base).proxies
    return Data(data.features, base, T, np.ascontiguousarray(refine_labels(data.features @ T, row.labels)))


def open_run(context: Context, row: Row, data: Data) -> dict[str, Run]:
    """The runs of one row by name; those that only serve to subtract or divide have names of their own."""
    if row.kind == "schedule":
        found = {"ours": _learn(context, data, "schedule")}
        if row.labels == "sinkhorn":  # of mass n: docs/method.md 3b lets them take less than float64
            found["float16 halves"] = _split(context, data)
        return found
    if row.kind == "closed_form":
        return {"ours": _learn(context, data, "closed_form"), "auto": _learn(context, data, "auto")}
    if row.kind == "many":
        return {f"{count} problems": _many(context, data, count) for count in COUNTS}
    if row.kind == "whole":
        return {"ours": _whole(context, data), "solver alone": _learn(context, data, "auto")}
    raise NotImplementedError(f"no run of the engine for {row.kind!r}")


def timed_run(context: Context, run: Run) -> tuple[float, float]:
    """Milliseconds on the GPU between two events, and of the host with the answer in its hands."""
    driver, stream = context.driver, context.stream
    start, end = driver.new_event(), driver.new_event()
    driver.synchronize(stream)
    begun = time.perf_counter()
    driver.record(start, stream)
    run.launch()
    driver.record(end, stream)
    driver.synchronize(stream)
    waited = (time.perf_counter() - begun) * 1e3
    return driver.elapsed_ms(start, end), waited


def _learn(context: Context, data: Data, solver: str) -> Run:
    """From X, T and given labels to the answer: proxies, logits, labels."""
    from kpl_engine.solver.device_plan import DevicePlan, Work

    (n, d), c = data.X.shape, data.T.shape[1]
    plan = DevicePlan(context, Work(labels=None, k=None, solver=solver, **METHOD), Capacity(n, d, c))
    return _captured(context, plan, kept=_write_given(context, plan.table, data))


def _write_given(context: Context, table: ProblemTable, data: Data) -> list[DeviceArray]:
    """Features, text proxies and hardened labels into the table; the record that must come with the labels."""
    P, num_hardened = harden(data.P, ALPHA)
    for name, array in (("X", data.X), ("T", data.T.T), ("P", P)):
        table.write(name, np.ascontiguousarray(array))
    record = np.zeros(1, RECORD)
    record["mass"], record["num_hardened"] = P.sum(), num_hardened
    return [context.upload(record)]


def _split(context: Context, data: Data) -> Run:
    """The schedule with products of float16 halves on tensor cores, asked for op by op."""
    from kpl_engine.cuda.ops.answer import answer_workspace, launch_answer
    from kpl_engine.cuda.ops.primal import choose_primal, launch_primal

    (n, d), c = data.X.shape, data.T.shape[1]
    plan = choose_primal(context, Capacity(n, d, c), is_split_allowed=True)
    table = ProblemTable(context, Capacity(n, d, c), 1, max(plan.workspace_doubles, answer_workspace(n, d, c)))
    table.pinned()

    def launch() -> None:
        launch_primal(context, table, plan, **METHOD)
        launch_answer(context, table, METHOD["tau_i"])
        table.copy_back()

    stages = SimpleNamespace(table=table, _launch=launch, schedule=SimpleNamespace(version=plan.kernel))
    return _captured(context, stages, kept=_write_given(context, table, data))


def _many(context: Context, data: Data, num_problems: int) -> Run:
    """The same problem many times, side by side; labels are made on the device."""
    from kpl_engine.solver.device_plan import DevicePlan, Work

    (n, d), c = data.X.shape, data.T.shape[1]
    labels = LabelChoice("stable_greenkhorn", 0.01, 0.0, 20, None, ALPHA)
    work = Work(labels=labels, k=None, solver="schedule", **METHOD)
    plan = DevicePlan(context, work, Capacity(n, d, c), num_problems)
    for index in range(num_problems):
        plan.table.write("X", data.X, index)
        plan.table.write("T", np.ascontiguousarray(data.T.T), index)
    return _captured(context, plan)


def _whole(context: Context, data: Data) -> Run:
    """From features on the device to the answer, text proxies and labels included."""
    from kpl_engine.solver.device_plan import DevicePlan, Work

    base, (n, d) = data.base, data.X.shape
    labels = LabelChoice("stable_greenkhorn", 0.01, 0.0, 20, None, ALPHA)
    capacity = Capacity(n, d, len(base.classes), len(base.embeddings), 8)
    plan = DevicePlan(context, Work(labels=labels, k=8, solver="auto", **METHOD), capacity, 1, ("E", "first", "X"))
    inputs = {"X": data.X, "E": base.embeddings.astype(np.float32), "first": base.offsets.astype(np.int32)}
    bound = {name: context.upload(np.ascontiguousarray(array)) for name, array in inputs.items()}
    for name, array in bound.items():
        plan.table.bind(name, array)
    return _captured(context, plan, bound=bound)


def _captured(context: Context, plan: Any, kept: Sequence[DeviceArray] = (), bound: Any = None) -> Run:
    """The plan as one graph. Its own `run` waits for results, which would hide the time on the GPU.

    ``kept`` is the record that given labels come with, ``bound`` memory that the table points to.
    """
    driver, stream = context.driver, context.stream

    def work() -> None:
        plan.table.clear()
        for record in kept:
            driver.copy_on(plan.table.view("record").address, record.address, record.nbytes, stream)
        plan._launch()

    work()
    first = plan.table.results()[-1].record
    graph = driver.capture(stream, work)
    memory = plan, kept, bound

    def launch() -> None:
        graph.launch(stream)

    def answer() -> tuple[Any, Any]:
        result = memory[0].table.results()[-1]
        return result.out_logits, result.out_labels

    forms = {1: "dual", 2: "primal", 3: "closed form"}
    version = getattr(plan.schedule, "version", "")
    return Run(launch, answer, f"{forms[first['form']]} {first['iterations']} {version}".strip())
