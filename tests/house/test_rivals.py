"""The benchmark over rivals: who may be told of, what is compared, and that one rival's fault is its own."""

from __future__ import annotations

import ast
import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
HOME = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(HOME))


@pytest.fixture
def rivals(monkeypatch):
    import rivals

    monkeypatch.setattr(rivals, "PAUSE_S", 0.0)
    return rivals


@pytest.fixture
def checks():
    import rivals_checks

    return rivals_checks


def problem(n, d, c, m=9, seed=None):
    """Fresh CLIP-like features and descriptions of an odd size."""
    from clip_like import make_clip_like

    seed = int(np.random.default_rng().integers(1 << 30)) if seed is None else seed
    data = make_clip_like(n, d, c, seed, m=m)
    return data.features, list(data.descriptions)


# Who takes part


def test_every_rival_is_written_and_every_extra_exists():
    from rivals_list import _EXTRAS, OURS, RIVALS, hint

    for rival in RIVALS:
        module, _, name = rival.opens.partition(":")
        classes = {node.name for node in ast.parse((HOME / f"{module}.py").read_text()).body if hasattr(node, "name")}
        assert name in classes
    for device in ("cpu", "cuda"):
        assert next(rival for rival in RIVALS if rival.device == device).name == OURS  # what the others are divided by
    said = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    for install in _EXTRAS.values():
        for extra in re.findall(r"\.\[([\w-]+)\]", install):
            assert f"\n{extra} = [" in f"\n{said[1]}"
    assert hint("openvino.runtime") == 'pip install ".[rival-openvino]"'


def test_rivals_of_a_gpu_are_told_as_not_run_elsewhere(rivals):
    chosen = rivals.choose("cpu", {"encode"}, None)
    gpu = {rivals.name_of(each): each.reason for each in chosen if each.rival.device == "cuda"}
    assert {"open_clip, CUDA graphs, CUDA", "ONNX Runtime, CUDA"} <= set(gpu)
    assert all(reason.startswith("not run: needs an NVIDIA GPU") for reason in gpu.values())
    assert next(rivals.name_of(each) for each in chosen if not each.reason) == "kpl-engine"
    asked = rivals.choose("cuda", {"adapt"}, ["PyTorch loop"])
    assert [rivals.name_of(each) for each in asked] == ["kpl-engine, CUDA", "PyTorch loop, CUDA"]


@pytest.mark.parametrize("name", ["rivals.py", "rivals_worker.py"])
def test_threads_are_counted_before_a_library_loads(name):
    """Above the line that sets them nothing is imported but the standard library."""
    text = (HOME / name).read_text()
    above = text[: text.index("_NUM_THREADS")]
    imported = {word for line in above.splitlines() for word in re.findall(r"^(?:from|import) (\w+)", line)}
    assert imported <= {*sys.stdlib_module_names, "__future__"}


# What is right


def test_features_are_held_to_the_torch_model(checks):
    X = problem(13, 24, 2)[0]
    assert checks.check_features(X + np.float32(1e-7), X)["is_right"]
    for wrong in (X + np.float32(1e-5), X[::-1], np.full_like(X, np.nan), X[:5], np.float32(np.float16(X))):
        found = checks.check_features(wrong, X)
        assert not found["is_right"]
        assert "features" in found["reason"]


def test_labels_are_held_to_float64_where_it_decides(checks):
    exact = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5 + 3e-7], [0.3, 0.1]])
    right = exact.argmax(axis=1)

    def verdict(labels, logits=None, bound=1e-5):
        return checks.check_labels(np.array(labels), logits, exact, bound)

    assert verdict(right, exact)["is_right"]
    assert verdict([0, 1, 0, 0], exact + 2e-7)["is_right"]  # a margin below twice the error decides nothing
    assert not verdict([0, 1, 0, 0], exact)["is_right"]  # but an exact logit does
    assert verdict([0, 1, 0, 0])["is_right"]  # no logits told: margins below 5e-6 do not count
    assert "1 of 4 labels" in verdict([1, 1, 1, 0])["reason"]
    assert "more than 1e-05" in verdict(right, exact + 2e-5)["reason"]
    assert verdict(right, exact + 2e-5, bound=1e-4)["is_right"]
    assert "logits differ" in verdict(right, exact * np.nan)["reason"]
    assert "expected (4,) labels" in verdict(right[:3])["reason"]


def test_a_check_that_decides_nothing_is_no_check(checks):
    exact = np.full((5, 3), 0.25)
    assert "undecided" in checks.check_labels(np.zeros(5, int), None, exact, 1e-5)["reason"]


@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.torch)])
@pytest.mark.parametrize(("n", "d", "c"), [(37, 19, 3), (5, 24, 2)])
def test_the_published_method_in_float32_is_that_of_the_reference(checks, library, n, d, c):
    """Five pictures of two classes are too few: the text proxies answer."""
    import published_loops

    X, texts = problem(n, d, c)
    exact = checks.exact_logits(X, texts)
    if library == "torch":
        torch = pytest.importorskip("torch", reason="needs the export extra")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for matrices this small more only wait for each other
        blocks = [torch.from_numpy(block) for block in texts]
        logits = published_loops.torch_method(torch.from_numpy(X), blocks, checks.adapts(n, c)).numpy()
        torch.set_num_threads(threads)
    else:
        logits = published_loops.numpy_method(X, texts, checks.adapts(n, c))
    # The bound under which the benchmark tells a time: a float32 loop is off by 3e-5 at most.
    assert np.abs(logits - exact).max() < checks.LOGIT_BOUNDS[False]


