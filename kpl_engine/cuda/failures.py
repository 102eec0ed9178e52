"""From the driver's status codes to exceptions: the one funnel of both adapters."""

from __future__ import annotations

import re

from kpl_engine.errors import (
    BackendUnavailableError,
    CudaError,
    CudaLaunchError,
    CudaMemoryError,
    CudaModuleError,
    CudaStickyError,
    KplError,
)

__all__ = ["CODES", "UNFIT_IMAGE", "failure", "name_of", "no_kernel", "number_of", "release"]

# CUresult, cuda.h of CUDA 13. Names of all that the engine has advice for; others are told by their number.
_NAMES = {
    1: "INVALID_VALUE",
    2: "OUT_OF_MEMORY",
    3: "NOT_INITIALIZED",
    4: "DEINITIALIZED",
    34: "STUB_LIBRARY",
    36: "CALL_REQUIRES_NEWER_DRIVER",
    46: "DEVICE_UNAVAILABLE",
    100: "NO_DEVICE",
    101: "INVALID_DEVICE",
    102: "DEVICE_NOT_LICENSED",
    200: "INVALID_IMAGE",
    201: "INVALID_CONTEXT",
    209: "NO_BINARY_FOR_GPU",
    214: "ECC_UNCORRECTABLE",
    218: "INVALID_PTX",
    220: "NVLINK_UNCORRECTABLE",
    221: "JIT_COMPILER_NOT_FOUND",
    222: "UNSUPPORTED_PTX_VERSION",
    223: "JIT_COMPILATION_DISABLED",
    226: "CONTAINED",
    300: "INVALID_SOURCE",
    400: "INVALID_HANDLE",
    500: "NOT_FOUND",
    700: "ILLEGAL_ADDRESS",
    701: "LAUNCH_OUT_OF_RESOURCES",
    702: "LAUNCH_TIMEOUT",
    709: "CONTEXT_IS_DESTROYED",
    710: "ASSERT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
    720: "COOPERATIVE_LAUNCH_TOO_LARGE",
    801: "NOT_SUPPORTED",
    802: "SYSTEM_NOT_READY",
    803: "SYSTEM_DRIVER_MISMATCH",
    804: "COMPAT_NOT_SUPPORTED_ON_DEVICE",
    900: "STREAM_CAPTURE_UNSUPPORTED",
    901: "STREAM_CAPTURE_INVALIDATED",
    912: "INVALID_CLUSTER_SIZE",
    999: "UNKNOWN",
}
CODES = tuple(_NAMES)
_NUMBERS = {name: number for number, name in _NAMES.items()}

_UPDATE = "update the NVIDIA driver"
_NO_GPU = "check that nvidia-smi lists the GPU, that the container was given it and that CUDA_VISIBLE_DEVICES names it"
_ABSENT = {
    3: "the driver was not initialised; a process forked from one that used CUDA cannot use it: start it with 'spawn'",
    34: "the stub library of the CUDA toolkit was loaded instead of the driver: take its folder off LD_LIBRARY_PATH",
    36: _UPDATE,
    46: "another process holds the GPU exclusively, or it is being reset: stop the other one or take another device",
    100: _NO_GPU,
    101: _NO_GPU,
    102: "the GPU needs a vGPU licence",
    802: "the NVSwitch fabric is not up: start nvidia-fabricmanager",
    803: "driver and kernel module differ, as after an update: restart the machine",
    804: "the forward-compatibility driver does not know this GPU: remove cuda-compat or update the driver",
}
_MODULE = {
    200: "the compiled kernel is damaged or of another kind: install kpl-engine again, or clear the kernel cache",
    209: "no code for this GPU was compiled in: install nvidia-cuda-nvrtc, so that it can be compiled here",
    218: "the driver's compiler refused the kernel: " + _UPDATE,
    221: "the driver came without its compiler (libnvidia-ptxjitcompiler): install all of the driver",
    222: "the kernel was compiled by a newer CUDA than the driver knows: " + _UPDATE,
    223: "compilation in the driver is switched off (CUDA_DISABLE_PTX_JIT): switch it on",
    300: "the compiled kernel is damaged: install kpl-engine again, or clear the kernel cache",
}
_LAUNCH = {
    701: "the block asks for more registers or shared memory than a multiprocessor has: use fewer threads or bytes",
    720: "the blocks of a cooperative launch must all be resident at once: use fewer blocks",
    912: "the GPU cannot place a cluster of that size: use a smaller one",
}
# The context of the process is lost with these: every later call returns the same code.
_STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
_RESTART = (
    "the CUDA context of this process is lost: restart the process. "
    "To find the cause run it under compute-sanitizer, or with CUDA_LAUNCH_BLOCKING=1"
)
_PLAIN = {
    1: "an argument is out of range; this is a defect of kpl-engine, please report it",
    201: "no context is current; the driver was closed, or another library destroyed the context",
    400: "something closed before is used again; this is a defect of kpl-engine, please report it",
    500: "the driver lacks what it was asked for by name: " + _UPDATE,
    801: "this GPU or driver cannot do it",
    900: "something that cannot be recorded in a CUDA graph was called while one was recorded",
    901: "the recording of a CUDA graph was broken by an earlier call",
    999: "the driver gives no reason: look into the system log (dmesg) for lines with NVRM or Xid",
}

# The image does not fit this GPU or driver; another form of the same kernel may.
UNFIT_IMAGE = frozenset({200, 209, 218, 221, 222, 223})

_NAMED = re.compile(r"\bCUDA_ERROR_([A-Z_]+)\b")


def no_kernel(name: str, source: str) -> CudaModuleError:
    """The exception for a kernel that its module does not have."""
    return CudaModuleError(
        f"no kernel {name!r} in {source}: the compiled kernels are of another version, or the name is wrong; "
        "install kpl-engine again, or clear the kernel cache",
        500,
    )


def failure(code: int, action: str, log: str = "") -> KplError:
    """The exception for status ``code`` of the driver.

    Parameters
    ----------
    code : int
        ``CUresult``; not 0.
    action : str
        What was tried, as in "cannot <action>".
    log : str
        What the compiler or linker said, if it did.
    """
    head = f"cannot {action}: the CUDA driver answered {name_of(code)} ({code})"
    if code in _STICKY:
        return CudaStickyError(f"{head}; {_RESTART}", code)
    if code in _ABSENT:
        return BackendUnavailableError(f'{head}; {_ABSENT[code]}; or use device="cpu"')
    if code in _MODULE:
        return CudaModuleError(f"{head}; {_MODULE[code]}" + (f"\n{log}" if log else ""), code, log)
    if code == 2:
        advice = "the GPU has too little free memory: use smaller batches, or stop what else uses it (nvidia-smi)"
        return CudaMemoryError(f"{head}; {advice}", code)
    if code in _LAUNCH:
        return CudaLaunchError(f"{head}; {_LAUNCH[code]}", code)
    return CudaError(f"{head}; {_PLAIN.get(code, 'see CUresult in the documentation of the CUDA driver')}", code)


def name_of(code: int) -> str:
    """``CUDA_ERROR_...``, or ``status`` for a code without a name here."""
    return f"CUDA_ERROR_{_NAMES[code]}" if code in _NAMES else "status"


def number_of(error: BaseException) -> int:
    """The status named in the text of an exception, as in "CUDA_ERROR_OUT_OF_MEMORY: ..."; 0 if there is none."""
    found = _NAMED.search(str(error))
    return _NUMBERS.get(found.group(1), 0) if found else 0


def release(version: int) -> str:
    """13010 as "13.1"."""
    return f"{version // 1000}.{version % 1000 // 10}"
