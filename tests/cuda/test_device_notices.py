"""What a GPU says of a run, word for word what the CPU says: why no closed form, and what too few images are."""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine import learn_proxies
from kpl_engine.config import MethodConfig
from kpl_engine.solver.device import DeviceSolver
from kpl_engine.solver.devices import using_device
from kpl_engine.solver.select import solve


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def device(context):
    return DeviceSolver(context)


@pytest.mark.parametrize(("mass", "lr"), [(0.5, 10.0), (1e-3, 0.05)])
def test_the_figure_of_a_refusal_outlives_the_schedule(device, mass, lr):
    """Labels too heavy, or steps too short, for the closed form: the record keeps by how much."""
    random = np.random.default_rng(24)
    X, T = unit(1.0 + random.normal(size=(24, 16))), unit(random.normal(size=(3, 16))).T
    P = mass * random.dirichlet(np.ones(3), size=24)
    with using_device(device):
        found = learn_proxies(X, T, P, lr, iters=5, device="cuda")
    expected = learn_proxies(X, T, P, lr, iters=5)
    assert found.warnings[0].code == "schedule_used"
    assert found.warnings[0].message == expected.warnings[0].message


@pytest.mark.parametrize("options", [{"lr": 1e300}, {"solver": "schedule_split"}])
def test_too_few_images_are_answered_whatever_the_learning_would_refuse(device, options):
    random = np.random.default_rng(3)
    X, texts = unit(random.normal(size=(5, 8))), [unit(random.normal(size=(2, 8))) for _ in range(3)]
    config = MethodConfig(**options)
    with using_device(device):
        found = solve(X, texts, "kpl", config, device="cuda")
    expected = solve(X, texts, "kpl", config)
    assert [notice.code for notice in found.warnings] == [notice.code for notice in expected.warnings]
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_labels_that_tell_no_classes_apart_have_a_closed_form(device):
    """Class differences that are rounding point anywhere, along the mean image too, where none belong."""
    random = np.random.default_rng(7)
    for n, d, c in [(40, 16, 7), (9, 33, 5), (64, 8, 7), (32, 65, 2)]:
        X, T = unit(1.0 + random.normal(size=(n, d))), unit(random.normal(size=(c, d))).T
        P = np.full((n, c), 1 / (n * c)) * (1 + 1e-16 * random.normal(size=(n, c)))
        with using_device(device):
            found = learn_proxies(X, T, P, solver="closed_form", device="cuda")
        np.testing.assert_allclose(found.proxies, learn_proxies(X, T, P, solver="closed_form").proxies, atol=2e-7)
