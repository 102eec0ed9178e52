"""Long bodies are taken apart one at a time: the loop, and with it health, waits for one of them at most."""

import asyncio
import threading

import pytest

from kpl_engine.server.http.exchange import LongWork


class Busy:
    """Counts how many are in it at once; each waits for ``expected`` of them, in vain if they come one at a time."""

    def __init__(self, expected, patience_s):
        self.expected, self.patience_s, self.most, self.now = expected, patience_s, 0, 0
        self._changed = threading.Condition()

    def __call__(self):
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self.expected, self.patience_s)
            self.now -= 1
        return threading.current_thread()


@pytest.mark.parametrize(("num_bytes", "most", "patience_s"), [((1 << 20) + 1, 1, 0.05), (1 << 20, 2, 20)])
def test_long_ones_one_at_a_time(num_bytes, most, patience_s):
    busy = Busy(2, patience_s)

    async def both():
        work = LongWork()
        return await asyncio.gather(*(work.run(num_bytes, busy) for _ in range(2)))

    found = asyncio.run(both())
    assert busy.most == most
    assert threading.current_thread() not in found


def test_short_ones_in_the_loop():
    assert asyncio.run(LongWork().run(64 << 10, threading.current_thread)) is threading.current_thread()
