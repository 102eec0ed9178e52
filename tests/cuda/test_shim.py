"""The host shim computes what CUDA defines, refuses what CUDA refuses, and runs in the order of its seed."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from kpl_engine.cuda.base import Launch
from kpl_engine.errors import CudaError, CudaLaunchError, CudaMemoryError, CudaModuleError, ShapeError

BASICS = "host_shim/tests/basics"
COLLECTIVES = "host_shim/tests/collectives"
SHUFFLES = {"int": np.int32, "long": np.int64, "float": np.float32, "double": np.float64}


@pytest.fixture
def rng():
    return np.random.default_rng()


def launch(context, source, name, shape, *args):
    context.launch(context.kernel(source, name), shape, *args)


class TestCollectives:
    @pytest.mark.parametrize("name", SHUFFLES)
    def test_shuffles(self, seeded_context, name):
        out = seeded_context.zeros((6, 32), SHUFFLES[name])
        launch(seeded_context, COLLECTIVES, f"shuffles_{name}", Launch(1, 32), out)
        lane = np.arange(32)
        source = [
            np.full(32, 5),
            lane ^ 3,
            np.where(lane + 4 < 32, lane + 4, lane),
            np.where(lane >= 4, lane - 4, lane),
            np.where(lane % 8 + 2 < 8, lane + 2, lane),
            lane // 8 * 8 + 1,
        ]
        np.testing.assert_array_equal(seeded_context.download(out), np.array(source) * 10 + 1)

    def test_votes(self, seeded_context, rng):
        values = rng.integers(-5, 5, 32).astype(np.int32)
        for limit in (-6, 0, 5):
            out = seeded_context.zeros((3,), np.uint32)
            launch(
                seeded_context, COLLECTIVES, "votes", Launch(1, 32), seeded_context.upload(values), np.int32(limit), out
            )
            holds = values > limit
            expected = [int(sum(1 << lane for lane in np.flatnonzero(holds))), holds.any(), holds.all()]
            np.testing.assert_array_equal(seeded_context.download(out), np.array(expected, np.uint32))

    @pytest.mark.parametrize("block", [1, 31, 32, 45, 64])
    def test_lanes_that_do_not_exist_are_not_waited_for(self, seeded_context, block):
        out = seeded_context.zeros((64,), np.int32)
        launch(seeded_context, COLLECTIVES, "short_warp", Launch(1, block), out)
        thread = np.arange(64)
        in_warp = np.where(thread < 32, min(block, 32), block - 32)
        expected = np.where((thread % 2 == 0) & (thread < block), (in_warp + 1) // 2, 0)
        np.testing.assert_array_equal(seeded_context.download(out), expected)

    def test_atomics(self, seeded_context):
        n = 3 * 45
        arrays = [
            seeded_context.zeros((size,), kind)
            for size, kind in [(4, np.int32), (3, np.uint64), (1, np.float32), (1, np.float64)]
        ]
        launch(seeded_context, COLLECTIVES, "atomics", Launch(3, 45), *arrays)
        integers, longs, floats, doubles = (seeded_context.download(array) for array in arrays)
        total = n * (n - 1) // 2
        np.testing.assert_array_equal(integers, [total, n - 1, 1 - n, 9])
        np.testing.assert_array_equal(longs, [total << 32, (n - 1) << 32, 3])
        assert (floats[0], doubles[0]) == (n / 2, n / 4)  # exact: multiples of a power of two


class TestBlocks:
    @pytest.mark.parametrize("block", [32, 96, 256])
    def test_block_sums(self, seeded_context, rng, block):
        x = rng.normal(size=2 * 1001)
        out = seeded_context.zeros((5,), np.float64)
        shape = Launch(5, block, 64)
        launch(seeded_context, BASICS, "block_sums", shape, seeded_context.upload(x), out, np.int32(1001), np.int64(2))
        # Sums of 1001 numbers of size 1 in another order: each addition rounds by at most 2^-53 of some 100.
        assert abs(seeded_context.download(out).sum() - x[::2].sum()) < 1e-11

    @pytest.mark.parametrize("cluster", [1, 2, 4])
    def test_clusters(self, seeded_context, rng, cluster):
        x = rng.integers(0, 1000, 8).astype(np.int32)
        out = seeded_context.zeros((8,), np.int32)
        launch(seeded_context, BASICS, "cluster_sums", Launch(8, 33, 16, cluster), seeded_context.upload(x), out)
        np.testing.assert_array_equal(seeded_context.download(out), x.reshape(-1, cluster).sum(1).repeat(cluster))

    @pytest.mark.parametrize("blocks", [1, 2, 6])
    def test_grid_barrier_launch_after_launch(self, seeded_context, blocks):
        counter, slots = seeded_context.zeros((1,), np.uint32), seeded_context.zeros((blocks,), np.int32)
        shape = Launch(blocks, 64, is_cooperative=True)
        for rounds in (1, 7):
            out = seeded_context.zeros((blocks,), np.int32)
            launch(seeded_context, BASICS, "grid_rounds", shape, counter, slots, out, np.int32(rounds))
            expected = rounds * sum(range(blocks)) + blocks * sum(range(rounds))
            np.testing.assert_array_equal(seeded_context.download(out), np.full(blocks, expected))

    def test_async_copies(self, seeded_context, rng):
        x = rng.normal(size=(64, 4)).astype(np.float32)
        for wait, expected in ((1, x[::-1]), (0, np.full((64, 4), np.nan))):
            out = seeded_context.zeros((64, 4), np.float32)
            launch(
                seeded_context, BASICS, "async_copy", Launch(1, 64, 1024), seeded_context.upload(x), out, np.int32(wait)
            )
            np.testing.assert_array_equal(seeded_context.download(out), expected)


class TestMatrixProducts:
    """The layouts are those of the PTX manual's figures, written here element by element."""

    def test_bf16(self, context, rng):
        a, b, d = (rng.normal(size=shape).astype(np.float32) for shape in [(16, 16), (16, 8), (16, 8)])
        raw_a, raw_b = (np.ascontiguousarray(m).view(np.uint32) >> 16 for m in (a, b))
        a, b = ((raw << 16).astype(np.uint32).view(np.float32) for raw in (raw_a, raw_b))
        of_a, of_b, of_d = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), np.zeros((32, 4), np.float32)
        for lane in range(32):
            g, t = lane // 4, lane % 4
            for r, (row, k) in enumerate([(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)]):
                of_a[lane, r] = raw_a[row, k] | raw_a[row, k + 1] << 16
            for r, k in enumerate([2 * t, 2 * t + 8]):
                of_b[lane, r] = raw_b[k, g] | raw_b[k + 1, g] << 16
            of_d[lane] = d[g, 2 * t], d[g, 2 * t + 1], d[g + 8, 2 * t], d[g + 8, 2 * t + 1]
        out = context.upload(of_d)
        launch(context, BASICS, "one_mma_bf16", Launch(1, 32), context.upload(of_a), context.upload(of_b), out)
        found = context.download(out)
        exact = d.astype(float) + a.astype(float) @ b.astype(float)
        for lane in range(32):
            g, t = lane // 4, lane % 4
            expected = [exact[g, 2 * t], exact[g, 2 * t + 1], exact[g + 8, 2 * t], exact[g + 8, 2 * t + 1]]
            # 17 float32 additions of numbers up to about 20.
            np.testing.assert_allclose(found[lane], expected, rtol=0, atol=17 * 20 * 2**-23)

    def test_f64(self, context, rng):
        a, b, d = (rng.normal(size=shape) for shape in [(8, 4), (4, 8), (8, 8)])
        of_a, of_b = np.zeros(32), np.zeros(32)
        of_d = np.zeros((32, 2))
        for lane in range(32):
            g, t = lane // 4, lane % 4
            of_a[lane], of_b[lane] = a[g, t], b[t, g]
            of_d[lane] = d[g, 2 * t], d[g, 2 * t + 1]
        out = context.upload(of_d)
        launch(context, BASICS, "one_mma_f64", Launch(1, 32), context.upload(of_a), context.upload(of_b), out)
        # Lane 4 g + t holds columns 2t and 2t + 1 of row g: the lanes in order are the rows in order.
        # Five additions of numbers up to about 20.
        np.testing.assert_allclose(context.download(out).reshape(8, 8), d + a @ b, rtol=0, atol=5 * 20 * 2**-52)


