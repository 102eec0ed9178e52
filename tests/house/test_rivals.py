"""The benchmark over rivals: who may be told of, what is compared, and that one rival's fault is its own."""

from __future__ import annotations

import ast
import json
import re
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
