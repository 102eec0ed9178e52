"""What changed between two runs: real changes found, none where there is none, and no comparison of what is none."""

import copy
import json
import math
from functools import cache

import numpy as np
import pytest

from kpl_engine.bench.blocks import DRAWS
from kpl_engine.bench.compare import _holm, compare, comparison_record, notes
from kpl_engine.bench.intervals import distribution
from kpl_engine.bench.quantities import pairs
from kpl_engine.cli.common import to_json
from kpl_engine.errors import InputError
from tests.bench.made_results import lasting, make_result


@pytest.fixture(scope="module")
def made():
    return make_result(1)


@pytest.fixture
def result(made):
    return copy.deepcopy(made)


@cache
def bare():
    result = make_result(0, count=20)
    for key in ("scenarios", "probes", "peak_qps", "batches", "stages", "cold_start"):
        del result[key]
    return result


def stream(seed, scale=1.0, count=1200, rho=0.5, spread=0.2):
    """One SingleStream of latencies that last, and nothing else."""
    result = copy.deepcopy(bare())
    latency = distribution(scale * lasting(np.random.default_rng((3, seed)), count, rho, spread))
    result["scenarios"] = [{"scenario": "SingleStream", "latency": latency}]
    return result


def row(found, what):
    return next(each for each in found.rows if each.what == what)


def resampled(latency, seed):
    """The same run once more: its own latencies in runs of 50, drawn anew."""
    rng = np.random.default_rng((5, seed))
    samples = np.array(latency["samples"])
    starts = rng.integers(0, len(samples) - 50, size=len(samples) // 50)
    return distribution(np.concatenate([samples[start : start + 50] for start in starts]))


def test_a_run_and_itself_resampled_seldom_alarm():
    """Holm holds the chance of any alarm in a table at 5 %: of 100 tables, P(Bin(100, 0.05) > 12) is 0.0015."""
    alarms = told = 0
    base = stream(0, count=2000)
    for seed in range(100):
        again = copy.deepcopy(base)
        again["scenarios"][0]["latency"] = resampled(base["scenarios"][0]["latency"], seed)
        rows = compare(base, again).rows
        alarms += any(each.verdict in ("faster", "slower") for each in rows)
        told += sum(each.p is not None for each in rows)
    assert told >= 400  # mean, p50, p90 and p99 always, p99.9 where it is bounded
    assert alarms <= 12


def test_two_runs_of_one_law_seldom_alarm():
    """As above for fresh data of a law: 60 tables, P(Bin(60, 0.05) > 9) is 0.001."""
    alarms = 0
    for seed in range(60):
        rows = compare(stream(2 * seed), stream(2 * seed + 1)).rows
        alarms += any(each.verdict in ("faster", "slower") for each in rows)
    assert alarms <= 9


def test_a_change_of_10_percent_is_found():
    """With 2,500 latencies of spread 0.2 and a correlation of 0.5 the mean is known to 0.7 %: 10 % are ten of those."""
    for scale, verdict in ((1.1, "slower"), (1 / 1.1, "faster")):
        for seed in range(8):
            found = compare(stream(seed, count=2500), stream(seed + 50, scale, count=2500))
            for what in ("SingleStream mean", "SingleStream p50"):
                each = row(found, what)
                assert each.verdict == verdict, what
                assert abs(math.log(each.ratio / scale)) < 0.05  # five of 0.7 % * sqrt(2)
                assert each.low < each.ratio < each.high


def test_every_part_of_a_result_is_compared(result):
    found = compare(result, make_result(2, scale=1.3))
    slower = {each.what for each in found.rows if each.verdict == "slower"}
    assert {
        *("SingleStream p50", "MultiStream p90", "Server mean", "Offline rate", "batch of 1", "batch of 8"),
        *("one picture p50", "stage decode p50", "stage text proxies p50"),
    } <= slower
    assert not any(each.verdict == "faster" for each in found.rows)
    assert row(found, "Offline rate").ratio < 1.0  # of a rate, less is slower
    assert row(found, "Offline rate").unit == "samples/s"
    unknown = {each.what: each.why for each in found.rows if each.verdict == "cannot tell"}
    assert unknown["cold start"] == "too few independent values for an interval; measure for longer"
    assert unknown["peak within the bound"] == "one search a run: its noise is not known"
    assert "Offline p50" not in {each.what for each in found.rows}  # a place in a queue is no latency


def test_an_effect_below_2_percent_is_no_change_however_sure():
    before = stream(0, count=4000, spread=0.01)
    small, large = (
        compare(before, stream(1, 1.015, 4000, spread=0.01)),
        compare(before, stream(1, 1.03, 4000, 0.5, 0.01)),
    )
    assert row(small, "SingleStream p50").p < 0.05
    assert row(small, "SingleStream p50").verdict == "same within noise"
    assert row(small, "SingleStream p50").why == "less than 2 % is not called a change"
    assert row(large, "SingleStream p50").verdict == "slower"


def test_noise_that_could_hide_10_percent_is_no_sameness():
    wide = compare(stream(0, count=150), stream(1, count=150))
    assert row(wide, "SingleStream p90").verdict == "cannot tell"
    assert "could hide" in row(wide, "SingleStream p90").why
    narrow = compare(stream(0, count=4000), stream(1, count=4000))
    assert row(narrow, "SingleStream p50").verdict == "same within noise"


def test_holm_is_that_of_the_textbook():
    """Four values: times 4, 3, 2, 1 in their order, never falling."""
    assert _holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-12)
    assert _holm([]) == []
    assert _holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_smallest_p_value_passes_holm_over_a_full_table(result):
    """Every quantity that a result can have, three times as slow: Holm must not hide what every draw says."""
    found = compare(result, make_result(2, scale=3.0))
    tested = [each for each in found.rows if each.p is not None]
    assert len(tested) * 2 / (DRAWS + 1) < 0.05
    bounded = [each for each in tested if "p99.9" not in each.what]  # 1,500 latencies do not bound p99.9 from above
    assert len(bounded) >= 25
    assert all(each.verdict == "slower" for each in bounded)


