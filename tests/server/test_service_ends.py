"""How a request ends before its time, at each stage; a worker that dies; drain and close."""

import threading
from concurrent.futures import wait
from functools import partial

import pytest

from kpl_engine.errors import (
    CudaStickyError,
    DeadlineExceededError,
    ImageError,
    NotReadyError,
    RequestCancelledError,
)
from kpl_engine.server import stages
from tests.server.fakes import PATIENCE_S
from tests.server.harness import pixels, png, running, unit_rows


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.told = []

    def accepted(self, request):
        return self

    def stage(self, name, start_s, end_s, attributes):
        assert start_s <= end_s
        self.told.append(("stage", name))

    def finish(self, error):
        self.told.append(("finish", type(error).__name__))

    def gauges(self, values):
        self.gauge = values

    def queue(self, task, num_images):
        self.waiting = (task, num_images)

    def __getattr__(self, name):
        return lambda *args: self.told.append((name, *args))

    def of(self, name):
        return [each[1:] for each in self.told if each[0] == name]


@pytest.fixture
def held_decoder(monkeypatch):
    """Decoding waits for the gate; ``entered`` counts the pictures begun."""
    gate, entered, begun = threading.Event(), threading.Semaphore(0), []
    prepare = stages.prepare_picture

    def held(source, name, geometry, config):
        begun.append(name)
        entered.release()
        assert gate.wait(PATIENCE_S)
        return prepare(source, name, geometry, config)

    monkeypatch.setattr(stages, "prepare_picture", held)
    gate.entered, gate.begun = entered, begun
    yield gate
    gate.set()


def hold_decode(run, gate):
    ticket = run.submit(images=[png()] * 4, names=tuple("abcd"))
    for _ in range(2):
        assert gate.entered.acquire(timeout=PATIENCE_S)
    return ticket, gate


def hold_queue(run, gate):
    gate.set()
    run.encoder.gate.clear()
    first = run.submit(pixels=pixels(8))
    run.encoder.await_entry()
    first.cancel()
    return run.submit(pixels=pixels(4)), run.encoder.gate


def hold_batch(run, gate):
    gate.set()
    run.encoder.gate.clear()
    ticket = run.submit(pixels=pixels(4))
    run.encoder.await_entry()
    return ticket, run.encoder.gate


def hold_solve(run, gate):
    gate.set()
    run.model.gate.clear()
    first = run.submit(features=unit_rows())
    assert run.model.entered.acquire(timeout=PATIENCE_S)
    first.cancel()
    return run.submit(features=unit_rows(4)), run.model.gate


def hold_solving(run, gate):
    gate.set()
    run.model.gate.clear()
    ticket = run.submit(features=unit_rows(4))
    assert run.model.entered.acquire(timeout=PATIENCE_S)
    return ticket, run.model.gate


