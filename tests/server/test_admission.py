"""Admission: counted once, given back once, refused with a time to come again."""

import threading

import pytest

from kpl_engine.errors import OverloadedError, TooLargeError
from kpl_engine.server.admission import Admission
from kpl_engine.server.settings import ServerSettings


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def admission(clock=None, **settings):
    return Admission(ServerSettings(**settings), clock or Clock())


def test_the_limit_is_derived_from_batches_and_instances():
    found = admission(max_batch=4, instances=3)
    assert found.max_images == 96
    found.derive_limit(16)
    assert found.max_images == 384
    assert admission(max_batch=4, max_inflight_images=70).max_images == 70


def test_images_are_counted_until_they_are_released():
    found = admission(max_inflight_images=10, max_images=10)
    found.admit(6)
    found.admit(4)
    with pytest.raises(OverloadedError, match="at most 10 images"):
        found.admit(1)
    found.release(4)
    found.admit(3)
    assert found.num_images == 9


@pytest.mark.parametrize(("max_inflight", "max_images"), [(8, 64), (64, 8)])
def test_a_request_that_an_empty_server_refuses_is_too_large(max_inflight, max_images):
    found = admission(max_inflight_images=max_inflight, max_images=max_images)
    with pytest.raises(TooLargeError, match="at most 8 in one request, got 9"):
        found.admit(9)
    found.admit(8)


def test_retry_after_is_the_time_to_serve_what_is_in_flight():
    clock = Clock()
    found = admission(clock, max_inflight_images=40, max_images=40)
    with_rate = []
    for _ in range(2000):  # 20 images/s for 100 s
        clock.now += 0.05
        found.admit(1)
        found.release(1, 1)
    found.admit(40)
    with pytest.raises(OverloadedError) as refused:
        found.admit(1)
    with_rate.append(refused.value.retry_after_s)
    assert with_rate[0] == pytest.approx(2.0, rel=0.05)  # 40 images at 20 a second; the average lags by a sample


def test_retry_after_is_bounded_without_and_with_a_poor_rate():
    clock = Clock()
    found = admission(clock, max_inflight_images=4, max_images=4, deadline_s=7.0)
    found.admit(4)
    with pytest.raises(OverloadedError) as first:
        found.admit(1)
    assert first.value.retry_after_s == 1.0
    found.release(1, 1)
    found.admit(1)
    clock.now += 30.0
    with pytest.raises(OverloadedError) as slow:
        found.admit(1)
    assert slow.value.retry_after_s == 7.0


def test_bytes_are_counted_while_they_arrive_and_returned_once():
    ended = []
    found = admission(max_body_bytes=100, max_inflight_bytes=150)
    with found.lease(lambda: ended.append(1)) as first:
        first.grow(60)
        first.grow(40)
        with pytest.raises(TooLargeError, match="at most 100 bytes"):
            first.grow(1)
        second = found.lease(lambda: None)
        with pytest.raises(OverloadedError, match="at most 150"):
            second.grow(51)
        second.grow(50)
        assert found.num_bytes == 150
        assert found.num_leases == 2
    first.close()
    assert ended == [1]
    assert found.num_bytes == 50
    second.close()
    second.grow(10)  # too late to count: nobody would give it back
    assert (found.num_bytes, found.num_leases) == (0, 0)


def test_counts_are_right_after_many_threads():
    found = admission(max_inflight_images=50, max_images=50)

    def work():
        for i in range(2000):
            try:
                found.admit(1 + i % 7)
            except OverloadedError:
                continue
            assert found.num_images <= 50
            found.release(1 + i % 7, 1 + i % 7)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found.num_images == 0