def test_samples_that_were_thinned_give_the_value_of_all():
    rng = np.random.default_rng(9)
    values = lasting(rng, 30_000, 0.5)
    before = stream(0)
    before["scenarios"][0]["latency"] = distribution(values)
    after = copy.deepcopy(before)
    after["scenarios"][0]["latency"] = distribution(1.1 * values)
    assert before["scenarios"][0]["latency"]["every"] == 2
    each = row(compare(before, after), "SingleStream p99")
    assert each.ratio == pytest.approx(1.1, rel=1e-6)  # samples are kept to nanoseconds
    pair = next(pair for pair in pairs(before, after) if pair.what == "SingleStream p99")
    assert np.median(pair.draws[0]) == pytest.approx(pair.before, rel=0.02)  # a rank of some hundred near p99


def test_rates_of_server_that_differ_are_no_comparison_of_latencies(result):
    other = make_result(2, scale=1.5)
    other["scenarios"][2]["target_qps"] = 64.9
    found = compare(result, other)
    servers = [each for each in found.rows if each.what.startswith("Server ") and "CPU" not in each.what]
    assert len(servers) == 5
    assert all(each.verdict == "cannot tell" for each in servers)
    assert servers[0].why == "offered 70 and 64.9 queries/s; measure both with one --target-qps"
    assert row(found, "SingleStream p50").verdict == "slower"


