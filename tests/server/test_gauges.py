"""Gauges of a server at rest say so: nothing comes in any more that would put them right."""

import threading
from types import SimpleNamespace

from kpl_engine.server.observer import Observers
from kpl_engine.server.reporting import Reporting
from tests.server.fakes import PATIENCE_S
from tests.server.harness import pixels, running


class Gauges(Observers):
    """Keeps what was told last; the first call waits for ``gate`` before it is told."""

    def __init__(self):
        super().__init__()
        self.last, self.entered, self.gate = {}, threading.Event(), threading.Event()
        self.gate.set()

    def gauges(self, values):
        if not self.entered.is_set():
            self.entered.set()
            assert self.gate.wait(PATIENCE_S)
        self.last = dict(values)


def test_bytes_of_a_body_are_given_back():
    observer = Gauges()
    with running(observer=observer, max_inflight_bytes=1000, max_body_bytes=1000) as server:
        with server.service.lease() as lease:
            lease.grow(800)
            server.answer(pixels=pixels())
            assert observer.last["inflight_bytes"] == 800
        assert observer.last["inflight_bytes"] == 0


def test_an_older_value_is_not_told_last():
    observer, flow = Gauges(), SimpleNamespace(num_to_decode=0, queued_now=dict)
    admission = SimpleNamespace(num_images=5, num_bytes=0, max_images=8, max_bytes=8)
    reporting = Reporting(observer, flow, admission)
    observer.gate.clear()
    older = threading.Thread(target=reporting.gauges)
    older.start()
    assert observer.entered.wait(PATIENCE_S)
    admission.num_images = 0
    newer = threading.Thread(target=reporting.gauges)
    newer.start()
    newer.join(0.1)  # without an order between the two it is through by now
    observer.gate.set()
    for each in (older, newer):
        each.join(PATIENCE_S)
        assert not each.is_alive()
    assert observer.last["inflight_images"] == 0
