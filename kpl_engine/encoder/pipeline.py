"""Many pictures -> features: decoding on a few threads while the encoder works, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from kpl_engine.arrays import Float32, Ints, UInt8
from kpl_engine.config import DecodeConfig
from kpl_engine.cuda.context import DeviceArray
from kpl_engine.cuda.ops.preprocess import launch_preprocess, upload_images
from kpl_engine.encoder.base import DeviceEncoder, Encoder
from kpl_engine.errors import EncoderError, ImageError
from kpl_engine.imaging.decode import ImageSource, decode_image, source_name
from kpl_engine.imaging.preprocess import Preprocess

__all__ = ["EncodedImages", "Prepared", "encode_stream", "prepare_picture"]

_MOST_UPLOADED = (
    1 << 26
)  # bytes of a picture that a GPU resizes; a batch of larger ones is held in memory several times

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Features of the pictures that could be used, and what became of the others.

    ``features`` is (n_ok, d) float32 with unit rows; row ``i`` belongs to picture
    ``ok_index[i]`` of the call. ``names`` has one entry for every picture, good or bad.
    ``failures`` holds (index, name, error). ``timings_ms`` has the stages ``read``, ``decode``,
    ``preprocess``, ``encode`` and the wall time ``total``; stages are sums over pictures and run
    at the same time on several threads, so their sum may exceed the total. ``on_device`` are the same features in
    GPU memory where the encoder works there.
    """

    features: Float32
    ok_index: Ints
    names: tuple[str, ...]
    failures: tuple[tuple[int, str, ImageError], ...] = ()
    notices: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    on_device: DeviceArray | None = None  # (n_ok, d) float32

    @classmethod
    def from_features(cls, features: Float32, names: Sequence[str] | None = None) -> EncodedImages:
        """Features (n, d) computed elsewhere, all good."""
        n = len(features)
        labels = tuple(names) if names is not None else tuple(f"features[{i}]" for i in range(n))
        return cls(features, np.arange(n, dtype=np.int64), labels)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One picture ready for the encoder, or the reason it is not.

    ``pixels`` is (h, w, 3) uint8, of the model's size or of its own where that was kept.
    """

    pixels: UInt8 | None
    notices: tuple[str, ...]
    times_ms: tuple[float, float, float]  # read, decode, preprocess
    error: ImageError | None = None


def encode_stream(
    sources: Sequence[ImageSource],
    encoder: Encoder,
    decode_config: DecodeConfig | None = None,
    *,
    progress: Progress | None = None,
) -> EncodedImages:
    """Decode, preprocess and encode ``sources``, in order.

    Pictures are prepared on ``decode_config.num_threads`` threads while the encoder runs on the
    calling one. At most two encoder batches and two pictures a thread are held at a time, whatever
    the number of sources. A picture that cannot be used is recorded and the rest go on.

    Parameters
    ----------
    sources : sequence of paths, bytes, PIL images or uint8 arrays
    encoder : Encoder
    decode_config : DecodeConfig, optional
    progress : callable, optional
        Called with (done, total) after every batch.

    Raises
    ------
    EncoderError
        The encoder failed; the message names the pictures of the batch.
    """
    config = DecodeConfig() if decode_config is None else decode_config
    start = time.perf_counter()
    run = _Run(sources, encoder, progress)
    if len(sources) == 1:  # a thread would be started, handed one picture and ended: a third of a small encoder's time
        run.add(0, prepare_picture(sources[0], run.names[0], encoder.preprocess, config, _keeps_size(encoder, config)))
        run.flush()
    else:
        _run_on_threads(run, sources, encoder, config)
    return run.finish((time.perf_counter() - start) * 1e3)


def _run_on_threads(run: _Run, sources: Sequence[ImageSource], encoder: Encoder, config: DecodeConfig) -> None:
    pool = ThreadPoolExecutor(max_workers=config.num_threads, thread_name_prefix="kpl-decode")
    prepared = _prepare_all(pool, sources, run.names, encoder, config)
    try:
        for index, picture in enumerate(prepared):
            run.add(index, picture)
        run.flush()
    finally:
        # On an error or Ctrl-C nothing new starts; pictures under way are let finish.
        prepared.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _keeps_size(encoder: Encoder, config: DecodeConfig) -> bool:
    return config.resize_on_gpu and isinstance(encoder, DeviceEncoder)


def _prepare_all(
    pool: ThreadPoolExecutor,
    sources: Sequence[ImageSource],
    names: Sequence[str],
    encoder: Encoder,
    config: DecodeConfig,
) -> Generator[Prepared, None, None]:
    """Prepared pictures in order, a bounded number ahead of the reader."""
    ahead = max(encoder.batch_size, 1) + 2 * config.num_threads
    pending: deque[Future[Prepared]] = deque()
    geometry = encoder.preprocess
    keeps_size = _keeps_size(encoder, config)
    for source, name in zip(sources, names, strict=True):
        pending.append(pool.submit(prepare_picture, source, name, geometry, config, keeps_size))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def prepare_picture(
    source: ImageSource, name: str, geometry: Preprocess, config: DecodeConfig, keeps_size: bool = False
) -> Prepared:
    """Read, decode and resize one picture; what is wrong with it stands in ``error`` and is not raised.

    Safe from any thread. Pillow lets go of the interpreter's lock meanwhile.

    Parameters
    ----------
    source : path, bytes, PIL image or (h, w, 3) uint8 array
    name : str
        What messages call it.
    geometry : Preprocess
        That of the encoder.
    config : DecodeConfig
    keeps_size : bool
        Leave the resizing to the GPU, unless the picture is so large that several would fill its memory.
    """
    try:
        decoded = decode_image(source, config, name)
        start = time.perf_counter()
        try:
            if keeps_size and decoded.pixels.size <= _MOST_UPLOADED:
                geometry.plan(*decoded.pixels.shape[:2])  # refuses what cannot be resized, with its name
                pixels = decoded.pixels
            else:
                pixels = geometry.apply(decoded.pixels)
        except ImageError as error:
            raise ImageError(f"{name}: {error}", source=name) from error
        except MemoryError as error:
            raise ImageError(
                f"{name}: not enough memory to resize it; make the picture smaller", source=name
            ) from error
        spent = (time.perf_counter() - start) * 1e3
        return Prepared(pixels, decoded.notices, (decoded.read_ms, decoded.decode_ms, spent))
    except ImageError as error:
        return Prepared(None, (), (0.0, 0.0, 0.0), error)


class _Run:
    """What one call has gathered so far."""

    def __init__(self, sources: Sequence[ImageSource], encoder: Encoder, progress: Progress | None) -> None:
        self.names = tuple(source_name(source, index) for index, source in enumerate(sources))
        self._encoder = encoder
        self._progress = progress
        self._batch: list[tuple[int, UInt8]] = []
        self._features: _HostRows | _DeviceRows
        self._features = _DeviceRows(encoder) if isinstance(encoder, DeviceEncoder) else _HostRows(encoder)
        self._ok: list[int] = []
        self._failures: list[tuple[int, str, ImageError]] = []
        self._notices: list[str] = []
        self._times = [0.0, 0.0, 0.0, 0.0]  # ms: read, decode, preprocess, encode
        self._done = 0

    def add(self, index: int, picture: Prepared) -> None:
        self._done = index + 1
        self._notices.extend(picture.notices)
        for stage, spent in enumerate(picture.times_ms):
            self._times[stage] += spent
        if picture.error is not None:
            self._failures.append((index, self.names[index], picture.error))
        elif picture.pixels is not None:
            self._batch.append((index, picture.pixels))
        if len(self._batch) >= max(self._encoder.batch_size, 1):
            self.flush()

    def flush(self) -> None:
        if self._batch:
            start = time.perf_counter()
            try:
                self._features.add([picture for _, picture in self._batch])
            except EncoderError as error:
                named = ", ".join(self.names[index] for index, _ in self._batch)
                raise type(error)(f"{error} (images of this batch: {named})") from error
            self._times[3] += (time.perf_counter() - start) * 1e3
            self._ok.extend(index for index, _ in self._batch)
            self._batch = []
        if self._progress is not None:
            self._progress(self._done, len(self.names))

    def finish(self, total_ms: float) -> EncodedImages:
        start = time.perf_counter()
        features, on_device = self._features.gather()
        waited = (time.perf_counter() - start) * 1e3
        self._times[3] += waited
        stages = dict(zip(("read", "decode", "preprocess", "encode"), self._times, strict=True))
        return EncodedImages(
            features=features,
            ok_index=np.array(self._ok, dtype=np.int64),
            names=self.names,
            failures=tuple(self._failures),
            notices=tuple(self._notices),
            timings_ms={**stages, "total": total_ms + waited},
            on_device=on_device,
        )


class _HostRows:
    """Features of the batches so far, on the host."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rows = [np.empty((0, encoder.embed_dim), dtype=np.float32)]

    def add(self, pictures: Sequence[UInt8]) -> None:
        self._rows.append(self._encoder.encode_images(np.stack(pictures)))

    def gather(self) -> tuple[Float32, None]:
        """(n_ok, d) float32."""
        return np.concatenate(self._rows), None


