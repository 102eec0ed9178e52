"""Stages of a server's replies: what it tells, and what is left to the way there and back."""

import json

import numpy as np
import pytest

from kpl_engine.bench import served_stages
from kpl_engine.bench.served_stages import split_requests
from kpl_engine.errors import ServiceError


class Server:
    """Takes 10 ms, 7 ms of them by its own clock, 6 of these in its stages; the first ten requests take 100 ms."""

    def __init__(self, monkeypatch, **told):
        self.now, self.asked = 0.0, []
        self.told = {"decode": 1.5, "queue": 0.5, "encode": 3.0, "solve": 1.0, "total": 7.0, **told}
        monkeypatch.setattr(served_stages, "perf_counter", lambda: self.now)

    def ask(self, indices, outputs):
        self.asked.append(list(indices))
        self.now += 0.010 if len(self.asked) > 10 else 0.100
        return {}, {"timings_ms": json.dumps({name: value for name, value in self.told.items() if value is not None})}


def test_stages_are_the_servers_and_the_rest_is_the_reply(monkeypatch):
    server = Server(monkeypatch)
    found = split_requests(server.ask, 3, 0.5)
    means = {name: each["mean"]["value"] for name, each in found["stages"].items()}
    assert means == pytest.approx({"decode": 1.5, "queue": 0.5, "encode": 3.0, "solve": 1.0, "reply": 3.0})
    assert found["order"] == ["decode", "queue", "encode", "solve", "reply"]
    assert found["total"]["mean"]["value"] == pytest.approx(10.0)  # those that warmed up are in none of them
    assert found["unexplained_share"] == pytest.approx(0.1)  # 1 ms of the server's 7
    assert found["total"]["count"] == pytest.approx(50, abs=1)  # 0.5 s of 10 ms
    assert server.asked[10:14] == [[0], [1], [2], [0]]


def test_a_stage_that_did_not_run_is_absent(monkeypatch):
    found = split_requests(Server(monkeypatch, decode=0.0).ask, 3, 0.0)
    assert found["order"] == list(found["stages"]) == ["queue", "encode", "solve", "reply"]


def test_at_least_twenty_requests_are_measured(monkeypatch):
    server = Server(monkeypatch)
    assert split_requests(server.ask, 3, 0.0)["total"]["count"] == 20
    assert len(server.asked) == 30


@pytest.mark.parametrize("name", ["encode", "total"])
def test_a_reply_without_times_is_an_error(monkeypatch, name):
    server = Server(monkeypatch, **{name: None})
    with pytest.raises(ServiceError, match="expected times decode, queue, encode, solve and total"):
        split_requests(server.ask, 3, 0.0)
    with pytest.raises(ServiceError, match="got None"):
        split_requests(lambda indices, outputs: (np.zeros(1), {}), 3, 0.0)
