"""NVIDIA's genuine Python bindings of TensorRT without TensorRT: three stub libraries define the symbols they lack."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Version of TensorRT -> the wheel with its bindings, about 1.3 MB each
PACKAGES = {
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def cache_folder():
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kpl-engine" / "tests"


@functools.cache
def installed(version):
    """The folder the bindings lie in, fetched once for all runs; or why that is not possible."""
    tag = f"tensorrt-bindings-{version}-cp{sys.version_info.major}{sys.version_info.minor}"
    target = cache_folder() / tag
    if target.is_dir():
        return target, ""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--target", f"{work}/{tag}"]
        done = subprocess.run([*command, PACKAGES[version]], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip says nothing"]
            return None, f"{PACKAGES[version]} cannot be installed here: {lines[-1]}"
        if not target.is_dir():
            os.rename(f"{work}/{tag}", target)
    return target, ""


def environment(version, folder):
    """The environment of a process that imports ``tensorrt_bindings`` of that version; skips with the reason."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the stub libraries need a C compiler (cc)")
    place, reason = installed(version)
    if place is None:
        pytest.skip(reason)
    major = version.split(".", maxsplit=1)[0]
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{soname}"]
        subprocess.run([*command, "-o", str(folder / soname), str(HERE / f"{name}.c")], check=True)
    paths = os.pathsep.join([str(place), str(HERE.parents[1])])
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}


def run(version, folder, script, *arguments):
    """Standard output of ``script`` under the genuine bindings."""
    command = [sys.executable, "-W", "error", str(script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(version, folder), check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def surface(version, folder):
    """Classes and enumerations of the genuine bindings."""
    return json.loads(run(version, folder, HERE / "surface.py"))
