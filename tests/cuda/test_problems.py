"""The table of problems: its mirror of the C++ struct, sizes, binding, priors, results in one copy, capture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.cuda.ops.answer import launch_answer
from kpl_engine.cuda.ops.labels import launch_labels
from kpl_engine.cuda.ops.text_proxy import launch_text_proxy
from kpl_engine.cuda.problems import NUM_COUNTERS, PROBLEM, RECORD, Capacity, ProblemTable
from kpl_engine.errors import ConfigError, ShapeError

from .tables import make_case, open_table, results

HEADER = Path(__file__).parents[2] / "kernels" / "device" / "problem.cuh"


def fields_of(struct):
    """[(type, name)] of a struct of the header, in order."""
    code = re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))
    body = re.search(rf"struct {struct} \{{(.*?)\}};", code, re.DOTALL)[1]
    found = []
    for declaration in body.split(";")[:-1]:
        first, *others = declaration.split(",")
        kind, name = re.fullmatch(r"\s*(.*?[\s*])(\w+)\s*", first, re.DOTALL).groups()
        found += [(kind.strip(), word.strip()) for word in (name, *others)]
    return found


@pytest.mark.parametrize(("struct", "mirror"), [("Problem", PROBLEM), ("Record", RECORD)])
def test_the_mirror_has_the_fields_of_the_header(struct, mirror):
    expected = []
    for kind, name in fields_of(struct):
        expected.append((name, "<u8" if kind.endswith("*") else {"long long": "<i8", "double": "<f8"}[kind]))
    assert [(name, mirror[name].str) for name in mirror.names] == expected
    assert mirror.itemsize == 8 * len(expected)


def test_counters_are_as_far_apart_as_the_header_says(context):
    assert f"kCounters = {NUM_COUNTERS};" in HEADER.read_text(encoding="utf-8")
    table = ProblemTable(context, Capacity(3, 4, 2), num_problems=3)
    records = [table.view("record", problem).address for problem in range(3)]
    assert records[0] < table.counters("labels").address - 4 < table.counters("answer").address
    assert len(set(records)) == 3


def solve(context, table):
    table.clear()
    launch_text_proxy(context, table)
    launch_labels(context, table)
    context.driver.copy_on(table.view("W").address, table.view("P").address, 8, context.stream)
    launch_answer(context, table, 0.04)
    table.copy_back()


def test_one_captured_graph_serves_every_size_up_to_its_capacity(context):
    """Sizes and features change between launches of one graph; answers are those of a table made for them."""
    if not context.driver.features.has_graphs:
        pytest.skip("this driver has no graphs")
    largest = make_case(64, 33, 3, counts=[9, 4, 5])
    table = open_table(context, [largest])
    table.write("W", np.random.default_rng(0).normal(size=(3, 33)))
    table.pinned()
    solve(context, table)  # kernels are loaded before the capture
    graph = context.driver.capture(context.stream, lambda: solve(context, table))
    for n in (64, 1, 17):
        case = make_case(n, 33, 3, seed=n, counts=[9, 4, 5])
        table.set_sizes(n=n)
        for name, array in (("X", case.X), ("E", case.E), ("first", case.first)):
            table.write(name, array)
        graph.launch(context.stream)
        found = table.results()[0]
        alone = open_table(context, [case])
        alone.write("W", context.download(table.view("W")))
        solve(context, alone)
        expected = alone.results()[0]
        assert found.out_labels.shape == (n,)
        for name in ("T", "S", "kept", "out_scores", "out_probabilities", "out_labels"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.record == expected.record


def test_problems_share_arrays_of_the_caller(context):
    """One knowledge base and one block of features for three problems."""
    case = make_case(12, 20, 3)
    table = open_table(context, [case] * 3, external=("E", "first"))
    embeddings, first = context.upload(case.E), context.upload(case.first)
    table.bind("E", embeddings)
    table.bind("first", first)
    features = context.upload(np.concatenate([case.X, case.X[::-1]]))
    table.bind("X", features, problem=1)
    launch_text_proxy(context, table)
    found = results(table)
    np.testing.assert_array_equal(found[0].T, found[2].T)
    np.testing.assert_array_equal(found[0].T, found[1].T)
    assert table.view("E", 2).address == embeddings.address
    assert table.view("X", 1).address == features.address


def test_priors_are_set_and_taken_back(context):
    case = make_case(30, 20, 3)
    table = open_table(context, [case, case])
    for problem in range(2):
        table.write("T", np.ascontiguousarray(case.E[:3]), problem)
    shares = np.array([0.6, 0.3, 0.1])

    def labels():
        launch_labels(context, table, "stream", alpha=None)
        return [context.download(table.view("P", problem)) for problem in range(2)]

    uniform = labels()
    table.set_prior(shares, problem=1)
    mixed = labels()
    np.testing.assert_array_equal(mixed[0], uniform[0])
    np.testing.assert_allclose(mixed[1].sum(axis=0), shares, rtol=1e-12)
    table.set_prior(shares)
    np.testing.assert_array_equal(labels()[0], mixed[1])
    table.set_prior(None)
    np.testing.assert_array_equal(labels()[1], uniform[1])


def test_clear_zeroes_every_record(context):
    table = open_table(context, [make_case(5, 4, 2)] * 2)
    launch_text_proxy(context, table)
    launch_labels(context, table)
    assert all(result.record["mass"] > 0 for result in results(table))
    table.clear()
    assert all(not any(result.record.values()) for result in results(table))


def test_teams_of_another_size_need_no_clearing_between(open_context):
    """A barrier counts on from where other teams have left its counter, and would wait for blocks that do not come."""
    context = open_context(num_multiprocessors=16)
    cases = [make_case(n, 260, 3, counts=[400, 20, 30]) for n in (1500, 900, 700)]
    table = open_table(context, cases[:1])
    for case in cases:
        table.set_sizes(n=len(case.X))
        table.write("X", case.X)
        launch_text_proxy(context, table)
        launch_labels(context, table)
        alone = open_table(open_context(num_multiprocessors=16), [case])
        alone.write("E", cases[0].E)
        launch_text_proxy(alone.context, alone)
        np.testing.assert_array_equal(results(table)[0].T, results(alone)[0].T)


def test_results_are_arrays_of_their_own(context):
    table = open_table(context, [make_case(5, 4, 2)])
    launch_text_proxy(context, table)
    found = results(table)[0]
    before = found.T.copy()
    table.pinned()[:] = 255
    np.testing.assert_array_equal(found.T, before)
    assert found.kept.shape == (2, 4)
    assert found.S.shape == (5, 2)


@pytest.mark.parametrize("sizes", [{"n": 6}, {"n": 0}, {"c": 3}, {"M": 8}, {"k": [1, 5]}, {"n": [1, 2, 3]}], ids=str)
def test_sizes_beyond_the_capacity_are_refused(context, sizes):
    table = ProblemTable(context, Capacity(n=5, d=4, c=2, M=7, k=3), num_problems=2)
    with pytest.raises(ShapeError, match="capacity"):
        table.set_sizes(**sizes)
    assert table.sizes["n"].tolist() == [5, 5]


def test_what_cannot_be_meant_is_refused(context):
    table = ProblemTable(context, Capacity(n=5, d=4, c=2))
    with pytest.raises(ConfigError, match="set_sizes"):
        table.set_sizes(d=3)
    with pytest.raises(ConfigError, match="bind"):
        table.bind("n", table.device)
    with pytest.raises(ConfigError, match="external"):
        ProblemTable(context, Capacity(5, 4, 2), external=("T",))
    with pytest.raises(ConfigError, match="counts"):
        ProblemTable(context, Capacity(5, 0, 2))
    with pytest.raises(ShapeError, match="copy to the device"):
        table.write("X", np.zeros((5, 3), np.float32))
