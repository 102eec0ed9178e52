"""Time on the GPU by its own events, apart from what the host needs to start the work."""

from __future__ import annotations

from kpl_engine.arrays import UInt8
from kpl_engine.bench.intervals import interval_of
from kpl_engine.bench.records import Interval
from kpl_engine.encoder.base import DeviceEncoder, Encoder

__all__ = ["encode_on_gpu_ms"]


def encode_on_gpu_ms(encoder: Encoder, pixels: UInt8, count: int) -> Interval | None:
    """Median milliseconds of one picture in the encoder's stream; None where the encoder works on the CPU.

    Between an event before the copy of the pixels and one behind the unit rows: copy, graph and scaling. Gaps in which
    the GPU waits for the host to start the next kernel are in it; a CUDA graph has none.

    Parameters
    ----------
    encoder : Encoder
    pixels : (n, h, w, 3) uint8
        Taken one at a time, in turn.
    count : int
        Pictures measured, after one that is not.
    """
    if not isinstance(encoder, DeviceEncoder):
        return None
    context = encoder.context
    driver, spent = context.driver, []
    for i in range(count + 1):
        picture = pixels[i % len(pixels)][None]
        with context.turn:  # nobody else's work between the two events
            start, end = driver.new_event(), driver.new_event()
            driver.record(start, context.stream)
            encoder.encode_on_device(picture)
            driver.record(end, context.stream)
        spent.append(driver.elapsed_ms(start, end))
    encoder.check_encoded()
    return interval_of(spent[1:], "50")
