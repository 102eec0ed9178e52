"""A running service over fakes, and requests for it."""

import io
import threading
from contextlib import contextmanager

import numpy as np
from PIL import Image

from kpl_engine.server.requests import ClassifyRequest
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from tests.server.fakes import PATIENCE_S, FakeModel, FakeModels, GatedEncoder, lane_of

rng = np.random.default_rng()


class Harness:
    """A running service with its fakes."""

    def __init__(self, models=None, streams=None, observer=None, encoder=None, pads=False, **settings):
        self.encoder = encoder or GatedEncoder()
        self.model = FakeModel("m", lane_of(self.encoder, pads=pads))
        self.models = models or FakeModels(self.model)
        self.deaths = []
        self.died = threading.Event()
        self.before = set(threading.enumerate())
        self.service = BatchingService(
            self.models,
            ServerSettings(**{"decode_threads": 2, **settings}),
            streams=streams,
            observer=observer,
            on_death=lambda error: (self.deaths.append(error), self.died.set()),
        )

    def submit(self, **options):
        return self.service.submit(ClassifyRequest(**{"model": "m", **options}))

    def answer(self, **options):
        return self.submit(**options).future.result(PATIENCE_S)


@contextmanager
def running(**options):
    harness = Harness(**options)
    harness.service.start()
    try:
        yield harness
    finally:
        harness.encoder.gate.set()
        harness.model.gate.set()
        harness.service.close()
        assert set(threading.enumerate()) <= harness.before, "the service left a thread behind"
        assert not harness.deaths or harness.died.is_set()
        if not harness.deaths:
            assert not +harness.models.held, "a model was not given back"
            assert harness.service._admission.num_images == 0


def pixels(n=1, mark=0):
    """(n, 4, 4, 3); the second channel of the first pixel names the request."""
    drawn = rng.integers(0, 250, (n, 4, 4, 3), dtype=np.uint8)
    drawn[:, 0, 0, 1] = mark
    return drawn


def png(height=9, width=7):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def unit_rows(n=3):
    rows = rng.normal(size=(n, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
