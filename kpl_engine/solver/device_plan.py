"""One run of the method on a GPU: laid out once for a bucket of sizes, then repeated as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kpl_engine.config import SolverName
from kpl_engine.cuda.base import Graph
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.ops import dual, primal
from kpl_engine.cuda.ops.answer import answer_workspace, launch_answer
from kpl_engine.cuda.ops.closed_form import launch_closed_form
from kpl_engine.cuda.ops.closed_form import workspace_doubles as closed_form_doubles
from kpl_engine.cuda.ops.labels import labels_workspace, launch_labels
from kpl_engine.cuda.ops.text_proxy import launch_text_proxy, text_proxy_workspace
from kpl_engine.cuda.problems import RECORD, Capacity, ProblemTable, Result
from kpl_engine.errors import SolverError
from kpl_engine.solver.compiled import LabelChoice
from kpl_engine.solver.device_cost import choose_form_on
from kpl_engine.solver.run_notices import FORMS, INVISIBLE
from kpl_engine.solver.schedule import Form

__all__ = ["DevicePlan", "Work", "bucket_of"]

_BUCKETS = ((8, 64), (16, 1024), (256, 16384))  # up to so many images, capacities are multiples of the first
_MATRIX_SHARE = 4  # of the GPU's memory, one in so many, may hold K


@dataclass(frozen=True)
class Work:
    """What a run does, sizes apart. ``labels`` is None where hardened ones are given, ``k`` where text proxies are."""

    labels: LabelChoice | None
    k: int | None
    lr: float
    iters: int
    tau_i: float
    solver: SolverName

    @property
    def key(self) -> tuple[object, ...]:
        """What is baked into the launches: two works of one key share a plan. The prior is data."""
        made = self.labels
        kind = None if made is None else (made.method, made.tau_t, made.gamma, made.iters, made.alpha)
        return kind, self.k, self.lr, self.iters, self.tau_i, self.solver

    @property
    def tries_closed_form(self) -> bool:
        return self.solver in ("auto", "closed_form")


def bucket_of(n: int) -> int:
    """The capacity for n images: few plans to keep, little memory unused."""
    for step, most in _BUCKETS:
        if n <= most:
            return -(-n // step) * step
    return n


class DevicePlan:
    """The launches of one `Work` for problems of one capacity, and the memory for them.

    The first run goes kernel by kernel, which loads them; the second is captured, and from then on a run is
    one graph. Drivers without graphs go on kernel by kernel. Nothing inside waits for the host.
    """

    def __init__(
        self,
        context: Context,
        work: Work,
        capacity: Capacity,
        num_problems: int = 1,
        external: Sequence[str] = (),
    ) -> None:
        self.context, self.work, self.num_runs = context, work, 0
        self._graph: Graph | None = None
        self.schedule = (
            None if work.solver == "closed_form" else _choose_schedule(context, work, capacity, num_problems)
        )
        self.table = ProblemTable(context, capacity, num_problems, self._workspace(capacity), external)
        self.table.pinned()  # cannot be allocated inside a capture

    def run(self, mass: float = 0.0, num_hardened: int = 0) -> list[Result]:
        """Everything from the features in the table to results on the host; given labels come with these two."""
        driver, stream = self.context.driver, self.context.stream
        self.table.clear()
        if self.work.labels is None:
            record = np.zeros(1, RECORD)
            record["mass"], record["num_hardened"] = mass, num_hardened
            self.table.write("record", record)
        if self._graph is not None:
            self._graph.launch(stream)
        elif self.num_runs and driver.features.has_graphs:
            self._graph = driver.capture(stream, self._launch)
            self._graph.launch(stream)
        else:
            self._launch()
        self.num_runs += 1
        return self.table.results()

    @property
    def is_graph(self) -> bool:
        """Whether the last run was one launch of a graph."""
        return self._graph is not None

    def _workspace(self, size: Capacity) -> int:
        n, d, c = size.n, size.d, size.c
        needs = [answer_workspace(n, d, c), 0 if self.schedule is None else self.schedule.workspace_doubles]
        if self.work.k is not None:
            needs.append(text_proxy_workspace(n, d, c, size.M))
        if self.work.labels is not None:
            needs.append(labels_workspace(n, d, c))
        if self.work.tries_closed_form:
            needs.append(closed_form_doubles(n, d, c))
        return max(needs)

    def _launch(self) -> None:
        context, table, work = self.context, self.table, self.work
        if work.k is not None:
            launch_text_proxy(context, table)
        if work.labels is not None:
            made = work.labels
            launch_labels(context, table, made.method, made.tau_t, made.gamma, made.iters, made.alpha)
        if work.tries_closed_form:
            launch_closed_form(context, table, work.tau_i, work.lr, work.iters, work.solver == "auto")
        if self.schedule is not None:
            self.schedule.launch(context, table, work)
        launch_answer(context, table, work.tau_i)
        table.copy_back()


class _Dual:
    form: Form = "dual"

    def __init__(self, plan: dual.DualPlan) -> None:
        self._plan = plan
        self.workspace_doubles = dual.workspace_doubles(plan.n_max, plan.d, plan.c)
        self.version: str = plan.version

    def launch(self, context: Context, table: ProblemTable, work: Work) -> None:
        dual.launch_dual(
            context, table, self._plan, work.lr, work.iters, work.tau_i, _movement(work), work.tries_closed_form
        )


class _Primal:
    form: Form = "primal"

    def __init__(self, plan: primal.PrimalPlan) -> None:
        self._plan = plan
        self.workspace_doubles = plan.workspace_doubles
        self.version: str = plan.kernel

    def launch(self, context: Context, table: ProblemTable, work: Work) -> None:
        primal.launch_primal(
            context, table, self._plan, work.lr, work.iters, work.tau_i, _movement(work), work.tries_closed_form
        )


def _movement(work: Work) -> float:
    """``auto`` leaves out what is proven not to matter."""
    return INVISIBLE if work.solver == "auto" else 0.0


def _choose_schedule(context: Context, work: Work, size: Capacity, num_problems: int) -> _Dual | _Primal:
    driver = context.driver
    asked = FORMS.get(work.solver)
    form = asked or choose_form_on(driver.info, driver.features, size.n, size.d, size.c, work.iters)
    if form == "dual":
        _check_memory(driver.info.total_bytes, size.n, num_problems, asked is not None)
        plan = dual.choose_dual(context, size.n, size.d, size.c, num_problems)
        if plan is not None:
            return _Dual(plan)
        if asked is not None:
            raise SolverError(
                f"schedule_dual on the GPU: expected classes that fit a block's shared memory, got {size.c}; use "
                "solver='schedule_primal' or 'schedule'"
            )
    return _Primal(primal.choose_primal(context, size, is_split_allowed=work.solver == "schedule_split"))


def _check_memory(total_bytes: int, n: int, num_problems: int, was_asked: bool) -> None:
    needed = 8 * n * n * num_problems
    if was_asked and needed > total_bytes // _MATRIX_SHARE:
        raise SolverError(
            f"schedule_dual on the GPU: expected K = X Xᵀ in a quarter of its {total_bytes / 1e9:.3g} GB, got "
            f"{needed / 1e9:.3g} GB for {n} images; use solver='schedule_primal'"
        )
