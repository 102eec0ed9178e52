"""One call from features to an `Answer`: text proxies, labels, proxies, and every guard (method.md 4, 5)."""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

import numpy.typing as npt

from kpl_engine.config import MethodConfig, MethodName
from kpl_engine.errors import ConfigError, CudaError, KplError
from kpl_engine.solver import cpu
from kpl_engine.solver.answering import METHODS, Clock, linear_outcome, make_answer, of_width, similarities_of
from kpl_engine.solver.base import Answer, FrozenProxies, Notice, TextProxies
from kpl_engine.solver.guards import input_notices
from kpl_engine.solver.runs import run_schedule, run_schedules
from kpl_engine.solver.schedule import ScheduleRun
from kpl_engine.solver.stages import Prepared, Problem, answer_alone, answer_scheduled, prepare
from kpl_engine.solver.streaming import StreamSolver
from kpl_engine.solver.text_proxy import KnowledgeLike, check_features

if TYPE_CHECKING:  # what a GPU needs is imported when one is asked for: starting on a CPU stays cheap
    from kpl_engine.cuda.context import DeviceArray
    from kpl_engine.solver.device import DeviceSolver

__all__ = ["METHODS", "Problem", "StreamSolver", "freeze", "solve", "solve_frozen", "solve_many", "solve_on"]

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def solve(
    features: npt.ArrayLike,
    knowledge: KnowledgeLike,
    method: MethodName = "kpl",
    config: MethodConfig | None = None,
    prior: npt.ArrayLike | None = None,
    num_threads: int | None = None,
    device: str = "cpu",
) -> Answer:
    """Classify the rows of ``features`` together, by one of the named methods.

    Parameters
    ----------
    features : (n, d) array_like
        Unit rows, n >= 1, all finite.
    knowledge : KnowledgeBase or arrays of embeddings per class
        As in `select_text_proxies`.
    method : {"zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta"}
    config : MethodConfig, optional
        Published defaults when left out.
    prior : (c,) array_like, optional
        Expected class shares; used by ``inmap``, ``kpl`` and ``kpl_stream``. A share of 0 leaves a
        class without pseudo labels; the proxies of ``kpl`` and ``kpl_stream`` can answer with it all the same.
    num_threads : int, optional
        Threads of the compiled core, see `learn_proxies`.
    device : {"cpu", "auto", "cuda", "cuda:N"}
        A GPU computes ``proxy``, ``inmap`` and ``kpl``, all stages in one launch; what it does not compute the CPU
        does, with a notice.

    Returns
    -------
    Answer
        ``mode`` is "batch". ``timings_ms`` has "text_proxies", "labels" and "proxies", or for a GPU "device" alone.

    Raises
    ------
    ShapeError
        NaN or infinite rows (named), or a width other than the knowledge's.
    ConfigError
        Unknown method, or an option the method does not have.
    BackendUnavailableError, CudaError
        A GPU asked for by name cannot be used, or failed.
    """
    problem = Problem(features, knowledge, method, config, prior)
    if device == "cpu":
        return solve_on(problem, None, num_threads)
    from kpl_engine.solver.devices import choose_device

    solver, passed_over = choose_device(device)
    return _with_notices(solve_on(problem, solver, num_threads, falls_back=device == "auto"), passed_over)


def solve_on(
    problem: Problem,
    solver: DeviceSolver | None,
    num_threads: int | None = None,
    on_device: DeviceArray | None = None,
    falls_back: bool = False,
) -> Answer:
    """`solve` on the GPU of ``solver``, which may hold the features already, or without one on the CPU.

    ``falls_back``: where the GPU fails the CPU answers, with a notice.
    """
    if solver is None:
        return _answer(num_threads, None, prepare(problem))
    from kpl_engine.solver.device_stages import answer_on_device, cpu_notice, runs_on_device

    if not runs_on_device(problem):
        return _with_notices(_answer(num_threads, None, prepare(problem)), cpu_notice(problem))
    reason = None
    try:
        found = answer_on_device(problem, solver, on_device)
        if found is not None:
            return found
    except CudaError as error:
        if not falls_back:
            raise
        reason = _gpu_failed(error)
    return _with_notices(_answer(num_threads, None, prepare(problem)), reason)


def _with_notices(answer: Answer, *notices: Notice | None) -> Answer:
    said = tuple(notice for notice in notices if notice is not None)
    return dataclasses.replace(answer, warnings=(*said, *answer.warnings)) if said else answer


