"""The measured tables of the pages: they say what the newest result files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    return tables


RESULT = {"date": "2031-05-04T03:02:01+00:00", "commit": "abc", "cpu": "Z80", "cores": 3}
COLD = {"import_s": 0.161, "load_s": 0.052, "first_answer_s": 0.013, "total_s": 0.226, "resident_mb": 80.3}
PAGE = "before\n\n<!-- table: cold_start -->\nwhat stood\n<!-- end table -->\n\nafter\n"


def put(folder, name, **more):
    (folder / name).write_text(json.dumps({**RESULT, "median": {"demo": COLD}, "environment_mb": 209.4, **more}))


def test_the_pages_say_what_the_result_files_say(tables, capsys):
    """Repeat with: python benchmarks/tables.py."""
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
    assert {"learn_proxies", "end_to_end", "cold_start"} <= set(
        re.findall(r"<!-- table: (\S+) -->", (ROOT / "README.md").read_text())
    )


def test_a_table_is_written_between_its_markers(tables, tmp_path):
    assert tables.rewritten(PAGE, tmp_path) == PAGE  # no result: left as it is
    put(tmp_path, "cold_start-2031-05-04.json")
    made = tables.rewritten(PAGE, tmp_path)
    assert "| demo | 0.16 s | 0.05 s | 0.01 s | **0.23 s** | 80 MB |\n" in made
    assert "`benchmarks/results/cold_start-2031-05-04.json`: 4 May 2031, commit abc, Z80, 3 cores" in made
    assert (made.startswith("before\n\n<!-- table"), made.endswith("\n\nafter\n"), "what stood" in made) == (
        True,
        True,
        False,
    )
    assert tables.rewritten(made, tmp_path) == made


def test_the_newest_result_is_taken_and_a_full_one_before_a_short_one(tables, tmp_path):
    for name in ("serving-soak-2032-01-01", "serving-quick-2031-05-04", "serving-2031-05-04", "serving-2031-05-03"):
        put(tmp_path, f"{name}.json")
    assert tables.newest("serving", tmp_path).name == "serving-2031-05-04.json"
    put(tmp_path, "serving-quick-2031-05-05.json")
    assert tables.newest("serving", tmp_path).name == "serving-quick-2031-05-05.json"
    assert tables.newest("rivals", tmp_path) is None
    put(tmp_path, "cold_start-quick-2031-05-04.json")
    assert ": a short run, 4 May 2031" in tables.rewritten(PAGE, tmp_path)


def test_markers_that_mean_nothing_are_refused(tables, tmp_path):
    with pytest.raises(ValueError, match="no table 'cold'; expected one of learn_proxies"):
        tables.rewritten(PAGE.replace("cold_start", "cold"), tmp_path)
    with pytest.raises(ValueError, match="has no `<!-- end table -->`"):
        tables.rewritten(PAGE.replace("<!-- end table -->", ""), tmp_path)


def test_a_sentence_with_an_old_figure_is_told(tables, tmp_path):
    put(tmp_path, "cold_start-2031-05-04.json")
    assert tables.check_prose(PAGE, tmp_path) == ["cold_start-2031-05-04.json says '(209 MB environment, no torch)'"]
    assert tables.check_prose(PAGE + "(209 MB environment, no torch)", tmp_path) == []
    assert tables.check_prose("a page without that table", tmp_path) == []


def test_check_changes_nothing_and_fails(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", ("page.md",))
    monkeypatch.setattr(tables, "rewritten", lambda text: text.replace("what stood", "new"))
    monkeypatch.setattr(tables, "check_prose", lambda text: [])
    (tmp_path / "page.md").write_text(PAGE)
    assert tables.main(["--check"]) == 1
    assert "page.md: a table is not that of the result files" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text() == PAGE
    assert tables.main([]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.replace("what stood", "new")
    assert tables.main(["--check"]) == 0
