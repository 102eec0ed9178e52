"""LoadGen's summary and trace are read as they are written."""

import pytest

from kpl_engine.bench.loadgen_logs import read_complaints, read_summary, read_trace

SERVER = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 47.07
Result is : INVALID
  Performance constraints satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Would need to run at least 315 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
Scheduled samples per second : 47.16
Per-query latency:@@
Min latency (ns)                : 5191488
99.00 percentile latency (ns)   : 13500514

================================================
Test Parameters Used
================================================
samples_per_query : 1
target_qps : 50

No warnings encountered during test.

2 ERRORS encountered. See detailed log.
""".replace("@", " ")


def sample(sequence, query, begin_us, delay_ns, latency_ns):
    head = f'{{"name":"Sample","cat":"default","ph":"b","pid":7,"id":{sequence},"ts":{begin_us:.3f},"args":'
    return (
        head + f'{{"sample_seq":{sequence},"query_seq":{query},"sample_idx":3,'
        f'"issue_start_ns":{delay_ns},"complete_ns":{latency_ns}}}}},\n'
        f'{{"name":"Sample","cat":"default","ph":"e", "pid":7,"id":{sequence},"ts":1.0}},\n'
    )


def test_the_summary_is_passed_on_as_it_came():
    found = read_summary(SERVER)
    assert found.verdict == "Result is : INVALID"
    assert not found.is_valid
    assert found.reasons[0] == "Performance constraints satisfied : Yes"
    assert "* Would need to run at least 315 more queries," in found.reasons
    assert found.reasons[-1] == "2 ERRORS encountered. See detailed log."
    assert not any("No warnings" in reason for reason in found.reasons)
    assert found.numbers == {
        "SUT name": "PySUT",
        "Scenario": "Server",
        "Mode": "PerformanceOnly",
        "Completed samples per second": 47.07,
        "Scheduled samples per second": 47.16,
        "Min latency (ns)": 5191488.0,
        "99.00 percentile latency (ns)": 13500514.0,
    }
    assert read_summary(SERVER.replace("INVALID", "VALID")).is_valid


def test_a_summary_without_a_verdict_is_refused():
    with pytest.raises(ValueError, match="Result is"):
        read_summary("MLPerf Results Summary")


def test_complaints_are_taken_from_the_detailed_log():
    line = ':::MLLOG {{"key": "k", "value": {}, "metadata": {{"is_error": {}, "is_warning": {}}}}}'
    text = "\n".join(
        [
            line.format('"too slow"', "false", "true"),
            line.format("1.5", "false", "false"),
            line.format('"too many"', "true", "false"),
            "another",
        ]
    )
    assert read_complaints(text) == ["warning of LoadGen: too slow", "error of LoadGen: too many"]


def test_the_trace_is_in_the_order_of_the_draws_whatever_the_order_of_completion(tmp_path):
    path = tmp_path / "trace.json"
    rows = [(2, 1, 30.25, 70, 900), (1, 0, 10.0, 5, 3_000_000_001), (0, 0, 10.0, 5, 2_000)]
    cut = sample(3, 1, 30.25, 70, 901)[:-140]
    path.write_text('{"traceEvents":[\n{"args":{"key":""odd""}},\n' + "".join(sample(*row) for row in rows) + cut)
    found = read_trace(path)
    assert found.sample.tolist() == [0, 1, 2]
    assert found.query.tolist() == [0, 0, 1]
    assert found.begin_ns.tolist() == [10_000, 10_000, 30_250]
    assert found.delay_ns.tolist() == [5, 5, 70]
    assert found.latency_ns.tolist() == [2_000, 3_000_000_001, 900]
    assert found.seconds == pytest.approx(3.000000001, rel=1e-12)  # the last completion is that of the second sample
    whole = found.of_queries()
    assert (whole.query.tolist(), whole.latency_ns.tolist()) == ([0, 1], [3_000_000_001, 900])
    assert found.without([1, 2]).latency_ns.tolist() == [2_000]
    assert len(found.without([]).query) == 3


def test_no_trace_is_an_empty_one(tmp_path):
    found = read_trace(tmp_path / "trace.json")
    assert (len(found.query), found.seconds, len(found.of_queries().query)) == (0, 0.0, 0)
