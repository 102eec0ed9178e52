"""The cost model: the form and the threads it picks."""

import pytest

from kpl_engine.solver import cost


@pytest.mark.parametrize("plan", ["core", "numpy"])
def test_the_smaller_matrix_is_picked_where_the_difference_is_large(plan):
    assert cost.choose_form(plan, 138, 768, 2, 2000) == "dual"
    assert cost.choose_form(plan, 64, 512, 10, 2000) == "dual"
    assert cost.choose_form(plan, 27_558, 768, 2, 2000) == "primal"
    assert cost.choose_form(plan, 4000, 512, 37, 2000) == "primal"
    assert cost.choose_form(plan, 3000, 768, 2, 1) == "primal"  # one step does not pay for K


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("plan", ["core", "numpy"])
def test_predicted_time_grows_with_every_size(plan, form):
    small = cost.step_seconds(plan, form, 500, 512, 10)
    assert small > 0
    for size in ((1000, 512, 10), (500, 512, 30)):
        assert cost.step_seconds(plan, form, *size) > small


def test_threads_come_with_the_work():
    assert cost.choose_threads("dual", 32, 768, 2, 64) == 1
    assert cost.choose_threads("dual", 1000, 512, 37, 2) == 2
    assert cost.choose_threads("primal", 27_558, 768, 2, 64) > 8
    assert cost.choose_threads("primal", 27_558, 768, 2, 1) == 1
