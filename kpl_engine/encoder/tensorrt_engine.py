"""One TensorRT plan, loaded and ready to run: a context for each batch bucket, each replayed as one CUDA graph.

Sources: NVIDIA's TensorRT Python API reference, 10.3 to 11.4 (deserialisation, execution contexts with memory of the
caller, strong typing, engine inspector) and its advice on CUDA graphs: one warm-up run, then capture.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kpl_engine.arrays import Float32, UInt8
from kpl_engine.cuda.base import Graph
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.encoder.plans import Plan, bucket_for, buckets_of
from kpl_engine.encoder.tensorrt_layers import count_types
from kpl_engine.encoder.tensorrt_library import logger_of, take_errors
from kpl_engine.errors import BackendUnavailableError, CudaError, CudaStickyError, EncoderError, KplError

__all__ = ["PlanEngine", "Signature"]


@dataclass(frozen=True)
class Signature:
    """What the image tower of a bundle takes and gives."""

    input: str
    output: str
    image_size: tuple[int, int]
    embed_dim: int


@dataclass(eq=False)
class _Lane:
    """One batch bucket: its execution context and the buffers whose addresses the graph has inside."""

    bucket: int
    context: Any
    pixels: DeviceArray  # (bucket, h, w, 3) uint8
    features: DeviceArray  # (bucket, d) float32
    staging: UInt8  # (bucket, h, w, 3) pinned
    answer: Float32  # (bucket, d) pinned
    graph: Graph | None = None
    is_staged: bool = False  # a copy out of ``staging`` may be under way


class PlanEngine:
    """Not safe for several threads at once, as TensorRT's contexts are not: its callers take turns.

    Parameters
    ----------
    library : module
        TensorRT, of `import_tensorrt`.
    context : Context
        The GPU, and the stream all work goes into.
    plan : Plan
    data : bytes
        The plan itself. It holds host code: it must come out of a bundle whose checksums were verified.
    signature : Signature

    Raises
    ------
    BackendUnavailableError
        TensorRT refuses the plan (another GPU or version), or does not start.
    EncoderError
        Inputs or outputs of the plan are not those of the bundle.
    """

    def __init__(self, library: Any, context: Context, plan: Plan, data: bytes, signature: Signature) -> None:
        self.label = f"plan {plan.name!r}"
        self.plan, self.signature = plan, signature
        self.providers: tuple[str, ...] = (f"TensorRT {library.__version__} {plan.precision}",)
        self.notices: list[str] = []
        self.buckets = buckets_of(plan.max_batch)
        self._library, self._context = library, context
        self._logger = logger_of(library)
        self._lanes: dict[int, _Lane] = {}
        self._workspaces: dict[int, DeviceArray] = {}  # one a profile: its contexts run one after the other
        self._runtime: Any = None
        self._engine: Any = None
        try:
            with context.driver.current():
                self._load(data)
                self._check_tensors()
        except BaseException:
            self.close()
            raise

    def _load(self, data: bytes) -> None:
        take_errors(self._logger)
        try:
            self._runtime = self._library.Runtime(self._logger)
        except TypeError as error:  # the bindings' word for a null pointer
            raise BackendUnavailableError(
                f"{self.label}: TensorRT {self._library.__version__} did not start: "
                f"{take_errors(self._logger) or error}"
            ) from error
        if self.plan.is_portable:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason = take_errors(self._logger) or "it gives no reason"
            raise BackendUnavailableError(
                f"{self.label}: TensorRT {self._library.__version__} refuses it on this "
                f"{self._context.driver.info.name}: {reason}. Build it again on this machine with kpl-engine build"
            )

    def _check_tensors(self) -> None:
        """Names, directions, types and shapes, and the profiles, as the manifest says."""
        # No local name for the engine: the traceback of an error would keep it alive beyond its runtime.
        trt, wanted = self._library, self.signature
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        found = {name: self._describe_tensor(name) for name in names}
        expected = {
            wanted.input: (trt.TensorIOMode.INPUT, trt.DataType.UINT8, (-1, *wanted.image_size, 3)),
            wanted.output: (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, (-1, wanted.embed_dim)),
        }
        if found != expected:
            raise EncoderError(
                f"{self.label}: expected the tensors {_describe(expected)}, got {_describe(found)}; build it again"
            )
        count = self._engine.num_optimization_profiles
        if count != len(self.plan.profiles):
            raise EncoderError(
                f"{self.label}: expected {len(self.plan.profiles)} profiles, got {count}; build it again"
            )
        for index, sizes in enumerate(self.plan.profiles):
            shapes = [tuple(shape) for shape in self._engine.get_tensor_profile_shape(wanted.input, index)]
            if [shape[0] for shape in shapes] != list(sizes):
                raise EncoderError(f"{self.label}: expected batches {sizes} of profile {index}, got {shapes}")

    def _describe_tensor(self, name: str) -> tuple[Any, Any, tuple[int, ...]]:
        mode, kind = self._engine.get_tensor_mode(name), self._engine.get_tensor_dtype(name)
        return mode, kind, tuple(self._engine.get_tensor_shape(name))

    def run(self, batch: UInt8, embed_dim: int) -> npt.NDArray[Any]:
        """(n, h, w, 3) uint8 -> (n, embed_dim) float32 on the host, as the plan gives it; at most `max_batch`."""
        lane = self._lane(len(batch))
        self._stage(lane, batch)
        self._start(lane)
        driver, stream = self._context.driver, self._context.stream
        rows = lane.answer[: len(batch), :embed_dim]
        driver.copy_out(rows, lane.features.address, stream)
        driver.synchronize(stream)
        lane.is_staged = False
        return np.array(rows)

    def put(self, pixels: UInt8 | DeviceArray, rows: DeviceArray, start: int, count: int) -> None:
        """Pictures ``start`` to ``start + count`` into the same places of ``rows``, without waiting."""
        lane = self._lane(count)
        driver, stream = self._context.driver, self._context.stream
        if isinstance(pixels, DeviceArray):
            picture = lane.pixels.nbytes // lane.bucket
            driver.copy_on(lane.pixels.address, pixels.address + start * picture, count * picture, stream)
        else:
            self._stage(lane, pixels[start : start + count])
        self._start(lane)
        row = lane.features.nbytes // lane.bucket
        driver.copy_on(rows.address + start * row, lane.features.address, count * row, stream)

    def _stage(self, lane: _Lane, batch: UInt8) -> None:
        driver, stream = self._context.driver, self._context.stream
        if lane.is_staged:
            driver.synchronize(stream)
        part = lane.staging[: len(batch)]  # rows beyond stay from earlier calls; every row is encoded alone
        part[...] = batch
        driver.copy_in(lane.pixels.address, part, stream)
        lane.is_staged = True

    def _start(self, lane: _Lane) -> None:
        if lane.graph is None:
            self._execute(lane)
        else:
            lane.graph.launch(self._context.stream)

    def _execute(self, lane: _Lane) -> None:
        with self._context.driver.current():
            is_started = lane.context.execute_async_v3(self._context.stream.handle)
        if not is_started:
            raise EncoderError(
                f"{self.label}: TensorRT failed on {lane.bucket} pictures: {take_errors(self._logger) or 'no reason'}"
            )

    def _lane(self, count: int) -> _Lane:
        if self._engine is None:
            raise EncoderError(f"{self.label} is closed; load it again")
        bucket = bucket_for(count, self.buckets)
        if bucket not in self._lanes:
            lane = self._lanes[bucket] = self._new_lane(bucket)
            try:
                with self._context.driver.current():
                    self._open_lane(lane)
                self._warm_up(lane)
            except BaseException:
                lane.context = None  # before the engine: the traceback keeps the lane
                del self._lanes[bucket]
                raise
        return self._lanes[bucket]

    def _new_lane(self, bucket: int) -> _Lane:
        gpu, wanted = self._context, self.signature
        pixels = gpu.zeros((bucket, *wanted.image_size, 3), np.uint8)
        features = gpu.empty((bucket, wanted.embed_dim), np.float32)
        staging = gpu.driver.pinned(pixels.shape, np.uint8)
        staging[...] = 0
        return _Lane(bucket, None, pixels, features, staging, gpu.driver.pinned(features.shape, np.float32))

    def _open_lane(self, lane: _Lane) -> None:
        """Make the execution context of a lane. The order is TensorRT's: profile, its memory, shapes, addresses."""
        bucket, wanted = lane.bucket, self.signature
        profile = next(i for i, (low, _, high) in enumerate(self.plan.profiles) if low <= bucket <= high)
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        lane.context = self._engine.create_execution_context(strategy)
        if lane.context is None:
            raise self._no_lane(bucket, "it gives no execution context; the GPU may have too little free memory")
        workspace = self._workspace(profile)
        if not lane.context.set_optimization_profile_async(profile, self._context.stream.handle):
            raise self._no_lane(bucket, f"it refuses profile {profile}")
        lane.context.set_device_memory(workspace.address, workspace.nbytes)
        if not lane.context.set_input_shape(wanted.input, lane.pixels.shape):
            raise self._no_lane(bucket, f"it refuses the shape {lane.pixels.shape}")
        for name, array in ((wanted.input, lane.pixels), (wanted.output, lane.features)):
            if not lane.context.set_tensor_address(name, array.address):
                raise self._no_lane(bucket, f"it refuses an address for {name!r}")
        missing = lane.context.infer_shapes()
        if missing or tuple(lane.context.get_tensor_shape(wanted.output)) != lane.features.shape:
            raise self._no_lane(bucket, f"its output is not of shape {lane.features.shape}")

    def _no_lane(self, bucket: int, why: str) -> EncoderError:
        said = take_errors(self._logger)
        return EncoderError(f"{self.label}: TensorRT cannot run {bucket} pictures: {why}{f' ({said})' if said else ''}")

    def _workspace(self, profile: int) -> DeviceArray:
        if profile not in self._workspaces:
            size = self._engine.get_device_memory_size_for_profile_v2(profile)
            self._workspaces[profile] = self._context.empty((max(int(size), 1),), np.uint8)
        return self._workspaces[profile]

    def _warm_up(self, lane: _Lane) -> None:
        """One run, in which TensorRT does what it put off, then the same as a graph where the driver has graphs."""
        driver, stream = self._context.driver, self._context.stream
        self._execute(lane)
        driver.synchronize(stream)
        if not driver.features.has_graphs:
            return
        try:
            lane.graph = driver.capture(stream, lambda: self._execute(lane))
        except CudaStickyError:
            raise
        except (CudaError, EncoderError) as error:
            self.notices.append(f"{self.label}: batches of {lane.bucket} run without a CUDA graph: {error!s:.200}")

    def count_layers(self) -> dict[str, int]:
        """How many layers write each type, as the inspector tells: ``{"fp16": 96, "fp32": 14}``; empty if it does not.

        A tower that TensorRT fuses into one layer may show the types of its ends alone, so a precision that does
        not show is no proof that it is not used.

        Raises
        ------
        EncoderError
            A plan of float32 computes in something less.
        """
        with self._context.driver.current():
            inspector = self._engine.create_engine_inspector()
            text = inspector.get_engine_information(self._library.LayerInformationFormat.JSON)
            del inspector
        counts = count_types(text)
        if self.plan.precision == "fp32" and set(counts) - {"fp32"}:
            raise EncoderError(f"{self.label}: expected layers in fp32, the plan has {dict(counts)}; build it again")
        return dict(sorted(counts.items()))

    def close(self) -> None:
        """Free graphs, contexts, engine and runtime, in that order; calling it twice is harmless."""
        if self._runtime is None:
            return
        with suppress(KplError):  # a lost CUDA context can neither wait nor be made current
            self._context.driver.synchronize(self._context.stream)
        with suppress(KplError), self._context.driver.current():
            self._free()
        self._free()

    def _free(self) -> None:
        for lane in self._lanes.values():
            lane.graph = None
        for lane in self._lanes.values():
            lane.context = None
        self._lanes.clear()
        self._workspaces.clear()
        self._engine = None
        self._runtime = None


def _describe(tensors: dict[str, tuple[Any, Any, tuple[int, ...]]]) -> str:
    parts = [f"{name} {_short(kind)} {shape}" for name, (_, kind, shape) in sorted(tensors.items())]
    return ", ".join(parts) or "none"


def _short(kind: Any) -> str:
    return str(kind).rsplit(".", maxsplit=1)[-1]
