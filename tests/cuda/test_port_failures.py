"""Status codes of the driver as named errors."""

import pytest

from kpl_engine.cuda.failures import CODES, UNFIT_IMAGE, failure, name_of, no_kernel, number_of, release
from kpl_engine.cuda.guard import Guard
from kpl_engine.errors import (
    BackendUnavailableError,
    CudaError,
    CudaLaunchError,
    CudaMemoryError,
    CudaModuleError,
    CudaStickyError,
    ShapeError,
)

STICKY = (214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719)
TABLE = [
    (1, CudaError, "report"),
    (2, CudaMemoryError, "smaller batches"),
    (3, BackendUnavailableError, "spawn"),
    (34, BackendUnavailableError, "LD_LIBRARY_PATH"),
    (36, BackendUnavailableError, "update the NVIDIA driver"),
    (46, BackendUnavailableError, "exclusively"),
    (100, BackendUnavailableError, "CUDA_VISIBLE_DEVICES"),
    (101, BackendUnavailableError, "nvidia-smi"),
    (200, CudaModuleError, "install kpl-engine again"),
    (201, CudaError, "no context"),
    (209, CudaModuleError, "nvidia-cuda-nvrtc"),
    (218, CudaModuleError, "update the NVIDIA driver"),
    (221, CudaModuleError, "ptxjitcompiler"),
    (222, CudaModuleError, "newer CUDA"),
    (223, CudaModuleError, "CUDA_DISABLE_PTX_JIT"),
    (400, CudaError, "closed before"),
    (500, CudaError, "by name"),
    (701, CudaLaunchError, "registers"),
    (720, CudaLaunchError, "resident"),
    (801, CudaError, "cannot do it"),
    (802, BackendUnavailableError, "fabricmanager"),
    (803, BackendUnavailableError, "restart the machine"),
    (804, BackendUnavailableError, "cuda-compat"),
    (900, CudaError, "CUDA graph"),
    (912, CudaLaunchError, "cluster"),
    (999, CudaError, "dmesg"),
    *((code, CudaStickyError, "restart the process") for code in STICKY),
]


@pytest.mark.parametrize(("code", "kind", "advice"), TABLE)
def test_each_code_has_its_error_and_advice(code, kind, advice):
    error = failure(code, "do this")
    assert type(error) is kind
    message = str(error)
    assert message.startswith(f"cannot do this: the CUDA driver answered {name_of(code)} ({code}); ")
    assert advice in message
    assert name_of(code).startswith("CUDA_ERROR_")
    if isinstance(error, CudaError):
        assert error.code == code
    else:
        assert 'device="cpu"' in message


def test_a_code_without_a_name_is_told_by_its_number():
    error = failure(4711, "do this")
    assert type(error) is CudaError
    assert "status (4711)" in str(error)
    assert "CUresult" in str(error)


def test_names_are_those_of_the_installed_bindings():
    bindings = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    theirs = {int(member): member.name for member in bindings.CUresult}
    assert {code: name_of(code) for code in CODES} == {code: theirs[code] for code in CODES}


def test_the_compiler_log_goes_along():
    error = failure(218, "load x", "ptxas: line 3; what is this")
    assert error.log == "ptxas: line 3; what is this"
    assert str(error).endswith(error.log)
    assert failure(218, "load x").log == ""
    assert 218 in UNFIT_IMAGE
    assert "'f'" in str(no_kernel("f", "x"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY: it was unable", 2),
        ("While loading: CUDA_ERROR_NO_BINARY_FOR_GPU", 209),
        ("CUDA_ERROR_OF_TOMORROW: unheard of", 0),
        ("the grid is too large", 0),
    ],
)
def test_the_code_is_read_from_the_name(text, code):
    assert number_of(RuntimeError(text)) == code


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (13050, "13.5"), (12060, "12.6"), (11080, "11.8")])
def test_versions_as_people_write_them(number, text):
    assert release(number) == text


def test_the_guard_names_what_the_library_raises_and_lets_others_pass():
    guard = Guard((RuntimeError,), number_of)
    with pytest.raises(CudaMemoryError, match="cannot add"), guard("add"):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(CudaError, match="cannot add: too many") as told, guard("add"):
        raise RuntimeError("too many")
    assert told.value.code == 0
    assert isinstance(told.value.__cause__, RuntimeError)
    with pytest.raises(KeyError), guard("add"):
        raise KeyError("a mistake of ours")
    with pytest.raises(ShapeError, match=r"^rows$"), guard("add"):
        raise ShapeError("rows")


def test_the_guard_remembers_a_lost_context():
    lost = []
    guard = Guard((RuntimeError,), number_of, lambda: lost.append(1))
    for _ in range(2):
        with pytest.raises(CudaStickyError, match="restart"), guard("add"):
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
    assert lost == [1]
    with pytest.raises(CudaStickyError, match="cannot free, since earlier: cannot add") as told, guard("free"):
        lost.append("ran")
    assert told.value.code == 700
    assert lost == [1]


def test_a_closed_driver_is_not_used():
    guard = Guard((), number_of)
    guard.is_closed = True
    with pytest.raises(CudaError, match="closed; open another"), guard("add"):
        raise AssertionError("must not run")
