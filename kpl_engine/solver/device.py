"""The methods on a GPU: from features to a `Solution` or a set of answers, all stages in one launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kpl_engine.arrays import Float32, Float64
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.cuda.ops.closed_form import fault_text
from kpl_engine.cuda.problems import Capacity, Result
from kpl_engine.errors import SolverError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver.base import Notice, Solution, TextProxies
from kpl_engine.solver.device_plan import DevicePlan, Work, bucket_of
from kpl_engine.solver.run_notices import OVERFLOW, SPLIT_MASS, closed_form_fails, froze, not_converged, schedule_used

__all__ = ["DeviceAnswer", "DeviceItem", "DeviceSolver"]

_MAX_PLANS = 16  # kept for one GPU; a graph is a few hundred kilobytes, its tables what the sizes say
_MAX_BASES = 1024  # knowledge bases whose descriptions stay on the GPU
_CLOSED_FORM = 3
_FORMS: dict[int, Literal["dual", "primal", "closed_form"]] = {1: "dual", 2: "primal", _CLOSED_FORM: "closed_form"}


@dataclass(frozen=True)
class DeviceItem:
    """One problem: features (n, d), on the host or on this GPU, a knowledge base, and class shares (c,) or None."""

    features: Float32 | DeviceArray
    base: KnowledgeBase
    prior: Float64 | None


@dataclass(frozen=True)
class DeviceAnswer:
    """What a GPU found for one problem."""

    text: TextProxies
    S: Float64  # (n, c) similarities
    solution: Solution


class DeviceSolver:
    """Runs problems on one GPU and keeps their plans, the most recently used ones.

    One thread launches at a time: calls take their turn at the context, as the encoder of the same context does.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._plans: OrderedDict[tuple[object, ...], DevicePlan] = OrderedDict()
        self._bases: OrderedDict[str, tuple[DeviceArray, DeviceArray]] = OrderedDict()  # by fingerprint

    def learn(self, X: Float32, T: Float32, P: Float64, num_hardened: int, work: Work) -> Solution:
        """Proxies from text proxies ``T`` (d, c) and hardened labels ``P`` (n, c)."""
        (n, d), c, mass = X.shape, T.shape[1], float(P.sum())
        if work.solver == "schedule_split" and not 2 * mass >= n:
            raise SolverError(SPLIT_MASS.format(f"labels of mass {mass:.3g} for {n} images"))
        with self.context.turn:
            plan = self._plan(work, Capacity(bucket_of(n), d, c), ())
            plan.table.set_sizes(n=n)
            for name, array in (("X", X), ("T", np.ascontiguousarray(T.T)), ("P", P)):
                plan.table.write(name, np.ascontiguousarray(array), 0)
            (result,) = plan.run(mass, num_hardened)
            return self._solution(plan, 0, result, work)

    def answer(self, item: DeviceItem, work: Work) -> DeviceAnswer:
        """Text proxies, labels and proxies of one problem; `SolverError` where they cannot be had."""
        (found,) = self.answer_many([item], work)
        if isinstance(found, SolverError):
            raise found
        return found

    def answer_many(self, items: Sequence[DeviceItem], work: Work) -> list[DeviceAnswer | SolverError]:
        """`answer` for problems of one width d and one number of classes, side by side in one launch."""
        with self.context.turn:
            plan = self._plan_for(items, work)
            with plan.table.editing():
                sizes, counts, kept = _sizes(items, work)
                plan.table.set_sizes(n=sizes, M=counts, k=kept)
                for place, item in enumerate(items):
                    self._fill(plan, place, item)
            results = plan.run()
            self._forget_bases()
            return [self._answer(plan, place, result, work, items[place].base) for place, result in enumerate(results)]

    def _plan_for(self, items: Sequence[DeviceItem], work: Work) -> DevicePlan:
        sizes, counts, kept = _sizes(items, work)
        first = items[0]
        size = Capacity(bucket_of(max(sizes)), first.features.shape[1], len(first.base.classes), max(counts), max(kept))
        on_device = all(isinstance(item.features, DeviceArray) for item in items)
        return self._plan(work, size, ("E", "first", *(["X"] if on_device else [])), len(items))

    def _fill(self, plan: DevicePlan, place: int, item: DeviceItem) -> None:
        for name, array in zip(("E", "first"), self._on_device(item.base), strict=True):
            plan.table.bind(name, array, place)
        plan.table.set_prior(item.prior, place)
        if isinstance(item.features, DeviceArray):
            plan.table.bind("X", item.features, place)
        else:
            plan.table.write("X", np.ascontiguousarray(item.features), place)

    def _answer(
        self, plan: DevicePlan, place: int, result: Result, work: Work, base: KnowledgeBase
    ) -> DeviceAnswer | SolverError:
        try:
            solution = self._solution(plan, place, result, work)
        except SolverError as error:
            return error
        return DeviceAnswer(_text_proxies(result, base), result.S, solution)

    def close(self) -> None:
        """Free what is kept on the GPU; the context stays open. Calling it twice is harmless."""
        with self.context.turn:
            self._plans.clear()
            self._bases.clear()

    def _plan(self, work: Work, size: Capacity, external: Sequence[str], num_problems: int = 1) -> DevicePlan:
        key = (work.key, size, num_problems, tuple(external))
        if key not in self._plans:
            while len(self._plans) >= _MAX_PLANS:
                self._plans.popitem(last=False)
            self._plans[key] = DevicePlan(self.context, work, size, num_problems, external)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _on_device(self, base: KnowledgeBase) -> tuple[DeviceArray, DeviceArray]:
        key = base.fingerprint
        if key not in self._bases:
            rows = np.ascontiguousarray(base.embeddings, dtype=np.float32)  # (M, d)
            first = np.ascontiguousarray(base.offsets, dtype=np.int32)  # (c + 1,)
            self._bases[key] = self.context.upload(rows), self.context.upload(first)
        self._bases.move_to_end(key)
        return self._bases[key]

    def _forget_bases(self) -> None:
        """After a run, not while one is filled: it reads every base it was given, however many those are."""
        while len(self._bases) > _MAX_BASES:
            self._bases.popitem(last=False)

    def _solution(self, plan: DevicePlan, place: int, result: Result, work: Work) -> Solution:
        record, (n, c) = result.record, result.out_scores.shape
        form = _FORMS[int(record["form"])]
        fault = fault_text(record, n, c, work.lr, work.iters) if work.solver == "closed_form" else ""
        if fault:
            raise SolverError(closed_form_fails(fault))
        if not record["fits"]:
            raise SolverError(OVERFLOW)
        return Solution(
            proxies=_by_column(result.out_proxies),
            logits=result.out_logits,
            iterations=int(record["iterations"]),
            converged=bool(record["converged"]),
            solver="closed_form" if form == "closed_form" else "schedule",
            form=form,
            halvings=int(record["halvings"]),
            residual=float(record["residual"] if form == "closed_form" else record["gradient_norm"]),
            discriminants=_by_column(result.out_discriminants),
            scores=result.out_scores,
            labels=result.out_labels,
            decided_by_rounding=result.out_undecided.astype(np.bool_),
            warnings=tuple(self._notices(plan, place, result, work)),
        )

    def _notices(self, plan: DevicePlan, place: int, result: Result, work: Work) -> list[Notice]:
        record, (n, c) = result.record, result.out_scores.shape
        if record["form"] == _CLOSED_FORM:
            return []
        found, iterations = [], int(record["iterations"])
        if work.solver == "auto":
            found.append(schedule_used(fault_text(record, n, c, work.lr, work.iters)))
        if record["frozen"]:
            X, P, W = (self.context.download(plan.table.view(name, place)) for name in ("X", "P", "W"))
            found += froze(X, P, W.T, X.astype(np.float64) @ W.T, work.tau_i, iterations, int(record["halvings"]))
        elif not record["converged"] and work.iters > 0:
            found.append(not_converged(iterations))
        return found


def _sizes(items: Sequence[DeviceItem], work: Work) -> tuple[list[int], list[int], list[int]]:
    """n, M and k of each problem."""
    return (
        [item.features.shape[0] for item in items],
        [len(item.base.embeddings) for item in items],
        [min(work.k or 1, int(np.diff(item.base.offsets).max())) for item in items],
    )


def _by_column(rows: Float32) -> Float32:
    """(c, d) of the device as (d, c)."""
    return np.ascontiguousarray(rows.T)


def _text_proxies(result: Result, base: KnowledgeBase) -> TextProxies:
    starts = base.offsets.tolist()
    kept = (rows[rows >= 0].astype(np.int64) - start for rows, start in zip(result.kept, starts, strict=False))
    scores = np.split(result.scores.astype(np.float64), starts[1:-1])
    return TextProxies(_by_column(result.T), tuple(kept), tuple(scores))