@pytest.mark.parametrize(
    ("part", "key", "value", "text"),
    [
        ("machine", "cpu", "Xeon", "another machine: cpu AMD EPYC, then Xeon"),
        ("machine", "gpus", ["H100"], "another machine: gpus none, then H100"),
        ("machine", "memory_bytes", 16 << 30, r"another machine: memory 8\.0 GiB, then 16\.0 GiB"),
        ("subject", "fingerprint", "beef", "another fingerprint: 3f2a, then beef"),
        ("subject", "samples_sha256", "00", "another samples sha256"),
        ("subject", "mode", "batch", "another mode: frozen, then batch"),
        ("subject", "where", "http://127.0.0.1:8000", "measured in process, then http"),
        ("settings", "unheard_of", 3, "unheard_of: none, then 3"),
    ],
)
def test_what_is_no_comparison_is_refused_unless_asked_for(result, part, key, value, text):
    other = copy.deepcopy(result)
    other[part][key] = value
    with pytest.raises(InputError, match=rf"these results are no comparison: .*{text}.*--allow-other"):
        compare(result, other)
    found = compare(result, other, allow_other=True)
    assert found.notes[0].is_other
    assert found.rows


@pytest.mark.parametrize(
    ("part", "key", "value", "text"),
    [
        ("versions", "numpy", "3.0.0", "numpy: 2.4.6, then 3.0.0"),
        ("versions", "extra", "1", "extra: not there, then 1"),
        ("machine", "python", "3.12.1", "python: 3.11.7, then 3.12.1"),
        ("machine", "memory_bytes", (8 << 30) + (64 << 20), None),
        ("settings", "duration_s", 60.0, "duration_s: 10.0, then 60.0"),
        ("settings", "images", ["other/place"], None),
        ("subject", "bundle", "renamed.kpl", None),
    ],
)
def test_what_is_good_to_know_is_told(result, part, key, value, text):
    other = copy.deepcopy(result)
    other[part][key] = value
    told = [note.text for note in notes(result, other) if not note.is_other]
    assert len(told) == len(notes(result, other))
    usual = {note.text for note in notes(result, result)}
    assert set(told) - usual == ({text} if text else set())


def test_one_run_of_each_is_always_told(result):
    assert "one run of each: what changes from run to run" in notes(result, result)[-1].text


def test_invalid_and_disturbed_runs_are_told(result):
    other = copy.deepcopy(result)
    other["scenarios"][0]["resources"]["other_cores"] = 0.7
    other |= {"status": "failed", "error": "the server left"}
    texts = [note.text for note in notes(result, other)]
    assert "before: LoadGen calls Server invalid" in texts
    assert "after: other processes kept 0.70 cores busy during SingleStream" in texts
    assert "after: the run is not complete (the server left)" in texts


def test_wrong_answers_have_no_speed_to_compare(result):
    wrong = copy.deepcopy(result)
    wrong["scenarios"][0]["is_speed_told"] = False
    for pair, name in (((result, wrong), "after"), ((wrong, result), "before")):
        with pytest.raises(InputError, match=f"{name}: the run gave wrong answers"):
            compare(*pair, allow_other=True)


def test_results_with_nothing_in_common_are_told(result):
    other = stream(0)
    other["scenarios"] = []
    with pytest.raises(InputError, match="no quantity in common"):
        compare(result, other, allow_other=True)


def test_a_stage_without_time_hides_nothing(result):
    other = copy.deepcopy(result)
    zero = distribution([0.0] * 1000)
    for each, name in ((result, "labels"), (result, "proxies"), (other, "labels")):
        each["stages"]["stages"][name] = zero
    found = compare(result, other)
    assert "stage labels p50" not in {each.what for each in found.rows}
    assert row(found, "stage proxies p50").why == "nothing was measured in one of them"
    assert row(found, "stage proxies p50").p is None  # nor does it make Holm stricter with the others


def test_the_record_is_plain_json(result):
    record = json.loads(to_json(comparison_record(compare(result, make_result(2, scale=1.2)))))
    assert record["before"] == "2026-11-24T02:00:00+00:00 07d95b1"
    first = record["rows"][0]
    assert first["what"] == "SingleStream mean"
    assert first["verdict"] == "slower"
    assert set(first) == {"what", "unit", "before", "after", "ratio", "low", "high", "p", "verdict", "why"}
    assert record["notes"][-1]["is_other"] is False
