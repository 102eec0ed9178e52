"""One ONNX graph to one serialised TensorRT plan, the same way for TensorRT 10.3 to 11. Needs a GPU, no torch.

Source: NVIDIA's TensorRT Python API reference. Version 10 is asked for a strongly typed network, 11 knows no other, so
that both compute every layer in the type the graph gives it.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpl_engine.encoder.plans import Machine, Profile
from kpl_engine.encoder.tensorrt_engine import Signature
from kpl_engine.encoder.tensorrt_library import logger_of, take_errors
from kpl_engine.errors import BackendUnavailableError, ExportError

__all__ = ["CompileSettings", "compile_plan", "timing_cache_file"]

Progress = Callable[[str], None]
_MIN_REPORT_S = 1.0  # a progress line at most this often
_MAX_ERRORS = 20


@dataclass(frozen=True)
class CompileSettings:
    """What the builder is told, beside the graph."""

    profiles: tuple[Profile, ...]
    workspace_bytes: int
    is_portable: bool = False
    optimization_level: int = 3


def compile_plan(
    library: Any,
    graph: Path,
    signature: Signature,
    settings: CompileSettings,
    *,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Build ``graph`` for the GPU whose context is current.

    Returns
    -------
    plan : IHostMemory
        A buffer.
    notes : tuple of str
        What went wrong without harm.

    Raises
    ------
    ExportError
        The parser refuses the graph (every complaint is in the message), its tensors are not those of the bundle, or
        the build fails.
    BackendUnavailableError
        TensorRT does not start.
    KeyboardInterrupt
        Ctrl-C ended the build.
    """
    logger = logger_of(library)
    take_errors(logger)
    notes: list[str] = []
    monitor = _make_monitor(library, progress)
    builder = network = parser = config = cache = None
    try:
        builder = _make_builder(library, logger)
        network = builder.create_network(_network_flags(library))
        parser = library.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph)):
            raise ExportError(f"TensorRT {library.__version__} cannot read the graph: {_parser_errors(parser, logger)}")
        _check_network(library, network, signature)
        config = builder.create_builder_config()
        _configure(library, config, settings, monitor)
        _add_profiles(builder, config, signature, settings.profiles)
        cache = _attach_timing_cache(config, timing_cache, notes)
        plan = builder.build_serialized_network(network, config)
        if monitor.was_interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise ExportError(
                f"TensorRT {library.__version__} could not build the plan: {take_errors(logger) or 'no reason given'}. "
                f"Try a smaller --max-batch, or a larger --workspace-mb (now {settings.workspace_bytes >> 20})"
            )
        if timing_cache is not None:
            _save_timing_cache(cache, timing_cache, notes)
        return plan, tuple(notes)
    finally:
        # The parser holds the weights; cache and monitor are only pointed at. All of them outlive the build, and go in
        # this order, whatever a traceback holds.
        cache = config = parser = network = builder = None


def _make_builder(library: Any, logger: Any) -> Any:
    try:
        return library.Builder(logger)
    except TypeError as error:  # the bindings' word for a null pointer
        raise BackendUnavailableError(
            f"TensorRT {library.__version__} did not start: {take_errors(logger) or error}"
        ) from error


def _network_flags(library: Any) -> int:
    if int(str(library.__version__).split(".", maxsplit=1)[0]) >= 11:
        return 0
    return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parser_errors(parser: Any, logger: Any) -> str:
    found = []
    for index in range(min(parser.num_errors, _MAX_ERRORS)):
        error = parser.get_error(index)
        found.append(f"node {error.node()} {error.node_operator()} {error.node_name()!r}: {error.desc()}")
    if parser.num_errors > _MAX_ERRORS:
        found.append(f"and {parser.num_errors - _MAX_ERRORS} more")
    parser.clear_errors()
    return "; ".join(found) or take_errors(logger) or "it gives no reason"


def _check_network(library: Any, network: Any, wanted: Signature) -> None:
    """The types of inputs and outputs decide what the runtime copies in and out: look before minutes of building."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = [(tensor.name, tensor.dtype) for tensor in (*inputs, *outputs)]
    expected = [(wanted.input, library.DataType.UINT8), (wanted.output, library.DataType.FLOAT)]
    if len(inputs) != 1 or found != expected:
        raise ExportError(
            f"the graph as TensorRT reads it: expected the tensors {expected}, got {found}; export it again"
        )


def _configure(library: Any, config: Any, settings: CompileSettings, monitor: Any) -> None:
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the inspector tells types only then
    config.progress_monitor = monitor
    # On by default: products of float32 with 10 bits of mantissa, 1e-3 where the graph promises 1e-7.
    config.clear_flag(library.BuilderFlag.TF32)
    if settings.is_portable:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(library.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        level = getattr(library.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None)  # not before 10.8 or so
        if level is not None:
            config.hardware_compatibility_level = level


def _add_profiles(builder: Any, config: Any, signature: Signature, profiles: Sequence[Profile]) -> None:
    picture = (*signature.image_size, 3)
    for index, sizes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        low, best, high = ((size, *picture) for size in sizes)
        profile.set_shape(signature.input, low, best, high)
        if not profile or config.add_optimization_profile(profile) != index:
            raise ExportError(f"TensorRT refuses the profile {sizes} of {signature.input!r} with pictures of {picture}")


def _make_monitor(library: Any, progress: Progress | None) -> Any:
    """Turns phases and steps into lines; the outermost phase counts. Called from several threads of the builder."""
    tell = progress or (lambda message: None)
    lock = threading.Lock()

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # its base is known only now
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.was_interrupted = False
            self._steps: dict[str, int] = {}
            self._told_s = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                if not parent_phase:
                    self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                with lock:
                    total = self._steps.get(phase_name, 0)
                    is_due = time.monotonic() - self._told_s >= _MIN_REPORT_S
                    if total and is_due:
                        self._told_s = time.monotonic()
                if total and is_due:
                    tell(f"build: {phase_name}, step {min(step + 1, total)} of {total}")
            except KeyboardInterrupt:  # must not unwind through the builder: it is told to stop instead
                self.was_interrupted = True
            return not self.was_interrupted

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                self._steps.pop(phase_name, None)

    return Monitor()


def timing_cache_file(folder: Path, machine: Machine) -> Path:
    """Where timings of this GPU and TensorRT are kept: they are of no use to any other."""
    parts = (machine.gpu, *machine.compute_capability, machine.tensorrt, f"cuda{machine.cuda_major}", machine.platform)
    return folder / (re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower()) + ".timing")


def _attach_timing_cache(config: Any, path: Path | None, notes: list[str]) -> Any:
    """The timings kept before; a file that cannot be used is said and begun again."""
    content = b""
    if path is not None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            notes.append(f"timing cache {path}: {error.strerror}; not used")
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        notes.append(f"timing cache {path}: not of this GPU and TensorRT, or damaged; begun again")
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _save_timing_cache(cache: Any, path: Path, notes: list[str]) -> None:
    """Written beside and renamed: another build may read it now."""
    content = cache.serialize() if cache is not None else None
    if content is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".timing", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        notes.append(f"timing cache {path}: {error.strerror}; not kept")
