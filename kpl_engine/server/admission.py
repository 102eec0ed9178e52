"""How much may be in flight, counted before anything is decoded."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import TracebackType

from kpl_engine.errors import OverloadedError, TooLargeError
from kpl_engine.server.settings import ServerSettings

__all__ = ["Admission", "Lease"]

_RATE_MEMORY_S = 5.0  # the rate is an average that forgets like exp(-t / 5 s)
_SHORTEST_RETRY_S = 0.1


class Admission:
    """Images and bytes in flight, against the limits of the settings.

    Parameters
    ----------
    settings : ServerSettings
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, settings: ServerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self.max_images = 0
        self.derive_limit(settings.max_batch or 8)
        self.num_images = 0
        self.num_bytes = 0
        self.num_leases = 0
        self._rate = 0.0  # images/s
        self._rated_s = clock()

    @property
    def max_bytes(self) -> int:
        """Of all bodies."""
        return self._settings.max_inflight_bytes

    def derive_limit(self, max_batch: int) -> None:
        """8 batches an instance, unless the settings have a number: enough to keep the encoder busy, and no more."""
        settings = self._settings
        derived = max(8 * max_batch * settings.instances, settings.max_images)
        self.max_images = settings.max_inflight_images or derived

    def admit(self, num_images: int) -> None:
        """Count ``num_images`` more; each admission is to be followed by one `release`.

        Raises
        ------
        TooLargeError
            More than an empty server takes: coming again would not help.
        OverloadedError
        """
        most = min(self._settings.max_images, self.max_images)
        if num_images > most:
            raise TooLargeError(f"images: expected at most {most} in one request, got {num_images}; send fewer at once")
        with self._lock:
            if self.num_images + num_images <= self.max_images:
                self.num_images += num_images
                return
            wait = self._retry_after()
        raise OverloadedError(
            f"the server is full: at most {self.max_images} images in flight, and these would be "
            f"{self.num_images + num_images}; come again in {wait:.1f} s",
            wait,
        )

    def release(self, num_images: int, num_served: int = 0) -> None:
        """Give back what `admit` counted; ``num_served`` of them were answered."""
        with self._lock:
            self.num_images -= num_images
            if num_served:
                self._decay()
                self._rate += num_served / _RATE_MEMORY_S

    def lease(self, on_end: Callable[[], None]) -> Lease:
        """For the bytes of one request; ``on_end`` is called once, when it is closed."""
        with self._lock:
            self.num_leases += 1
        return Lease(self, on_end)

    def grow(self, num_bytes: int, of_lease: int) -> None:
        """``num_bytes`` more of a body that has ``of_lease`` already; a refused part is not counted."""
        if of_lease + num_bytes > self._settings.max_body_bytes:
            raise TooLargeError(
                f"body: expected at most {self._settings.max_body_bytes} bytes, got more; send fewer or smaller images"
            )
        with self._lock:
            if self.num_bytes + num_bytes <= self._settings.max_inflight_bytes:
                self.num_bytes += num_bytes
                return
            wait = self._retry_after()
        raise OverloadedError(
            f"the server is full: {self.num_bytes} bytes in flight, at most {self._settings.max_inflight_bytes}; "
            f"come again in {wait:.1f} s",
            wait,
        )

    def end_lease(self, num_bytes: int) -> None:
        """The body of a lease is not needed any more."""
        with self._lock:
            self.num_bytes -= num_bytes
            self.num_leases -= 1

    def _decay(self) -> None:
        now = self._clock()
        self._rate *= math.exp(min(self._rated_s - now, 0.0) / _RATE_MEMORY_S)
        self._rated_s = now

    def _retry_after(self) -> float:
        """Seconds until what is in flight now is answered, at the rate of late; 1 before there is a rate."""
        self._decay()
        wait = self.num_images / self._rate if self._rate > 1e-6 else 1.0
        return min(max(wait, _SHORTEST_RETRY_S), self._settings.deadline_s)


class Lease:
    """See `port.BytesLease`. One thread at a time."""

    def __init__(self, admission: Admission, on_end: Callable[[], None]) -> None:
        self._admission = admission
        self._num_bytes = 0
        self._is_open = True
        self._on_end = on_end

    def grow(self, num_bytes: int) -> None:
        """See `port.BytesLease`."""
        if self._is_open:
            self._admission.grow(num_bytes, self._num_bytes)
            self._num_bytes += num_bytes

    def close(self) -> None:
        """Return the bytes; harmless when done before."""
        if self._is_open:
            self._is_open = False
            self._admission.end_lease(self._num_bytes)
            self._on_end()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
