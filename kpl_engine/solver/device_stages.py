"""The stages of `solve` on a GPU: checks and notices here, everything between in one launch of `DeviceSolver`."""

from __future__ import annotations

import time

from kpl_engine.arrays import Float32
from kpl_engine.config import MethodConfig
from kpl_engine.cuda.context import DeviceArray
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver.answering import Clock, check_method, make_answer
from kpl_engine.solver.base import Answer, Notice
from kpl_engine.solver.compiled import LabelChoice
from kpl_engine.solver.device import DeviceAnswer, DeviceSolver
from kpl_engine.solver.device_plan import Work
from kpl_engine.solver.guards import few_images, input_notices, method_notices
from kpl_engine.solver.labels import resolve_prior
from kpl_engine.solver.proxies import check_options
from kpl_engine.solver.stages import LABELS, Problem, outcome_of
from kpl_engine.solver.text_proxy import as_knowledge, check_features, check_width

__all__ = ["answer_on_device", "cpu_notice", "runs_on_device", "work_of"]


def runs_on_device(problem: Problem) -> bool:
    """Whether a GPU computes this method: those that learn from a batch with one matrix of text proxies."""
    config = problem.config or MethodConfig()
    return problem.method in LABELS and config.retrieval != "per_image"


def cpu_notice(problem: Problem) -> Notice:
    """Said where a GPU was asked for and the method is not computed there."""
    config = problem.config or MethodConfig()
    what = "retrieval 'per_image'" if config.retrieval == "per_image" else f"method {problem.method!r}"
    return Notice("solver_on_cpu", f"{what} is computed on the CPU; a GPU computes {', '.join(LABELS)}")


def answer_on_device(problem: Problem, solver: DeviceSolver, on_device: DeviceArray | None = None) -> Answer | None:
    """The answer of a GPU; None where there are too few images to learn from, which the CPU answers.

    ``on_device`` are the problem's features where the encoder left them, (n, d) float32 in the same context.
    """
    method, config = problem.method, problem.config or MethodConfig()
    check_method(method, config)
    clock, X, base = Clock(), check_features(problem.features), as_knowledge(problem.knowledge)
    work = work_of(problem, base)
    if few_images(len(X), len(base.classes), config):
        return None
    check_width(X, base)
    start = time.perf_counter()
    found = solver.answer(X if on_device is None else on_device, base, work)
    clock.laps["device"] = (time.perf_counter() - start) * 1e3
    return _dress(problem, X, base, work, found, clock)


def work_of(problem: Problem, base: KnowledgeBase) -> Work:
    """What the GPU is to do; `ConfigError` or `ShapeError` if an option is out of range."""
    config, c = problem.config or MethodConfig(), len(base.classes)
    # Only kpl has a closed form to choose; for the others "auto" is the schedule, not a fallback to it.
    solver = "schedule" if config.solver == "auto" and problem.method != "kpl" else config.solver
    check_options(config.lr, config.proxy_iters, config.tau_i, config.alpha, solver)
    shares = resolve_prior(problem.prior, c, config.gamma if problem.method in ("inmap", "kpl") else 0.0)
    labels = LabelChoice(
        LABELS[problem.method],
        config.tau_t,
        config.gamma,
        config.ot_iters,
        shares if problem.method != "proxy" else None,
        config.alpha,
    )
    k = len(base.embeddings) if config.retrieval == "all" else config.k
    return Work(labels, k, config.lr, config.proxy_iters, config.tau_i, solver)


def _dress(problem: Problem, X: Float32, base: KnowledgeBase, work: Work, found: DeviceAnswer, clock: Clock) -> Answer:
    method, config = problem.method, problem.config or MethodConfig()
    shares = resolve_prior(problem.prior, len(base.classes), 0.0)
    notices = method_notices(method, len(base.classes), config, shares) + input_notices(X, found.text.proxies)
    outcome = outcome_of(found.solution, config.tau_i)
    return make_answer(
        X, found.S, found.text, outcome, clock, method, method, "batch", config.tau_t, notices, problem.prior is None
    )
