"""Every error the engine raises on purpose.

    KplError
    ├── InputError (ValueError)        a value the caller passed is wrong
    │   ├── ShapeError                 an array has the wrong shape, dtype or content
    │   ├── ConfigError                an option is out of range or unknown
    │   ├── ImageError                 one image cannot be used (decode, size, format)
    │   ├── KnowledgeError             a knowledge file or knowledge base is unusable
    │   └── TextTooLongError           a text does not fit the encoder's context
    ├── BundleError                    a bundle on disk cannot be used
    │   ├── BundleChangedError         another writer replaced it meanwhile
    │   ├── BundleCorruptError         bytes differ from what the manifest promises
    │   ├── BundleVersionError         written by a format this version does not read
    │   └── BundlePathError            a path that leaves the bundle, or a link in it
    ├── EncoderError                   an encoder failed to load or to run
    │   └── BackendUnavailableError    a back end asked for by name is not there
    ├── SolverError                    proxy learning cannot give a defined answer
    ├── CudaError                      the CUDA driver refused something; `code` is its status
    │   ├── CudaModuleError            a kernel cannot be found, compiled or loaded; `log` is the compiler's
    │   ├── CudaLaunchError            a launch does not fit the GPU
    │   ├── CudaMemoryError            the GPU has too little memory
    │   └── CudaStickyError            a kernel failed and the process must be restarted
    ├── ExportError                    a checkpoint could not be exported
    │   └── ParityError                the exported graph differs from the original model
    └── MissingExtraError              an optional dependency is not installed

A message says what is wrong, what was expected, what was got, and what to do.
`exit_code` is what the command line returns when the error reaches it.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailableError",
    "BundleChangedError",
    "BundleCorruptError",
    "BundleError",
    "BundlePathError",
    "BundleVersionError",
    "ConfigError",
    "CudaError",
    "CudaLaunchError",
    "CudaMemoryError",
    "CudaModuleError",
    "CudaStickyError",
    "EncoderError",
    "ExportError",
    "ImageError",
    "InputError",
    "KnowledgeError",
    "KplError",
    "MissingExtraError",
    "ParityError",
    "ShapeError",
    "SolverError",
    "TextTooLongError",
]


class KplError(Exception):
    """Root of the tree: ``except KplError`` catches everything raised on purpose."""

    exit_code = 1


class InputError(KplError, ValueError):
    """A value the caller passed is wrong."""

    exit_code = 2


class ShapeError(InputError):
    """An array has the wrong shape, dtype or content."""


class ConfigError(InputError):
    """An option is out of range or unknown."""


class ImageError(InputError):
    """One image cannot be used; ``source`` names it."""

    def __init__(self, message: str, source: str = "") -> None:
        super().__init__(message)
        self.source = source


class KnowledgeError(InputError):
    """A knowledge file or knowledge base is unusable."""


class TextTooLongError(InputError):
    """A text does not fit the encoder's context window."""


class BundleError(KplError):
    """A bundle on disk cannot be used."""

    exit_code = 2


class BundleChangedError(BundleError):
    """Another program replaced the bundle while a new one was made from it; run again."""

    exit_code = 1


class BundleCorruptError(BundleError):
    """Bytes on disk differ from what the manifest promises."""


class BundleVersionError(BundleError):
    """The bundle was written in a format this version does not read."""


class BundlePathError(BundleError):
    """A path in the bundle leads out of it, or is a symbolic link."""


class EncoderError(KplError):
    """An encoder failed to load or to run."""


class BackendUnavailableError(EncoderError):
    """A back end asked for by name is not available on this machine."""


class SolverError(KplError):
    """Proxy learning cannot give a defined answer for these inputs."""


class CudaError(KplError):
    """The CUDA driver refused something; ``code`` is its ``CUresult``, 0 where the driver was not asked."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class CudaModuleError(CudaError):
    """A kernel cannot be found, compiled or loaded; ``log`` is what the compiler said."""

    def __init__(self, message: str, code: int = 0, log: str = "") -> None:
        super().__init__(message, code)
        self.log = log


class CudaLaunchError(CudaError):
    """A launch asks for more threads, shared memory or blocks at once than the GPU has."""


class CudaMemoryError(CudaError):
    """The GPU has too little free memory."""


class CudaStickyError(CudaError):
    """A kernel failed and took the CUDA context of the process with it: only a new process can use the GPU."""


class ExportError(KplError):
    """A checkpoint could not be exported."""


class ParityError(ExportError):
    """The exported graph differs from the original model by more than the gate allows."""


class MissingExtraError(KplError):
    """An optional dependency is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Install it with: pip install "kpl-engine[{extra}]"'
        )
        self.package = package
        self.extra = extra
