"""The service over fake models: what is answered, how, and by which stage."""

import io

import numpy as np
import pytest
from PIL import Image

from kpl_engine.errors import (
    EncoderError,
    ImageError,
    InputError,
    KnowledgeError,
    OverloadedError,
    RequestError,
    ShapeError,
    TooLargeError,
    UnknownModelError,
)
from tests.server.fakes import PATIENCE_S
from tests.server.harness import pixels, png, rng, running, unit_rows


def test_features_of_each_kind_of_input_are_those_of_the_encoder():
    with running() as run:
        given, encoded = pixels(3), [png(), png(4, 4), png(30, 11)]
        large = [rng.integers(0, 255, size, dtype=np.uint8) for size in ((8, 9, 3), (4, 4, 3), (5, 3, 3))]
        rows = unit_rows()
        direct = run.encoder.encode_images
        apply = run.encoder.preprocess.apply
        as_pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]
        assert np.array_equal(run.answer(pixels=given).features, direct(given))
        assert np.array_equal(run.answer(images=encoded).features, direct(np.stack([apply(p) for p in as_pixels])))
        assert np.array_equal(run.answer(pixels=large).features, direct(np.stack([apply(p) for p in large])))
        assert np.array_equal(run.answer(features=rows).features, rows)


def test_a_reply_says_what_was_asked_and_how_long_it_took():
    with running() as run:
        reply = run.answer(images=[png(), png()], names=("x", "y"), request_id="r1", task="other")
        assert (reply.model, reply.version, reply.request_id) == ("m", "1", "r1")
        assert reply.classification.names == ("x", "y")
        assert reply.classification.knowledge == "other"
        times = reply.timings_ms
        assert set(times) == {"decode", "queue", "encode", "solve", "total"}
        assert all(value >= 0 for value in times.values())
        assert 0 < max(times["decode"], times["encode"], times["solve"]) <= times["total"]
        assert times["queue"] <= times["total"]
        assert run.answer(pixels=pixels(2)).classification.names == ("image 0", "image 1")


