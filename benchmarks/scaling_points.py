"""The calls that are measured, their inputs at one size, and whether what they answer is right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scaling_counts as counts
from clip_like import ClipLike, make_clip_like
from scaling_counts import Size

from kpl_engine import Engine
from kpl_engine.bench.exact import batch_answers, frozen_answers
from kpl_engine.bundle import Bundle, write_bundle
from kpl_engine.bundle.tensors import dump_tensors
from kpl_engine.config import MethodConfig
from kpl_engine.data import demo_bundle
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.opening import read_knowledge
from kpl_engine.solver import reference
from kpl_engine.solver.base import FrozenProxies
from kpl_engine.solver.labels import refine_labels
from kpl_engine.solver.proxies import learn_proxies
from kpl_engine.solver.text_proxy import select_text_proxies
from kpl_engine.strict_json import thaw

# n d c that the float64 reference is run on: 2000 steps of 4e6 take about 20 s of NumPy on two cores.
CHECKED = 1_100_000
_CLOSE = 1e-5  # method.md 3b: the floor of the allowed error, in logits of unit vectors and in float64 labels
_PROBABILITY = 1e-4  # float32 scores: 2^-23 of scores up to 30, over tau_i = 0.04
_FAR = 0.01  # margins, as a share of the score range, above which closed form and schedule agreed (method.md 3c)


@dataclass
class Call:
    """One measured call: ``run()`` is timed; ``check()`` says what is wrong with an answer, or nothing."""

    run: Callable[[], Any]
    check: Callable[[], str]
    checked_on: str


@lru_cache(maxsize=1)  # calls of one size are made one after the other and share them
def inputs(size: Size) -> ClipLike:
    """Images and descriptions of this size; equal sizes give equal arrays."""
    return make_clip_like(size.n, size.d, size.c, seed=size.n + 31 * size.c + size.d, m=size.m)


def subset(size: Size) -> tuple[int, str]:
    """How many of the n rows are checked against 2000 reference steps, and why not more."""
    rows = max(1, min(size.n, CHECKED // (size.d * size.c)))
    if rows == size.n:
        return rows, "all images"
    return (
        rows,
        f"{rows} of {size.n} images as a problem of their own: the float64 schedule needs n d c <= {CHECKED:.1g}",
    )


def make_call(name: str, size: Size, folder: Path | None = None) -> Call:
    """A call by its name in `CALLS`."""
    return CALLS[name](size, folder)


def _text(size: Size, _: Path | None) -> Call:
    data = inputs(size)
    base = KnowledgeBase.from_arrays(data.descriptions)

    def check() -> str:
        found = select_text_proxies(data.features, base).proxies
        wanted, _ = reference.text_proxies(data.features, data.descriptions)
        return _differs("text proxies", found, wanted, _CLOSE)

    return Call(lambda: select_text_proxies(data.features, base), check, "all images")


def _similarities(data: ClipLike) -> tuple[Any, Any]:
    T = select_text_proxies(data.features, KnowledgeBase.from_arrays(data.descriptions)).proxies
    return T, data.features @ T


def _labels(size: Size, _: Path | None) -> Call:
    S = _similarities(inputs(size))[1]

    def check() -> str:
        return _differs("labels", refine_labels(S, "stable_greenkhorn"), reference.greenkhorn_labels(S), _CLOSE)

    return Call(lambda: refine_labels(S, "stable_greenkhorn"), check, "all images")


def _proxies(solver: str) -> Callable[[Size, Path | None], Call]:
    def make(size: Size, _: Path | None) -> Call:
        data = inputs(size)
        T, S = _similarities(data)
        P = np.ascontiguousarray(refine_labels(S, "stable_greenkhorn"))
        rows, words = subset(size)

        def check() -> str:
            X = data.features[:rows]
            labels = np.ascontiguousarray(refine_labels(S[:rows], "stable_greenkhorn"))
            found = learn_proxies(X, T, labels, solver=solver)
            Z = X.astype(np.float64) @ reference.schedule(X, T, labels)[0]
            # Greenkhorn labels leave the columns of Z equal to O(1/n): its differences decide.
            wrong = _other_label(found.labels, Z, _FAR if solver == "auto" else 0.0)
            return _differs("logits", found.logits, Z, _CLOSE) if not wrong and solver != "auto" else wrong

        return Call(lambda: learn_proxies(data.features, T, P, solver=solver), check, words)

    return make


def _engine(size: Size, data: ClipLike) -> Engine:
    bases = [KnowledgeBase.from_arrays(data.descriptions, name=f"base-{i}") for i in range(size.b)]
    return Engine(FakeEncoder(size.d), bases, device="cpu")


def _batch(size: Size, _: Path | None) -> Call:
    data = inputs(size)
    engine = _engine(size, data)
    rows, words = subset(size)

    def check() -> str:
        X = data.features[:rows]
        wanted = batch_answers(X, data.descriptions, "kpl", MethodConfig())
        return _other_label(engine.classify(features=X).class_indices, np.log(wanted + 1e-300), _FAR)

    return Call(lambda: engine.classify(features=data.features), check, words)


def _frozen(size: Size, _: Path | None) -> Call:
    data = inputs(size)
    engine = _engine(size, data)
    # Fitted proxies of a run would cost more than what is measured; any unit columns cost an answer the same.
    T, _S = _similarities(data)
    kept = tuple(np.arange(min(8, size.m)) for _ in range(size.c))
    columns = np.ascontiguousarray(T - T.mean(axis=1, keepdims=True))
    proxies = FrozenProxies(T, columns, 0.04, T, 0.01, kept, "kpl", size.n)
    engine._answers.frozen["base-0"] = proxies

    def run() -> Any:
        return engine.classify(features=data.features, mode="frozen")

    def check() -> str:
        return _differs("probabilities", run().probabilities, frozen_answers(data.features, proxies), _PROBABILITY)

    return Call(run, check, "all images")


def _each(size: Size, _: Path | None) -> Call:
    data = inputs(size)
    engine = _engine(size, data)
    rows, words = subset(size)

    def check() -> str:
        X = data.features[:rows]
        wanted = np.log(batch_answers(X, data.descriptions, "kpl", MethodConfig()) + 1e-300)
        answers = engine.classify_each(features=X).values()
        return next((w for a in answers if (w := _other_label(a.class_indices, wanted, _FAR))), "")

    return Call(lambda: engine.classify_each(features=data.features), check, words)


def _load(size: Size, folder: Path | None) -> Call:
    path = _bundle(size, folder or Path(tempfile.mkdtemp(prefix="kpl-scaling-")))
    wanted = np.concatenate(inputs(size).descriptions)

    def run() -> list[KnowledgeBase]:
        with Bundle.open(path) as bundle:
            return [read_knowledge(bundle, f"base-{i}") for i in range(size.b)]

    def check() -> str:
        return next((w for base in run() if (w := _differs("embeddings", base.embeddings, wanted, 1e-6))), "")

    return Call(run, check, "every embedding")


def _bundle(size: Size, folder: Path) -> Path:
    """The demo bundle's manifest without its encoder's files kept whole, and ``b`` knowledge bases beside."""
    path = folder / f"bases-{size.b}-{os.getpid()}.kpl"
    data = inputs(size)
    with Bundle.open(demo_bundle()) as origin:
        manifest = thaw(origin.manifest)
        files: dict[str, Any] = dict.fromkeys(origin.names, origin)
        for i in range(size.b):
            base = KnowledgeBase.from_arrays(data.descriptions, name=f"base-{i}")
            file = f"knowledge/{base.name}.safetensors"
            files[file] = dump_tensors(*base.to_tensors())
            manifest["knowledge"][base.name] = {
                "file": file,
                "classes": list(base.classes),
                "num_descriptions": len(base.embeddings),
                "template": base.template,
                "text_fingerprint": base.text_fingerprint,
                "fingerprint": base.fingerprint,
            }
        write_bundle(path, manifest, files).close()
    return path


def _differs(what: str, found: Any, wanted: Any, allowed: float) -> str:
    if found.shape != wanted.shape:
        return f"{what}: expected shape {wanted.shape}, got {found.shape}"
    error = float(np.abs(found - wanted).max())
    return "" if error <= allowed else f"{what}: {error:.1e} from the float64 reference, {allowed:.0e} allowed"


def _other_label(found: Any, scores: Any, far: float) -> str:
    """Labels may differ where the reference's margin is within its own rounding, or ``far`` of the range of margins."""
    if scores.shape[1] < 2:
        return ""
    ordered = np.sort(scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    centred = scores - scores.mean(axis=1, keepdims=True)
    floor = max(1e-12, far * float(np.ptp(centred)))
    wrong = int(np.sum((found != scores.argmax(axis=1)) & (margins > floor)))
    return "" if wrong == 0 else f"{wrong} of {len(found)} labels differ from the float64 reference"


CALLS: dict[str, Callable[[Size, Path | None], Call]] = {
    "text proxies": _text,
    "labels": _labels,
    "schedule": _proxies("schedule"),
    "auto": _proxies("auto"),
    "classify batch": _batch,
    "classify frozen": _frozen,
    "classify each": _each,
    "load": _load,
}
WORK: dict[str, Callable[..., counts.Work]] = {
    "text proxies": counts.text,
    "labels": counts.labels,
    "schedule": counts.schedule,
    "auto": counts.auto,
    "classify batch": counts.batch,
    "classify frozen": counts.frozen,
    "classify each": counts.each,
    "load": counts.load,
}
