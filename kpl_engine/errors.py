"""Every error the engine raises on purpose.

    KplError
    ├── InputError (ValueError)        a value the caller passed is wrong
    │   ├── ShapeError                 an array has the wrong shape, dtype or content
    │   ├── ConfigError                an option is out of range or unknown
    │   ├── ImageError                 one image cannot be used (decode, size, format)
    │   ├── KnowledgeError             a knowledge file or knowledge base is unusable
    │   ├── TextTooLongError           a text does not fit the encoder's context
    │   └── RequestError               a request to the server is malformed
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
    ├── ServiceError                   the server does not answer this request
    │   ├── UnknownModelError          no model, version or address of that name
    │   ├── WrongVerbError             the address is there, but not for this HTTP method
    │   ├── TooLargeError              a body, a picture or their number is over the limit
    │   ├── OverloadedError            full; `retry_after_s` says when to come again
    │   ├── NotReadyError              starting, draining, or the model is not loaded
    │   ├── DeadlineExceededError      not answered within the time the request was given
    │   ├── RequestCancelledError      the client left or cancelled
    │   ├── SlowRequestError           the client sent its request too slowly
    │   ├── UnauthorizedError          no token, or not one of the server's
    │   └── ForbiddenError             the settings of the server do not allow it
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
    "DeadlineExceededError",
    "EncoderError",
    "ExportError",
    "ForbiddenError",
    "ImageError",
    "InputError",
    "KnowledgeError",
    "KplError",
    "MissingExtraError",
    "NotReadyError",
    "OverloadedError",
    "ParityError",
    "RequestCancelledError",
    "RequestError",
    "ServiceError",
    "ShapeError",
    "SlowRequestError",
    "SolverError",
    "TextTooLongError",
    "TooLargeError",
    "UnauthorizedError",
    "UnknownModelError",
    "WrongVerbError",
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


class RequestError(InputError):
    """A request to the server is malformed: its JSON, a length, a datatype, a shape, a parameter."""


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


class ServiceError(KplError):
    """The server does not answer this request; `kpl_engine.server.status` has the codes of both doors."""


class UnknownModelError(ServiceError):
    """There is no model, version or address of that name."""


class WrongVerbError(ServiceError):
    """The address exists, but not for this HTTP method; ``allowed`` lists those it has."""

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class TooLargeError(ServiceError):
    """A body, a picture, or the number of pictures is over the server's limit."""


class OverloadedError(ServiceError):
    """The server is full; come again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(ServiceError):
    """The server is starting or draining, or the model is not loaded."""


class DeadlineExceededError(ServiceError):
    """The request was not answered within the time it was given."""


class RequestCancelledError(ServiceError):
    """The client left or cancelled the request."""


class SlowRequestError(ServiceError):
    """The client sent its request more slowly than the server waits."""


class UnauthorizedError(ServiceError):
    """The request carries no token, or not one of the server's."""


class ForbiddenError(ServiceError):
    """The settings of the server do not allow it."""


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
