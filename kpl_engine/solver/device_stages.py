"""The stages of `solve` on a GPU: checks and notices here, everything between in one launch of `DeviceSolver`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kpl_engine.arrays import Float32, Float64
from kpl_engine.config import MethodConfig, SolverName
from kpl_engine.cuda.context import DeviceArray
from kpl_engine.errors import KplError, SolverError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver.answering import Clock, check_method, make_answer
from kpl_engine.solver.base import Answer, Notice
from kpl_engine.solver.compiled import LabelChoice
from kpl_engine.solver.device import DeviceAnswer, DeviceItem, DeviceSolver
from kpl_engine.solver.device_plan import Work
from kpl_engine.solver.guards import few_images, input_notices, method_notices
from kpl_engine.solver.labels import resolve_prior
from kpl_engine.solver.proxies import check_options
from kpl_engine.solver.run_notices import SPLIT_MASS
from kpl_engine.solver.stages import LABELS, Problem, outcome_of
from kpl_engine.solver.text_proxy import as_knowledge, check_features, check_width

__all__ = ["answer_many_on_device", "answer_on_device", "cpu_notice", "runs_on_device"]


def runs_on_device(problem: Problem) -> bool:
    """Whether a GPU computes this method: those that learn from a batch with one matrix of text proxies."""
    config = problem.config or MethodConfig()
    return problem.method in LABELS and config.retrieval != "per_image"


def cpu_notice(problem: Problem) -> Notice:
    """Said where a GPU was asked for and the method is not computed there."""
    config = problem.config or MethodConfig()
    what = "retrieval 'per_image'" if config.retrieval == "per_image" else f"method {problem.method!r}"
    return Notice("solver_on_cpu", f"{what} is computed on the CPU; a GPU computes {', '.join(LABELS)}")


@dataclass(frozen=True)
class _Checked:
    """A problem that a GPU can take."""

    problem: Problem
    X: Float32  # (n, d)
    base: KnowledgeBase
    shares: Float64 | None  # (c,)
    work: Work

    @property
    def group(self) -> tuple[object, ...]:
        """Problems of one group share a launch; doubling buckets, so that little memory of a table is unused."""
        return self.work.key, self.X.shape[1], len(self.base.classes), (len(self.X) - 1).bit_length()


def answer_on_device(problem: Problem, solver: DeviceSolver, on_device: DeviceArray | None = None) -> Answer | None:
    """The answer of a GPU; None where there are too few images to learn from, which the CPU answers.

    ``on_device`` are the problem's features where the encoder left them, (n, d) float32 in the same context.
    """
    checked = _check(problem)
    if checked is None:
        return None
    start = time.perf_counter()
    features = checked.X if on_device is None else on_device
    found = solver.answer(DeviceItem(features, checked.base, checked.shares), checked.work)
    return _dress(checked, found, (time.perf_counter() - start) * 1e3)


def answer_many_on_device(problems: Sequence[Problem], solver: DeviceSolver) -> list[Answer | None]:
    """Answers of a GPU in the order given, None where the CPU has to answer; errors name the place.

    Problems with the same options and of like sizes share a launch, as many as the GPU's memory holds.
    ``timings_ms`` of each has the time of its launch.
    """
    checked = [_at(place, _check, each) if runs_on_device(each) else None for place, each in enumerate(problems)]
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, each in enumerate(checked):
        if each is not None:
            groups.setdefault(each.group, []).append(place)
    answers: list[Answer | None] = [None] * len(problems)
    for places in groups.values():
        size = _most_at_once(solver, [each for place in places if (each := checked[place])])
        for start in range(0, len(places), size):
            _run_group(places[start : start + size], checked, solver, answers)
    return answers


def _run_group(
    places: Sequence[int], checked: Sequence[_Checked | None], solver: DeviceSolver, answers: list[Answer | None]
) -> None:
    group = [each for place in places if (each := checked[place])]
    start = time.perf_counter()
    items = [DeviceItem(each.X, each.base, each.shares) for each in group]
    results = solver.answer_many(items, group[0].work)
    spent = (time.perf_counter() - start) * 1e3
    for place, each, found in zip(places, group, results, strict=True):
        if isinstance(found, SolverError):
            raise SolverError(f"problem {place}: {found}")
        answers[place] = _dress(each, found, spent)


def _most_at_once(solver: DeviceSolver, group: Sequence[_Checked]) -> int:
    """How many problems of a group share a launch: K, and what grows with n, in an eighth of the GPU's memory."""
    n, c = max(len(each.X) for each in group), len(group[0].base.classes)
    d = group[0].X.shape[1]
    each = 8 * (n * n + n * (d + 8 * c) + 8 * d * (c + 1)) + 4 * d * max(len(g.base.embeddings) for g in group)
    return max(1, int(solver.context.driver.info.total_bytes // 8 // each))


def _check(problem: Problem) -> _Checked | None:
    """What `solve` checks; None where there are too few images to learn from."""
    config = problem.config or MethodConfig()
    check_method(problem.method, config)
    X, base = check_features(problem.features), as_knowledge(problem.knowledge)
    if few_images(len(X), len(base.classes), config):
        return None  # what the learning alone would refuse is not asked
    work, shares = _work_of(problem, config, len(base.classes), len(base.embeddings))
    check_width(X, base)
    return _Checked(problem, X, base, shares, work)


def _work_of(problem: Problem, config: MethodConfig, c: int, M: int) -> tuple[Work, Float64 | None]:
    """What the GPU is to do, and the class shares it needs."""
    method = problem.method
    # Only kpl has a closed form to choose; for the others "auto" is the schedule, not a fallback to it.
    solver: SolverName = "schedule" if config.solver == "auto" and method != "kpl" else config.solver
    check_options(config.lr, config.proxy_iters, config.tau_i, config.alpha, solver)
    if solver == "schedule_split" and LABELS[method] == "stable_greenkhorn" and config.ot_iters != "converged":
        raise SolverError(SPLIT_MASS.format(f"the Greenkhorn labels of method {method!r}"))
    shares = resolve_prior(problem.prior, c, config.gamma if method in ("inmap", "kpl") else 0.0)
    shares = shares if method != "proxy" else None
    labels = LabelChoice(LABELS[method], config.tau_t, config.gamma, config.ot_iters, None, config.alpha)
    k = M if config.retrieval == "all" else config.k
    return Work(labels, k, config.lr, config.proxy_iters, config.tau_i, solver), shares


def _dress(checked: _Checked, found: DeviceAnswer, spent_ms: float) -> Answer:
    problem, X, base = checked.problem, checked.X, checked.base
    method, config = problem.method, problem.config or MethodConfig()
    prior = resolve_prior(problem.prior, len(base.classes), 0.0)
    notices = method_notices(method, len(base.classes), config, prior) + input_notices(X, found.text.proxies)
    outcome, clock = outcome_of(found.solution, config.tau_i), Clock()
    clock.laps["device"] = spent_ms
    return make_answer(
        X, found.S, found.text, outcome, clock, method, method, "batch", config.tau_t, notices, prior is None
    )


def _at(place: int, function: Callable[[Problem], _Checked | None], problem: Problem) -> _Checked | None:
    try:
        return function(problem)
    except KplError as error:
        raise type(error)(f"problem {place}: {error}") from error