class _DeviceRows:
    """Features of the batches so far, on a GPU, which may still be at work on them."""

    def __init__(self, encoder: DeviceEncoder) -> None:
        self._encoder = encoder
        self._rows: list[DeviceArray] = []

    def add(self, pictures: Sequence[UInt8]) -> None:
        encoder, size = self._encoder, (*self._encoder.image_size, 3)
        if all(picture.shape == size for picture in pictures):
            self._rows.append(encoder.encode_on_device(np.stack(pictures)))
            return
        with encoder.context.turn:
            uploaded = upload_images(encoder.context, pictures)
            pixels = launch_preprocess(encoder.context, uploaded, encoder.preprocess)
            self._rows.append(encoder.encode_on_device(pixels))

    def gather(self) -> tuple[Float32, DeviceArray | None]:
        """(n_ok, d) float32, on the host and on the device. `EncoderError` if one is not a unit vector."""
        encoder = self._encoder
        if not self._rows:
            return np.empty((0, encoder.embed_dim), dtype=np.float32), None
        with encoder.context.turn:
            whole = self._rows[0] if len(self._rows) == 1 else encoder.context.concatenate(self._rows)
            host = np.asarray(encoder.context.download(whole), dtype=np.float32)
        encoder.check_encoded()
        return host, whole
