"""The host shim finds what is wrong in a kernel, and nothing where nothing is wrong.

Each kernel of kernels/host_shim/tests/faults.cu has one mistake that an argument switches on.
"""

from __future__ import annotations

import numpy as np
import pytest

from kpl_engine.cuda.base import Launch
from kpl_engine.cuda.context import Context
from kpl_engine.errors import CudaError

from .shim import KernelFault, ShimDriver

FAULTS = "host_shim/tests/faults"
PAIR = Launch(2, 64, 256)
COOPERATIVE = Launch(3, 64, 256, is_cooperative=True)
CLUSTERS = Launch(4, 32, 128, cluster=2)

# Kernel, launch, arrays of so many int32 (zeroed), the mistakes it has.
RACES = [
    ("missing_barrier", Launch(1, 64, 256), [64], [1]),
    ("missing_second_barrier", Launch(1, 64, 256), [64], [1]),
    ("missing_syncwarp", Launch(1, 64, 256), [64], [1, 2]),
    ("half_warps", Launch(1, 64, 256), [64], [1]),
    ("missing_grid_barrier", COOPERATIVE, [1, 1, 192], [1]),
    ("last_block", PAIR, [1, 2, 1], [1, 2]),
    ("last_block", COOPERATIVE, [1, 3, 1], [1, 2]),
    ("bytes", Launch(1, 64, 256), [16], [1]),
    ("counting", PAIR, [1], [1]),
    ("counting", Launch(1, 2), [1], [1]),
    ("cluster_life", CLUSTERS, [4], [3]),
]


def run(context, kernel, launch, sizes, *scalars):
    arrays = [context.zeros((size,), np.int32) for size in sizes]
    context.launch(context.kernel(FAULTS, kernel), launch, *arrays, *scalars)
    return [context.download(array) for array in arrays]


@pytest.fixture(params=[0, 1, 7])
def shim(request):
    """A checked shim in several orders of threads and blocks."""
    with Context(ShimDriver(seed=request.param, is_checked=True)) as context:
        yield context


@pytest.mark.parametrize(("kernel", "launch", "sizes", "mistakes"), RACES)
class TestRaces:
    def test_right_program_is_clean(self, shim, kernel, launch, sizes, mistakes):
        run(shim, kernel, launch, sizes, np.int32(0))

    def test_race_is_found_in_every_order(self, shim, kernel, launch, sizes, mistakes):
        for wrong in mistakes:
            with pytest.raises(KernelFault, match=r"a race on (?s:.*)no barrier between"):
                run(shim, kernel, launch, sizes, np.int32(wrong))


@pytest.mark.parametrize("block", [2, 32, 33, 96])
@pytest.mark.parametrize("writer", [0, 1, -1])
def test_every_reader_is_remembered(shim, block, writer):
    """One who read long ago, in the writer's warp or another one, is as good as the last."""
    for wrong in (0, 1):
        arguments = "many_readers", Launch(1, block), [1, 96], np.int32(writer % block), np.int32(wrong)
        if wrong == 0:
            run(shim, *arguments)
            continue
        with pytest.raises(KernelFault, match="a race on"):
            run(shim, *arguments)


def test_race_report_names_place_threads_and_lines(shim):
    with pytest.raises(KernelFault) as caught:
        run(shim, "missing_barrier", Launch(1, 64, 256), [64], np.int32(1))
    text = str(caught.value)
    assert "of the shared memory of block 0" in text
    assert "a write by thread" in text
    assert "a read by thread" in text
    lines = (
        shim_line("shared[threadIdx.x] = (int)threadIdx.x;"),
        shim_line("out[threadIdx.x] = shared[(threadIdx.x + 1)"),
    )
    for line in lines:
        assert f"faults.cu:{line}" in text


def shim_line(start):
    from .shim_build import KERNELS

    texts = (KERNELS / f"{FAULTS}.cu").read_text().splitlines()
    return next(number for number, text in enumerate(texts, 1) if text.strip().startswith(start))


@pytest.mark.parametrize("is_checked", [False, True])
@pytest.mark.parametrize("seed", [0, 3])
class TestBarriers:
    """Found without the race check too: a launch never hangs."""

    @pytest.fixture
    def shim(self, seed, is_checked):
        with Context(ShimDriver(seed=seed, is_checked=is_checked)) as context:
            yield context

    @pytest.mark.parametrize(
        ("kernel", "launch", "sizes", "wrong", "report"),
        [
            ("divergent", Launch(1, 96), [96], 1, r"divergent barrier: thread \d+ of block 0 waits at .*faults.cu:\d+"),
            ("divergent", Launch(1, 96), [96], 2, r"deadlock(?s:.*)waits in its warp at .*1 threads \(0\)"),
            ("masks", Launch(1, 64), [64], 1, r"warp collective: thread \d+ of block 0 came to .* another mask"),
            ("masks", Launch(1, 64), [64], 2, r"thread \d+ of block 0 is not in its own mask"),
            ("masks", Launch(1, 64), [64], 3, r"warp collective: thread \d+ of block 0 came to .* another one"),
            ("uneven_grid", COOPERATIVE, [1], 1, r"deadlock(?s:.*)waits at grid_barrier"),
            ("uneven_grid", COOPERATIVE, [1], 2, r"deadlock(?s:.*)waits at grid_barrier"),
            ("uneven_grid", Launch(3, 64), [1], 0, r"deadlock(?s:.*)waits at grid_barrier"),
            ("waits_for_flag", Launch(1, 64), [1], 1, r"a loop waits for memory that nobody writes: thread 0"),
        ],
    )
    def test_deadlock_is_reported(self, shim, kernel, launch, sizes, wrong, report):
        with pytest.raises(KernelFault, match=report):
            run(shim, kernel, launch, sizes, np.int32(wrong))

    @pytest.mark.parametrize(
        ("kernel", "launch", "size"),
        [
            ("divergent", Launch(1, 96), 96),
            ("masks", Launch(1, 64), 64),
            ("uneven_grid", COOPERATIVE, 1),
            ("waits_for_flag", Launch(1, 64), 1),
        ],
    )
    def test_right_program_ends(self, shim, kernel, launch, size):
        run(shim, kernel, launch, [size], np.int32(0))

    def test_counter_that_was_not_zeroed(self, shim):
        counter = shim.upload(np.array([1], np.uint32))
        shim.launch(shim.kernel(FAULTS, "uneven_grid"), COOPERATIVE, counter, np.int32(0))
        with pytest.raises(KernelFault, match="the counter is 1 and not a multiple of the 3 blocks"):
            shim.driver.synchronize()

    def test_remote_shared_memory_of_an_ended_block(self, shim):
        with pytest.raises(
            KernelFault, match=r"which has ended|has ended and its shared memory with it|may end while thread"
        ):
            run(shim, "cluster_life", CLUSTERS, [4], np.int32(1))


