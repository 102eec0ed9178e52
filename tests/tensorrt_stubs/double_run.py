"""The running half of the TensorRT double: plans run in ONNX Runtime, when the late driver gets to them."""

from __future__ import annotations

import json
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .driver import view
from .strict import Strict, kept

WORKSPACE_BYTES = (4096, 8192, 16384, 32768, 65536, 131072, 262144)  # of each profile


class EngineInspector(Strict):
    def get_engine_information(self, format) -> str:
        self._use("get_engine_information", format=format)
        self._state.check(format == self._state.library.LayerInformationFormat.JSON, "the inspector was asked for text")
        if self._state.fails("silent inspector"):
            return "no layers"
        layers = [
            {"Name": kind, "Outputs": [{"Name": "x", "Format/Datatype": f"Row major linear {kind}"}]}
            for kind in (["Half"] if self._state.fails("half layers") else self._types)
        ]
        return json.dumps({"Layers": layers})


class Runtime(Strict):
    _engine_host_code_allowed = False
    engine_host_code_allowed = kept("engine_host_code_allowed")

    def __init__(self, logger) -> None:
        self._state.logger = weakref.ref(logger)
        self._born()
        self._use("__init__", logger=logger)
        if self._state.fails("no runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine) -> ICudaEngine:
        self._use("deserialize_cuda_engine", serialized_engine=serialized_engine)
        line, _, content = bytes(serialized_engine).partition(b"\n")
        header, info = json.loads(line), self._state.driver.info
        is_portable = "VERSION_COMPATIBLE" in header["flags"]
        if header["version"] != self._state.version and not is_portable:
            self._state.say("The engine plan file is not compatible with this version of TensorRT")
            return None
        if header["capability"] != list(info.compute_capability) or self._state.fails("no engine"):
            self._state.say("The engine plan file is generated on an incompatible device")
            return None
        self._state.check(not is_portable or self._engine_host_code_allowed, "host code was not allowed")
        engine = self._state.make("ICudaEngine")
        engine._begin(self, header, content)
        return engine


class ICudaEngine(Strict):
    def _begin(self, runtime, header, content):
        self._born(runtime)
        self._header = header
        model = onnx.load_from_string(content)
        network = self._state.make("INetworkDefinition")
        network._model = model
        self._inputs, self._outputs = network._tensors(0), network._tensors(1)
        with tempfile.TemporaryDirectory() as folder:  # bf16 and 8-bit types have no kernels on the CPU
            path = Path(folder) / "plan.onnx"
            onnx.save(model, path)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            level = onnxruntime.GraphOptimizationLevel
            options.graph_optimization_level = (
                level.ORT_DISABLE_ALL if {"Int8", "FP8"}.intersection(header["types"]) else level.ORT_ENABLE_EXTENDED
            )
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _tensor(self, name):
        return next(tensor for tensor in (*self._inputs, *self._outputs) if tensor._name == name)

    num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))
    num_optimization_profiles = property(lambda self: len(self._header["profiles"]) - self._state.fails("profiles"))

    def get_tensor_name(self, index) -> str:
        self._use("get_tensor_name", index=index)
        name = (*self._inputs, *self._outputs)[index]._name
        return "other" if self._state.fails("tensor name") and index == 1 else name

    def get_tensor_mode(self, name) -> TensorIOMode:  # noqa: F821  a name of the genuine bindings
        modes = self._state.library.TensorIOMode
        return modes.INPUT if any(tensor._name == name for tensor in self._inputs) else modes.OUTPUT

    def get_tensor_dtype(self, name) -> DataType:  # noqa: F821
        if self._state.fails("engine dtype") or name == "other":
            return self._state.library.DataType.HALF
        return self._tensor(name)._dtype

    def get_tensor_shape(self, name) -> Dims:  # noqa: F821
        return [-1] if name == "other" else self._tensor(name)._shape

    def get_tensor_profile_shape(self, name, profile_index) -> list:
        shapes = self._header["profiles"][profile_index][1:]
        return [[size + self._state.fails("profile batch") for size in shape] for shape in shapes]

    def get_device_memory_size_for_profile_v2(self, profile_index) -> int:
        self._use("get_device_memory_size_for_profile_v2", profile_index=profile_index)
        return WORKSPACE_BYTES[profile_index]

    def create_engine_inspector(self) -> EngineInspector:
        self._use("create_engine_inspector")
        inspector = self._state.make("EngineInspector")
        inspector._born(self)
        inspector._types = self._header["types"]
        return inspector

    def create_execution_context(self, strategy=None) -> IExecutionContext:
        self._use("create_execution_context", strategy=strategy)
        user_managed = self._state.library.ExecutionContextAllocationStrategy.USER_MANAGED
        self._state.check(strategy == user_managed, "its memory would be allocated once a context, not once a profile")
        if self._state.fails("no context"):
            self._state.say("Requested amount of GPU memory could not be allocated")
            return None
        context = self._state.make("IExecutionContext")
        context._begin(self)
        return context

    def __del__(self):
        gone = all(context._parents[0]() is not self for context in list(self._state.living) if _is_context(context))
        self._state.log.append(("ICudaEngine.__del__", {"contexts_are_gone": gone}))


