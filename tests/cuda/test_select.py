"""Which GPU and which adapter, and what is said when there is none."""

import ctypes
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from kpl_engine.cuda import select
from kpl_engine.cuda.probe import Gpu, Probe, probe
from kpl_engine.cuda.select import describe, explain_absence, open_driver, parse_device
from kpl_engine.errors import BackendUnavailableError, ConfigError

HOPPER = Gpu("H200", (9, 0))
FOUND = Probe("", 13000, (HOPPER, Gpu("V100", (7, 0))))


@pytest.mark.parametrize(
    ("device", "parsed"),
    [
        ("auto", ("auto", 0)),
        ("cpu", ("cpu", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:12", ("cuda", 12)),
    ],
)
def test_devices(device, parsed):
    assert parse_device(device) == parsed


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:-1", "cuda:1000", "cuda:x", "cpu:1", "auto:0", "CUDA", None, 0, "cuda:1\n"]
)
def test_what_is_no_device(device):
    with pytest.raises(ConfigError, match="'cuda:N'"):
        parse_device(device)


@pytest.mark.parametrize(
    ("ordinal", "found", "words"),
    [
        (0, Probe("no NVIDIA driver: lost"), ["no NVIDIA driver: lost"]),
        (0, Probe("", 11080, (HOPPER,)), ["11.8", "12.0", "R525", "update"]),
        (2, FOUND, ["no GPU 2", "cuda:0 H200", "cuda:1 V100", "CUDA_VISIBLE_DEVICES"]),
        (0, Probe("", 13000, ()), ["no GPU 0", "none"]),
        (1, FOUND, ["V100", "7.0", "7.5"]),
    ],
)
def test_absence_says_what_was_expected_and_got(ordinal, found, words):
    said = explain_absence(ordinal, found)
    for word in words:
        assert word in said
    is_ready, how = describe(ordinal, found)
    assert (is_ready, how) == (False, said)


def test_a_gpu_that_will_do():
    assert explain_absence(0, FOUND) is None
    assert explain_absence(0, Probe("", 12000, (Gpu("T4", (7, 5)),))) is None


class Library:
    """A driver library whose calls answer what the test says."""

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        if name in self.__dict__.get("answers", {}):
            answer = self.answers[name]
            return answer if callable(answer) else lambda *_: answer
        raise AttributeError(name)


def set_version(pointer):
    pointer._obj.value = 13010
    return 0


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (100, "NO_DEVICE"),
        (3, "spawn"),
        (34, "stub library"),
        (803, "restart the machine"),
        (999, "dmesg"),
        (4711, "4711"),
    ],
)
def test_a_driver_that_does_not_start_says_why(code, word):
    found = probe(lambda: Library(cuInit=code, cuDriverGetVersion=set_version))
    assert word in found.absence
    assert (found.driver_version, found.gpus) == (13010, ())


def test_a_driver_that_fails_while_it_lists():
    found = probe(lambda: Library(cuInit=0, cuDriverGetVersion=set_version, cuDeviceGetCount=46))
    assert "exclusively" in found.absence


def test_a_library_that_is_no_driver():
    assert "no CUDA driver" in probe(lambda: ctypes.CDLL(None)).absence


def test_no_driver():
    def load():
        raise OSError("not there")

    found = probe(load)
    assert "libcuda.so.1 was not found" in found.absence
    assert "--gpus all" in found.absence


@pytest.fixture
def machine(monkeypatch):
    """A machine with the GPUs of `FOUND` and the packages named; none is really opened."""

    def make(**packages):
        def version(name):
            if name not in packages:
                raise PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(select, "probe", lambda: FOUND)
        monkeypatch.setattr(select, "version", version)
        monkeypatch.setattr(select, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=packages.get)))
        monkeypatch.setattr(select, "_open", lambda name, ordinal, images: (name, ordinal))

    return make


CORE = {"cuda-core": "1.2.2", "cuda-bindings": "13.5.0"}


@pytest.mark.parametrize(
    ("packages", "adapter", "opened"),
    [
        (CORE, "auto", "cuda.core"),
        ({**CORE, "pycuda": "2026.1"}, "auto", "cuda.core"),
        ({"pycuda": "2026.1"}, "auto", "pycuda"),
        ({"cuda-core": "1.2.2", "cuda-bindings": "14.0", "pycuda": "2026.1"}, "auto", "pycuda"),
        ({**CORE, "pycuda": "2026.1"}, "pycuda", "pycuda"),
        ({**CORE, "pycuda": "2026.1"}, "cuda.core", "cuda.core"),
    ],
)
def test_the_adapter(machine, packages, adapter, opened):
    machine(**packages)
    assert open_driver("cuda:0", adapter, keeps_kernels=False) == (opened, 0)


@pytest.mark.parametrize(
    ("packages", "adapter", "words"),
    [
        ({}, "auto", ["cuda-bindings is not installed", "kpl-engine[cuda]", "pycuda is not installed"]),
        ({"cuda-bindings": "13.5.0"}, "auto", ["cuda-core is not installed"]),
        ({"pycuda": "2026.1"}, "cuda.core", ["kpl-engine[cuda]"]),
        (CORE, "pycuda", ["pip install pycuda"]),
        ({**CORE, "cuda-core": "0.6.0"}, "auto", ["cuda-core 0.6.0 is too old", "1.2", "kpl-engine[cuda]"]),
        ({"cuda-core": "1.2.2", "cuda-bindings": "14.0"}, "auto", ["for CUDA 14", "13.0", "cuda-core[cu13]"]),
    ],
)
def test_no_adapter(machine, packages, adapter, words):
    machine(**packages)
    with pytest.raises(BackendUnavailableError, match='device="cpu"') as told:
        open_driver("cuda", adapter)
    for word in words:
        assert word in str(told.value)


def test_a_host_that_uses_pycuda_keeps_to_it(machine, monkeypatch):
    machine(**CORE, pycuda="2026.1")

    class Module:
        class Context:
            current = None

            @classmethod
            def get_current(cls):
                return cls.current

    monkeypatch.setitem(sys.modules, "pycuda.driver", Module)
    assert open_driver("cuda", keeps_kernels=False) == ("cuda.core", 0)
    Module.Context.current = object()
    assert open_driver("cuda", keeps_kernels=False) == ("pycuda", 0)


def test_an_unsupported_gpu_is_not_opened(machine):
    machine(**CORE)
    with pytest.raises(BackendUnavailableError, match=r"cuda:1 is not available: V100 .* 7\.5"):
        open_driver("cuda:1")


@pytest.mark.parametrize(("device", "adapter"), [("cpu", "auto"), ("gpu", "auto"), ("cuda", "torch")])
def test_what_cannot_be_asked_for(device, adapter):
    with pytest.raises(ConfigError):
        open_driver(device, adapter)


def test_without_a_driver_nothing_of_cuda_is_imported_and_nothing_is_written(tmp_path):
    if explain_absence() is None:
        pytest.skip("this machine has a GPU")
    code = (
        "import sys\n"
        "from kpl_engine.cuda.select import open_driver, explain_absence\n"
        "from kpl_engine.errors import BackendUnavailableError\n"
        "assert explain_absence()\n"
        "try: open_driver('cuda')\n"
        "except BackendUnavailableError as error: print(error)\n"
        "sys.exit(bool({'cuda', 'pycuda', 'onnxruntime'} & set(sys.modules)))"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "cuda:0 is not available" in done.stdout
    assert list(tmp_path.iterdir()) == []
