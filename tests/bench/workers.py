"""Scenarios' processes that are in a hurry."""

from kpl_engine.bench.child import Child
from kpl_engine.bench.scenarios import run_scenarios
from kpl_engine.bench.settings import SCENARIOS, BenchSettings

# The calls before the run take a second and two: here less.
HURRY = """
from kpl_engine.bench import warmup, worker
warmup._LEAST_S, warmup._LOOP_S = 0.05, 0.2
worker._LEAST_QUERIES = 30
"""
WRONG_ANSWERS = """
from kpl_engine.bench.inprocess import EngineTarget
right, calls = EngineTarget.answer_of, []
def answer_of(self, indices):
    calls.append(1)
    return right(self, indices) + (0.01 if len(calls) > {right_calls} else 0.0)
EngineTarget.answer_of = answer_of
"""


def settings_for(bundle, *names, **options):
    given = {"device": "cpu", "duration_s": 0.3, "num_samples": 11, "check_samples": 5, **options}
    return BenchSettings(bundle, scenarios=names or SCENARIOS, **given)


def hurried(prelude=""):
    return lambda job: Child(job, ("-c", f"{HURRY}{prelude}\nworker.main()"))


def run(settings, prelude="", progress=None):
    return run_scenarios(settings, lambda _: None, progress, start=hurried(prelude))
