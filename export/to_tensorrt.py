"""A plan for the GPU at hand into a bundle: cast, build, load, compare, and only then keep. Torch-free."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.bundle.plans import add_plan
from kpl_engine.bundle.reader import Bundle
from kpl_engine.cuda.context import Context
from kpl_engine.encoder.plans import (
    GATES,
    PARITY_FILE,
    Machine,
    Plan,
    buckets_of,
    describe_machine,
    measure_parity,
    plan_key,
    plan_name,
    profiles_of,
)
from kpl_engine.encoder.tensorrt_engine import PlanEngine, Signature
from kpl_engine.encoder.tensorrt_library import import_tensorrt
from kpl_engine.errors import (
    BackendUnavailableError,
    ConfigError,
    EncoderError,
    ExportError,
    MissingExtraError,
    ParityError,
)

from .agreement import check_labels, dump_parity, float32_features, make_pictures, stored_parity
from .compile_plan import CompileSettings, compile_plan, timing_cache_file

__all__ = ["BuildReport", "BuildSettings", "build_plan"]

_MIN_IMAGES = 8  # fewer say nothing of the ranges of a tower
_WORKSPACE_BYTES = 4 << 30


@dataclass(frozen=True)
class BuildSettings:
    """``workspace_bytes`` None is 4 GiB or a quarter of the GPU's memory, whichever is less."""

    precision: str = "fp16"
    max_batch: int = 64
    is_portable: bool = False
    workspace_bytes: int | None = None
    optimization_level: int = 3

    def __post_init__(self) -> None:
        if self.precision not in GATES:
            raise ConfigError(f"precision: expected one of {', '.join(GATES)}, got {self.precision!r}")
        profiles_of(self.max_batch)
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise ConfigError(f"workspace_bytes: expected at least 1 MiB, got {self.workspace_bytes}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level: expected 0 to 5, got {self.optimization_level}")


@dataclass(frozen=True)
class BuildReport:
    """What was built, what was measured, and how long each stage took."""

    path: Path
    plan: Plan
    num_bytes: int
    cast: Mapping[str, Any]
    notes: tuple[str, ...]
    timings_s: Mapping[str, float]


@dataclass
class _Work:
    """One build on its way."""

    bundle: Bundle
    context: Context
    library: Any
    machine: Machine
    settings: BuildSettings
    folder: Path
    tell: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def entry(self) -> Mapping[str, Any]:
        encoder: Mapping[str, Any] = self.bundle.manifest["encoder"]
        return encoder

    @property
    def signature(self) -> Signature:
        image = self.entry["image"]
        size = (int(image["height"]), int(image["width"]))
        return Signature(str(image["input"]), str(image["output"]), size, int(self.entry["embed_dim"]))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.tell(f"{name} ...")
        yield
        self.timings_s[name] = time.perf_counter() - start
        self.tell(f"{name}: {self.timings_s[name]:.1f} s")


