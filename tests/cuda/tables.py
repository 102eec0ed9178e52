"""Random problems after the encoder, and tables that hold them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kpl_engine.cuda.ops.answer import answer_workspace
from kpl_engine.cuda.ops.labels import labels_workspace
from kpl_engine.cuda.ops.text_proxy import text_proxy_workspace
from kpl_engine.cuda.problems import Capacity, ProblemTable


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """X (n, d) float32, one block (m_j, d) float32 of descriptions a class, k kept of each."""

    X: np.ndarray
    blocks: list
    k: int

    @property
    def E(self):
        return np.concatenate(self.blocks)

    @property
    def first(self):
        return np.cumsum([0, *map(len, self.blocks)]).astype(np.int32)

    @property
    def sizes(self):
        return Capacity(*self.X.shape, len(self.blocks), len(self.E), self.k)


def make_case(n, d, c, k=4, seed=0, counts=None):
    """Images of c kinds around a common direction, 1 to 9 descriptions a class."""
    random = np.random.default_rng([n, d, c, seed])
    base, kinds = random.normal(size=d), random.normal(size=(c, d))
    X = unit(2 * base + kinds[random.integers(c, size=n)] + 0.5 * random.normal(size=(n, d)))
    counts = random.integers(1, 10, size=c) if counts is None else counts
    blocks = [unit(base + kinds[j] + random.normal(size=(m, d))) for j, m in enumerate(counts)]
    return Case(X, blocks, k)


def open_table(context, cases, capacity=None, **options):
    """A table of these cases, X, E and first written, at the largest sizes unless told otherwise."""
    sizes = [case.sizes for case in cases]
    if capacity is None:
        capacity = Capacity(*(max(getattr(size, name) for size in sizes) for name in "ndcMk"))
    n, d, c = capacity.n, capacity.d, capacity.c
    work = max(text_proxy_workspace(n, d, c, capacity.M), labels_workspace(n, d, c), answer_workspace(n, d, c))
    table = ProblemTable(context, capacity, len(cases), work, **options)
    table.set_sizes(**{name: [getattr(size, name) for size in sizes] for name in "ncMk"})
    for problem, case in enumerate(cases):
        table.write("X", case.X, problem)
        if "E" not in options.get("external", ()):
            table.write("E", case.E, problem)
            table.write("first", case.first, problem)
    return table


def results(table):
    table.copy_back()
    return table.results()


def with_rows(case, **rows):
    """The case with some rows of X replaced, e.g. ``zero=[3]``, ``same=[1, 2, 5]``."""
    X = case.X.copy()
    X[rows.get("zero", [])] = 0
    same = rows.get("same", [])
    X[same] = X[same[:1]]
    return replace(case, X=X)
