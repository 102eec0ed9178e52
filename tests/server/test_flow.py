"""The lines between the stages, without threads: races step by step."""

import numpy as np
import pytest

from kpl_engine.encoder.pipeline import Prepared
from kpl_engine.errors import EncoderError, ImageError, NotReadyError
from kpl_engine.server.flow import Flow
from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.ticket import Job, Picture
from tests.server.fakes import FakeModel, GatedEncoder, lane_of

ROW = np.full(4, 0.5, np.float32)
SQUARE = np.zeros((4, 4, 3), np.uint8)


class Desk:
    """A flow with a clock that stands still; what it calls back is kept in ``settled`` and ``released``."""

    def __init__(self):
        self.settled, self.released, self.now = [], [], 0.0
        self.flow = Flow(
            lambda: self.now, lambda job, outcome: self.settled.append((job, outcome)), self.released.append
        )
        self.model = FakeModel("m", lane_of(GatedEncoder()))

    def enter(self, num_raw=0, num_ready=0, **options):
        images = [b"x"] * num_raw or None
        request = ClassifyRequest("m", images=images, pixels=None if images else [SQUARE] * num_ready, **options)
        job = Job(request, self.model, self.model.base(None), "frozen", self.now, self.now + 10.0, lambda job: None)
        raw = [Picture(job, i, b"x") for i in range(num_raw)]
        self.flow.enter(job, raw, [] if num_raw else [Picture(job, i, SQUARE) for i in range(num_ready)])
        return job


def test_a_request_that_failed_is_not_solved_while_its_error_is_on_the_way():
    desk = Desk()
    solvable = []
    desk.flow._release = lambda model: solvable.append(len(desk.flow._to_solve))
    left, failing = desk.enter(num_ready=1), desk.enter(num_ready=3)
    _, pictures = desk.flow.take_batch(0)
    desk.flow.finish(left, ImageError("gone"))
    rows = [ROW if picture.index else EncoderError("poison") for picture in pictures]
    desk.flow.encoded(pictures, rows, 0.0, 1.0)
    assert solvable[0] == 0  # told between the two: the lock was free, and a solver could have taken it
    assert [type(outcome) for job, outcome in desk.settled if job is failing] == [EncoderError]


def test_a_picture_whose_request_ended_while_it_was_decoded_goes_no_further():
    desk = Desk()
    job = desk.enter(num_raw=2)
    picture = desk.flow.take_raw()
    desk.flow.finish(job, ImageError("gone"))
    assert desk.flow.num_to_decode == 1
    assert not desk.released
    desk.flow.decoded(picture, Prepared(SQUARE, (), (0.0, 0.0, 0.0)), 0.0, 1.0)
    assert (desk.flow.num_to_decode, desk.flow.num_to_encode, desk.flow.queued_now()) == (0, 0, {})
    assert desk.released == [desk.model]


def test_a_model_is_given_back_when_the_last_worker_lets_go_of_it():
    desk = Desk()
    job = desk.enter(num_raw=2)
    first, second = desk.flow.take_raw(), desk.flow.take_raw()
    desk.flow.decoded(first, Prepared(SQUARE, (), (0.0, 0.0, 0.0)), 0.0, 1.0)
    _, batch = desk.flow.take_batch(0)
    desk.flow.finish(job, ImageError("gone"))
    desk.flow.encoded(batch, [ROW], 1.0, 2.0)
    assert desk.released == []
    desk.flow.decoded(second, ImageError("too late to matter"), 1.0, 2.0)
    assert desk.released == [desk.model]
    assert len(desk.settled) == 1


def test_what_expired_in_a_line_is_ended_by_whoever_meets_it_first():
    desk = Desk()
    late = desk.enter(num_ready=3)
    desk.now = 11.0
    fresh = desk.enter(num_ready=2)
    _, batch = desk.flow.take_batch(0)
    assert {picture.job for picture in batch} == {fresh}

    assert [job for job, _ in desk.settled] == [late]
    assert desk.released == [desk.model]


def test_a_closed_flow_takes_nothing_in_and_hands_nothing_out():
    desk = Desk()
    desk.enter(num_ready=1)
    desk.flow.close()
    assert desk.flow.take_raw() is None
    assert desk.flow.take_batch(0) is None
    assert desk.flow.take_solvable() is None
    assert not desk.flow.expire_next()
    with pytest.raises(NotReadyError):
        desk.enter(num_ready=1)
    desk.flow.finish_all(NotReadyError("over"))
    assert len(desk.settled) == 1
