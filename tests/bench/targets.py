"""Targets whose time, limit and failures are known."""

import queue
import threading
import time

import numpy as np


class TimedTarget:
    """One server that takes ``service_s`` a query, and refuses what comes with ``most`` waiting.

    ``code_of(i)`` is the code of the i-th query that is served, by default "OK".
    """

    how = "TimedTarget"
    most_at_once = 8

    def __init__(self, service_s=0.002, most=64, code_of=None):
        self.service_s, self.most = service_s, most
        self.code_of = code_of or (lambda _: "OK")
        self.sizes, self.threads = [], set()
        self._waiting = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, indices, done):
        self.sizes.append(len(indices))
        self.threads.add(threading.current_thread())
        if self._waiting.qsize() >= self.most:
            done("RESOURCE_EXHAUSTED")
        else:
            self._waiting.put(done)

    def answer_of(self, indices):
        return np.zeros((len(indices), 2))

    def close(self):
        self._waiting.put(None)
        self._thread.join()

    def _work(self):
        served = 0
        while (done := self._waiting.get()) is not None:
            time.sleep(self.service_s)
            code = self.code_of(served)
            served += 1
            if code is not None:  # None: it is never answered
                done(code)


class CountingTarget(TimedTarget):
    """Answers at once, in the thread that submits."""

    def submit(self, indices, done):
        self.sizes.append(len(indices))
        done(self.code_of(len(self.sizes) - 1))
