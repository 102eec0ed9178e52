"""What is learned before LoadGen begins, from targets whose time is known."""

import numpy as np
import pytest

from kpl_engine.bench import warmup
from kpl_engine.bench.warmup import ask, closed_loop_rate, offline_rate, warm_up
from kpl_engine.errors import ServiceError
from tests.bench.targets import CountingTarget, TimedTarget

rng = np.random.default_rng()


@pytest.fixture
def slow():
    target = TimedTarget(service_s=0.004)
    yield target
    target.close()


def test_a_call_takes_what_the_target_takes(slow):
    assert 4.0 <= ask(slow, [0, 1, 2]) < 60_000.0  # milliseconds, and not another unit
    assert slow.sizes == [3]


def test_warming_up_ends_by_count_and_by_time(slow, monkeypatch):
    monkeypatch.setattr(warmup, "_LEAST_S", 0.02)
    spent = warm_up(slow, 9, 8, rng)
    assert len(spent) >= 10
    assert set(slow.sizes) == {8}
    assert min(spent) >= 4.0
    monkeypatch.setattr(warmup, "_MOST_S", 0.01)
    assert len(warm_up(slow, 9, 1, rng)) <= 3


def test_a_call_without_an_answer_is_an_error():
    refusing = CountingTarget(code_of=lambda _: "503")
    with pytest.raises(ServiceError, match=r"expected an answer .* got 503"):
        ask(refusing, [0])
    refusing.close()


def test_a_closed_loop_finds_the_capacity(slow, monkeypatch):
    """One at a time, 4 ms each: 250 a second at most, whatever the number of clients."""
    monkeypatch.setattr(warmup, "_LOOP_S", 0.3)
    for clients in (1, 16):
        assert 1 < closed_loop_rate(slow, 9, clients, rng) <= 251  # the clock's own error


def test_a_closed_loop_that_is_refused_says_so(monkeypatch):
    monkeypatch.setattr(warmup, "_LOOP_S", 0.1)
    target = TimedTarget(code_of=lambda _: "429")
    with pytest.raises(ServiceError, match=r"closed loop of 4 clients got \{'429': 4\}"):
        closed_loop_rate(target, 9, 4, rng)
    target.close()


def test_pictures_that_are_all_there_at_once_go_in_whole_calls(slow):
    rate = offline_rate(slow, 9, 10.0, rng)  # 100 pictures take a second one by one
    assert slow.sizes == [8] * 12 + [4] + [8] * 12 + [4]
    assert 1 < rate <= 100 / (13 * 0.004)


def test_parts_that_fail_are_an_error(slow):
    slow.most = 3
    with pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED"):
        offline_rate(slow, 9, 10.0, rng)