class TestParameters:
    def test_each_type_arrives(self, context):
        out = context.zeros((4,), np.float64)
        values = np.int32(-7), np.int64(-(2**40) - 1), np.float32(0.1), np.float64(0.1)
        launch(context, COLLECTIVES, "parameters", Launch(1, 1), *values, out)
        np.testing.assert_array_equal(context.download(out), [-7, -(2**40) - 1, float(np.float32(0.1)), 0.1])

    @pytest.mark.parametrize("place", range(4))
    def test_wrong_type_is_refused(self, open_context, place):
        context = open_context()
        values = [np.int32(1), np.int64(1), np.float32(1), np.float64(1), np.uint64(0)]
        values[place] = values[(place + 1) % 4]
        with pytest.raises(CudaLaunchError, match=f"argument {place}: expected"):
            launch(context, COLLECTIVES, "parameters", Launch(1, 1), *values)

    def test_number_of_arguments(self, open_context):
        with pytest.raises(CudaLaunchError, match="expected 5 arguments, got 1"):
            launch(open_context(), COLLECTIVES, "parameters", Launch(1, 1), np.int32(1))


class TestOrder:
    def tickets(self, open_context, seed):
        context = open_context(seed=seed)
        out = context.zeros((4 * 64,), np.uint32)
        launch(context, COLLECTIVES, "order", Launch(4, 64), context.zeros((1,), np.uint32), out)
        return context.download(out)

    def test_seed_0_runs_in_order(self, open_context):
        np.testing.assert_array_equal(self.tickets(open_context, 0), np.arange(256))

    def test_seeds_change_the_order_and_repeat_it(self, open_context):
        found = [self.tickets(open_context, seed) for seed in (1, 2, 3)]
        for tickets in found:
            np.testing.assert_array_equal(np.sort(tickets), np.arange(256))
            assert (tickets != np.arange(256)).mean() > 0.5
        assert len({tickets.tobytes() for tickets in found}) == 3
        np.testing.assert_array_equal(self.tickets(open_context, 2), found[1])