def _is_context(living):
    return isinstance(living, IExecutionContext)


class IExecutionContext(Strict):
    def _begin(self, engine):
        self._born(engine)
        self._engine, self._turn = weakref.ref(engine), threading.Lock()
        self._profile, self._memory, self._shape, self._addresses = None, None, None, {}
        self._is_inferred = self._is_warm = False

    def set_optimization_profile_async(self, profile_index, stream_handle) -> bool:
        self._use("set_optimization_profile_async", profile_index=profile_index, stream_handle=stream_handle)
        self._state.check(stream_handle != 0, "the default stream")
        self._profile = profile_index
        return not self._state.fails("refuse profile")

    def set_device_memory(self, memory, size) -> None:
        self._use("set_device_memory", memory=memory, size=size)
        self._state.check(self._profile is not None, "memory before the profile it is for")
        self._state.check(size >= WORKSPACE_BYTES[self._profile], "too little memory for the profile")
        self._state.check(memory % 256 == 0, "memory that is not aligned to 256 bytes")
        self._state.check(self._state.driver.holds(memory, size), "memory that is not the device's")
        self._memory = (memory, size)

    def set_input_shape(self, name, shape) -> bool:
        self._use("set_input_shape", name=name, shape=shape)
        self._state.check(self._profile is not None, "a shape before its profile")
        low, _, high = self._engine()._header["profiles"][self._profile][1:]
        inside = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        self._state.check(inside, f"the shape {shape} is outside of profile {self._profile}")
        self._shape, self._is_inferred, self._is_warm = tuple(shape), False, False
        return not self._state.fails("refuse shape")

    def set_tensor_address(self, name, memory) -> bool:
        self._use("set_tensor_address", name=name, memory=memory)
        self._addresses[name], self._is_warm = memory, False
        return not self._state.fails("refuse address")

    def infer_shapes(self) -> list:
        self._use("infer_shapes")
        self._is_inferred = True
        return ["pixels"] if self._state.fails("infer") else []

    def get_tensor_shape(self, name) -> Dims:  # noqa: F821
        self._state.check(self._is_inferred, "shapes were not inferred")
        return [self._shape[0], *self._engine()._tensor(name)._shape[1:]]

    def execute_async_v3(self, stream_handle) -> bool:
        self._use("execute_async_v3", stream_handle=stream_handle)
        state = self._state
        state.check(self._turn.acquire(blocking=False), "two threads in one execution context")
        try:
            state.check(stream_handle != 0, "the default stream")
            state.check(self._memory is not None, "no device memory was given")
            state.check(self._is_inferred, "shapes were not inferred")
            for tensor in (*self._engine()._inputs, *self._engine()._outputs):
                state.check(tensor._name in self._addresses, f"no address for {tensor._name}")
            is_recorded = state.driver.recording is not None
            state.check(self._is_warm or not is_recorded, "a graph is recorded before a warm-up run")
            state.check(not is_recorded or not state.driver.queue, "a graph is recorded while work is under way")
            self._is_warm = True
            if state.fails("execute"):
                state.say("Error Code 1: Cuda Runtime")
                return False
            held = weakref.ref(self)  # a graph does not keep the context alive
            state.driver.put(lambda: _run(held, state))
            return True
        finally:
            self._turn.release()


def _run(held, state):
    context = held()
    state.check(context is not None, "a graph was launched after its execution context was destroyed")
    engine = context._engine()
    state.check(engine is not None, "an execution context ran after its engine was destroyed")
    (source,), (target,) = engine._inputs, engine._outputs
    shape = context._shape
    for tensor, size in ((source, int(np.prod(shape))), (target, shape[0] * target._shape[1] * 4)):
        state.check(state.driver.holds(context._addresses[tensor._name], size), f"{tensor._name} was freed")
    state.check(state.driver.holds(*context._memory), "the workspace was freed")
    pixels = view(context._addresses[source._name], shape, np.uint8)
    (features,) = engine._session.run(None, {source._name: np.array(pixels)})
    view(context._addresses[target._name], features.shape, np.float32)[...] = features
    if state.fails("other features"):
        rows = view(context._addresses[target._name], features.shape, np.float32)
        rows[...] = np.roll(rows, 1, axis=1)
    if state.fails("nan"):
        view(context._addresses[target._name], features.shape, np.float32)[0] = np.nan
    view(*context._memory, np.uint8)[...] = 0x5A  # the scratch is TensorRT's to write
    state.num_executions += 1
