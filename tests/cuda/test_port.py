"""The two adapters of the driver port: the genuine cuda.core and pycuda over a pretended libcuda.so.1."""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from .fake_driver import scenarios

HERE = Path(__file__).parent / "fake_driver"
CHECKS = sorted(name for name in dir(scenarios) if name.startswith("check_"))
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("needs a C compiler to build the pretended driver")
    target = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    command = [COMPILER, *flags, "-o", str(target), str(HERE / "libcuda.c"), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@lru_cache
def outcomes(path, adapter):
    """One process imports the adapter once and forks for each scenario."""
    command = [sys.executable, str(HERE / "scenarios.py"), str(path), adapter]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def _is_installed(adapter):
    return all(importlib.util.find_spec(name.split(".")[0]) for name in scenarios.ADAPTERS[adapter])


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("adapter", sorted(scenarios.ADAPTERS))
def test_adapter(library, adapter, name):
    if not _is_installed(adapter):
        pytest.skip(f"{adapter} is not installed")
    said, _ = outcomes(library, adapter)
    assert set(said) == set(CHECKS), "every scenario must have run"
    assert said[name] == "", said[name]


@pytest.mark.parametrize("adapter", sorted(scenarios.ADAPTERS))
def test_nothing_complains_at_exit(library, adapter):
    if not _is_installed(adapter):
        pytest.skip(f"{adapter} is not installed")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import scenarios, numpy as np\n"
        "lab = scenarios.Lab(*sys.argv[2:])\n"
        "context = scenarios.Context(lab.open()); kept = context.zeros((3,), np.int8)\n"
        "pinned = context.driver.pinned((3,), np.int8); graph = context.driver.new_event()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(HERE), str(library), adapter]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