def solve_many(problems: Sequence[Problem], num_threads: int | None = None, device: str = "cpu") -> list[Answer]:
    """`solve` for independent problems, spread over threads: for a server with several knowledge bases.

    Problems whose method runs the published schedule (``proxy``, ``inmap``, or a ``config.solver``
    that says so) go to the compiled core in one call, labels included; the others are answered
    beside each other. Each problem has one thread.

    Parameters
    ----------
    problems : sequence of Problem
        All are checked before any is answered.
    num_threads : int, optional
        At most; by default one a core.
    device : {"cpu", "auto", "cuda", "cuda:N"}
        As in `solve`. On a GPU problems with the same options and of like sizes share one launch.

    Returns
    -------
    list of Answer
        In the order of ``problems``; each is what `solve` gives on one thread of a CPU, bit for bit, and on a GPU
        up to rounding.

    Raises
    ------
    ShapeError, ConfigError, KnowledgeError, SolverError
        As `solve`, naming the place of the problem.
    """
    threads = cpu.resolve_threads(num_threads)
    if isinstance(problems, Problem) or not isinstance(problems, Sequence):
        raise ConfigError(f"problems: expected a list of Problem(...), got {type(problems).__name__}")
    if device != "cpu":
        return _solve_many_on(problems, threads, device)
    prepared = [_at(place, prepare, problem) for place, problem in enumerate(problems)]
    scheduled = {place: each for place, each in enumerate(prepared) if each.runs_schedule}
    tasks = [_at(place, attrgetter("task"), each) for place, each in scheduled.items()]
    runs = run_schedules(tasks, [each.form for each in scheduled.values()], threads)
    found = dict(zip(scheduled, runs, strict=True))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting = [
            # A copy, for a thread of the pool starts without the caller's choice of core or NumPy.
            pool.submit(contextvars.copy_context().run, _at, place, partial(_answer, 1, found.get(place)), each)
            for place, each in enumerate(prepared)
        ]
        return [each.result() for each in waiting]


def _solve_many_on(problems: Sequence[Problem], num_threads: int, device: str) -> list[Answer]:
    """`solve_many` on a GPU, and on the CPU what that does not compute."""
    from kpl_engine.solver.device_stages import answer_many_on_device, cpu_notice, runs_on_device
    from kpl_engine.solver.devices import choose_device

    solver, reason = choose_device(device)
    answers: list[Answer | None] = [None] * len(problems)
    if solver is not None:
        try:
            answers = answer_many_on_device(problems, solver)
        except CudaError as error:
            if device != "auto":
                raise
            reason = _gpu_failed(error)
    places = [place for place, answer in enumerate(answers) if answer is None]
    rest = solve_many([problems[place] for place in places], num_threads) if places else []
    for place, answer in zip(places, rest, strict=True):
        unfit = None if solver is None or runs_on_device(problems[place]) else cpu_notice(problems[place])
        answers[place] = _with_notices(answer, reason or unfit)
    return [answer for answer in answers if answer is not None]


def _gpu_failed(error: CudaError) -> Notice:
    return Notice("solver_on_cpu", f"the GPU failed, so the CPU answered: {error!s:.300}")


def _answer(num_threads: int | None, run: ScheduleRun | None, prepared: Prepared) -> Answer:
    if not prepared.runs_schedule:
        return answer_alone(prepared, num_threads)
    run = run or run_schedule(prepared.task, prepared.form, num_threads)
    return answer_scheduled(prepared, run, num_threads)


def _at(place: int, function: Callable[[_Item], _Made], item: _Item) -> _Made:
    """``function(item)``; an error says which problem it was."""
    try:
        return function(item)
    except KplError as error:
        raise type(error)(f"problem {place}: {error}") from error


def freeze(answer: Answer) -> FrozenProxies:
    """Proxies of an answer, kept to classify later images one at a time with `solve_frozen`.

    The method is the one that answered (`Answer.method_used`): proxies of too few images are those
    of the text, and say "zeroshot". Two answers have no exact linear counterpart: with
    ``retrieval="per_image"`` the mean-retrieval text proxies stand for the per-image ones, and for
    ``onzeta`` its last vision proxies stand for the mixture.
    """
    return FrozenProxies(
        proxies=answer.proxies,
        discriminants=answer.discriminants,
        temperature=answer.temperature,
        text_proxies=answer.text_proxies.proxies,
        tau_t=answer.tau_t,
        kept=answer.text_proxies.kept,
        method=answer.method_used,
        num_images=len(answer.labels),
    )


def solve_frozen(features: npt.ArrayLike, frozen: FrozenProxies) -> Answer:
    """Classify each row alone: ``softmax(X discriminants / temperature)``.

    The answer of a row does not depend on its neighbours beyond the rounding of a float64 product.
    """
    clock = Clock()
    X = of_width(check_features(features), frozen.proxies)
    text = TextProxies(frozen.text_proxies, frozen.kept, ())
    S = similarities_of(X, text)
    clock.lap("text_proxies")
    outcome = linear_outcome(X, frozen.proxies, frozen.discriminants, frozen.temperature)
    clock.lap("proxies")
    method = frozen.method
    notices = input_notices(X, frozen.text_proxies, learns=False)
    return make_answer(X, S, text, outcome, clock, method, method, "frozen", frozen.tau_t, notices, False)