def build_plan(
    bundle_path: Path | str,
    context: Context,
    settings: BuildSettings | None = None,
    *,
    images: UInt8 | None = None,
    library: Any = None,
    timing_caches: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> BuildReport:
    """Build the image tower of a bundle for the GPU of ``context`` and store the plan in the bundle.

    Parameters
    ----------
    bundle_path : path
        Extended in place, atomically; plans of other GPUs, versions and precisions stay.
    context : Context
        Kept open.
    settings : BuildSettings, optional
    images : array, optional
        (n, h, w, 3) uint8, eight or more of the user's own: sets the ranges of int8 and fp8, which need it. Zero-shot
        labels are compared on them, for any precision. None of them is stored.
    library : module, optional
        TensorRT; by default the one installed.
    timing_caches : Path, optional
        Folder where timings are kept between builds.
    progress : callable, optional
        Told one line at each stage and second.

    Raises
    ------
    BackendUnavailableError
        No TensorRT that builds, or it refuses its own plan.
    ParityError
        The plan's features or labels differ from the float32 graph's by more than a gate.
    ExportError, EncoderError, ConfigError, BundleError
        As their names say. In every case nothing was changed.
    """
    settings = BuildSettings() if settings is None else settings
    library = import_tensorrt() if library is None else library
    if not hasattr(library, "Builder"):
        raise BackendUnavailableError(f"{library.__name__} only runs plans; install the whole of TensorRT to build one")
    _check_onnx()
    machine = describe_machine(context.driver.info, str(library.__version__))
    with Bundle.open(bundle_path) as bundle:
        if bundle.manifest.get("encoder") is None:
            raise EncoderError(f"{bundle.path} has no encoder to build a plan from")
        try:
            # On the disk of the bundle, because the weights may be several gigabytes.
            with tempfile.TemporaryDirectory(prefix=".kpl-build-", dir=bundle.path.parent) as folder:
                tell = progress or (lambda message: None)
                work = _Work(bundle, context, library, machine, settings, Path(folder), tell)
                return _build(work, images, timing_caches)
        except OSError as error:
            raise ExportError(
                f"{bundle.path}: cannot write beside it ({error.strerror or error}); nothing was changed"
            ) from error


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx", "export", "building a TensorRT plan") from error


def _build(work: _Work, images: UInt8 | None, timing_caches: Path | None) -> BuildReport:
    settings = work.settings
    pixels, features = _reference(work)
    with work.stage(f"cast to {settings.precision}"):
        graph, built_from, cast = _cast(work, pixels, images)
    compile_settings = CompileSettings(
        profiles_of(settings.max_batch), _workspace(work), settings.is_portable, settings.optimization_level
    )
    cache = timing_cache_file(timing_caches, work.machine) if timing_caches is not None else None
    with work.stage("build"), work.context.driver.current():
        host_memory, notes = compile_plan(
            work.library, graph, work.signature, compile_settings, timing_cache=cache, progress=work.tell
        )
        data = bytes(host_memory)
        del host_memory
    work.notes.extend(notes)
    plan = _plan(work, built_from, compile_settings)
    with work.stage("compare with float32"):
        plan = _compare(work, plan, data, pixels, features, images)
    files: dict[str, Path | bytes] = {plan.file: data, PARITY_FILE: dump_parity(pixels, features, plan.graph)}
    with work.stage("write bundle"):
        path = add_plan(work.bundle.path, plan.name, plan.to_manifest(), files)
    return BuildReport(path, plan, len(data), cast, tuple(work.notes), work.timings_s)


def _reference(work: _Work) -> tuple[UInt8, Float32]:
    stored = stored_parity(work.bundle, work.entry["image"]["fingerprint"])
    if stored is not None:
        return stored
    with work.stage("features of the float32 graph"):
        pixels = make_pictures(*work.signature.image_size)
        return pixels, float32_features(work.bundle, pixels)


def _cast(work: _Work, pixels: UInt8, images: UInt8 | None) -> tuple[Path, str, dict[str, Any]]:
    """The graph TensorRT is given, its fingerprint, and what was done to it."""
    from .precision import cast_file
    from .quantize import QUANTIZED, quantize_file
    from .record import hash_files

    image, precision = work.entry["image"], work.settings.precision
    for name in image.get("data") or ():
        work.bundle.local_path(name)  # verifies the external weights the graph will read
    source, target = work.bundle.local_path(image["file"]), work.folder / "image.onnx"
    report: Any
    if precision in QUANTIZED:
        if images is None or len(images) < _MIN_IMAGES:
            raise ConfigError(
                f"{precision}: expected at least {_MIN_IMAGES} images of your own to set the ranges, got "
                f"{0 if images is None else len(images)}; name them with --images"
            )
        # With the pictures that the plan is compared on: a range they exceed would be theirs, not the user's.
        files, report = quantize_file(source, target, precision, np.concatenate([images, pixels]))
    else:
        files, report = cast_file(source, target, precision)
    return target, hash_files(files), asdict(report)


def _workspace(work: _Work) -> int:
    asked = work.settings.workspace_bytes
    return asked if asked is not None else min(_WORKSPACE_BYTES, work.context.driver.info.total_bytes // 4)


def _plan(work: _Work, built_from: str, settings: CompileSettings) -> Plan:
    graph = str(work.entry["image"]["fingerprint"])
    name = plan_name(work.machine, work.settings.precision, work.settings.is_portable)
    shaping = {**asdict(settings), "precision": work.settings.precision}
    return Plan(
        name=name,
        file=f"plans/{name}.plan",
        parity_file=PARITY_FILE,
        precision=work.settings.precision,
        max_batch=work.settings.max_batch,
        profiles=settings.profiles,
        is_portable=settings.is_portable,
        graph=graph,
        key=plan_key(work.machine, graph, built_from, shaping),
        machine=work.machine,
        parity={},
    )


def _compare(work: _Work, plan: Plan, data: bytes, pixels: UInt8, features: Float32, images: UInt8 | None) -> Plan:
    """Load the plan as the runtime will, look at its layers, and run every bucket; the plan with what was measured."""
    engine = PlanEngine(work.library, work.context, plan, data, work.signature)
    try:
        layers = engine.count_layers()
        if plan.precision not in layers:
            work.notes.append(
                f"TensorRT's inspector shows no layer in {plan.precision} ({layers or 'no types at all'})"
            )
        found = [_run_bucket(engine, bucket, pixels, features) for bucket in buckets_of(plan.max_batch)]
        agreement = _agreement(work, engine, images)
        work.notes.extend(engine.notices)
    except EncoderError as error:
        raise ParityError(f"{error}. Nothing was written") from error
    finally:
        engine.close()
    parity = {key: max(one[key] for one in found) for key in found[0]}
    measured = {
        **parity,
        "gate": GATES[plan.precision],
        "batches": list(buckets_of(plan.max_batch)),
        "layers": layers,
        "label_agreement": agreement,
        "num_label_images": 0 if images is None or agreement is None else len(images),
    }
    return replace(plan, parity=measured)


def _run_bucket(engine: PlanEngine, bucket: int, pixels: UInt8, features: Float32) -> dict[str, float]:
    places = np.arange(bucket) % len(pixels)
    got = engine.run(np.ascontiguousarray(pixels[places]), features.shape[1])
    return measure_parity(got, features[places], engine.plan.precision, f"{engine.label}, batch {bucket}")


def _agreement(work: _Work, engine: PlanEngine, images: UInt8 | None) -> float | None:
    if images is None or not len(images):
        return None
    step, d = engine.plan.max_batch, work.signature.embed_dim
    parts: Sequence[Float32] = [engine.run(images[i : i + step], d) for i in range(0, len(images), step)]
    share = check_labels(work.bundle, np.concatenate(parts), float32_features(work.bundle, images), engine.label)
    if share is None:
        work.notes.append("labels were not compared: the bundle holds no knowledge base")
    return share