def test_the_engine_keeps_to_its_narrower_bound(checks):
    from rivals_kpl import Kpl

    X, texts = problem(41, 33, 3)
    exact = checks.exact_logits(X, texts)
    for solver in ("auto", "schedule"):
        ours = Kpl(Path(), 1, 8, "cpu", solver)
        labels, logits = ours.adapt(ours.open_adaptation(X, texts))
        assert checks.check_labels(labels, logits, exact, checks.LOGIT_BOUNDS[True])["is_right"]


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (97, 311), (640, 227)])
def test_pictures_are_prepared_by_pillow_as_by_the_engine(size):
    import io

    from PIL import Image
    from rivals_pictures import pil_pixels

    from kpl_engine.imaging.decode import decode_image
    from kpl_engine.imaging.preprocess import Preprocess

    pixels = np.random.default_rng().integers(0, 256, (*size, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    expected = Preprocess().apply(decode_image(target.getvalue()).pixels)
    np.testing.assert_array_equal(pil_pixels(target.getvalue()), expected)


# One run


FAKES = """
import os, sys, time
import numpy as np
from rivals_onnx import NumpyLoop
print("what a library says when it loads")

class Right(NumpyLoop):
    def __init__(self, *given):
        super().__init__(*given)
        self.settings = {"threads": os.environ["OMP_NUM_THREADS"]}

class Wrong(NumpyLoop):
    def adapt(self, problem):
        labels, logits = super().adapt(problem)
        return 1 - labels, logits

class Dying(NumpyLoop):
    calls = 0
    def adapt(self, problem):
        self.calls += 1
        if self.calls > 1:
            os._exit(3)
        return super().adapt(problem)

class Hanging(NumpyLoop):
    def adapt(self, problem):
        time.sleep(20)

class Broken(NumpyLoop):
    def open_adaptation(self, X, texts):
        raise ValueError("of no use")

class Failing:
    def __init__(self, *given):
        raise RuntimeError("no C++ compiler\\nand more lines")
"""


@pytest.fixture
def run_fakes(rivals, tmp_path, monkeypatch):
    from rivals_list import ADAPT, OURS, Rival

    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", f"{HOME}:{tmp_path}")

    def run(*names, ours="rivals_kpl:Kpl", rounds=2):
        opened = {OURS: ours, **{name: f"fakes:{name}" for name in names}}
        opened = {name: where.replace("fakes:Missing", "no_such_package.part:X") for name, where in opened.items()}
        contenders = [
            rivals.Contender(number, Rival(name, where, (ADAPT,), ()))
            for number, (name, where) in enumerate(opened.items())
        ]
        return rivals.run(tmp_path, contenders, rivals.Plan(((ADAPT, (24, 19, 2)),), rounds, 0.02))

    return run


def test_what_fails_or_is_wrong_has_a_reason_and_no_time(run_fakes, rivals, monkeypatch):
    monkeypatch.setattr(rivals, "THREADS", 3)  # not what this process has in its own environment
    record = json.loads(json.dumps(run_fakes("Right", "Wrong", "Dying", "Broken", "Failing", "Missing")))
    reasons = {name: rival["reason"] for name, rival in record["rivals"].items()}
    assert reasons["kpl-engine"] == reasons["Right"] == ""
    assert reasons["Missing"] == "no_such_package is not installed; pip install no_such_package"
    assert reasons["Failing"] == "RuntimeError: no C++ compiler"
    assert "24 of 24 labels are not those of the float64 reference" in reasons["Wrong"]
    assert "its process ended at turn adapt" in reasons["Dying"]
    assert "its process ended at answer adapt" in reasons["Broken"]
    assert [row["rival"] for row in record["rows"]] == ["kpl-engine", "Right"]
    assert record["rivals"]["Right"]["settings"] == {"threads": "3"}
    assert record["rivals"]["Right"]["checks"]['["adapt", [24, 19, 2]]']["is_right"]
    ours, right = record["rows"]
    assert ours["ratio"] == 1.0
    low, high = right["ratio_spread"]
    assert 0 < low <= right["ratio"] <= high
    for row in record["rows"]:
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert 0 < row["resident_mb"] <= row["peak_mb"]
        assert row["foreign_cores"] >= 0


def test_what_hangs_is_ended(run_fakes, rivals, monkeypatch):
    monkeypatch.setitem(rivals.MOST_S, "answer", 0.5)
    record = run_fakes(ours="fakes:Hanging")
    assert re.search(
        "its process ended at answer adapt .*: the worker left with -9", record["rivals"]["kpl-engine"]["reason"]
    )


def test_without_ours_nothing_is_compared(run_fakes):
    record = run_fakes("Right", ours="fakes:Wrong", rounds=1)
    assert record["rows"] == []
    assert "WRONG ANSWER" in record["rivals"]["kpl-engine"]["reason"]


def test_every_other_round_goes_backwards(rivals):
    order = []

    class Process:
        pid = 1

        def __init__(self, name):
            self.name = name

        def ask(self, **job):
            order.append(self.name)
            return {"ms": [1.0], "first_ms": 1.0}

    from rivals_list import ADAPT, Rival

    playing = [rivals.Contender(i, Rival(name, "", (ADAPT,), ()), Process(name)) for i, name in enumerate("abc")]
    turns = rivals.measure(playing, ADAPT, (1, 1, 1), rivals.Plan((), 3, 0.0))
    assert "".join(order) == "abccbaabc"
    assert {name: len(runs) for name, runs in turns.items()} == {"a": 3, "b": 3, "c": 3}


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


# The pages


@pytest.fixture
def tables():
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
