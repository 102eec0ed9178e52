"""What ``kpl-engine doctor`` says of the GPU and of the back ends that need one."""

import json

import pytest

from kpl_engine.cli import doctor_command
from kpl_engine.cli.main import main
from kpl_engine.cuda.probe import Gpu, Probe, probe

ABSENT = "no NVIDIA driver: libcuda.so.1 was not found. Install the driver, or start the container with GPUs"
H200 = Probe("", 13000, (Gpu("NVIDIA H200", (9, 0)), Gpu("NVIDIA T4", (7, 5))))


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Runs the command on a machine with that driver; returns its exit code, text and record."""

    def run(found, solver=(True, "cuda.core 1.2.2 on NVIDIA H200; kernels: NVRTC 13.5, 2 of 9 kernels in the cache")):
        monkeypatch.setattr(doctor_command, "probe", lambda: found)
        if not found.absence:
            monkeypatch.setattr(doctor_command, "describe", lambda found: solver)
        code = main(["doctor"])
        text = capsys.readouterr().out
        assert main(["doctor", "--json"]) == code
        return code, text, json.loads(capsys.readouterr().out)

    return run


def back_end(record, name):
    return next(entry for entry in record["backends"] if entry["name"] == name)


def test_without_a_driver_it_says_so_and_what_to_do(doctor):
    code, text, record = doctor(Probe(ABSENT))
    assert code == 0, "the CPU works"
    assert f"gpu: none: {ABSENT}" in text
    assert record["gpu"] == f"none: {ABSENT}"
    assert (record["gpus"], record["cuda_driver"]) == ([], None)
    for name in ("encoder: cuda", "encoder: tensorrt", "solver: cuda"):
        assert back_end(record, name) == {
            "name": name,
            "ready": False,
            "detail": "no NVIDIA driver: libcuda.so.1 was not found",
        }


def test_with_gpus_it_names_them_the_adapter_and_the_kernels(doctor):
    _, text, record = doctor(H200)
    assert "cuda:0 NVIDIA H200 (compute capability 9.0); cuda:1 NVIDIA T4 (compute capability 7.5)" in text
    assert "driver for CUDA 13.0" in text
    assert record["gpus"][1] == {"name": "NVIDIA T4", "compute_capability": [7, 5]}
    assert record["cuda_driver"] == "13.0"
    found = back_end(record, "solver: cuda")
    assert found["ready"]
    assert "NVRTC 13.5, 2 of 9 kernels in the cache" in found["detail"]
    assert {"cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "pycuda"} <= set(record["packages"])


def test_a_gpu_that_no_adapter_can_open_is_not_ready(doctor):
    _, text, record = doctor(H200, (False, 'cuda-core is not installed (pip install "kpl-engine[cuda]"). More'))
    assert "cuda:0 NVIDIA H200" in text
    found = back_end(record, "solver: cuda")
    assert not found["ready"]
    assert found["detail"] == 'cuda-core is not installed (pip install "kpl-engine[cuda]")'


def test_an_old_driver_serves_no_back_end(doctor, monkeypatch):
    old = Probe("", 11040, H200.gpus)
    monkeypatch.setattr(doctor_command, "_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    _, _, record = doctor(old, (False, "the NVIDIA driver is too old"))
    assert not back_end(record, "encoder: cuda")["ready"]
    assert "11.4" in back_end(record, "encoder: cuda")["detail"]
    _, _, record = doctor(H200)
    assert back_end(record, "encoder: cuda") == {"name": "encoder: cuda", "ready": True, "detail": "ONNX Runtime CUDA"}


@pytest.mark.parametrize(
    "said", [(True, "tensorrt 10.16.1.11"), (False, "TensorRT is not available (tensorrt: no module)")]
)
def test_tensorrt_is_asked_for_only_where_there_is_a_gpu(doctor, monkeypatch, said):
    asked = []
    monkeypatch.setattr(doctor_command.tensorrt_library, "describe", lambda: asked.append(1) or said)
    _, _, record = doctor(Probe(ABSENT))
    assert not asked
    assert back_end(record, "encoder: tensorrt")["detail"] == "no NVIDIA driver: libcuda.so.1 was not found"
    _, _, record = doctor(H200)
    found = back_end(record, "encoder: tensorrt")
    assert (found["ready"], found["detail"]) == said


def test_kernels_are_compiled_beforehand(doctor, monkeypatch, capsys):
    asked = []

    def compile_kernels(device, progress):
        asked.append(device)
        progress(1, 1)
        return [("answer", "NVRTC 13.5")]

    monkeypatch.setattr(doctor_command, "compile_kernels", compile_kernels)
    monkeypatch.setattr(doctor_command, "probe", lambda: H200)
    monkeypatch.setattr(doctor_command, "describe", lambda found: (True, "cuda.core"))
    assert main(["doctor", "--compile-kernels", "--device", "cuda:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == {"answer": "NVRTC 13.5"}
    assert asked == ["cuda:1"]


def test_compiling_without_a_gpu_is_refused(capsys):
    if not probe().absence:
        pytest.skip("there is a GPU here")
    assert main(["doctor", "--compile-kernels"]) == 1
    assert "cuda:0 is not available" in capsys.readouterr().err
