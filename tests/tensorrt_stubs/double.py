"""A TensorRT that refuses every wrong use: order of calls, lifetimes, threads, memory. Its plans run in ONNX Runtime.

A name that the genuine bindings lack is an AttributeError here as well: `test_tensorrt_bindings.py` holds the surface
of these classes to the genuine ones, parameter by parameter. Signatures are written as NVIDIA writes them.
"""

from __future__ import annotations

import enum
import gc
import types

from .double_build import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from .double_run import EngineInspector, ICudaEngine, IExecutionContext, Runtime
from .strict import State

CLASSES = (
    *(ILogger, IProgressMonitor, IHostMemory, ITimingCache, IOptimizationProfile, ITensor, INetworkDefinition),
    *(ParserError, OnnxParser, IBuilderConfig, Builder, EngineInspector, Runtime, ICudaEngine, IExecutionContext),
)


def enumerations(version):
    """Members and numbers as the genuine bindings of that version have them: those that the engine uses."""
    is_11 = version.startswith("11")
    levels = {"NONE": 0} if version.startswith("10.3") else {"NONE": 0, "SAME_COMPUTE_CAPABILITY": 2}
    return {
        "BuilderFlag": {"TF32": 6, "VERSION_COMPATIBLE": 13 - is_11, "EXCLUDE_LEAN_RUNTIME": 14 - is_11},
        "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": 1 - is_11},
        "MemoryPoolType": {"WORKSPACE": 0},
        "ProfilingVerbosity": {"DETAILED": 2, "NONE": 1},
        "DataType": {"FLOAT": 0, "HALF": 1, "UINT8": 5},
        "TensorIOMode": {"INPUT": 1, "OUTPUT": 2},
        "LayerInformationFormat": {"JSON": 1},
        "ExecutionContextAllocationStrategy": {"USER_MANAGED": 2},
        "HardwareCompatibilityLevel": levels,
    }


class Numbered(enum.Enum):
    """As pybind's enumerations: named when printed, a number when asked, equal to nothing but itself."""

    def __int__(self):
        return self.value


SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}


def make_tensorrt(version, driver):
    """A module, and the state behind it."""
    state = State(version, driver)
    library = types.ModuleType("tensorrt")
    library.__version__ = version
    for kind in CLASSES:
        setattr(library, kind.__name__, type(kind.__name__, (kind,), {"_state": state}))
    for name, members in enumerations(version).items():
        setattr(library, name, Numbered(name, members))
    severity = Numbered("Severity", SEVERITIES)
    for member in severity:
        setattr(library.ILogger, member.name, member)
    state.library = library
    state.make = lambda name, *arguments: getattr(library, name)(*arguments)
    return library, state


def assert_freed_in_order(state):
    """Contexts before their engine, and nothing left."""
    gc.collect()
    assert [type(living).__name__ for living in state.living] == []
    assert all(entry["contexts_are_gone"] for name, entry in state.log if name == "ICudaEngine.__del__")
