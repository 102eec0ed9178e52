"""Where compiled kernels come from: the fat binary of the build, else a compiler on this machine, through a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kpl_engine.cuda import fatbin
from kpl_engine.cuda.failures import release
from kpl_engine.cuda.kernel_cache import KernelCache
from kpl_engine.cuda.nvcc import Nvcc, find_nvcc
from kpl_engine.cuda.nvrtc import Nvrtc, find_nvrtc
from kpl_engine.errors import CudaModuleError

__all__ = ["Image", "Images", "folder", "sources"]

_SLOW_SECONDS = 2.0  # of one source; a call that took that long wants a word
_SCHEMA = "1"  # of cache keys: raise it when what is stored under them changes its meaning
_LANGUAGE = "-std=c++17"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Image:
    """A loadable form of one source file."""

    code: bytes
    kind: str  # "fatbin", "cubin" or "ptx"
    origin: str  # for people: "NVRTC 13.5, from the cache"


def folder() -> Path:
    """Where the sources are: in a wheel the package, else the checkout around it. `CudaModuleError` if nowhere."""
    places = (_HERE / "kernels", _HERE.parents[1] / "kernels")
    for place in places:
        if (place / "device").is_dir():
            return place
    raise CudaModuleError(
        f"the kernel sources are missing: expected {places[0]}; install kpl-engine again, from a wheel or a checkout"
    )


def sources() -> list[str]:
    """The names that can be loaded, sorted."""
    return sorted(path.stem for path in folder().glob("*.cu"))


class Images:
    """The images for one GPU.

    Parameters
    ----------
    compute_capability : (int, int)
        Of the GPU.
    driver_version : int
        As the driver counts, 13000 is 13.0: it runs code of its own major version of CUDA and older ones only.
    cache : KernelCache
        Keeps what is compiled here.
    """

    def __init__(self, compute_capability: tuple[int, int], driver_version: int, cache: KernelCache) -> None:
        self._capability = compute_capability
        self._driver_version = driver_version
        self._cache = cache

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: kernels that took long to compile, a cache that does not keep them; each once."""
        return tuple(self._cache.notes)

    def candidates(self, source: str) -> Iterator[Image]:
        """Forms of ``kernels/<source>.cu`` for this GPU, best first; the next is made only when it is asked for.

        Raises
        ------
        CudaModuleError
            There is no such source, it does not compile, or there is nothing to compile it with.
        """
        path = folder() / f"{source}.cu"
        if not path.is_file():
            raise CudaModuleError(f"no kernel source {source!r}: expected one of {', '.join(sources())}")
        built = self._built(path)
        if built is not None:
            yield Image(built, "fatbin", "fat binary")
        yield self._compiled(path)

    def describe(self) -> str:
        """How kernels get here, for people; compiles nothing. `CudaModuleError` when they cannot."""
        paths = [folder() / f"{name}.cu" for name in sources()]
        if all(self._built(path) is not None for path in paths):
            return "fat binary"
        compiler = self._compiler
        kept = sum(self._cache.has(self._key(path, compiler)) for path in paths)
        return f"{compiler.name}, {kept} of {len(paths)} kernels in the cache"

    def _built(self, path: Path) -> bytes | None:
        image = _fat_binary(path)
        return image if image is not None and fatbin.fits(image, self._capability) else None

    @cached_property
    def _compiler(self) -> Nvrtc | Nvcc:
        major = self._driver_version // 1000
        library, why = find_nvrtc(major)
        found = library or find_nvcc(major)
        if found is None:
            package = "nvidia-cuda-nvrtc-cu12" if major == 12 else "nvidia-cuda-nvrtc"
            raise CudaModuleError(
                f"the kernels were not compiled for this GPU when kpl-engine was built, and they cannot be compiled "
                f"here: {why}, and there is no nvcc. The driver runs CUDA up to {release(self._driver_version)}: "
                f'pip install {package}, or use device="cpu"'
            )
        return found

    def _compiled(self, path: Path) -> Image:
        compiler = self._compiler
        kind, flags = self._target(compiler)

        def build() -> bytes:
            if isinstance(compiler, Nvrtc):
                text = path.read_text(encoding="utf-8")
                return compiler.compile(path.stem, text, _headers(path.parent), flags, ptx=kind == "ptx")
            return compiler.compile(path, flags)

        start = time.perf_counter()
        code, was_kept = self._cache.get(self._key(path, compiler), build)
        spent = time.perf_counter() - start
        if not was_kept and spent > _SLOW_SECONDS:
            self._cache.note(
                f"the kernels of {path.name} were compiled for this GPU, which took {spent:.0f} s; "
                "`kpl-engine doctor --compile-kernels` does it beforehand"
            )
        return Image(code, kind, compiler.name + (", from the cache" if was_kept else ""))

    def _target(self, compiler: Nvrtc | Nvcc) -> tuple[str, tuple[str, ...]]:
        """Code for this very GPU: PTX of a compiler newer than the driver would be refused. For a GPU newer than the
        compiler PTX is all there is.
        """
        wanted = self._capability[0] * 10 + self._capability[1]
        if isinstance(compiler, Nvcc) or wanted in compiler.architectures:
            return "cubin", (_LANGUAGE, f"-arch=sm_{wanted}")
        older = [number for number in compiler.architectures if number < wanted]
        if not older:
            known = ", ".join(f"sm_{number}" for number in compiler.architectures)
            raise CudaModuleError(f"{compiler.name} does not compile for sm_{wanted}, only for {known}")
        return "ptx", (_LANGUAGE, f"-arch=compute_{older[-1]}")

    def _key(self, path: Path, compiler: Nvrtc | Nvcc) -> str:
        """Changes with anything that may change the image: sources, flags, architecture, compiler, schema."""
        kind, flags = self._target(compiler)
        parts = [_SCHEMA, compiler.name, kind, *flags, path.name, path.read_text(encoding="utf-8")]
        for name, text in sorted(_headers(path.parent).items()):
            parts += [name, text]
        digest = hashlib.sha256()
        for part in parts:
            blob = part.encode()
            digest.update(len(blob).to_bytes(8, "little") + blob)
        return f"{path.stem}-{digest.hexdigest()}"


def _headers(place: Path) -> dict[str, str]:
    """Every header under the name that kernels include it by."""
    return {f"device/{path.name}": path.read_text(encoding="utf-8") for path in sorted(place.glob("device/*.cuh"))}


def _fat_binary(path: Path) -> bytes | None:
    beside = path.with_suffix(".fatbin")
    if beside.is_file():  # a wheel: both were written by one build
        return beside.read_bytes()
    elsewhere = _built_folder() / beside.name
    if not elsewhere.is_file():
        return None
    # An editable install: the sources may have been edited since.
    built_at = elsewhere.stat().st_mtime_ns
    read = [path, *path.parent.glob("device/*.cuh")]
    return elsewhere.read_bytes() if all(other.stat().st_mtime_ns < built_at for other in read) else None


def _built_folder() -> Path:
    """Where an editable install keeps what was built: beside the compiled core."""
    found = importlib.util.find_spec("kpl_engine._core")
    return Path(found.origin).parent / "cuda" / "kernels" if found and found.origin else _HERE / "kernels"
