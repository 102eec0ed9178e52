"""The record of machine and versions, from a pretended /proc and /sys, and from this machine."""

import os
from importlib.metadata import version

import pytest

from kpl_engine import __version__
from kpl_engine.bench import machine
from kpl_engine.bench.machine import describe_machine, num_threads, versions
from kpl_engine.config import EncoderConfig, EngineConfig
from kpl_engine.cuda.probe import Gpu, Probe
from kpl_engine.engine import Engine
from tests.bench.engines import make_engine


@pytest.fixture
def root(tmp_path):
    (tmp_path / "proc").mkdir()
    cores = "processor\t: 0\nmodel name\t: Processor 9000: fast\nflags\t\t: fpu avx2 {}\n\nmodel name\t: other\n"
    (tmp_path / "proc/cpuinfo").write_text(cores.format("hypervisor"))
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1024 kB\nMemFree:  1 kB\n")
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n")
    return tmp_path


def test_the_machine_is_read_from_the_kernel(root, monkeypatch):
    monkeypatch.setattr(machine, "probe", lambda: Probe("", 13010, (Gpu("NVIDIA X", (9, 0)),) * 2))
    found = describe_machine(root)
    assert found["cpu"] == "Processor 9000: fast"
    assert found["memory_bytes"] == 1 << 20
    assert (found["governor"], found["is_virtual"]) == ("performance", True)
    assert found["gpus"] == ["NVIDIA X", "NVIDIA X"]
    text = (root / "proc/cpuinfo").read_text().replace("hypervisor", "")
    (root / "proc/cpuinfo").write_text(text)
    assert not describe_machine(root)["is_virtual"]


def test_what_the_kernel_does_not_tell_is_empty(tmp_path):
    found = describe_machine(tmp_path)
    assert (found["memory_bytes"], found["governor"], found["is_virtual"]) == (0, "", False)
    assert found["cpu"]  # the architecture at least


def test_this_machine():
    found = describe_machine()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(found["load_average"]) == 3


def test_versions_are_of_what_is_installed(monkeypatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(machine, "probe", lambda: Probe("", 12080))
    found = versions()
    assert found["kpl-engine"] == __version__
    assert found["numpy"] == version("numpy")
    assert "no-such-package" not in found
    assert found["CUDA of the driver"] == "12.8"
    monkeypatch.setattr(machine, "probe", lambda: Probe("no driver"))
    assert "CUDA of the driver" not in versions()


def test_threads_are_those_of_the_encoder():
    engine = make_engine()
    assert num_threads(engine) == len(os.sched_getaffinity(0))
    told = Engine(engine.encoder, [engine.knowledge()], config=EngineConfig(encoder=EncoderConfig(num_threads=3)))
    assert num_threads(told) == 3
