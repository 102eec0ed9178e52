"""An observer that remembers replies, and lets a test wait for one."""

import threading


class Recorder:
    def __init__(self):
        self.replies = []
        self._changed = threading.Condition()

    def replied(self, door, operation, code, seconds):
        assert seconds >= 0
        with self._changed:
            self.replies.append((door, operation, code))
            self._changed.notify_all()

    def wait_for(self, *reply, timeout=20):
        """True once a reply of that (door, operation, code) was told."""
        with self._changed:
            return self._changed.wait_for(lambda: reply in self.replies, timeout)

    def accepted(self, request):
        return None
