"""The search for the peak from end to end."""

import pytest

from kpl_engine.bench.peak import find_peak
from kpl_engine.errors import ServiceError
from tests.bench.made import fitted_bundle
from tests.bench.workers import WRONG_ANSWERS, hurried, settings_for

pytest.importorskip("mlperf_loadgen", reason="needs the extra bench")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("bench") / "lung.kpl")


def test_the_peak_of_the_demo(bundle):
    seen = []
    settings = settings_for(bundle, latency_bound_ms=500.0, duration_s=0.1)
    best, probes = find_peak(settings, seen.append, start=hurried("worker._MOST_PROBE_S = 0.2"))
    assert probes == seen
    assert len({probe["target_qps"] for probe in probes}) == len(probes) > 1
    assert best == max(probe["target_qps"] for probe in probes if probe["keeps_bound"])
    for probe in probes:
        assert 0 < probe["p50_ms"] <= probe["p90_ms"] <= probe["p99_ms"]


def test_a_wrong_answer_after_a_rate_ends_the_search(bundle):
    seen = []
    prelude = WRONG_ANSWERS.replace("EngineTarget", "ServiceTarget").format(right_calls=1)
    with pytest.raises(ServiceError, match=r"after .* queries/s an answer differs from the float64 reference"):
        find_peak(settings_for(bundle, duration_s=0.1), seen.append, start=hurried(prelude))
    assert seen == []
