"""How GPU kernels are compiled: the bounds of their resources, and the fat binaries of a wheel."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 40 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Function properties for _Zcalled
    24 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


@pytest.fixture(scope="module")
def bounds():
    """kernels/check_bounds.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("check_bounds", KERNELS / "check_bounds.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_bounds"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_bounds"]


class TestBounds:
    def test_figures_of_a_compiler_log(self, bounds):
        assert bounds.parse(LOG) == {
            "first": bounds.Resources(registers=128, spill=40, stack=40, static_shared=1024),
            "second": bounds.Resources(registers=32, spill=0, stack=0, static_shared=0),
        }

    @pytest.mark.parametrize("name", ["registers", "spill", "stack", "static_shared"])
    def test_more_than_the_bound_is_told(self, bounds, name):
        bound = {"registers": 64, "spill": 0, "stack": 0, "static_shared": 0}
        found = {"k": {"sm_90": bounds.Resources(**{**bound, name: bound[name] + 4})}}
        assert list(bounds.compare({"k": {"sm_90": bound}}, {"k": {"sm_90": bounds.Resources(**bound)}})) == []
        wrong = list(bounds.compare({"k": {"sm_90": bound}}, found))
        assert wrong == [f"k on sm_90: {name} expected at most {bound[name]}, got {bound[name] + 4}"]

    def test_writing_keeps_what_was_not_read(self, bounds, tmp_path, monkeypatch):
        monkeypatch.setattr(bounds, "BOUNDS", tmp_path / "bounds.json")
        used = bounds.Resources(32, 0, 8, 0)
        bounds.write({"kept": {"sm_90": used, "sm_120": used}, "gone": {"sm_90": used}}, "13.0")
        bounds.write({"kept": {"sm_90": bounds.Resources(40, 4, 8, 0)}}, "13.0")
        written = json.loads(bounds.BOUNDS.read_text())
        assert written["nvcc"] == "13.0"
        assert list(written["kernels"]) == ["kept"]
        assert list(written["kernels"]["kept"]) == ["sm_90", "sm_120"]
        assert written["kernels"]["kept"]["sm_90"]["registers"] == 40
        assert list(bounds.compare(written["kernels"], {"kept": {"sm_120": used}})) == []

    def test_kernels_without_bounds_and_bounds_without_kernels_are_told(self, bounds):
        found = {"new": {"sm_90": bounds.Resources(1, 0, 0, 0)}}
        told = list(bounds.compare({"old": {}}, found))
        assert told == [
            "new on sm_90: no bound; make cuda-bounds writes it",
            "old: in bounds.json, but no such kernel",
        ]

    def test_every_kernel_has_bounds_on_three_generations(self, bounds):
        committed = json.loads(bounds.BOUNDS.read_text())["kernels"]
        text = "".join(path.read_text() for path in KERNELS.glob("*.cu"))
        exported = set(re.findall(r"KPL_EXPORT_KERNEL\((\w+)\)", text))
        families = tuple(re.findall(r"KPL_EXPORT_KERNEL\((\w+)##\w+\)", text))  # named by a macro
        assert exported <= set(committed)
        assert all(name.startswith(families) for name in set(committed) - exported)
        for name, per_architecture in committed.items():
            assert {"sm_75", "sm_90", "sm_120"} <= set(per_architecture), name

    def test_ci_reads_the_figures_of_three_generations_and_compiles_all(self, bounds):
        assert "make cuda-compile FIGURES=75,90,120" in (ROOT / ".ci" / "run").read_text()
        listed = re.search(r"set\(KPL_CUDA_ARCHITECTURES ([\d ]+) CACHE", (ROOT / "CMakeLists.txt").read_text())
        assert [int(number) for number in listed.group(1).split()] == list(bounds.ARCHITECTURES)


STAND_IN = """\
#!/bin/sh
# Knows what sm_90 and sm_75 are, and writes the command it was given as its output.
for word in "$@"; do
    case "$word" in
        --list-gpu-code) printf 'sm_75\\nsm_90\\n'; exit 0 ;;
        --help) echo '--compress-mode'; exit 0 ;;
    esac
    [ "$before" = -o ] && target="$word"
    before="$word"
done
echo "$@" > "$target"
"""


class TestFatBinaries:
    """With a stand-in for nvcc: `make cuda-compile` runs the real one."""

    @pytest.fixture
    def build(self, tmp_path):
        def build(*settings, path=None):
            command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "out"]
            command += ["-Ccmake.define.KPL_CORE=OFF", f"-Cbuild-dir={tmp_path / 'build'}", *settings, ROOT]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as wheel:
                return {
                    Path(name).stem: wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".fatbin")
                }

        return build

    def test_one_for_each_source_with_code_and_ptx(self, build, tmp_path):
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(STAND_IN)
        nvcc.chmod(0o755)
        found = build("-Ccmake.define.KPL_CUDA=ON", f"-Ccmake.define.KPL_NVCC_PROGRAM={nvcc}")
        assert set(found) == {path.stem for path in KERNELS.glob("*.cu")}
        for name, command in found.items():
            targets = re.findall(r"-gencode=arch=(\S+),code=(\S+)", command)
            assert ("compute_75", "sm_75") in targets, name
            assert ("compute_90", "sm_90") in targets, name
            assert ("compute_75", "compute_75") in targets, name
            assert not any("sm_121" in code for _, code in targets), "this nvcc does not know it"
            assert "-std=c++17" in command
            assert "-compress-mode=size" in command

    def test_none_unless_asked(self, build):
        assert build("-Ccmake.define.KPL_CUDA=OFF") == {}

    def test_demanded_without_nvcc(self, build):
        with pytest.raises(AssertionError, match=r"which need nvcc(?s:.*)KPL_CUDA=OFF"):
            build(
                "-Ccmake.define.KPL_CUDA=ON",
                "-Ccmake.define.KPL_NVCC_PROGRAM=KPL_NVCC_PROGRAM-NOTFOUND",
                "-Ccmake.define.CMAKE_PROGRAM_PATH=/nowhere",
                "-Ccmake.define.CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF",
                "-Ccmake.define.CMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
            )
