"""The part of pycuda that the adapter uses, in ctypes over the pretended driver: for machines without pycuda.

It is held to the genuine one by the scenarios, which run over both where pycuda is installed.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

VERSION = "2026.1"
_PAIRS = "cuMemAlloc cuMemFree cuCtxPushCurrent cuCtxPopCurrent cuMemcpyHtoDAsync cuMemcpyDtoHAsync cuMemcpyDtoDAsync"
_NAMES = {name: f"{name}_v2" for name in (*_PAIRS.split(), "cuDeviceTotalMem", "cuStreamDestroy", "cuEventDestroy")}
_NAMES["cuCtxCreate"] = "cuCtxCreate_v4"


class Error(Exception):
    """As in pycuda: "<function> failed: <explanation>"."""


def install(library: ctypes.CDLL) -> None:
    """Put the double where ``import pycuda.driver`` finds it."""

    def call(name: str, *arguments: Any) -> None:
        status = getattr(library, _NAMES.get(name, name))(*arguments)
        if status:
            text = ctypes.c_char_p()
            library.cuGetErrorString(status, ctypes.byref(text))
            raise Error(f"{name} failed: {(text.value or b'').decode()}")

    def answer(kind: Any, name: str, *arguments: Any) -> Any:
        found = kind()
        call(name, ctypes.byref(found), *arguments)
        return found.value

    def pointer(address: int) -> Any:
        return ctypes.c_void_p(address)

    class Context:
        stack: list[Context] = []  # noqa: RUF012

        def __init__(self, handle: int, device: Device) -> None:
            self.handle, self.device = handle, device

        def push(self) -> None:
            call("cuCtxPushCurrent", pointer(self.handle))
            Context.stack.append(self)

        @staticmethod
        def pop() -> None:
            answer(ctypes.c_void_p, "cuCtxPopCurrent")
            Context.stack.pop()

        @staticmethod
        def get_current() -> Context | None:
            return Context.stack[-1] if Context.stack else None

        @staticmethod
        def get_device() -> Device:
            return Context.stack[-1].device

        @staticmethod
        def synchronize() -> None:
            call("cuCtxSynchronize")

        def detach(self) -> None:
            call("cuDevicePrimaryCtxRelease_v2", self.device.number)

    class Device:
        def __init__(self, number: int) -> None:
            self.number = answer(ctypes.c_int, "cuDeviceGet", number)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device) and other.number == self.number

        def __hash__(self) -> int:
            return self.number

        def name(self) -> str:
            text = ctypes.create_string_buffer(256)
            call("cuDeviceGetName", text, 256, self.number)
            return text.value.decode()

        def compute_capability(self) -> tuple[int, int]:
            return self.get_attribute(75), self.get_attribute(76)

        def total_memory(self) -> int:
            return int(answer(ctypes.c_size_t, "cuDeviceTotalMem", self.number))

        def get_attribute(self, attribute: int) -> int:
            return int(answer(ctypes.c_int, "cuDeviceGetAttribute", attribute, self.number))

        def retain_primary_context(self) -> Context:
            return Context(answer(ctypes.c_void_p, "cuDevicePrimaryCtxRetain", self.number), self)

        def make_context(self) -> Context:
            made = Context(answer(ctypes.c_void_p, "cuCtxCreate", None, 0, self.number), self)
            Context.stack.append(made)
            return made

    class DeviceAllocation:
        def __init__(self, nbytes: int) -> None:
            self.address = answer(ctypes.c_void_p, "cuMemAlloc", ctypes.c_size_t(nbytes))
            self.is_live = True

        def __int__(self) -> int:
            return int(self.address)

        def free(self) -> None:
            if not self.is_live:
                raise Error("device_allocation::free failed: invalid handle")
            self.is_live = False
            call("cuMemFree", pointer(self.address))

    class PagelockedHostAllocation:
        def __init__(self, count: int, dtype: Any) -> None:
            self.address = answer(ctypes.c_void_p, "cuMemHostAlloc", ctypes.c_size_t(count * dtype.itemsize), 0)
            self.context, self.count, self.dtype = Context.stack[-1], count, dtype

        @property
        def __array_interface__(self) -> dict[str, Any]:
            return {"shape": (self.count,), "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

        def __del__(self) -> None:
            if hasattr(self, "address"):
                self.context.push()
                call("cuMemFreeHost", pointer(self.address))
                Context.pop()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = answer(ctypes.c_void_p, "cuStreamCreate", flags)

        def synchronize(self) -> None:
            call("cuStreamSynchronize", pointer(self.handle))

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self.handle = answer(ctypes.c_void_p, "cuEventCreate", flags)

        def record(self, stream: Stream) -> None:
            call("cuEventRecord", pointer(self.handle), pointer(stream.handle))

        def synchronize(self) -> None:
            call("cuEventSynchronize", pointer(self.handle))

        def time_till(self, end: Event) -> float:
            return float(answer(ctypes.c_float, "cuEventElapsedTime", pointer(self.handle), pointer(end.handle)))

    class Function:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def get_attribute(self, attribute: int) -> int:
            return int(answer(ctypes.c_int, "cuFuncGetAttribute", attribute, pointer(self.handle)))

        def set_attribute(self, attribute: int, value: int) -> None:
            call("cuFuncSetAttribute", pointer(self.handle), attribute, value)

        def prepare(self, arg_types: Any, texrefs: Any = None) -> Function:
            self.arg_format = "".join(kind.char for kind in arg_types)
            return self

        def prepared_async_call(self, grid: Any, block: Any, stream: Stream, *args: Any, shared_size: int = 0) -> None:
            packed = struct.pack(self.arg_format, *args)
            size = ctypes.c_size_t(len(packed))
            buffer = ctypes.create_string_buffer(packed, len(packed))
            extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
            shape = (*grid, *(1,) * (3 - len(grid)), *block)
            call("cuLaunchKernel", pointer(self.handle), *shape, shared_size, pointer(stream.handle), None, extra)

    class Module:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def get_function(self, name: str) -> Function:
            return Function(answer(ctypes.c_void_p, "cuModuleGetFunction", pointer(self.handle), name.encode()))

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> Any:
        (count,) = shape
        return np.asarray(PagelockedHostAllocation(count, dtype))

    def module_from_buffer(buffer: bytes) -> Module:
        return Module(answer(ctypes.c_void_p, "cuModuleLoadDataEx", buffer, 0, None, None))

    def memcpy_htod_async(dest: int, src: Any, stream: Stream) -> None:
        call(
            "cuMemcpyHtoDAsync",
            pointer(dest),
            pointer(src.ctypes.data),
            ctypes.c_size_t(src.nbytes),
            pointer(stream.handle),
        )

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream) -> None:
        call(
            "cuMemcpyDtoHAsync",
            pointer(dest.ctypes.data),
            pointer(src),
            ctypes.c_size_t(dest.nbytes),
            pointer(stream.handle),
        )

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        call("cuMemcpyDtoDAsync", pointer(dest), pointer(src), ctypes.c_size_t(size), pointer(stream.handle))

    def memset_d8_async(dest: int, data: int, size: int, stream: Stream) -> None:
        call("cuMemsetD8Async", pointer(dest), ctypes.c_ubyte(data), ctypes.c_size_t(size), pointer(stream.handle))

    driver: Any = ModuleType("pycuda.driver")
    driver.__dict__.update(
        {name: value for name, value in locals().items() if isinstance(value, type) or "_async" in name}
        | {"Error": Error, "init": lambda: call("cuInit", 0), "mem_alloc": DeviceAllocation}
        | {"pagelocked_empty": pagelocked_empty, "module_from_buffer": module_from_buffer}
        | {"get_driver_version": lambda: answer(ctypes.c_int, "cuDriverGetVersion")}
    )
    driver.function_attribute = SimpleNamespace(
        MAX_THREADS_PER_BLOCK=0, SHARED_SIZE_BYTES=1, NUM_REGS=4, MAX_DYNAMIC_SHARED_SIZE_BYTES=8
    )
    driver.device_attribute = SimpleNamespace(
        MULTIPROCESSOR_COUNT=16,
        L2_CACHE_SIZE=38,
        MAX_THREADS_PER_MULTIPROCESSOR=39,
        MAX_SHARED_MEMORY_PER_MULTIPROCESSOR=81,
        MAX_REGISTERS_PER_MULTIPROCESSOR=82,
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97,
        MAX_BLOCKS_PER_MULTIPROCESSOR=106,
        RESERVED_SHARED_MEMORY_PER_BLOCK=111,
    )
    package: Any = ModuleType("pycuda")
    package.driver, package.VERSION_TEXT, package.__path__ = driver, VERSION, []
    sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, driver
