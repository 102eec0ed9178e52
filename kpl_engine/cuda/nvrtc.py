"""NVRTC, NVIDIA's run-time compiler, through its C interface: needs neither a GPU nor a driver."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from kpl_engine.errors import CudaModuleError

__all__ = ["Nvrtc", "find_nvrtc"]

# Newest first. The pip packages keep it in nvidia/cu13/lib or nvidia/cuda_nvrtc/lib, toolkits on the loader's path.
_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib")
_TOOLKIT = Path("/usr/local/cuda/lib64")


class Nvrtc:
    """One loaded library.

    Parameters
    ----------
    library : ctypes.CDLL
        libnvrtc.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @cached_property
    def version(self) -> tuple[int, int]:
        """Of CUDA, as (13, 5)."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "ask NVRTC for its version")
        return major.value, minor.value

    @property
    def name(self) -> str:
        """For people and cache keys."""
        return "NVRTC {}.{}".format(*self.version)

    @cached_property
    def architectures(self) -> tuple[int, ...]:
        """What it compiles for, ascending: 75 for sm_75."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "ask NVRTC for its architectures")
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found), "ask NVRTC for its architectures")
        return tuple(sorted(found))

    def compile(self, name: str, text: str, headers: Mapping[str, str], flags: Sequence[str], *, ptx: bool) -> bytes:
        """Source text to a cubin, or to PTX.

        Parameters
        ----------
        name : str
            Of the source, for messages.
        headers : mapping
            What ``#include "..."`` finds, by the name written there: no folder is searched.
        flags : sequence of str
            The architecture and language.

        Raises
        ------
        CudaModuleError
            It does not compile; with the compiler's log.
        """
        names = _strings(list(headers))
        texts = _strings(list(headers.values()))
        program = ctypes.c_void_p()
        made = self._library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), f"{name}.cu".encode(), len(headers), texts, names
        )
        self._check(made, f"hand {name}.cu to NVRTC")
        try:
            status = self._library.nvrtcCompileProgram(program, len(flags), _strings(flags))
            if status:
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
                self._check(status, f"compile {name}.cu with {self.name}", log)
            return self._read(program, "PTX" if ptx else "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"read {what}")
        found = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, found), f"read {what}")
        return found.raw

    def _check(self, status: int, action: str, log: str = "") -> None:
        if status:
            said = self._library.nvrtcGetErrorString(status).decode()
            raise CudaModuleError(f"cannot {action}: {said} ({status})" + (f"\n{log}" if log else ""), log=log)


def find_nvrtc(max_major: int | None = None) -> tuple[Nvrtc | None, str]:
    """The newest NVRTC of at most that major version of CUDA, and what was found instead when there is none.

    A driver runs code of its own major version and older ones only.
    """
    passed = []
    for path in _candidates():
        loaded = _load(path)
        if loaded is None:
            continue
        if max_major is None or loaded.version[0] <= max_major:
            return loaded, ""
        passed.append(loaded.name)
    return None, f"{', '.join(dict.fromkeys(passed))} is too new for the driver" if passed else "NVRTC is not installed"


def _candidates() -> Iterator[str]:
    for name in _NAMES:
        for place in sys.path:
            for folder in _FOLDERS:
                path = Path(place) / folder / name
                if path.is_file():
                    yield str(path)
        yield name
        if (_TOOLKIT / name).is_file():
            yield str(_TOOLKIT / name)


@lru_cache(maxsize=8)
def _load(path: str) -> Nvrtc | None:
    try:
        return Nvrtc(ctypes.CDLL(path))
    except (OSError, AttributeError):  # not there, or a library that only has the name
        return None


def _strings(values: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))