class TestLimits:
    @pytest.mark.parametrize(
        ("shape", "report"),
        [
            (Launch(1, 65), "expected 1 to 64 threads a block, got 65"),  # __launch_bounds__(2 * 32, 1)
            (Launch(1, 0), "expected 1 to 64 threads"),
            (Launch(0, 32), "expected 1 to 2147483647 blocks, got 0"),
            (Launch(1, 32, 232449), "expected 0 to 232448 bytes of shared memory"),
            (Launch(3, 32, 0, 2), "divide the grid, got 2 of 3"),
            (Launch(16, 32, 0, 16), "expected clusters of 1 to 8 blocks"),
            (Launch(5, 32, 200000, 1, True), "4 blocks of this shape fit, got 5"),
            (Launch(8, 32, 200000, 8), "no cluster of"),
        ],
    )
    def test_launch_that_does_not_fit(self, open_context, shape, report):
        values = np.int32(1), np.int64(1), np.float32(1), np.float64(1), None
        with pytest.raises(CudaLaunchError, match=report):
            launch(open_context(), COLLECTIVES, "parameters", shape, *values)

    def test_occupancy(self, open_context):
        context = open_context(num_multiprocessors=4)
        kernel = context.kernel(COLLECTIVES, "barriers")
        blocks = context.driver.blocks_per_multiprocessor
        assert [blocks(kernel, *shape) for shape in [(1024, 0), (33, 0), (32, 100_000), (32, 232449), (1025, 0)]] == [
            2,
            32,
            2,
            0,
            0,
        ]
        assert context.driver.clusters_at_once(kernel, Launch(8, 1024, 0, 4)) == 2

    def test_features_that_are_switched_off(self, open_context):
        context = open_context(has_graphs=False, has_cooperative=False, max_cluster=1)
        with pytest.raises(CudaError, match="has no graphs"):
            context.driver.capture(context.stream, lambda: None)
        with pytest.raises(CudaError, match="no cooperative launches"):
            launch(context, COLLECTIVES, "barriers", Launch(1, 32, is_cooperative=True), np.int32(1))
        with pytest.raises(CudaLaunchError, match="clusters of 1 to 1"):
            launch(context, COLLECTIVES, "barriers", Launch(2, 32, cluster=2), np.int32(1))

    def test_names_that_do_not_exist(self, open_context):
        with pytest.raises(CudaModuleError, match="no kernel source"):
            open_context().kernel("nothing", "nothing")
        with pytest.raises(CudaModuleError, match="has no kernel 'nothing'"):
            open_context().kernel(BASICS, "nothing")


