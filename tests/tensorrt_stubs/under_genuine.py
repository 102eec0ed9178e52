"""Run with the genuine bindings on the path: our code on real enumerations, base classes and refusals. Prints JSON."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import tensorrt_bindings as trt

from kpl_engine.encoder.plans import Machine, Plan
from kpl_engine.encoder.tensorrt_engine import PlanEngine, Signature
from kpl_engine.encoder.tensorrt_library import import_tensorrt, logger_of, take_errors
from kpl_engine.errors import BackendUnavailableError
from kpl_engine.export import compile_plan

SIGNATURE = Signature("pixels", "features", (8, 6), 5)


class Config:
    """Takes what `_configure` sets, and writes it down."""

    def __init__(self):
        object.__setattr__(self, "said", [])

    def __setattr__(self, name, value):
        self.said.append([name, str(value)])

    def set_flag(self, flag):
        self.said.append(["set_flag", str(trt.BuilderFlag(flag))])

    def clear_flag(self, flag):
        self.said.append(["clear_flag", str(trt.BuilderFlag(flag))])

    def set_memory_pool_limit(self, pool, pool_size):
        self.said.append([str(trt.MemoryPoolType(pool)), str(pool_size)])


def refusal(work):
    """What the message is where the stub libraries make nothing."""
    try:
        work()
    except BackendUnavailableError as error:
        return str(error)
    return "nothing was refused"


def main():
    library = import_tensorrt(("no_such_tensorrt", "tensorrt_bindings"))
    logger = logger_of(library)
    for severity in (trt.ILogger.VERBOSE, trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
        logger.log(severity, f"said\nas {severity}")
    lines = []
    monitor = compile_plan._make_monitor(library, lines.append)
    monitor.phase_start("Building", "", 4)
    goes_on = monitor.step_complete("Building", 0)
    monitor.phase_finish("Building")
    config = Config()
    settings = compile_plan.CompileSettings(((1, 1, 1),), 1 << 20, is_portable=True)
    compile_plan._configure(library, config, settings, monitor)
    machine = Machine("GPU", (9, 0), 1, trt.__version__, 13, "linux")
    plan = Plan("p", "p", "p", "fp16", 1, ((1, 1, 1),), False, "g", "k", machine, {})
    driver = SimpleNamespace(current=nullcontext, synchronize=lambda stream: None)
    context = SimpleNamespace(driver=driver, stream=None)
    found = {
        "flags": compile_plan._network_flags(library),
        "messages": take_errors(logger),
        "progress": [goes_on, lines],
        "is_genuine": [isinstance(logger, trt.ILogger), isinstance(monitor, trt.IProgressMonitor)],
        "config": [entry for entry in config.said if entry[0] != "progress_monitor"],
        "builder": refusal(lambda: compile_plan.compile_plan(library, Path("x.onnx"), SIGNATURE, settings)),
        "runtime": refusal(lambda: PlanEngine(library, context, plan, b"", SIGNATURE)),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
