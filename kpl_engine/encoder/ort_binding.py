"""From pictures to rows through fixed buffers in device memory, by ONNX Runtime's I/O binding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kpl_engine.arrays import UInt8
from kpl_engine.config import EncoderConfig
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.encoder.ort import Graph
from kpl_engine.errors import EncoderError

__all__ = ["Feeder"]


class Feeder:
    """Runs one graph from fixed buffers on the device, so that a binding or a CUDA graph serves every call.

    A copy within the device costs (pictures h w 3 + 4 pictures d) bytes twice: 10 us for 64 pictures of 336 x 336
    on an H200 by its bandwidth, a thousandth of the encoder's own time.
    """

    def __init__(
        self,
        graph: Graph,
        context: Context,
        memory: str,
        config: EncoderConfig,
        image_size: tuple[int, int],
        embed_dim: int,
    ) -> None:
        self._graph, self._context, self._memory = graph, context, memory
        self._capacity, self._has_graphs = config.batch_size, config.use_cuda_graph
        # Zeros: a CUDA graph of 8 pictures that is given 5 encodes 3 more, of no consequence but not of chance bytes
        self._pixels = context.zeros((config.batch_size, *image_size, 3), np.uint8)
        self._rows = context.empty((config.batch_size, embed_dim), np.float32)
        self._staging: list[_Staging] = []
        self._turn = 0
        self._bound: dict[int, tuple[Any, Any]] = {}

    def run(self, pixels: UInt8 | DeviceArray, rows: DeviceArray, start: int, count: int) -> None:
        """Rows ``start`` to ``start + count``; at most as many as the buffers hold."""
        driver, stream = self._context.driver, self._context.stream
        picture, row = self._pixels.nbytes // self._capacity, self._rows.nbytes // self._capacity
        if isinstance(pixels, DeviceArray):
            driver.copy_on(self._pixels.address, pixels.address + start * picture, count * picture, stream)
        else:
            self._next_staging().copy_in(pixels[start : start + count], self._pixels.address)
        binding, options = self._binding(self._bucket(count))
        try:
            self._graph.session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EncoderError(
                f"{self._graph.label}: ONNX Runtime failed on {count} pictures on the GPU: {error!s:.400}; if memory "
                "ran out, lower EncoderConfig.batch_size or raise gpu_memory_bytes"
            ) from error
        driver.copy_on(rows.address + start * row, self._rows.address, count * row, stream)

    def _bucket(self, count: int) -> int:
        return min(1 << (count - 1).bit_length(), self._capacity) if self._has_graphs else count

    def _binding(self, count: int) -> tuple[Any, Any]:
        """The buffers bound for ``count`` pictures, and how to run them."""
        if count not in self._bound:
            import onnxruntime

            ordinal = self._context.driver.info.ordinal if self._memory == "cuda" else 0
            binding = self._graph.session.io_binding()
            shape = [count, *self._pixels.shape[1:]]
            binding.bind_input(self._graph.input, self._memory, ordinal, np.uint8, shape, self._pixels.address)
            shape = [count, self._rows.shape[1]]
            binding.bind_output(self._graph.output, self._memory, ordinal, np.float32, shape, self._rows.address)
            options = onnxruntime.RunOptions()
            # The stream is ours: whoever needs the rows on the host waits for it.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            if self._has_graphs:
                options.add_run_config_entry("gpu_graph_id", str(count))  # one captured graph for each
            self._bound[count] = binding, options
        return self._bound[count]

    def _next_staging(self) -> _Staging:
        """Two take turns: one is filled while the other is still being copied."""
        if not self._staging:
            self._staging = [_Staging(self._context, self._pixels.shape) for _ in range(2)]
        self._turn = 1 - self._turn
        return self._staging[self._turn]


class _Staging:
    """Page-locked memory on the way to the device; from other memory a copy makes the host wait."""

    def __init__(self, context: Context, shape: Sequence[int]) -> None:
        self._driver, self._stream = context.driver, context.stream
        self._buffer = self._driver.pinned(shape, np.uint8)
        self._copied = self._driver.new_event()
        self._is_used = False

    def copy_in(self, pixels: UInt8, address: int) -> None:
        if self._is_used:
            self._driver.elapsed_ms(self._copied, self._copied)  # waits for the event
        held = self._buffer[: len(pixels)]
        held[...] = pixels
        self._driver.copy_in(address, held, self._stream)
        self._driver.record(self._copied, self._stream)
        self._is_used = True
