"""nvcc as a stand-in where NVRTC is not installed and a CUDA toolkit is."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kpl_engine.errors import CudaModuleError

__all__ = ["Nvcc", "find_nvcc"]

_TOOLKIT = "/usr/local/cuda/bin/nvcc"


@dataclass(frozen=True)
class Nvcc:
    """One compiler driver; ``version`` is that of CUDA."""

    path: str
    version: tuple[int, int]

    @property
    def name(self) -> str:
        """For people and cache keys."""
        return "nvcc {}.{}".format(*self.version)

    def compile(self, source: Path, flags: tuple[str, ...], timeout_s: float = 600.0) -> bytes:
        """``source`` to a cubin; includes are found from its folder. `CudaModuleError` with the compiler's log."""
        with tempfile.TemporaryDirectory(prefix="kpl-nvcc-") as folder:
            target = Path(folder) / "kernel.cubin"
            command = [self.path, *flags, "-cubin", "-I", str(source.parent), "-o", str(target), str(source)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)  # noqa: S603
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CudaModuleError(f"cannot compile {source.name} with {self.name}: {error}") from error
            if done.returncode or not target.is_file():
                log = (done.stdout + done.stderr).strip()
                raise CudaModuleError(f"cannot compile {source.name} with {self.name}:\n{log}", log=log)
            return target.read_bytes()


def find_nvcc(max_major: int | None = None) -> Nvcc | None:
    """nvcc on the path or in /usr/local/cuda, of at most that major version of CUDA."""
    for path in (shutil.which("nvcc"), shutil.which(_TOOLKIT)):
        if path is None:
            continue
        try:
            told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            continue
        found = re.search(r"release (\d+)\.(\d+)", told)
        if found and (max_major is None or int(found.group(1)) <= max_major):
            return Nvcc(path, (int(found.group(1)), int(found.group(2))))
    return None
