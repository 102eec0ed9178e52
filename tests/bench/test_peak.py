"""The search for the peak over capacities that are known."""

import json
import random

import pytest

from kpl_engine.bench.channel import Job
from kpl_engine.bench.child import Child
from kpl_engine.bench.peak import find_peak, search
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.data import demo_bundle
from kpl_engine.errors import ServiceError


@pytest.mark.parametrize("first", [3.0, 70.0, 99.0, 101.0, 900.0])
def test_the_peak_is_found_to_five_percent(first):
    capacity = random.Random().uniform(80.0, 120.0)
    tried = []

    def probe(rate):
        tried.append(rate)
        return rate <= capacity

    found = search(probe, first)
    assert capacity / 1.05 <= found <= capacity
    assert found in tried
    bisections = 3  # log(1.4) / log(1.05) = 6.9, halved thrice
    assert len(tried) <= (3 if first >= 70.0 and first <= 120.0 else 12) + bisections


def test_no_rate_keeps_the_bound():
    assert search(lambda _: False, 50.0) is None


def test_a_rate_that_always_keeps_the_bound_ends():
    tried = []
    assert search(lambda rate: not tried.append(rate), 1.0) == tried[-1]
    assert len(tried) == 12


CHILD = """
import json, sys
job = json.loads(sys.stdin.readline())
def say(**fields):
    print(json.dumps(fields), flush=True)
say(kind="progress", what="peak: loading", share=0.0)
say(kind="capacity", qps=100.0, alone_ms={alone_ms})
for line in sys.stdin:
    rate = float(line)
    if {fails_after} is not None and rate > {fails_after}:
        {failure}
    say(kind="alive")
    say(kind="probe", record={{"target_qps": rate, "keeps_bound": rate <= {peak}}})
"""


def starting(fails_after=None, failure="", alone_ms=1.0, peak=90.0):
    program = CHILD.format(fails_after=fails_after, failure=failure or "pass", alone_ms=alone_ms, peak=peak)
    return lambda job: Child(job, ("-c", program))


def test_probes_are_handed_out_as_they_come():
    seen, told = [], []
    best, probes = find_peak(
        BenchSettings(demo_bundle()), seen.append, lambda what, share: told.append((what, share)), start=starting()
    )
    assert 90 / 1.05 <= best <= 90
    assert seen == probes
    assert probes[0]["target_qps"] == pytest.approx(70.0)
    assert max(probe["target_qps"] for probe in probes if probe["keeps_bound"]) == best
    assert told == [("peak: loading", 0.0)]


def test_a_query_that_is_too_slow_alone_is_tried_at_one_rate():
    """Twelve rates of up to a minute each would say what the first one says."""
    settings = BenchSettings(demo_bundle(), latency_bound_ms=15.0)
    best, probes = find_peak(settings, lambda _: None, start=starting(alone_ms=15.1, peak=0.0))
    assert best is None
    assert len(probes) == 1
    _, probes = find_peak(settings, lambda _: None, start=starting(alone_ms=14.9, peak=0.0))
    assert len(probes) == 12


@pytest.mark.parametrize(
    ("failure", "match"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ('say(kind="end", error="the answers are wrong")', "answers are wrong"),
    ],
)
def test_a_search_that_is_lost_keeps_its_probes(failure, match):
    seen = []
    with pytest.raises(ServiceError, match=match):
        find_peak(BenchSettings(demo_bundle()), seen.append, start=starting(80.0, failure))
    assert [round(probe["target_qps"]) for probe in seen] == [70]


def test_a_job_crosses_the_pipe_whole(tmp_path):
    rng = random.Random()
    settings = BenchSettings(
        demo_bundle(),
        url="http://a:1",
        token_file=tmp_path / "t",
        scenarios=("Server", "Offline"),
        duration_s=rng.uniform(1, 9),
        images=(tmp_path / "a", tmp_path / "b"),
        parts=(),
        batch_sizes=(3,),
        seed=rng.randrange(2**63),
    )
    for job in (Job(settings, "Server", tmp_path), Job(BenchSettings(demo_bundle()), None, tmp_path)):
        line = job.to_json()
        assert "\n" not in line
        assert json.loads(line)["scenario"] == job.scenario
        assert Job.from_json(line) == job
