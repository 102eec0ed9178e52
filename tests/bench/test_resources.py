"""Resources: what this kernel and a pretended NVML tell, and that what is not told is absent."""

import sys
import time
import types

import numpy as np
import pytest

from kpl_engine.bench import resources
from kpl_engine.bench.nvml import open_gpu
from kpl_engine.bench.resources import Meter
from tests.bench.engines import settings_of

MIB = 2**20


class FakeNvml(types.ModuleType):
    """``pynvml`` of one or more GPUs. ``told`` counts down to the call at which the driver fails, -1 is never."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus=1, pid=77, *, energy=True, lists=True):
        super().__init__("pynvml")
        self.gpus, self.pid, self.energy, self.lists = gpus, pid, energy, lists
        self.millijoules, self.used, self.open, self.fails = 5_000, 3 * MIB, 0, False

    def check(self):
        if self.fails:
            raise self.NVMLError("GPU is lost")

    def nvmlInit(self):
        self.check()
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.check()
        if not self.energy:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle):
        self.check()
        return 250_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self.check()
        mine = self.lists and handle == self.gpus - 1
        return [types.SimpleNamespace(pid=self.pid if mine else 1, usedGpuMemory=self.used)]


@pytest.fixture
def nvml(monkeypatch):
    def install(*args, **options):
        fake = FakeNvml(*args, **options)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        monkeypatch.setattr(resources.os, "getpid", lambda: 77)
        return fake

    return install


def spin(seconds):
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def test_processor_and_memory_of_this_process():
    with Meter(settings_of(device="cpu")) as meter:
        spin(0.15)
        block = np.ones(64 * MIB, np.uint8)  # written, so that it is resident
        del block
    found = meter.resources(10)
    assert found["of"] == "this process"
    assert 0.015 <= found["cpu_s_per_sample"] < 1.0
    assert 0 < found["cpu_cores"] <= 64
    assert found["other_cores"] >= 0
    with Meter(settings_of(device="cpu")) as after:
        pass
    # The peak had the 64 MiB, and was forgotten before the second.
    assert found["resident_bytes"] > after.resources(1)["resident_bytes"] + 48 * MIB
    assert not {"device_memory_bytes", "device_power_w", "device_j_per_sample"} & set(found)


def test_without_a_sample_nothing_is_told_a_sample():
    with Meter(settings_of(device="cpu")) as meter:
        pass
    assert not {"cpu_s_per_sample", "device_j_per_sample"} & set(meter.resources(0))


def test_a_client_says_so_and_tells_nothing_of_this_machines_gpu(nvml):
    fake = nvml()
    with Meter(settings_of(device="cuda", url="http://127.0.0.1:1")) as meter:
        pass
    found = meter.resources(1)
    assert found["of"] == "the client"
    assert "device_power_w" not in found
    assert fake.open == 0


def write_proc(proc, ticks, busy, resident_kb):
    folder = proc / "42"
    folder.mkdir(parents=True, exist_ok=True)
    fields = ["S", *["0"] * 10, str(ticks), str(ticks), *["0"] * 20]
    (folder / "stat").write_text(f"42 (a) b (c) {' '.join(fields)}\n")
    (folder / "status").write_text(f"Name:\tx\nVmHWM:\t {resident_kb} kB\nVmRSS:\t {resident_kb // 2} kB\n")
    (proc / "stat").write_text(f"cpu  {busy} 0 0 {7 * busy} {5 * busy} 0 0 {3 * busy} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")


def test_another_process_is_read_from_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(resources.time, "perf_counter", iter([10.0, 12.0]).__next__)
    write_proc(tmp_path, 100, 1000, 2048)
    with Meter(settings_of(device="cpu"), pid=42, proc=tmp_path) as meter:
        write_proc(tmp_path, 150, 1300, 4096)
    assert (tmp_path / "42" / "clear_refs").read_text() == "5"
    found = meter.resources(4)
    assert found["cpu_cores"] == pytest.approx(0.5)  # 50 + 50 ticks of 10 ms in 2 s
    assert found["cpu_s_per_sample"] == pytest.approx(0.25)
    assert found["other_cores"] == pytest.approx(1.0)  # 3 s busy, 1 s of them ours; stolen and idle ticks do not count
    assert found["resident_bytes"] == 4096 * 1024


def test_a_peak_that_cannot_be_reset_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_PERIOD_S", 0.01)
    write_proc(tmp_path, 0, 0, 2000)
    (tmp_path / "42" / "clear_refs").mkdir()  # as one that may not be written
    with Meter(settings_of(device="cpu"), pid=42, proc=tmp_path) as meter:
        write_proc(tmp_path, 0, 0, 6000)
        time.sleep(0.3)
        write_proc(tmp_path, 0, 0, 1000)
    assert meter.resources(1)["resident_bytes"] == 3000 * 1024  # VmRSS in between; VmHWM would be of another time


def test_without_proc_the_fields_are_absent(tmp_path):
    with Meter(settings_of(device="cpu"), pid=42, proc=tmp_path) as meter:
        pass
    assert meter.resources(3) == {"of": "this process"}


def test_energy_is_of_the_drivers_counter(nvml):
    fake = nvml()
    with Meter(settings_of(device="cuda")) as meter:
        assert fake.open == 1
        fake.used = 9 * MIB
        time.sleep(0.02)
        fake.millijoules += 7_000
    found = meter.resources(14)
    assert found["device_j_per_sample"] == pytest.approx(0.5)
    assert found["device_power_w"] == pytest.approx(7.0 / meter._seconds)
    assert found["device_memory_bytes"] == 9 * MIB  # seen on leaving
    assert fake.open == 0


def test_without_a_counter_energy_is_of_the_power_seen(nvml):
    nvml(energy=False)
    with Meter(settings_of(device="cuda")) as meter:
        time.sleep(0.01)
    found = meter.resources(5)
    assert found["device_power_w"] == pytest.approx(250.0)
    assert found["device_j_per_sample"] == pytest.approx(250.0 * meter._seconds / 5)


def test_a_driver_that_fails_in_the_run_costs_the_field(nvml):
    fake = nvml(energy=False)
    with Meter(settings_of(device="cuda")) as meter:
        fake.fails = True
    found = meter.resources(5)
    assert found["device_power_w"] == pytest.approx(250.0)  # of the sample before
    fake = nvml()
    with Meter(settings_of(device="cuda")) as meter:
        fake.millijoules += 1_000_000
        fake.fails = True
    found = meter.resources(5)
    assert found["device_power_w"] == pytest.approx(250.0)  # the counter was lost, and no number made of half of it
    assert found["cpu_cores"] > 0


def test_the_gpu_is_the_one_that_lists_the_process(nvml):
    nvml(gpus=3)
    assert open_gpu("cuda", 77)._handle == 2
    assert open_gpu("auto", 77)._handle == 2
    assert open_gpu("cpu", 77) is None


def test_among_several_gpus_nothing_is_guessed(nvml):
    for gpus, device, expected in ((2, "cuda", False), (1, "auto", False), (1, "cuda:0", True)):
        fake = nvml(gpus, lists=False)
        found = open_gpu(device, 77)
        assert (found is not None) == expected, (gpus, device)
        assert fake.open == int(expected)  # left again where there is nothing to ask
    assert found.memory_bytes() is None  # of another process


def test_without_package_or_driver_there_is_no_gpu(nvml, monkeypatch):
    nvml().fails = True
    assert open_gpu("cuda", 77) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu("cuda", 77) is None
