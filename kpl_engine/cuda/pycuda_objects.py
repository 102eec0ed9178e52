"""What `PycudaDriver` hands out, around the objects of pycuda, and how pycuda's errors are read."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from kpl_engine.cuda.base import Kernel
from kpl_engine.cuda.failures import CODES, no_kernel
from kpl_engine.errors import CudaError

__all__ = ["PycudaEvent", "PycudaKernel", "PycudaModule", "PycudaStream", "inner_of", "status_reader"]

_SHARED_WITHOUT_ASKING = 48 << 10  # bytes a block may have before its kernel opts in to more
_FAILED = re.compile(r"\w+ failed: (.*)", re.DOTALL)


class PycudaKernel:
    """A function of a module, and what it was allowed and prepared for."""

    def __init__(self, name: str, inner: Any) -> None:
        self.name = name
        self.inner = inner
        self.allowed_shared = _SHARED_WITHOUT_ASKING
        self.types: tuple[np.dtype[Any], ...] | None = None


class PycudaModule:
    """A loaded image."""

    def __init__(self, source: str, inner: Any, calling: Callable[[str], Any]) -> None:
        self._source = source
        self._inner = inner
        self._calling = calling

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name; `CudaModuleError` if there is none."""
        try:
            with self._calling(f"find the kernel {name} in {self._source}"):
                return PycudaKernel(name, self._inner.get_function(name))
        except CudaError as error:
            if error.code == 500:
                raise no_kernel(name, self._source) from error
            raise


class PycudaStream:
    """A stream that does not wait for the default one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.handle = int(inner.handle)


class PycudaEvent:
    """An event with timing."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def inner_of(wrapped: Any) -> Any:
    """pycuda's object in one of ours."""
    return wrapped.inner


def status_reader(library: Any) -> Callable[[BaseException], int]:
    """From an exception of pycuda to the status: its text is "<function> failed: <explanation> - <log>", without it.

    Parameters
    ----------
    library : ctypes library
        The driver, which gives the explanations.
    """
    texts: dict[str, int] = {}
    for code in CODES:
        text = ctypes.c_char_p()
        if not library.cuGetErrorString(code, ctypes.byref(text)) and text.value:
            texts[text.value.decode(errors="replace")] = code

    def number_of(error: BaseException) -> int:
        found = _FAILED.match(str(error))
        said = found.group(1) if found else ""
        fitting = [text for text in texts if said == text or said.startswith(text + " - ")]
        return texts[max(fitting, key=len)] if fitting else 0

    return number_of