class TestBounds:
    """`touch` reads or writes ``x[offset + thread]``."""

    LAUNCH = Launch(1, 32, 128)
    SHARED, GLOBAL = np.int32(1), np.int32(0)

    @pytest.mark.parametrize("is_write", [0, 1])
    @pytest.mark.parametrize("in_shared", [0, 1])
    @pytest.mark.parametrize("offset", [1, -1, 31, 33, -31, 5000])
    def test_checked(self, shim, offset, in_shared, is_write):
        with pytest.raises(KernelFault, match=r"out of bounds|shared memory of another"):
            run(shim, "touch", self.LAUNCH, [32], np.int64(offset), np.int32(in_shared), np.int32(is_write))

    @pytest.mark.parametrize("is_write", [0, 1])
    @pytest.mark.parametrize("in_shared", [0, 1])
    def test_inside(self, shim, in_shared, is_write):
        run(shim, "touch", self.LAUNCH, [32], np.int64(0), np.int32(in_shared), np.int32(is_write))

    @pytest.mark.parametrize(
        ("offset", "in_shared", "is_write"),
        [(1, 0, 1), (-1, 0, 1), (1, 1, 1), (1, 1, 0), (64, 0, 0), (-4096, 0, 0), (1 << 40, 0, 1)],
    )
    def test_fast(self, offset, in_shared, is_write):
        """Without the check, guard pages and guard bytes find writes, and reads that leave the page."""
        with Context(ShimDriver()) as context, pytest.raises(KernelFault, match="out of bounds"):
            run(context, "touch", self.LAUNCH, [32], np.int64(offset), np.int32(in_shared), np.int32(is_write))

    def test_use_after_free(self, shim):
        array = shim.zeros((32,), np.int32)
        address = np.uint64(array.address)
        del array
        shim.launch(shim.kernel(FAULTS, "touch"), self.LAUNCH, address, np.int64(0), self.GLOBAL, np.int32(1))
        with pytest.raises(KernelFault, match="of an allocation of 128 bytes that was freed"):
            shim.driver.synchronize()

    def test_copies_are_held_to_allocations(self, shim):
        array = shim.zeros((32,), np.int32)
        with pytest.raises(CudaError, match="not within one live allocation"):
            shim.driver.copy_in(array.address + 4, np.zeros(32, np.int32), shim.stream)

    def test_uninitialised_memory_is_nan(self, shim):
        out, wide = shim.empty((16,), np.float32), shim.empty((16,), np.float64)
        assert np.isnan(shim.download(out)).all()
        shim.launch(shim.kernel(FAULTS, "uninitialised"), Launch(1, 16, 128), out, wide)
        assert np.isnan(shim.download(out)).all()
        assert np.isnan(shim.download(wide)).all()


class TestFaults:
    @pytest.mark.parametrize("is_checked", [False, True])
    @pytest.mark.parametrize(
        ("wrong", "report"), [(1, "__trap"), (2, "division by zero"), (3, "local memory of more than 128 KB")]
    )
    def test_fault_ends_the_launch_not_the_process(self, wrong, report, is_checked):
        with Context(ShimDriver(is_checked=is_checked)) as context:
            with pytest.raises(KernelFault, match=report):
                run(context, "broken", Launch(2, 32), [1], np.int32(wrong), np.int32(0))
            run(context, "broken", Launch(2, 32), [1], np.int32(0), np.int32(0))

    def test_null_pointer(self, shim):
        shim.launch(shim.kernel(FAULTS, "touch"), Launch(1, 1), None, np.int64(0), np.int32(0), np.int32(1))
        with pytest.raises(KernelFault, match=r"address 0x0, which is no device memory(?s:.*)thread 0 of block 0"):
            shim.driver.synchronize()

    def test_cluster_that_has_not_started(self, shim):
        with pytest.raises(KernelFault, match="may not have started"):
            run(shim, "cluster_life", CLUSTERS, [4], np.int32(2))

    def test_cluster_that_has_ended(self, shim):
        """Also where the other block happens to end later."""
        ended = (
            r"shared memory of block \d+, which has ended|may end while thread \d+ of block \d+ uses its shared memory"
        )
        for wrong in (4, 5):
            with pytest.raises(KernelFault, match=ended):
                run(shim, "cluster_life", CLUSTERS, [4], np.int32(wrong))

    def test_stale_read(self, shim):
        run(shim, "stale_read", Launch(1, 64), [1, 64], np.int32(0))
        with pytest.raises(KernelFault, match="__ldg of memory that this launch has written"):
            run(shim, "stale_read", Launch(1, 64), [1, 64], np.int32(1))
