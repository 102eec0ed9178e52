"""`SolverConfig` reaches every call of the solver."""

import numpy as np
import pytest

from kpl_engine import answers
from kpl_engine.config import EngineConfig, SolverConfig
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError


@pytest.mark.parametrize(("num_threads", "expected"), [(0, None), (1, 1), (3, 3)])
def test_solver_threads_reach_the_solver(encoder, make_knowledge, images, monkeypatch, num_threads, expected):
    seen = []

    def solve_on(*arguments):
        seen.append(arguments[2])
        return solver(*arguments)

    solver = answers.solve_on
    monkeypatch.setattr(answers, "solve_on", solve_on)
    chest = Engine(encoder, [make_knowledge()], config=EngineConfig(solver=SolverConfig(num_threads)))
    result = chest.classify(images, method="inmap")
    chest.fit(images, method="inmap")
    assert seen == [expected, expected]
    np.testing.assert_array_equal(
        result.labels, Engine(encoder, [make_knowledge()]).classify(images, method="inmap").labels
    )


@pytest.mark.parametrize("num_threads", [-1, 1.5, True, 5000])
def test_impossible_numbers_of_threads_are_refused(num_threads):
    with pytest.raises(ConfigError, match="num_threads"):
        SolverConfig(num_threads)
    with pytest.raises(ConfigError, match="solver"):
        EngineConfig(solver=num_threads)
