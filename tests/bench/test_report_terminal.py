"""The report in the terminal: within its width, complete, and with no power over the terminal."""

import copy

import pytest

from kpl_engine.bench.compare import compare
from kpl_engine.bench.report.terminal import render, render_comparison
from kpl_engine.bench.report.words import number, range_of
from tests.bench.made_results import check, make_result


@pytest.fixture(scope="module")
def made():
    return make_result(1)


@pytest.fixture
def result(made):
    return copy.deepcopy(made)


def test_everything_that_was_measured_is_in_it(result):
    text = render(result, 200)
    for each in result["scenarios"][:3]:
        for percentile in each["latency"]["percentiles"].values():
            assert number(percentile["value"]) in text
            assert range_of(percentile) in text
        assert number(each["samples_per_s"]) in text
    for word in (
        *("INVALID", "Would need to run at least 315 more", "peak within the bound: 110/s", "unexplained: 1.4 %"),
        *("text proxies", "cold start", "180 MiB resident", "410 MiB", "MLPerf's rules ask for 600 s"),
    ):
        assert word in text, word
    assert text.endswith(f"run it again with\n{result['command']}")


@pytest.mark.parametrize("width", [0, 60, 80, 100, 200])
def test_lines_keep_the_width(result, width):
    lines = render(result, width).splitlines()
    assert max(map(len, lines[:-1])) <= max(width, 60)
    assert any("p50" in line and "p90" in line for line in lines)
    found = render_comparison(compare(result, result), width).splitlines()
    assert max(map(len, found)) <= max(width, 60)
    rows = [line for line in found if line.startswith("Server p50")]
    assert rows
    assert all(line.endswith("same within noise") for line in rows)


def test_what_scenarios_have_in_common_is_said_once_and_reasons_where_loadgen_objects(result):
    result["scenarios"][0]["reasons"] = ["Min duration satisfied : Yes"]
    text = render(result)
    assert "SingleStream, MultiStream, Server, Offline: 10 s; MLPerf's rules ask for 600 s" in text
    assert text.count("MLPerf's rules") == 1
    assert "LoadGen of Server:\n  Early stopping satisfied: NO\n  Would need to run at least 315 more" in text
    assert "Min duration satisfied" not in text


def test_a_long_name_does_not_widen_the_table(result):
    result["scenarios"][0]["scenario"] = "S" * 300
    assert max(map(len, render(result, 80).splitlines()[:-1])) <= 80


def test_texts_of_a_file_have_no_power_over_the_terminal(result):
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\u202eevil"
    result["subject"] |= {"bundle": hostile, "encoder": hostile, "samples": hostile}
    result["command"] = hostile
    result["scenarios"][0] |= {"scenario": hostile, "reasons": [hostile], "error": hostile}
    result["stages"]["notes"] = [hostile]
    for text in (render(result), render_comparison(compare(result, result))):
        assert all(each.isprintable() or each == "\n" for each in text)
    assert "\\x1b]0;owned\\x07\\x1b[2J\\r\\n\\u202eevil" in render(result, 200)
    assert not any(line.startswith("evil") for line in render(result).splitlines())


def test_wrong_answers_show_no_speed(result):
    result["scenarios"][1] |= {"is_speed_told": False, "check_after": check(False)}
    result |= {"status": "wrong", "error": "answers differ"}
    text = render(result)
    assert "WRONG ANSWERS, so no speed is told: answers differ" in text
    assert "MultiStream: picture 7: expected 'nodule' 0.93, got 'mass' 0.52" in text
    for word in ("ms a query", "ms a picture", "pictures/s", "offered/s", "cold start", "peak within", "cores, 4"):
        assert word not in text, word
    assert number(result["scenarios"][0]["latency"]["percentiles"]["99"]["value"]) not in text


def test_a_run_that_ended_early_says_why(result):
    result["scenarios"] = [{"scenario": "Server", "error": "the server left after 112 queries"}]
    for key in ("probes", "peak_qps", "batches", "stages", "cold_start"):
        del result[key]
    result |= {"status": "failed", "error": "Server: the server left"}
    text = render(result)
    assert "NOT COMPLETE: Server: the server left" in text
    assert "Server: ended early: the server left after 112 queries" in text
    assert "not reached" in text
    del result["scenarios"]
    assert "NOT COMPLETE" in render(result)


def test_a_comparison_says_how_many_of_each_and_why_not(result):
    found = compare(result, make_result(2, scale=1.2))
    text = render_comparison(found, 120)
    tally = {name: sum(row.verdict == name for row in found.rows) for name in ("slower", "cannot tell")}
    assert f"{tally['slower']} slower" in text
    assert f"{tally['cannot tell']} cannot tell" in text
    assert "one search a run: its noise is not known: peak within the bound" in text
    assert "note: one run of each" in text
    assert "NO COMPARISON" not in text
    first = found.rows[0]
    line = next(line for line in text.splitlines() if line.startswith("SingleStream mean, ms"))
    assert f"{first.ratio:.3f}  {first.low:.3f} to {first.high:.3f}" in line
    assert line.endswith("slower")


def test_what_is_no_comparison_is_said_first(result):
    other = copy.deepcopy(result)
    other["machine"]["cpu"] = "Xeon"
    text = render_comparison(compare(result, other, allow_other=True))
    notes = [line for line in text.splitlines() if line.startswith(("note:", "NO COMPARISON:"))]
    assert notes[0] == "NO COMPARISON: another machine: cpu AMD EPYC, then Xeon"
