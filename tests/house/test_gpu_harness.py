"""`make test-gpu` without a GPU: what it refuses, what it calls a failure, what it writes down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """tests/gpu/run.py as a module."""
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT / "benchmarks"), *sys.path])
    from tests.gpu import run

    return run


@pytest.fixture
def machine(run):
    import gpu_machine

    return gpu_machine


def child(report=None, status=0, **fields):
    """A stage that ends with ``status`` after it wrote a report of ``fields``, or none."""
    seen = []

    def call(command):
        seen.append(list(command))
        if report is not False:
            found = {"num_passed": 3, "num_on_gpu": 2, "failed": [], "skipped": [], "kernels": {"one": 4}, **fields}
            (path,) = (part.split("=", 1)[1] for part in command if part.startswith("--gpu-report="))
            Path(path).write_text(json.dumps(found))
        return status

    call.seen = seen
    return call


def problems(stages):
    return {name: stage["problems"] for name, stage in stages.items()}


def test_a_machine_without_a_gpu_is_refused(run, monkeypatch, tmp_path):
    import kpl_engine.cuda.select

    monkeypatch.setattr(kpl_engine.cuda.select, "explain_absence", lambda: "no NVIDIA driver")
    monkeypatch.setattr(run, "save", lambda name, record: pytest.fail("wrote a result"))
    with pytest.raises(SystemExit, match=r"needs an NVIDIA GPU.*no NVIDIA driver.*\n.*no result") as caught:
        run.main([])
    assert caught.value.code  # a text: Python prints it and exits with 1


def test_everything_in_order(run):
    call = child()
    stages = run.run_all("python", call, "/bin/compute-sanitizer", {"one"})
    assert problems(stages) == {"tests": [], "memcheck": [], "racecheck": []}
    assert stages["tests"]["num_on_gpu"] == 2
    plain, memcheck, racecheck = call.seen
    assert plain[:3] == ["python", "-m", "pytest"]
    assert {"--gpu", "tests/cuda", "tests/gpu"} <= set(plain)
    assert "--small-only" not in plain
    assert memcheck[:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
    assert racecheck[2] == "racecheck"
    assert racecheck[racecheck.index("--error-exitcode") + 1] == "86"
    assert {"--small-only"} <= set(memcheck) & set(racecheck)


def test_one_stage_at_a_time(run):
    call = child()
    stages = run.run_all("python", call, "/bin/compute-sanitizer", {"one"}, ["racecheck"])
    assert problems(stages) == {"racecheck": []}
    assert len(call.seen) == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (child(num_on_gpu=0), "no test ran on a GPU"),
        (child(report=False), "pytest wrote no report"),
        (child(report=False, status=5), "exit status 5"),
        (child(status=1, failed=["tests/cuda/test_x.py::test_y (call)"]), "test_y"),
        (child(kernels={"two": 1}), "kernels never launched in tests: one"),
    ],
)
def test_what_counts_as_a_failure(run, call, named):
    stages = run.run_all("python", call, None, {"one"})
    assert set(stages) == {"tests"}
    assert any(named in problem for problem in stages["tests"]["problems"])


def test_what_the_sanitizer_finds_is_a_failure(run):
    clean, found = child(), child(status=86)

    def call(command):
        return (found if "compute-sanitizer" in command else clean)(command)

    stages = run.run_all("python", call, "compute-sanitizer", {"one"})
    assert problems(stages)["tests"] == []
    assert problems(stages)["memcheck"] == problems(stages)["racecheck"] == ["compute-sanitizer found errors"]


@pytest.mark.parametrize("num_on_gpu", [0, 2])
def test_the_result_file(run, machine, monkeypatch, num_on_gpu):
    saved = {}
    gpus = [{"name": "NVIDIA H200", "driver_version": "580.1", "clocks.sm": "345 MHz", "clocks.mem": "3201 MHz"}]
    monkeypatch.setattr(run, "refuse_without_gpu", lambda what: None)
    monkeypatch.setattr(run, "find_python", lambda folder: sys.executable)
    monkeypatch.setattr(run, "describe_gpu", lambda: gpus)
    monkeypatch.setattr(run, "call", child(num_on_gpu=num_on_gpu, kernels=dict.fromkeys(run.kernel_names(), 1)))
    monkeypatch.setattr(run, "save", lambda name, record: saved.update({name: record}))
    assert run.main(["--no-sanitizer"]) == (1 if num_on_gpu == 0 else 0)
    record = json.loads(json.dumps(saved["gpu-tests"]))
    assert {"date", "commit", "versions", "command", "gpus", "tools", "stages", "passed"} <= set(record)
    assert record["gpus"]["before"] == gpus
    assert record["passed"] is (num_on_gpu > 0)
    assert {"torch", "cuda-core"} <= set(record["versions"])


def test_stages_that_run_alone_keep_files_apart(run, monkeypatch):
    saved = []
    for name, value in {
        "refuse_without_gpu": lambda what: None,
        "find_python": lambda folder: sys.executable,
        "describe_gpu": list,
        "call": child(kernels=dict.fromkeys(run.kernel_names(), 1)),
        "save": lambda name, record: saved.append((name, list(record["stages"]))),
    }.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run.shutil, "which", lambda name: "/bin/compute-sanitizer")
    for stages in (["tests"], ["racecheck"], ["memcheck", "racecheck"]):
        assert run.main(["--stages", *stages]) == 0
    assert saved == [
        ("gpu-tests", ["tests"]),
        ("gpu-tests-racecheck", ["racecheck"]),
        ("gpu-tests-memcheck-racecheck", ["memcheck", "racecheck"]),
    ]


def test_kernels_are_found_in_the_sources(run, tmp_path):
    (tmp_path / "a.cu").write_text("// KPL_EXPORT_KERNEL(none)\nKPL_EXPORT_KERNEL(one);\n\nKPL_EXPORT_KERNEL(two);\n")
    (tmp_path / "b.cu").write_text("KPL_EXPORT_KERNEL(three);\n")
    (tmp_path / "README.md").write_text("KPL_EXPORT_KERNEL(four);\n")
    assert run.kernel_names(tmp_path) == {"one", "two", "three"}
    assert "unit_rows" in run.kernel_names()


def test_the_plugin_counts_what_really_ran(tmp_path):
    """A whole pytest with the plugin, on a driver that is the host's: opened, passed, failed and skipped tests."""
    (tmp_path / "conftest.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n")
    (tmp_path / "test_few.py").write_text(
        "import pytest\n"
        "import kpl_engine.cuda.select as select\n"
        "from kpl_engine.cuda.context import Context\n"
        "from tests.encoder.doubles import HostDriver\n"
        "from kpl_engine.cuda.ops.unit_rows import UnitRows\n"
        "@pytest.fixture\n"
        "def small_context():\n"
        "    return Context(select.open_driver())\n"
        "def test_runs(small_context):\n"
        "    UnitRows(small_context, 0.1).scale(small_context.zeros((2, 3), 'f4'))\n"
        "def test_without_a_driver(): pass\n"
        "def test_fails(small_context): raise RuntimeError\n"
        "def test_skips(small_context): pytest.skip('no second GPU')\n"
    )
    starter = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import kpl_engine.cuda.select as select\n"
        "from tests.encoder.doubles import HostDriver\n"
        "select.open_driver = HostDriver\n"
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))\n"
    )

    def counted(*options):
        report = tmp_path / "report.json"
        own = ["-p", "tests.gpu.plugin", f"--gpu-report={report}", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
        command = [sys.executable, "-c", starter, str(ROOT), *own, *options, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert report.exists(), done.stdout + done.stderr
        return done.returncode, json.loads(report.read_text())

    status, found = counted()
    assert status == 1
    assert (found["num_passed"], found["num_on_gpu"], found["num_skipped"]) == (2, 1, 1)
    assert [name.split("::")[1] for name in found["failed"]] == ["test_fails (call)"]
    assert found["skipped"] == ["Skipped: no second GPU"]
    assert found["kernels"] == {"unit_rows": 1}
    assert found["gpus"] == ["no GPU"]
    status, found = counted("--small-only", "-k", "not fails")
    assert (status, found["num_passed"], found["num_on_gpu"]) == (0, 1, 1)


class TestMachine:
    def test_fields_an_old_driver_lacks_stay_out(self, machine):
        def nvidia_smi(command):
            asked = command[1].split("=")[1].split(",")
            if "mig.mode.current" in asked:
                message = 'Field "mig.mode.current" is not a valid field to query.'
                raise subprocess.CalledProcessError(2, command, output=message, stderr="")
            return f"{', '.join('NVIDIA T4' if field == 'name' else '1' for field in asked)}\n" * 2

        found = machine.describe_gpu(nvidia_smi)
        assert [gpu["name"] for gpu in found] == ["NVIDIA T4", "NVIDIA T4"]
        assert {"driver_version", "clocks.sm", "clocks.mem"} <= set(found[0])
        assert "mig.mode.current" not in found[0]

    def test_settings_are_read_only(self):
        """No option of nvidia-smi that changes something stands anywhere in the harness."""
        for path in [*(ROOT / "benchmarks").glob("gpu_*.py"), *(ROOT / "tests" / "gpu").glob("*.py")]:
            words = path.read_text().replace('"', " ").replace("'", " ").replace(",", " ").split()
            changing = {"-pm", "-pl", "-ac", "-lgc", "-lmc", "-rgc", "-r", "-mig", "--gpu-reset", "--lock-gpu-clocks"}
            assert not changing & set(words), path

    def test_an_interpreter_that_has_everything_is_taken(self, machine, tmp_path):
        assert machine.find_python(tmp_path, lambda name: True) == sys.executable

    def test_what_is_missing_is_installed_beside(self, machine, tmp_path):
        calls = []

        def call(command):
            calls.append(list(command))
            (tmp_path / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)

        python = machine.find_python(tmp_path, lambda name: name != "cuda.core", call)
        assert python == str(tmp_path / "bin" / "python")
        assert calls[-1][-1] == "cuda-core[cu13]"
        linked = (tmp_path / "lib" / "python3" / "site-packages" / "parent.pth").read_text().splitlines()
        assert str(Path(pytest.__file__).parents[1]) in linked

    def test_without_a_network_the_missing_packages_are_named(self, machine, tmp_path):
        def call(command):
            (tmp_path / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)
            if "pip" in command:
                raise subprocess.CalledProcessError(1, command)

        with pytest.raises(SystemExit, match=r"missing Python packages: pytest, cuda-core.*Without a network"):
            machine.find_python(tmp_path, lambda name: name == "numpy", call)

    def test_children_import_the_checkout(self, machine):
        assert machine.environment({"PYTHONPATH": "x", "A": "b"}) == {"PYTHONPATH": f"{ROOT}:x", "A": "b"}
        assert machine.environment({})["PYTHONPATH"] == str(ROOT)
