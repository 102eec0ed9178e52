"""The building half of the TensorRT double."""

from __future__ import annotations

import json
import threading
import weakref

import onnx

from .strict import Strict, Wrong, kept

NUM_STEPS = 3


class ILogger:
    def __init__(self) -> None:
        self._is_genuine = True

    def log(self, severity, msg) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self._is_genuine = True

    def phase_start(self, phase_name, parent_phase, num_steps) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name, step) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name) -> None:
        raise NotImplementedError


class IHostMemory(bytearray):
    """A buffer; a bytearray because before Python 3.12 nothing else of Python's own is one."""


class ITimingCache(Strict):
    def serialize(self) -> IHostMemory:
        return IHostMemory(b"timings " + self._state.version.encode())


class IOptimizationProfile(Strict):
    _shapes = None

    def set_shape(self, input, min, opt, max) -> None:
        self._use("set_shape", input=input, min=min, opt=opt, max=max)
        self._state.check(all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), "a profile out of order")
        self._shapes = (input, min, opt, max)

    def __bool__(self):
        return self._shapes is not None and not self._state.fails("profile")


class ITensor(Strict):
    def __init__(self, name, dtype, shape):
        self._name, self._dtype, self._shape = name, dtype, shape

    name = property(lambda self: self._name, lambda self, value: None)
    dtype = property(lambda self: self._dtype)


class INetworkDefinition(Strict):
    _model = None
    num_inputs = property(lambda self: len(self._tensors(0)))
    num_outputs = property(lambda self: len(self._tensors(1)))

    def _tensors(self, side):
        values = (self._model.graph.input, self._model.graph.output)[side]
        found = []
        for value in values:
            kind = value.type.tensor_type
            dtype = {1: "FLOAT", 2: "UINT8", 10: "HALF"}[kind.elem_type]
            dtype = "HALF" if dtype == "FLOAT" and self._state.fails("dtype") else dtype
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
            found.append(self._state.make("ITensor", value.name, self._state.library.DataType[dtype], shape))
        return found

    def get_input(self, index) -> ITensor:
        return self._tensors(0)[index]

    def get_output(self, index) -> ITensor:
        return self._tensors(1)[index]


class ParserError(Strict):
    def __init__(self, index):
        self._index = index

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return f"node_{self._index}"

    def node_operator(self) -> str:
        return "Resize"

    def desc(self) -> str:
        return f"complaint {self._index}"


class OnnxParser(Strict):
    _errors = 0

    def __init__(self, network, logger) -> None:
        self._born(network)
        self._use("__init__", network=network, logger=logger)
        self._network = network
        network._parser = weakref.ref(self)

    num_errors = property(lambda self: self._errors)

    def parse_from_file(self, model) -> bool:
        self._use("parse_from_file", model=model)
        self._state.check(isinstance(model, str), "parse_from_file takes a text")
        if self._state.fails("parse"):
            self._errors = 25
            return False
        self._network._model = onnx.load(model)
        return True

    def get_error(self, index) -> ParserError:
        return self._state.make("ParserError", index)

    def clear_errors(self) -> None:
        self._errors = 0


class IBuilderConfig(Strict):
    _builder_optimization_level = 3
    _profiling_verbosity = _progress_monitor = _hardware_compatibility_level = None
    builder_optimization_level = kept("builder_optimization_level")
    profiling_verbosity = kept("profiling_verbosity")
    progress_monitor = kept("progress_monitor")
    hardware_compatibility_level = kept("hardware_compatibility_level")

    def _begin(self, builder):
        self._born(builder)
        self._flags = {self._state.library.BuilderFlag.TF32}  # on by default
        self._profiles, self._cache, self._limits = [], None, {}

    def set_memory_pool_limit(self, pool, pool_size) -> None:
        self._use("set_memory_pool_limit", pool=pool, pool_size=pool_size)
        self._limits[pool] = pool_size

    def set_flag(self, flag) -> None:
        self._use("set_flag", flag=flag)
        self._flags.add(flag)

    def clear_flag(self, flag) -> None:
        self._use("clear_flag", flag=flag)
        self._flags.discard(flag)

    def add_optimization_profile(self, profile) -> int:
        self._use("add_optimization_profile", profile=profile)
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache) -> ITimingCache:
        self._use("create_timing_cache", serialized_timing_cache=serialized_timing_cache)
        content = bytes(serialized_timing_cache)
        if content and content != b"timings " + self._state.version.encode():
            return None
        self._state.timing = content
        return self._state.make("ITimingCache")

    def set_timing_cache(self, cache, ignore_mismatch) -> bool:
        self._use("set_timing_cache", cache=cache, ignore_mismatch=ignore_mismatch)
        self._cache = weakref.ref(cache)
        return True


class Builder(Strict):
    def __init__(self, logger) -> None:
        self._state.logger = weakref.ref(logger)
        self._born()
        self._use("__init__", logger=logger)
        if self._state.fails("no builder"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags=0) -> INetworkDefinition:
        self._use("create_network", flags=flags)
        wanted = 0 if self._state.version.startswith("11") else 2
        self._state.check(flags == wanted, f"create_network({flags}) on {self._state.version}")
        network = self._state.make("INetworkDefinition")
        network._born(self)
        return network

    def create_builder_config(self) -> IBuilderConfig:
        self._use("create_builder_config")
        config = self._state.make("IBuilderConfig")
        config._begin(self)
        return config

    def create_optimization_profile(self) -> IOptimizationProfile:
        self._use("create_optimization_profile")
        profile = self._state.make("IOptimizationProfile")
        profile._born(self)
        return profile

    def build_serialized_network(self, network, config) -> IHostMemory:
        self._use("build_serialized_network", network=network, config=config)
        check = self._state.check
        check(network._parser() is not None, "the parser, which holds the weights, is gone before the build")
        check(config._cache is None or config._cache() is not None, "the timing cache is gone before the build")
        check(len(config._profiles) >= 1, "a dynamic input without a profile")
        check(self._state.library.MemoryPoolType.WORKSPACE in config._limits, "no workspace limit")
        if not self._run_monitor(config._progress_monitor) or self._state.fails("no plan"):
            self._state.say("the builder gave up")
            return None
        return IHostMemory(self._serialize(network, config))

    def _run_monitor(self, monitor):
        monitor.phase_start("Building", None, NUM_STEPS)
        monitor.phase_start("Tactics", "Building", 2)
        goes_on = True
        for step in range(NUM_STEPS):
            thread = threading.Thread(target=monitor.step_complete, args=("Tactics", step))  # TensorRT's own threads
            thread.start()
            thread.join()
            try:
                goes_on = goes_on and monitor.step_complete("Building", step)
            except BaseException as error:
                raise Wrong(f"{type(error).__name__} unwinds through the builder") from error
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building")
        return goes_on

    def _serialize(self, network, config):
        info = self._state.driver.info
        flags = sorted(flag.name for flag in config._flags)
        types = {1: "FP32", 10: "Half", 16: "BFloat16", 3: "Int8", 17: "FP8"}
        seen = {types.get(tensor.data_type) for tensor in network._model.graph.initializer} - {None}
        header = {
            "version": self._state.version,
            "gpu": info.name,
            "capability": list(info.compute_capability),
            "flags": flags,
            "profiles": [profile._shapes for profile in config._profiles],
            "types": sorted(seen),
            "is_detailed": config._profiling_verbosity == self._state.library.ProfilingVerbosity.DETAILED,
        }
        return json.dumps(header).encode() + b"\n" + network._model.SerializeToString()
