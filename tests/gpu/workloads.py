"""Small runs of every op, in three parts: what puts the input in place, what launches, what reads the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpl_engine.cuda.ops.answer import answer_workspace, launch_answer
from kpl_engine.cuda.ops.closed_form import launch_closed_form
from kpl_engine.cuda.ops.closed_form import workspace_doubles as closed_form_doubles
from kpl_engine.cuda.ops.dual import choose_dual, launch_dual
from kpl_engine.cuda.ops.dual import workspace_doubles as dual_doubles
from kpl_engine.cuda.ops.labels import labels_workspace, launch_labels
from kpl_engine.cuda.ops.preprocess import launch_preprocess, upload_images
from kpl_engine.cuda.ops.primal import choose_primal, launch_primal
from kpl_engine.cuda.ops.text_proxy import launch_text_proxy, text_proxy_workspace
from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.cuda.problems import Capacity, ProblemTable
from kpl_engine.imaging.preprocess import Preprocess
from kpl_engine.solver import reference

TAU_I, LR, STEPS = 0.04, 10.0, 60


@dataclass
class Workload:
    """``start`` restores the input, ``work`` only launches, ``read`` waits and gives arrays by name."""

    start: Callable[[], None]
    work: Callable[[], None]
    read: Callable[[], dict]


def clip_like(n, d, c, seed):
    """X (n, d) float32, T (d, c) float32, unit; images of one domain with classes a little apart."""
    random = np.random.default_rng(seed)
    base, classes = random.normal(size=d), 0.6 * random.normal(size=(c, d))
    X = 2 * base + classes[random.integers(c, size=n)] + random.normal(size=(n, d))
    T = (base + classes + random.normal(size=(c, d))).T
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    return X, (T / np.linalg.norm(T, axis=0)).astype(np.float32)


def problem(n, d, c, seed, labels="sinkhorn"):
    """X, T and hardened labels P (n, c) float64."""
    X, T = clip_like(n, d, c, seed)
    make = {"sinkhorn": reference.sinkhorn_labels, "stable_greenkhorn": reference.greenkhorn_labels}[labels]
    return X, T, reference.harden(make(X.astype(float) @ T))


def fill_table(table, problems):
    for index, (X, T, P) in enumerate(problems):
        table.write("X", X, index)
        table.write("T", np.ascontiguousarray(T.T), index)
        table.write("P", np.ascontiguousarray(P, dtype=np.float64), index)


def on_table(context, table, problems, launch):
    """A workload of an op from X, T and P to W and the record. W starts as NaN: what is not written shows."""

    def start():
        fill_table(table, problems)
        for index in range(len(problems)):
            table.write("W", np.full(table.view("W", index).shape, np.nan), index)

    def work():
        table.clear()
        launch()

    def read():
        table.copy_back()
        records = [result.record for result in table.results()]
        found = {f"W{index}": context.download(table.view("W", index)) for index in range(len(problems))}
        return {**found, **{f"record{index}": np.array(list(record.values())) for index, record in enumerate(records)}}

    return Workload(start, work, read)


def dual(version=None, n=37, d=40, c=3, count=2):
    def make(context):
        problems = [problem(n - index, d, c, seed=index) for index in range(count)]
        plan = choose_dual(context, n, d, c, count, version)
        table = ProblemTable(context, Capacity(n, d, c), count, dual_doubles(n, d, c))
        table.set_sizes(n=[len(X) for X, _, _ in problems])
        return on_table(context, table, problems, lambda: launch_dual(context, table, plan, LR, STEPS, TAU_I))

    return make


def primal(c=3, is_split_allowed=False):
    def make(context):
        n, d = 70, 44
        problems = [problem(n - 9 * index, d, c, seed=5 + index) for index in range(2)]
        plan = choose_primal(context, Capacity(n, d, c), is_split_allowed)
        table = ProblemTable(context, Capacity(n, d, c), 2, plan.workspace_doubles)
        table.set_sizes(n=[len(X) for X, _, _ in problems])
        return on_table(context, table, problems, lambda: launch_primal(context, table, plan, LR, STEPS, TAU_I))

    return make


def closed_form(context):
    n, d, c = 90, 48, 3
    problems = [problem(n, d, c, seed=8, labels="stable_greenkhorn")]
    table = ProblemTable(context, Capacity(n, d, c), 1, closed_form_doubles(n, d, c))
    return on_table(
        context, table, problems, lambda: launch_closed_form(context, table, TAU_I, LR, 2000, must_reach_schedule=True)
    )


def text_labels_answer(method):
    """From features and descriptions to labels and answers, W being T: the stages around the schedule."""

    def make(context):
        n, d, c, m, k = 61, 48, 4, 9, 3
        X, _ = clip_like(n, d, c, seed=11)
        E = clip_like(c * m, d, c, seed=12)[0]
        needed = max(text_proxy_workspace(n, d, c, c * m), labels_workspace(n, d, c), answer_workspace(n, d, c))
        table = ProblemTable(context, Capacity(n, d, c, c * m, k), 1, needed)
        W = clip_like(c, d, c, seed=13)[0].astype(np.float64)

        def start():
            inputs = {"X": X, "E": E, "first": m * np.arange(c + 1, dtype=np.int32), "W": W}
            for name, array in inputs.items():
                table.write(name, array)

        def work():
            table.clear()
            launch_text_proxy(context, table)
            launch_labels(context, table, method)
            launch_answer(context, table, TAU_I)
            table.copy_back()

        def read():
            (found,) = table.results()
            arrays = {name: getattr(found, name) for name in found.__dataclass_fields__ if name != "record"}
            return {**arrays, **{name: context.download(table.view(name)) for name in ("S", "P")}}

        table.pinned()  # a capture allocates nothing
        return Workload(start, work, read)

    return make


def unit_rows(context):
    rows = 1.004 * clip_like(33, 130, 2, seed=9)[0]
    array, unit = context.empty(rows.shape, np.float32), UnitRows(context, 1e-2)
    unit.scale(context.zeros((1, 4), np.float32))
    unit.take()
    return Workload(
        lambda: context.write(array, rows.astype(np.float32)),
        lambda: unit.scale(array),
        lambda: {"rows": context.download(array), "bad": np.array(unit.take()[0])},
    )


def preprocess(context):
    """Tables and memory are made anew each time: not for a graph."""
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(3)]
    made = []

    def work():
        made[:] = [launch_preprocess(context, upload_images(context, images), Preprocess("squash", 33, 41))]

    return Workload(lambda: None, work, lambda: {"out": context.download(made[0])})


WORKLOADS = {
    "dual": dual(),
    **{f"dual_up_to_{n}": dual(n=n, count=1) for n in (32, 96, 144)},
    "dual_block": dual("block"),
    "dual_cluster": dual("cluster"),
    "dual_grid": dual("grid"),
    "primal_one_column": primal(c=2),
    "primal": primal(c=3),
    "primal_four_columns": primal(c=5),
    "primal_eight_columns": primal(c=9),
    "primal_wide": primal(c=12),
    "primal_split": primal(c=12, is_split_allowed=True),
    "closed_form": closed_form,
    **{f"labels_{method}": text_labels_answer(method) for method in ("softmax", "sinkhorn", "stable_greenkhorn")},
    "unit_rows": unit_rows,
}

EVERY_KERNEL = {**WORKLOADS, "preprocess": preprocess}
