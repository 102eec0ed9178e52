"""The batcher: nothing lost, doubled or overtaken, whatever the order of events."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpl_engine.server.batcher import Batcher, Line, batch_size, padded_size
from kpl_engine.server.deadlines import Deadlines
from tests.server.fakes import lane_of


def item(arrival, priority=2, deadline_s=1e9):
    return SimpleNamespace(arrival=arrival, priority=priority, deadline_s=deadline_s, is_dropped=False)


def take_all(batcher, lane, now=0.0):
    taken = []
    while batcher.next_lane(0) is lane:
        taken += batcher.take(lane, now)[0]
    return taken


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 3), st.integers(1, 12), st.integers(1, 9)),
        st.tuples(st.just("take"), st.just(0), st.just(0), st.integers(1, 9)),
        st.tuples(st.just("drop"), st.integers(0, 10**6), st.just(0), st.integers(1, 9)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(EVENTS, st.booleans(), st.sampled_from([(1,), (1, 2, 4), (1, 2, 4, 8, 16), (1, 3)]))
def test_each_item_leaves_once_in_order_and_in_time(events, pads, buckets):
    lane, batcher = lane_of(object(), buckets=buckets, pads=pads), Batcher()
    waiting, num_put, now = [], 0, 0.0
    for kind, number, rank, step in [*events, *[("take", 0, 0, 1)] * 400]:
        if kind == "put":
            for _ in range(rank):
                num_put += 1
                waiting.append(item(num_put, number, now + step * 7))
                batcher.put(lane, waiting[-1], number, num_put)
        elif kind == "drop" and waiting:
            gone = waiting.pop(number % len(waiting))
            gone.is_dropped = True
            batcher.forget(lane, 1)
        elif kind == "take":
            now += step
            if not waiting:
                assert batcher.next_lane(0) is None
                continue
            batch, expired = batcher.take(batcher.next_lane(0), now)
            alive = [each for each in waiting if each.deadline_s > now]
            alive.sort(key=lambda each: (each.priority, each.arrival))
            assert batch == alive[: batch_size(lane, min(len(alive), buckets[-1]))]
            assert len(batch) <= buckets[-1]
            assert pads or len(batch) in (0, *buckets)
            assert all(each.deadline_s <= now for each in expired)
            assert {id(each) for each in (*batch, *expired)} <= {id(each) for each in waiting}
            waiting = [each for each in waiting if each not in batch and each not in expired]
        assert len(batcher) == len(waiting)
    assert not waiting


@pytest.mark.parametrize(
    ("pads", "waiting", "size", "rows"),
    [
        (False, 1, 1, 1),
        (False, 7, 4, 4),
        (False, 8, 8, 8),
        (False, 30, 8, 8),
        (True, 3, 3, 4),
        (True, 5, 5, 8),
        (True, 30, 8, 8),
    ],
)
def test_a_cpu_fills_its_bucket_and_a_gpu_is_padded(pads, waiting, size, rows):
    lane = lane_of(object(), pads=pads)
    assert batch_size(lane, waiting) == size
    assert padded_size(lane, size) == rows


def test_lanes_take_turns():
    a, b, batcher = lane_of(object(), key="a"), lane_of(object(), key="b"), Batcher()
    for i in range(40):
        batcher.put(a, item(i), 2, i)
    for i in range(40, 42):
        batcher.put(b, item(i), 2, i)
    served = []
    for _ in range(4):
        served.append(batcher.next_lane(0))
        batcher.take(served[-1], 0.0)
    assert served == [a, b, a, a]


def test_an_instance_takes_only_lanes_that_have_a_copy_for_it():
    batcher, one, two = Batcher(), lane_of(object(), key="1"), lane_of(object(), object(), key="2")
    batcher.put(one, item(1), 2, 1)
    assert batcher.next_lane(1) is None
    batcher.put(two, item(2), 2, 2)
    assert batcher.next_lane(1) is two
    assert batcher.next_lane(0) is one


def test_what_was_dropped_does_not_stay_in_memory():
    line = Line()
    for i in range(10_000):
        dropped = item(i)
        line.put(dropped, 2, i)
        dropped.is_dropped = True
        line.forget(1)
    assert len(line) == 0
    assert len(line._heap) < 50


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60))
def test_deadlines_are_told_once_and_only_of_those_in_flight(entries):
    alive, deadlines, told = {}, Deadlines({}), []
    deadlines = Deadlines(alive)
    for arrival, (deadline, leaves) in enumerate(entries):
        alive[arrival] = deadline
        is_nearest = deadlines.add(float(deadline), arrival, len(alive))
        assert not is_nearest or deadline <= min(alive.values())
        if leaves:
            del alive[arrival]
    for now in range(52):
        due = deadlines.take_due(float(now))
        assert all(alive[each] == now for each in due)
        told += due
        rest = [each for each in alive if each not in told]
        assert deadlines.next_in(float(now)) == (min(alive[each] for each in rest) - now if rest else None)
    assert sorted(told) == sorted(alive)


def test_deadlines_of_those_that_left_are_forgotten():
    alive = {}
    deadlines = Deadlines(alive)
    for arrival in range(20_000):
        deadlines.add(arrival + 10.0, arrival, 0)
    assert len(deadlines) < 1100