def test_a_mode_left_out_is_frozen_where_proxies_are():
    with running() as run:
        assert run.answer(pixels=pixels()).classification.mode == "frozen"
        run.model._has_frozen = False
        assert run.answer(pixels=pixels()).classification.mode == "batch"
        assert run.answer(pixels=pixels(), mode="frozen").classification.mode == "frozen"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "other"}, UnknownModelError, "no model 'other'"),
        ({"version": "2"}, UnknownModelError, "no model"),
        ({"task": "liver"}, KnowledgeError, "expected k or other"),
        ({"method": "nonsense"}, InputError, "nonsense"),
        ({"mode": "fast"}, InputError, "batch, frozen, stream"),
        ({"mode": "stream"}, InputError, "not available"),
        ({"top_k": -1}, InputError, "top_evidence"),
        ({"priority": 4}, RequestError, "priority"),
        ({"timeout_s": 0.0}, RequestError, "timeout"),
        ({"timeout_s": float("nan")}, RequestError, "timeout"),
        ({"names": ("a", "b")}, RequestError, "names"),
        ({"pixels": np.zeros((1, 4, 4, 3), np.float32)}, ShapeError, "uint8"),
        ({"pixels": [np.zeros((4, 4), np.uint8)]}, ShapeError, r"\(h, w, 3\)"),
        ({"pixels": [np.zeros((0, 4, 3), np.uint8)]}, ShapeError, r"\(h, w, 3\)"),
        ({"pixels": np.zeros((65, 4, 4, 3), np.uint8)}, TooLargeError, "at most 64"),
        ({"pixels": None, "features": np.full((1, 5), 0.5, np.float32)}, ShapeError, "features"),
        ({"pixels": None, "features": np.full((1, 4), 0.6, np.float32)}, ShapeError, "length 1"),
        ({"pixels": None, "features": np.full((1, 4), np.nan, np.float32)}, ShapeError, "finite"),
        ({"pixels": None, "features": np.zeros((0, 4), np.float32)}, InputError, "at least one"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(options, error, message):
    with running() as run:
        with pytest.raises(error, match=message):
            run.submit(**{"pixels": pixels(), **options})
        assert run.service._admission.num_images == 0
        assert run.service.snapshot()["totals"]["rejected"] == 1


def test_a_batch_mixes_the_images_of_all_requests_by_priority_and_arrival():
    with running() as run:
        run.encoder.gate.clear()
        first = run.submit(pixels=pixels(1, mark=1))
        run.encoder.await_entry()
        later = ((3, 2, 0), (2, 3, 3), (4, 4, 1), (3, 5, 2))
        waiting = [run.submit(pixels=pixels(n, mark=mark), priority=priority) for n, mark, priority in later]
        run.encoder.gate.set()
        for ticket in (first, *waiting):
            ticket.future.result(PATIENCE_S)
        assert run.encoder.sizes == [1, 8, 4]
        assert run.encoder.seen == [1, *[4] * 4, *[2] * 3, *[5] * 3, *[3] * 2]


def test_on_a_gpu_a_batch_is_padded_with_pictures():
    with running(pads=True) as run:
        run.encoder.gate.clear()
        tickets = [run.submit(pixels=pixels())]
        run.encoder.await_entry()
        given = pixels(5)
        tickets.append(run.submit(pixels=given))
        run.encoder.gate.set()
        reply = tickets[1].future.result(PATIENCE_S)
        assert run.encoder.sizes == [1, 8]
        assert np.array_equal(reply.features, run.encoder.encode_images(given))


def test_the_solver_takes_all_that_wait_of_one_model_and_mode():
    with running() as run:
        run.model.gate.clear()
        tickets = [run.submit(features=unit_rows())]
        assert run.model.entered.acquire(timeout=PATIENCE_S)
        modes = ("frozen", "batch", "frozen", "batch", "frozen")
        tickets += [run.submit(features=unit_rows(), mode=mode) for mode in modes]
        run.model.gate.set()
        assert [ticket.future.result(PATIENCE_S).classification.mode for ticket in tickets[1:]] == list(modes)
        assert run.model.groups == [["frozen"], ["frozen"] * 3, ["batch"] * 2]


def test_a_request_that_breaks_the_solver_fails_alone():
    with running() as run:
        run.model.fails["other"] = ZeroDivisionError("a bug")
        run.model.gate.clear()
        tickets = [run.submit(features=unit_rows())]
        assert run.model.entered.acquire(timeout=PATIENCE_S)
        tickets += [run.submit(features=unit_rows(), task=task) for task in ("k", "other", "k")]
        run.model.gate.set()
        with pytest.raises(ZeroDivisionError):
            tickets[2].future.result(PATIENCE_S)
        for i in (0, 1, 3):
            tickets[i].future.result(PATIENCE_S)
        assert run.service.is_live()


def test_a_bad_picture_fails_its_request_at_once():
    with running() as run:
        run.encoder.gate.clear()
        run.submit(pixels=pixels())
        run.encoder.await_entry()
        ticket = run.submit(images=[png(), b"no picture", png()], names=("a", "b", "c"))
        with pytest.raises(ImageError, match="b: "):  # while the encoder is held
            ticket.future.result(PATIENCE_S)


def test_bad_pictures_stand_in_failures_where_that_was_asked():
    with running() as run:
        reply = run.answer(images=[b"1", png(), b"2", png()], names=tuple("abcd"), skips_bad=True)
        assert [(i, name) for i, name, _ in reply.classification.failures] == [(0, "a"), (2, "c")]
        assert list(reply.classification.is_ok) == [False, True, False, True]
        assert reply.features.shape == (2, 4)
        with pytest.raises(ImageError, match="none of the 2 images could be used; the first: a: "):
            run.answer(images=[b"1", b"2"], names=("a", "b"), skips_bad=True)


def test_a_poisoned_picture_fails_alone():
    with running() as run:
        poison = np.full((1, 4, 4, 3), 255, np.uint8)
        run.encoder.gate.clear()
        tickets = [run.submit(pixels=pixels())]
        run.encoder.await_entry()
        batch = [pixels(), poison, np.concatenate([pixels(1), poison]), pixels(4)]
        tickets += [run.submit(pixels=each, skips_bad=i == 2) for i, each in enumerate(batch)]
        run.encoder.gate.set()
        with pytest.raises(EncoderError, match="not finite unit vectors"):
            tickets[2].future.result(PATIENCE_S)
        mixed = tickets[3].future.result(PATIENCE_S)
        assert list(mixed.classification.is_ok) == [True, False]
        for i in (0, 1, 4):
            tickets[i].future.result(PATIENCE_S)
        assert run.encoder.sizes == [1, 8, *[1] * 8]
        assert run.service.is_live()
        with pytest.raises(EncoderError):  # the encoder's fault, not only the pictures': no ImageError
            run.answer(pixels=np.concatenate([poison, poison]), skips_bad=True)


def test_full_is_refused_at_once_and_only_until_there_is_room():
    with running(max_inflight_images=4, max_images=4) as run:
        run.encoder.gate.clear()
        tickets = [run.submit(pixels=pixels(3))]
        with pytest.raises(OverloadedError) as refused:
            run.submit(pixels=pixels(2))
        assert refused.value.retry_after_s > 0
        tickets.append(run.submit(pixels=pixels(1)))
        run.encoder.gate.set()
        for ticket in tickets:
            ticket.future.result(PATIENCE_S)
        run.answer(pixels=pixels(4))
