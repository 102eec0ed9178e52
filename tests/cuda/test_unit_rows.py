"""Rows to unit length on the device, against `check_unit`, the encoder's own check on the host."""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.encoder.base import MAX_NORM_ERROR, check_unit
from kpl_engine.errors import ShapeError


def make_rows(n, d, seed):
    """Rows whose lengths differ from 1 by less than what reduced precision makes."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    lengths = rng.uniform(1 - 0.9 * MAX_NORM_ERROR, 1 + 0.9 * MAX_NORM_ERROR, (n, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) * lengths).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 31), (7, 64), (8, 130), (33, 768), (138, 512)])
def test_rows_equal_those_of_the_host(seeded_context, n, d):
    rows = make_rows(n, d, seed=n)
    unit = UnitRows(seeded_context, MAX_NORM_ERROR)
    array = seeded_context.upload(rows)
    unit.scale(array)
    got = seeded_context.download(array)
    # The sums of squares differ in their order: an ulp of float64, which can move a rounding to float32 by one ulp.
    np.testing.assert_allclose(got, check_unit(rows, "rows"), rtol=1.3e-7, atol=0)
    assert unit.take()[0] == 0


@pytest.mark.parametrize("bad", [0.0, 1.02, 0.98, np.nan, np.inf, -np.inf, 1e30])
def test_rows_that_are_no_unit_vectors_are_counted_and_left(checked_context, bad):
    rows = make_rows(37, 33, seed=5)
    rows[[4, 19, 36]] *= np.float32(bad)
    unit = UnitRows(checked_context, MAX_NORM_ERROR)
    array = checked_context.upload(rows)
    unit.scale(array)
    got = checked_context.download(array)
    np.testing.assert_array_equal(got[[4, 19, 36]], rows[[4, 19, 36]])
    others = np.setdiff1d(np.arange(37), [4, 19, 36])
    np.testing.assert_allclose(got[others], check_unit(rows[others], "rows"), rtol=1.3e-7, atol=0)
    assert unit.take() == (3, 4)


def test_counts_add_up_until_they_are_taken(context):
    unit = UnitRows(context, MAX_NORM_ERROR)
    assert unit.take() == (0, 0)
    for rows in (make_rows(4, 5, seed=1), np.zeros((9, 5), np.float32), np.full((2, 5), 3, np.float32)):
        unit.scale(context.upload(rows))
    assert unit.take() == (11, 4)
    assert unit.take()[0] == 0
    unit.scale(context.upload(np.concatenate([make_rows(6, 5, seed=2), np.zeros((1, 5), np.float32)])))
    assert unit.take() == (1, 6)


def test_no_rows_and_wrong_rows(context):
    unit = UnitRows(context, MAX_NORM_ERROR)
    unit.scale(context.empty((0, 4), np.float32))
    for shape, dtype in (((3, 4), np.float64), ((3,), np.float32), ((3, 0), np.float32)):
        with pytest.raises(ShapeError, match=r"expected \(n, d\) of float32"):
            unit.scale(context.empty(shape, dtype))


def test_nothing_waits_until_it_is_asked(context):
    """A launch may be captured, so that encoder and solver can stand in one graph."""
    unit = UnitRows(context, MAX_NORM_ERROR)
    array = context.upload(make_rows(5, 8, seed=3))
    unit.scale(array)
    unit.take()
    rows = make_rows(5, 8, seed=4)
    rows[2] = 0
    graph = context.driver.capture(context.stream, lambda: unit.scale(array))
    context.write(array, rows)
    graph.launch(context.stream)
    assert unit.take() == (1, 2)
