"""From the turns of the rivals to ratios, and the lines that are printed and kept."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def turn(*ms, **more):
    shared = {"first_ms": ms[0], "resident_mb": 10.0, "peak_mb": 12.0, "foreign_cores": 0.0, "idle_rivals_cores": 0.0}
    shared["cpu_s_per_call"] = 0.032
    return {"ms": list(ms), **shared, **more}


def test_ratios_are_taken_within_a_round():
    """In the second round the machine was three times as slow: the ratio does not see it."""
    from rivals_report import rows_of

    turns = {
        "kpl-engine": [turn(2.0, 2.0, 2.0), turn(6.0), turn(2.0)],
        "OpenVINO": [turn(1.0, cpu_s_per_call=0.004), turn(3.0, cpu_s_per_call=0.004), turn(1.2, cpu_s_per_call=0.004)],
    }
    ours, other = rows_of("encode", 8, turns)
    assert (ours["ratio"], ours["ratio_spread"]) == (1.0, [1.0, 1.0])
    assert other["ratio"] == pytest.approx(0.5)
    assert other["ratio_spread"] == pytest.approx([0.5, 0.6])
    assert other["cpu_ms_per_picture"] == pytest.approx(0.5)
    assert ours["cpu_ms_per_picture"] == pytest.approx(4.0)
    assert ours["median_ms"] == statistics.median([2, 2, 2, 6, 2])


def test_a_p99_needs_a_hundred_calls():
    from rivals_report import rows_of

    few = rows_of("encode", 1, {"kpl-engine": [turn(*range(1, 100))]})[0]
    enough = rows_of("encode", 1, {"kpl-engine": [turn(*range(1, 61)), turn(*range(61, 101))]})[0]
    assert few["p99_ms"] is None
    assert enough["p99_ms"] == 99


def test_a_faster_rival_stands_in_the_table_as_it_is_and_a_missing_one_below_it():
    from rivals_report import rows_of, table_lines

    turns = {"kpl-engine": [turn(30.0)], "OpenVINO": [turn(24.0)], "PyTorch loop": [turn(4000.0)]}
    missing = {"reason": 'torch is not installed; pip install ".[export]"'}
    record = {
        "rows": rows_of("encode", 1, turns),
        "rivals": {"OpenVINO": {"reason": ""}, "eager": missing, "compiled": missing},
    }
    lines = table_lines(record)
    assert lines[2] == "| pictures to features, 1 | kpl-engine | 30 ms | – | 1 | 32.0 | 10 MB |"
    assert "| **0.80x** (0.80x to 0.80x) |" in lines[3]
    assert "| **133x** (133x to 133x) |" in lines[4]
    assert lines[-1] == 'Not measured: eager; compiled (torch is not installed; pip install ".[export]").'


def test_the_page_has_a_line_a_case_and_a_column_a_rival():
    from rivals_report import page_lines, rows_of

    pictures = {"kpl-engine": [turn(30.0)], "OpenVINO": [turn(24.0, resident_mb=1234.0)]}
    rows = rows_of("encode", 8, pictures) + rows_of("whole", 64, {"kpl-engine": [turn(1500.0)]})
    rows += rows_of("adapt", [138, 768, 2], {"kpl-engine": [turn(0.5)], "PyTorch loop": [turn(250.0)]})
    assert page_lines({"rows": rows, "rivals": {"open_clip": {"reason": "none"}}}) == [
        "| from, to | kpl-engine | OpenVINO |",
        "|---|---|---|",
        "| pictures to features, 8 | 30 ms | **0.80x** (0.80x to 0.80x) |",
        "| pictures to labels, 64 | 1,500 ms | – |",
        "| CPU ms a picture, 8 at once | 4.0 | 4.0 |",
        "| resident | 10 MB | 1,234 MB |",
        "",
        "| from, to | kpl-engine | PyTorch loop |",
        "|---|---|---|",
        "| features to labels, 138, 768, 2 | 0.5 ms | **500x** (500x to 500x) |",
        "| resident | 10 MB | 10 MB |",
        "",
        "Not measured: open_clip (none).",
    ]