class TestMemory:
    def test_what_is_dropped_is_freed(self, open_context):
        context = open_context()
        kept = context.zeros((100,), np.float64)
        dropped = context.zeros((50,), np.float64)
        assert (context.driver.num_live, context.driver.live_bytes) == (2, 1200)
        del dropped
        gc.collect()
        assert (context.driver.num_live, context.driver.live_bytes) == (1, 800)
        assert kept.address % 256 == 0

    def test_too_little(self, open_context):
        context = open_context(max_bytes=1000)
        kept = context.empty((100,), np.float64)
        with pytest.raises(CudaMemoryError, match="asked for 201 bytes, 200 are free"):
            context.empty((201,), np.uint8)
        assert context.empty((200,), np.uint8).nbytes + kept.nbytes == 1000

    def test_copies_keep_every_byte(self, context, rng):
        x = rng.normal(size=(7, 5))
        array = context.upload(x)
        other = context.empty((7, 5), np.float64)
        context.driver.copy_on(other.address, array.address, array.nbytes, context.stream)
        np.testing.assert_array_equal(context.download(other), x)
        with pytest.raises(ShapeError, match=r"expected \(7, 5\)"):
            context.write(array, x.T.copy())

    def test_work_waits_for_synchronize(self, open_context):
        context = open_context()
        array = context.upload(np.arange(4.0))
        found = np.zeros(4)
        context.driver.copy_out(found, array.address, context.stream)
        assert not found.any()
        context.driver.synchronize()
        np.testing.assert_array_equal(found, np.arange(4.0))

    def test_pinned_memory_is_read_late(self, open_context):
        context = open_context()
        pinned = context.driver.pinned((4,), np.float64)
        pinned[:] = 1
        array = context.empty((4,), np.float64)
        context.driver.copy_in(array.address, pinned, context.stream)
        pinned[:] = 2
        np.testing.assert_array_equal(context.download(array), np.full(4, 2.0))


class TestGraphs:
    def test_replay(self, context):
        counter, out = context.zeros((1,), np.uint32), context.zeros((32,), np.uint32)

        def work():
            launch(context, COLLECTIVES, "order", Launch(1, 32), counter, out)

        context.kernel(COLLECTIVES, "order")
        context.driver.synchronize()
        graph = context.driver.capture(context.stream, work)
        assert context.download(counter)[0] == 0
        graph.launch(context.stream)
        graph.launch(context.stream)
        assert context.download(counter)[0] == 64
        assert context.download(out).min() == 32

    @pytest.mark.parametrize(
        "work",
        [
            lambda context: context.driver.synchronize(),
            lambda context: context.empty((1,), np.float64),
            lambda context: context.driver.capture(context.stream, lambda: None),
        ],
    )
    def test_what_cannot_be_captured(self, open_context, work):
        context = open_context()
        with pytest.raises(CudaError, match="cannot be captured"):
            context.driver.capture(context.stream, lambda: work(context))


def test_events_and_the_cost_of_a_switch(open_context):
    """256 threads, 2000 barriers: seconds would make every test of a schedule slow."""
    context = open_context()
    launch(context, COLLECTIVES, "barriers", Launch(1, 256), np.int32(10))
    begin, end = context.driver.new_event(), context.driver.new_event()
    context.driver.record(begin, context.stream)
    started = time.perf_counter()
    launch(context, COLLECTIVES, "barriers", Launch(1, 256), np.int32(2000))
    context.driver.record(end, context.stream)
    elapsed_ms = context.driver.elapsed_ms(begin, end)
    assert 0 < elapsed_ms <= (time.perf_counter() - started) * 1e3
    assert elapsed_ms < 500, "512 000 switches: 20 ns each are 10 ms, 500 ms is a busy machine"
