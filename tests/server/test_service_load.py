"""The service under load: many at once, twice its capacity, and for a long time."""

import gc
import threading
import time
import tracemalloc

import numpy as np

from kpl_engine.errors import OverloadedError
from tests.server.fakes import PATIENCE_S, GatedEncoder, InstantEncoder
from tests.server.harness import pixels, png, rng, running, unit_rows


class PacedEncoder(GatedEncoder):
    """A device whose batches take 4 ms whatever their size."""

    def encode_images(self, pixels):
        time.sleep(0.004)
        return super().encode_images(pixels)


def test_a_thousand_requests_at_once_each_get_their_own_answer():
    with running(max_inflight_images=100_000) as run:
        given = [pixels(int(rng.integers(1, 6))) if i % 3 else unit_rows(int(rng.integers(1, 6))) for i in range(1000)]
        encoded = [png() for _ in range(8)]
        tickets = [None] * len(given)
        together = threading.Barrier(20)

        def client(first):
            together.wait(PATIENCE_S)
            for i in range(first, len(given), 20):
                if i % 10 == 1:
                    tickets[i] = run.submit(images=encoded)
                elif i % 3:
                    tickets[i] = run.submit(pixels=given[i], priority=i % 4)
                else:
                    tickets[i] = run.submit(features=given[i])

        threads = [threading.Thread(target=client, args=(first,)) for first in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        of_pictures = run.answer(images=encoded).features
        for i, (ticket, rows) in enumerate(zip(tickets, given, strict=True)):
            found = ticket.future.result(PATIENCE_S).features
            if i % 10 == 1:
                assert np.array_equal(found, of_pictures)
            elif i % 3:
                assert np.array_equal(found, run.encoder.encode_images(rows))
            else:
                assert np.array_equal(found, rows)


def work_of(run, *, clients, num_images):
    """Images an encoder run, over the next ``num_images``, with closed-loop clients that come again 1 ms after a
    refusal; and the processor seconds that each refusal took. Neither depends on what else the machine does.
    """
    left, refusals = iter(range(num_images)), []
    picture, num_runs = pixels(1), len(run.encoder.sizes)

    def client():
        while next(left, None) is not None:
            while True:
                started = time.thread_time()
                try:
                    ticket = run.submit(pixels=picture)
                    break
                except OverloadedError:
                    refusals.append(time.thread_time() - started)
                    time.sleep(0.001)
            ticket.future.result(PATIENCE_S)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return num_images / (len(run.encoder.sizes) - num_runs), refusals


def test_twice_as_many_clients_as_fit_do_not_lower_the_goodput():
    with running(encoder=PacedEncoder(), max_inflight_images=16, max_images=16) as run:
        fits, none = work_of(run, clients=16, num_images=1500)
        overloaded, refusals = work_of(run, clients=32, num_images=1500)
        assert not none
        assert len(refusals) > 100
        assert overloaded >= 0.8 * fits  # the encoder is as full as before; a place stays empty for a client's 1 ms
        assert np.median(refusals) < 0.001  # 0.05 ms here


def test_memory_stays_flat_over_many_requests():
    with running(encoder=InstantEncoder(), max_inflight_images=64) as run:
        given, rows = pixels(1), unit_rows(1)
        run.model.groups = type("Nothing", (), {"append": lambda self, item: None})()
        run.model.entered = threading.Semaphore(0)

        def rounds(num):
            for i in range(num):
                ticket = run.submit(pixels=given) if i % 2 else run.submit(features=rows)
                if i % 5 == 0:
                    ticket.cancel()
                else:
                    ticket.future.result(PATIENCE_S)

        rounds(9000)  # fills the ring of the last requests
        gc.collect()
        tracemalloc.start()
        try:
            rounds(1500)  # the heap of deadlines reaches its size
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            rounds(10_000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 150_000  # 15 bytes a request: less than any object that one might leave behind


def test_cancelled_requests_do_not_pile_up_behind_a_stuck_encoder():
    with running(max_inflight_images=64) as run:
        run.encoder.gate.clear()
        held = run.submit(pixels=pixels())
        run.encoder.await_entry()
        for _ in range(3000):
            run.submit(pixels=pixels(8)).cancel()
        lines = run.service._flow._to_encode._lines
        assert sum(len(line._heap) for line in lines.values()) < 50
        run.encoder.gate.set()
        held.future.result(PATIENCE_S)