STAGES = {
    "decode": (hold_decode, "decode"),
    "queue": (hold_queue, "queue"),
    "batch": (hold_batch, "queue"),
    "solve": (hold_solve, "solve"),
    "solving": (hold_solving, "solve"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_frees_its_place_at_once(stage, held_decoder):
    hold, told_stage = STAGES[stage]
    observer = Recorder()
    with running(observer=observer, max_inflight_images=16, max_images=16) as run:
        ticket, gate = hold(run, held_decoder)
        observer.told.clear()
        ticket.cancel()
        with pytest.raises(RequestCancelledError):
            ticket.future.result(0)
        assert observer.of("cancelled") == ([("decode", 2), ("queue", 2)] if stage == "decode" else [(told_stage, 4)])
        assert run.service._admission.num_images == 0
        assert run.service.snapshot()["queue_images"] == 0
        assert run.service.snapshot()["decoding_images"] == (2 if stage == "decode" else 0)
        ticket.cancel()  # harmless
        gate.set()
        assert run.answer(pixels=pixels(16)).classification.is_ok.all()
        assert observer.of("finish")[0] == ("RequestCancelledError",)
    if stage == "decode":
        assert len(held_decoder.begun) == 2  # those that had begun; the others were not decoded


@pytest.mark.parametrize("stage", STAGES)
def test_a_deadline_is_kept_wherever_the_request_waits(stage, held_decoder, monkeypatch):
    with running(max_inflight_images=16, max_images=16) as run:
        submit = run.submit
        monkeypatch.setattr(run, "submit", partial(submit, timeout_s=0.05))
        ticket, gate = STAGES[stage][0](run, held_decoder)
        with pytest.raises(DeadlineExceededError):  # while that stage is stuck
            ticket.future.result(PATIENCE_S)
        assert run.service._admission.num_images == 0
        monkeypatch.setattr(run, "submit", submit)
        gate.set()
        assert run.answer(pixels=pixels(16)).classification.is_ok.all()


def test_a_cancelled_picture_in_a_running_batch_does_not_harm_its_mates(held_decoder):
    held_decoder.set()
    with running() as run:
        run.encoder.gate.clear()
        run.submit(pixels=pixels(8))
        run.encoder.await_entry()
        leaves, stays = run.submit(pixels=pixels(3)), run.submit(pixels=pixels(5))
        run.encoder.gate.set()
        run.encoder.await_entry()
        leaves.cancel()
        assert stays.future.result(PATIENCE_S).features.shape == (5, 4)


def test_a_request_that_fails_drops_its_other_pictures(held_decoder):
    with running(decode_threads=1) as run:
        ticket = run.submit(images=[b"bad", *[png()] * 20])
        assert held_decoder.entered.acquire(timeout=PATIENCE_S)
        held_decoder.set()
        with pytest.raises(ImageError):
            ticket.future.result(PATIENCE_S)
        run.answer(images=[png()])
        assert len(held_decoder.begun) == 2


def test_a_bug_in_a_decoder_fails_its_picture_alone(monkeypatch):
    def broken(source, name, geometry, config):
        raise ZeroDivisionError

    with running() as run:
        with monkeypatch.context() as patch:
            patch.setattr(stages, "prepare_picture", broken)
            with pytest.raises(ZeroDivisionError):
                run.answer(images=[png()])
        run.answer(images=[png()])
        assert run.service.is_live()


@pytest.mark.parametrize("error", [CudaStickyError("lost"), ZeroDivisionError("a bug"), SystemExit(3)])
def test_a_worker_that_dies_ends_the_server_and_answers_everything(error):
    with running() as run:
        run.encoder.gate.clear()
        tickets = [run.submit(pixels=pixels())]
        run.encoder.await_entry()
        tickets += [run.submit(pixels=pixels(3)) for _ in range(5)]
        run.encoder.raises = error
        run.encoder.gate.set()
        assert run.died.wait(PATIENCE_S)
        assert run.deaths == [error]
        for ticket in tickets:
            with pytest.raises(NotReadyError, match="restarted"):
                ticket.future.result(0)
        assert not run.service.is_live()
        assert not run.service.is_ready()
        with pytest.raises(NotReadyError, match="restarted"):
            run.submit(pixels=pixels())


def test_a_sticky_error_of_the_solver_is_a_death_too():
    with running() as run:
        run.model.solve = lambda queries, instance: [CudaStickyError("lost")] * len(queries)
        with pytest.raises(NotReadyError, match="restarted"):
            run.answer(features=unit_rows())
        assert run.died.wait(PATIENCE_S)


def test_an_observer_that_fails_harms_nobody():
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("no observer")

    with running(observer=Broken()) as run:
        assert run.answer(images=[png()] * 3).features.shape == (3, 4)
        assert run.service.is_live()


def test_the_observer_hears_of_each_stage_once():
    observer = Recorder()
    with running(observer=observer) as run:
        run.answer(images=[png()] * 3)
    assert sorted(observer.of("stage")) == [("decode",), ("execute",), ("queue",)]
    assert observer.of("finish") == [("NoneType",)]
    ((model, num_images, timings, error),) = observer.of("answered")
    assert (model, num_images, error) == ("m", 3, None)
    assert timings["total"] > 0
    assert sum(num for _, num, _ in observer.of("batch")) == 3
    assert observer.of("model_ready") == [("m", True)]


class Outcome(list):
    thread = None


def drain_in_thread(run):
    """What `drain` returned stands in the list; its time is so long that it must have been woken."""
    outcome = Outcome()
    outcome.thread = threading.Thread(target=lambda: outcome.append(run.service.drain(1e6)), daemon=True)
    outcome.thread.start()
    return outcome


def test_a_drain_under_load_drops_nothing_that_was_accepted():
    with running(max_inflight_images=256) as run:
        accepted, begun, is_over = [], threading.Semaphore(0), threading.Event()

        def load():
            while not is_over.is_set():
                try:
                    accepted.append(run.submit(pixels=pixels(2)).future)
                except NotReadyError:
                    return
                except Exception:
                    continue
                finally:
                    begun.release()

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(500):
            assert begun.acquire(timeout=PATIENCE_S)
        outcome = drain_in_thread(run)
        outcome.thread.join(PATIENCE_S)
        is_over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert outcome == [True]
        assert len(accepted) >= 10
        assert all(future.result(0).features.shape == (2, 4) for future in accepted)


def test_a_body_that_is_being_read_when_the_drain_begins_is_still_answered():
    with running() as run:
        lease = run.service.lease()
        outcome = drain_in_thread(run)
        while True:
            try:
                run.service.lease().close()
            except NotReadyError:
                break
        lease.grow(10)
        assert run.answer(pixels=pixels()).features.shape == (1, 4)
        assert outcome.thread.is_alive()
        lease.close()
        outcome.thread.join(PATIENCE_S)
        assert outcome == [True]
        with pytest.raises(NotReadyError):
            run.submit(pixels=pixels())


@pytest.mark.parametrize("ends", ["drain", "close"])
def test_what_a_drain_or_close_does_not_wait_for_is_told_so(ends):
    with running() as run:
        run.encoder.gate.clear()
        futures = [run.submit(pixels=pixels(n)).future for n in (1, 8, 3)]
        run.encoder.await_entry()
        if ends == "drain":
            assert not run.service.drain(0.01)
        else:
            closing = threading.Thread(target=run.service.close)
            closing.start()
            wait(futures, PATIENCE_S)
            run.encoder.gate.set()
            closing.join(PATIENCE_S)
            assert run.models.is_closed
        for future in futures:
            with pytest.raises(NotReadyError):
                future.result(0)


def test_a_lease_that_never_ends_is_not_waited_for_longer_than_asked():
    with running() as run, run.service.lease():
        assert not run.service.drain(0.01)


def test_asyncio_cannot_take_the_future_away():
    with running() as run:
        run.encoder.gate.clear()
        ticket = run.submit(pixels=pixels())
        run.encoder.await_entry()
        assert not ticket.future.cancel()  # what asyncio's wrapper does when its task is cancelled
        ticket.cancel()
        with pytest.raises(RequestCancelledError):
            ticket.future.result(0)


def test_a_callback_of_a_future_may_use_the_service():
    with running() as run:
        done, again = threading.Event(), []

        def resubmit(future):
            again.append(run.submit(pixels=pixels()))
            again[0].cancel()
            run.service.snapshot()
            done.set()

        run.submit(pixels=pixels()).future.add_done_callback(resubmit)
        assert done.wait(PATIENCE_S)
        with pytest.raises(RequestCancelledError):
            again[0].future.result(PATIENCE_S)
