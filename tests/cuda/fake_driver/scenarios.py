"""What an adapter must do, over the genuine cuda.core or pycuda and the pretended driver of libcuda.c.

Run as a program, each function ``check_*`` runs in a process of its own, forked before the driver is touched, and one
line of JSON tells what became of each. ``lab`` is the driver's other side: what it is told, and what it was asked.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from kpl_engine.cuda.base import Driver, Launch
from kpl_engine.cuda.context import Context
from kpl_engine.cuda.images import Image
from kpl_engine.errors import (
    BackendUnavailableError,
    CudaError,
    CudaLaunchError,
    CudaMemoryError,
    CudaModuleError,
    CudaStickyError,
    ShapeError,
)

# What is imported for each; the double needs nothing.
ADAPTERS = {"cuda.core": ("cuda.core", "cuda.bindings.driver"), "pycuda": ("pycuda.driver",), "pycuda double": ()}
CUBIN = b"\x7fELF" + bytes(60)


class Images:
    """Hands out ``count`` images; ``meanwhile`` is called before the second."""

    notes = ("the cache keeps nothing",)

    def __init__(self, count: int = 1, meanwhile: Any = None) -> None:
        self._count = count
        self._meanwhile = meanwhile

    def candidates(self, source: str) -> Iterator[Image]:
        for index in range(self._count):
            if index and self._meanwhile:
                self._meanwhile()
            yield Image(CUBIN, "cubin", f"image {index}")


class Lab:
    """The pretended driver and one adapter over it."""

    def __init__(self, path: str, adapter: str) -> None:
        self.library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        self.library.fake_log.restype = ctypes.c_char_p
        self.library.fake_live.restype = ctypes.c_longlong
        self.adapter = adapter.removesuffix(" double")
        if adapter == "pycuda double":
            import pycuda_double

            pycuda_double.install(self.library)

    @property
    def is_core(self) -> bool:
        return self.adapter == "cuda.core"

    def open(self, ordinal: int = 0, images: Any = None) -> Driver:
        if self.is_core:
            from kpl_engine.cuda.cuda_core import open_cuda_core

            return open_cuda_core(ordinal, images or Images())
        from kpl_engine.cuda.pycuda import open_pycuda

        return open_pycuda(ordinal, images or Images())

    def kernel(self, driver: Driver, *sizes: int) -> Any:
        """A kernel with parameters of those sizes."""
        self.library.fake_kernel(b"work", ",".join(map(str, sizes)).encode())
        return driver.load("work").kernel("work")

    def set(self, what: str, value: int) -> None:
        self.library.fake_set(what.encode(), ctypes.c_longlong(value))

    def fail(self, call: str = "", code: int = 0, skip: int = 0) -> None:
        self.library.fake_fail(call.encode(), code, skip)

    def asked(self, pattern: str = "") -> list[str]:
        """Lines of the log that match, and the log is empty afterwards."""
        lines = self.library.fake_log().decode().splitlines()
        self.library.fake_clear()
        return [line for line in lines if re.search(pattern, line)]

    def live(self, *, host: bool = False) -> int:
        return int(self.library.fake_live(int(host)))

    @property
    def depth(self) -> int:
        """Contexts that are current in this thread, one above the other."""
        return int(self.library.fake_depth())


def refused(kind: type[Exception], *words: str, call: Any) -> Exception:
    """What ``call`` raises: of that very kind, with all of those words."""
    try:
        call()
    except Exception as error:
        if type(error) is not kind:
            raise AssertionError(f"expected {kind.__name__}, got {type(error).__name__}: {error}") from error
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise AssertionError(f"{missing} not in: {error}") from error
        return error
    raise AssertionError(f"expected {kind.__name__}, and nothing was raised")


def check_the_gpu_is_described(lab: Lab) -> None:
    driver = lab.open(1)
    info = driver.info
    assert (info.ordinal, info.name, info.compute_capability) == (1, "Fake GPU 1", (9, 0))
    assert (info.num_multiprocessors, info.max_shared_bytes, info.l2_bytes) == (132, 227 << 10, 50 << 20)
    assert (info.total_bytes, info.driver_version) == (1 << 30, 13000)
    assert driver.name.startswith(lab.adapter + " ")
    assert driver.notes == Images.notes
    features = driver.features
    assert (features.has_graphs, features.has_cooperative) == (lab.is_core, lab.is_core)
    assert features.max_cluster == (16 if lab.is_core else 1)


def check_copies_go_both_ways(lab: Lab) -> None:
    rng = np.random.default_rng()
    context = Context(lab.open())
    for shape, dtype in (
        ((7, 31), np.float32),
        ((1,), np.int64),
        ((3, 0), np.float64),
        ((129,), np.uint8),
        ((), np.int32),
    ):
        given = (rng.random(shape) * 100).astype(dtype)
        there = context.upload(given)
        np.testing.assert_array_equal(context.download(there), given)
    there = context.upload(np.arange(5, dtype=np.int32))
    other = context.zeros((5,), np.int32)
    assert not context.download(other).any()
    context.driver.copy_on(other.address, there.address, 12, context.stream)
    assert context.download(other).tolist() == [0, 1, 2, 0, 0]
    context.driver.fill(other.address, 0xFF, 4, context.stream)
    assert context.download(other)[0] == -1
    lab.asked()
    context.driver.copy_on(other.address, there.address, 0, context.stream)
    context.driver.fill(other.address, 0, 0, context.stream)
    context.upload(np.zeros((3, 0)))
    assert lab.asked("cuMemcpy|cuMemset") == [], "nothing is asked to copy nothing"
    # A view of every second row has no single run of bytes.
    refused(
        ShapeError,
        "C-contiguous",
        call=lambda: context.driver.copy_in(there.address, np.arange(10)[::2], context.stream),
    )
    refused(
        ShapeError,
        "C-contiguous",
        call=lambda: context.driver.copy_out(np.arange(10)[::2], there.address, context.stream),
    )


def check_only_pageable_memory_is_waited_for(lab: Lab) -> None:
    context = Context(lab.open())
    pinned = context.driver.pinned((4, 3), np.float32)
    assert pinned.shape == (4, 3)
    assert pinned.dtype == np.float32
    pinned[...] = np.arange(12).reshape(4, 3)
    there = context.empty((2, 3), np.float32)
    lab.asked()
    context.write(there, pinned[2:])  # a view of page-locked memory is page-locked
    assert lab.asked("Synchronize") == []
    context.write(there, np.ones((2, 3), np.float32))
    assert lab.asked("cuStreamSynchronize") != []
    assert context.download(there).tolist() == [[1] * 3] * 2


def check_arguments_reach_the_kernel_bit_for_bit(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 8, 8, 4, 8, 4, 8)
    array = context.empty((3,), np.float64)
    lab.asked()
    args = (np.int32(-7), np.float64(0.1), np.float32(-0.0), np.int64(-(2**40)))
    context.launch(kernel, Launch(5, 96), array, None, *args)
    (line,) = lab.asked("cuLaunchKernel")
    assert "work grid=5,1,1 block=96,1,1 shared=0 cluster=1 cooperative=0" in line
    told = bytes.fromhex(line.split("args=")[1].replace(",", ""))
    packed = [np.uint64(array.address).tobytes(), bytes(8), *(value.tobytes() for value in args)]
    if not lab.is_core:  # pycuda hands over one struct, with its padding
        packed[2] += bytes(4)
        packed[4] += bytes(4)
    assert told == b"".join(packed)


def check_launches_that_no_driver_would_take_are_refused_before(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4)
    lab.asked()
    for launch, word in (
        (Launch(0, 32), "blocks"),
        (Launch(1, 0), "threads"),
        (Launch(1, 1025), "1024"),
        (Launch(1, 32, 228 << 10), str(227 << 10)),
        (Launch(6, 32, cluster=4), "cluster"),
        (Launch(32, 32, cluster=32), "cluster"),
    ):
        refused(CudaLaunchError, "work", word, call=lambda launch=launch: context.launch(kernel, launch, np.int32(1)))
    for value in (1, np.int8(1), np.bool_(True)):
        refused(CudaLaunchError, "argument 0", call=lambda value=value: context.launch(kernel, Launch(1, 32), value))
    assert lab.asked("cuLaunchKernel") == []


def check_arguments_that_do_not_fit_the_parameters_are_refused(lab: Lab) -> None:
    if not lab.is_core:
        return  # pycuda cannot ask for the parameters
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4, 8)
    context.launch(kernel, Launch(1, 32), np.int32(1), np.float64(2))
    for args in ((np.int32(1),), (np.int32(1), np.float32(2)), (np.int32(1), np.float64(2), np.int32(3))):
        refused(CudaLaunchError, "(4, 8)", call=lambda args=args: context.launch(kernel, Launch(1, 32), *args))


def check_much_shared_memory_is_asked_for_once(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4)
    lab.asked()
    asked = []
    for shared in (48 << 10, 60_000, 60_000, 50_000, 227 << 10):
        context.launch(kernel, Launch(1, 32, shared), np.int32(1))
        asked.append([line.split(" ")[1:3] for line in lab.asked("SetAttribute")])
    assert asked == [[], [["8", "60000"]], [], [], [["8", str(227 << 10)]]]


def check_clusters(lab: Lab) -> None:
    driver = lab.open()
    context = Context(driver)
    kernel = lab.kernel(driver, 4)
    if not lab.is_core:
        assert driver.clusters_at_once(kernel, Launch(2, 32, cluster=2)) == 0
        return
    lab.asked()
    for cluster, asks in ((4, 0), (16, 1), (16, 0)):
        context.launch(kernel, Launch(32, 64, cluster=cluster), np.int32(1))
        log = lab.asked()
        assert sum("SetAttribute 14 1" in line for line in log) == asks
        assert f"grid=32,1,1 block=64,1,1 shared=0 cluster={cluster} cooperative=0" in log[-1]
    assert driver.clusters_at_once(kernel, Launch(32, 64, cluster=16)) == 3
    assert "grid=32 cluster=16" in lab.asked("cuOccupancyMaxActiveClusters")[0]
    assert driver.clusters_at_once(kernel, Launch(32, 64, cluster=16)) == 3
    assert not lab.asked("cuOccupancyMaxActiveClusters"), "known: a plan asks again while a graph is recorded"
    assert driver.clusters_at_once(kernel, Launch(64, 64, cluster=32)) == 0
    lab.fail("cuOccupancyMaxActiveClusters", 912)
    assert driver.clusters_at_once(kernel, Launch(64, 64, cluster=16)) == 0
    lab.fail()
    lab.fail("cuOccupancyMaxActiveClusters", 700)
    refused(CudaStickyError, call=lambda: driver.clusters_at_once(kernel, Launch(96, 64, cluster=16)))


def check_cooperative_launches(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4)
    launch = Launch(132, 64, is_cooperative=True)
    if not lab.is_core:
        refused(CudaLaunchError, "cuda-core", call=lambda: context.launch(kernel, launch, np.int32(1)))
        return
    lab.asked()
    context.launch(kernel, launch, np.int32(1))
    assert "grid=132,1,1 block=64,1,1 shared=0 cluster=1 cooperative=1" in lab.asked("cuLaunchKernel")[0]
    # More blocks than are resident at once (4 on each of 132 multiprocessors) would wait for each other for ever.
    large = Launch(4 * 132 + 1, 64, is_cooperative=True)
    refused(CudaError, "work", "528", call=lambda: context.launch(kernel, large, np.int32(1)))


def check_occupancy(lab: Lab) -> None:
    driver = lab.open()
    kernel = lab.kernel(driver, 4)
    # The driver says 4; pycuda cannot ask, so there 40 registers a thread decide: 12 blocks of 4 warps.
    assert driver.blocks_per_multiprocessor(kernel, 128, 1000) == (4 if lab.is_core else 12)
    assert driver.blocks_per_multiprocessor(kernel, 128, 228 << 10) == 0
    assert driver.clusters_at_once(kernel, Launch(1, 128)) == (4 if lab.is_core else 12) * 132


def check_a_graph_is_recorded_and_then_run(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4)
    if not lab.is_core:
        refused(CudaLaunchError, "cuda-core", call=lambda: context.driver.capture(context.stream, lambda: None))
        return
    array = context.zeros((2,), np.int32)
    pinned = context.driver.pinned((2,), np.int32)
    pinned[...] = 7

    def work() -> None:
        context.write(array, pinned)
        context.launch(kernel, Launch(1, 32), np.int32(1))
        context.driver.fill(array.address, 0, 4, context.stream)

    lab.asked()
    graph = context.driver.capture(context.stream, work)
    log = lab.asked()
    assert sum(" recorded " in line for line in log) == 3
    assert context.download(array).tolist() == [0, 0], "recorded work must not run"
    lab.asked()
    graph.launch(context.stream)
    graph.launch(context.stream)
    assert len(lab.asked("cuGraphLaunch")) == 2
    context.close()
    assert len(lab.asked("cuGraphExecDestroy")) == 1


def check_what_a_recording_raises_is_its_own_and_the_stream_goes_on(lab: Lab) -> None:
    if not lab.is_core:
        return
    context = Context(lab.open())
    array = context.zeros((2,), np.int32)

    def stumble() -> None:
        raise ValueError("of the caller")

    refused(ValueError, "of the caller", call=lambda: context.driver.capture(context.stream, stumble))
    assert context.download(array).tolist() == [0, 0]
    # Memory that may be gone when the graph runs.
    pageable = np.ones(2, np.int32)
    refused(
        CudaError, "pinned", call=lambda: context.driver.capture(context.stream, lambda: context.write(array, pageable))
    )
    refused(
        CudaError,
        call=lambda: context.driver.capture(context.stream, lambda: context.driver.synchronize(context.stream)),
    )
    assert context.download(array).tolist() == [0, 0]
    assert lab.depth == 0


def check_events(lab: Lab) -> None:
    context = Context(lab.open())
    driver = context.driver
    start, end = driver.new_event(), driver.new_event()
    driver.record(start, context.stream)
    driver.record(end, context.stream)
    assert driver.elapsed_ms(start, end) == 1.5
    log = lab.asked("cuEvent(Create|Sync|Elapsed)")
    assert log[:2] == ["cuEventCreate 0", "cuEventCreate 0"], "flag 2 would switch timing off"
    assert log[2:] == ["cuEventSynchronize 2", "cuEventElapsedTime 1 2"]


def check_memory_is_given_back_once(lab: Lab) -> None:
    driver = lab.open()
    first, second, third = driver.allocate(100), driver.allocate(1), driver.allocate(5000)
    assert first.address % 256 == second.address % 256 == third.address % 256 == 0
    assert (first.nbytes, second.nbytes) == (100, 1)
    first.free()
    first.free()
    assert lab.live() == 2
    del second
    gc.collect()
    assert lab.live() == 1
    driver.close()
    driver.close()
    third.free()
    assert lab.live() == 0
    assert len(lab.asked("cuMemFree$|cuMemFree ")) == 3
    assert lab.asked("not mine") == []
    refused(CudaError, "closed", call=lambda: driver.allocate(1))
    refused(CudaError, "closed", call=driver.new_stream)


def check_page_locked_arrays_outlive_the_driver(lab: Lab) -> None:
    driver = lab.open()
    rows = driver.pinned((3, 5), np.int16)
    rows[...] = 3
    view = rows[1:]
    driver.close()
    del rows, driver
    gc.collect()
    assert lab.live(host=True) == 1
    assert view.sum() == 30
    del view
    gc.collect()
    assert lab.live(host=True) == 0


def check_streams_do_not_wait_for_the_default_one(lab: Lab) -> None:
    driver = lab.open()
    stream = driver.new_stream()
    assert lab.asked("cuStreamCreate") == ["cuStreamCreate 1"]
    assert isinstance(stream.handle, int)
    assert stream.handle > 0


def check_what_was_current_before_is_current_after(lab: Lab) -> None:
    context = ctypes.c_void_p()
    assert lab.library.cuInit(0) == 0
    assert lab.library.cuCtxCreate_v4(ctypes.byref(context), None, 0, 1) == 0

    def current() -> int:
        found = ctypes.c_void_p()
        lab.library.cuCtxGetCurrent(ctypes.byref(found))
        return found.value or 0

    ours = Context(lab.open())
    assert current() == context.value
    array = ours.upload(np.arange(3))
    refused(CudaMemoryError, call=lambda: ours.driver.allocate(1 << 40))
    assert current() == context.value
    with ours.driver.current(), ours.driver.current():
        assert current() == 0x1000
        ours.download(array)
        assert current() == 0x1000
    assert current() == context.value
    ours.close()
    assert (current(), lab.depth) == (context.value, 1)


def check_errors_of_others_pass_through_current(lab: Lab) -> None:
    driver = lab.open()

    def stumble() -> None:
        with driver.current():
            raise RuntimeError("of TensorRT")

    refused(RuntimeError, "of TensorRT", call=stumble)
    assert lab.depth == 0


def check_any_thread_may_take_its_turn(lab: Lab) -> None:
    context = Context(lab.open())
    found: list[Any] = []

    def elsewhere() -> None:
        try:
            array = context.upload(np.arange(4))
            found.append(context.download(array).sum())
            array.owner.free()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [6], found
    assert lab.live() == 0


def check_too_little_memory(lab: Lab) -> None:
    driver = lab.open()
    error = refused(CudaMemoryError, "2147483648 bytes", "Fake GPU 0", "smaller", call=lambda: driver.allocate(1 << 31))
    assert error.code == 2
    driver.allocate(16).free()
    lab.fail("cuMemHostAlloc", 2)
    refused(CudaMemoryError, "host memory", call=lambda: driver.pinned((4,), np.int8))


def check_a_lost_context_says_restart(lab: Lab) -> None:
    for code in (700, 719):
        lab.fail("cuStreamSynchronize", code)
        context = Context(lab.open())
        array = context.zeros((3,), np.int32)
        error = refused(CudaStickyError, "restart the process", call=lambda c=context, a=array: c.download(a))
        assert error.code == code
        lab.fail()
        lab.asked()
        later = refused(
            CudaStickyError, "restart the process", "earlier", call=lambda c=context: c.zeros((1,), np.int8)
        )
        assert later.code == code
        assert lab.asked() == [], "nothing is asked of a lost context"
        array.owner.free()
        context.close()
    assert lab.depth == 0


def check_a_lost_context_frees_in_silence(lab: Lab) -> None:
    driver = lab.open()
    allocation = driver.allocate(8)
    lab.fail("*", 700)
    lab.fail("cuCtxPushCurrent", 700)
    refused(CudaStickyError, call=lambda: driver.allocate(8))
    allocation.free()
    driver.close()


def check_failures_of_a_launch(lab: Lab) -> None:
    context = Context(lab.open())
    kernel = lab.kernel(context.driver, 4)
    for code, kind, word in (
        (701, CudaLaunchError, "registers"),
        (1, CudaError, "report"),
        (719, CudaStickyError, "restart"),
    ):
        lab.fail("cuLaunchKernel", code)
        error = refused(kind, "launch work", word, call=lambda: context.launch(kernel, Launch(1, 32), np.int32(1)))
        assert error.code == code
        lab.fail()


def check_a_kernel_that_is_not_there(lab: Lab) -> None:
    driver = lab.open()
    error = refused(CudaModuleError, "'absent'", "work", call=lambda: driver.load("work").kernel("absent"))
    assert error.code == 500


def check_the_next_image_is_tried_when_one_does_not_fit(lab: Lab) -> None:
    load = "cuLibraryLoadData" if lab.is_core else "cuModuleLoadDataEx"
    driver = lab.open(0, Images(2, meanwhile=lab.fail))
    lab.fail(load, 209)
    lab.library.fake_kernel(b"work", b"4")
    assert driver.load("work").kernel("work").name == "work"
    assert lab.asked(load) == [f"{load} cubin = 209", f"{load} cubin"]
    lab.fail(load, 209)
    error = refused(CudaModuleError, "image 0", "nvidia-cuda-nvrtc", call=lambda: lab.open().load("work"))
    assert error.code == 209
    lab.fail()
    lab.fail(load, 2)
    refused(CudaMemoryError, "load work", call=lambda: driver.load("work"))


def check_contexts_of_the_host_program(lab: Lab) -> None:
    if lab.is_core:
        return
    import pycuda.driver

    pycuda.driver.init()
    own = pycuda.driver.Device(1).make_context()
    lab.asked()
    context = Context(lab.open(1))
    assert lab.asked("cuDevicePrimaryCtxRetain") == [], "pycuda's own context is used"
    context.download(context.zeros((2,), np.int8))
    other = lab.open(0)
    assert lab.asked("cuDevicePrimaryCtxRetain") == ["cuDevicePrimaryCtxRetain 0"]
    assert other.info.ordinal == 0
    context.close()
    assert pycuda.driver.Context.get_current() == own
    own.pop()


def check_the_choice_of_gpu(lab: Lab) -> None:
    from kpl_engine.cuda.select import describe, explain_absence, open_driver

    if "pycuda_double" in sys.modules:
        return  # it is no installed package

    def opening() -> Any:
        return open_driver("cuda:1", lab.adapter, keeps_kernels=False)

    assert explain_absence() is None
    is_ready, how = describe()
    assert is_ready
    assert "Fake GPU 0" in how
    assert "driver for CUDA 13.0" in how
    assert opening().info.ordinal == 1
    assert open_driver("auto", lab.adapter).info.ordinal == 0
    refused(BackendUnavailableError, "no GPU 2", "cuda:1 Fake GPU 1", call=lambda: open_driver("cuda:2"))
    for what, value, words in (
        ("capability", 70, ("7.0", "7.5")),
        ("driver_version", 11080, ("11.8", "12.0")),
        ("num_devices", 0, ("NO_DEVICE", "CUDA_VISIBLE_DEVICES")),
    ):
        lab.set(what, value)
        refused(BackendUnavailableError, *words, 'device="cpu"', call=opening)
        assert not describe()[0]
        lab.set(what, {"capability": 90, "driver_version": 13000, "num_devices": 2}[what])
    if lab.is_core:  # these bindings are for CUDA 13
        lab.set("driver_version", 12060)
        refused(BackendUnavailableError, "12.6", "cuda-core[cu12]", call=opening)


def _run(function: Any, lab: Lab) -> str:
    """What went wrong, or nothing. In a process of its own: a driver cannot be started afresh."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            function(lab)
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said[-6000:].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said or (f"ended with status {status}" if status else "")


def main(path: str, adapter: str) -> None:
    lab = Lab(path, adapter)
    for name in ADAPTERS[adapter]:
        importlib.import_module(name)
    found = {name: _run(value, lab) for name, value in list(globals().items()) if name.startswith("check_")}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
