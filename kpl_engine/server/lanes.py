"""Encoders shared by all models that were made with them: opened once, closed with the last model."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from kpl_engine.bundle import Bundle
from kpl_engine.config import EncoderConfig
from kpl_engine.cuda.probe import probe
from kpl_engine.encoder.base import DeviceEncoder, Encoder
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import ConfigError, EncoderError
from kpl_engine.server.parts import Lane
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.warm import buckets_up_to, warm_encoder
from kpl_engine.strict_json import thaw

__all__ = ["LanePool", "OpenEncoder", "count_gpus"]

OpenEncoder = Callable[[Bundle, str, EncoderConfig], Encoder]
_log = logging.getLogger("kpl_engine.server")


def count_gpus() -> int:
    """GPUs that the driver of this machine shows."""
    return len(probe().gpus)


@dataclass
class _Held:
    lane: Lane
    holders: int


class LanePool:
    """The lanes in use. Safe from any thread; a lane is built by one of them while the others wait.

    A lane holds ``instances`` copies of one encoder. On GPUs copy i is on ``cuda:i``. On the CPU each copy has
    ``threads`` threads, which are not pinned to cores: ONNX Runtime pins the threads of its own pool only, and not the
    calling one, which does as large a share of the work; and a pinned thread waits where another process has its core.

    Parameters
    ----------
    settings : ServerSettings
        Completed: no 0 is left where the server chooses.
    config : EncoderConfig
        Threads and batch size are replaced by those of ``settings``.
    open_encoder, gpus : callable
        What opens an encoder, and how many GPUs there are; tests pass their own.
    """

    def __init__(
        self,
        settings: ServerSettings,
        config: EncoderConfig,
        open_encoder: OpenEncoder = load_encoder,
        gpus: Callable[[], int] = count_gpus,
    ) -> None:
        self._settings = settings
        self._config = replace(config, num_threads=settings.threads, batch_size=settings.max_batch)
        self._open_encoder = open_encoder
        self._gpus = gpus
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._building = threading.Lock()

    def lanes(self) -> tuple[Lane, ...]:
        """Those in use now."""
        with self._lock:
            return tuple(held.lane for held in self._held.values())

    def hold(self, bundle: Bundle) -> Lane:
        """The lane of the bundle's encoder, opened and warmed if no model has it yet; `give_back` it once.

        Raises
        ------
        EncoderError
            No encoder in the bundle, or it does not open or run on one of the devices; nothing stays open.
        """
        key = self._key(bundle)
        with self._building:
            with self._lock:
                if key in self._held:
                    self._held[key].holders += 1
                    return self._held[key].lane
            lane = self._build(bundle, key)
            with self._lock:
                self._held[key] = _Held(lane, 1)
            return lane

    def give_back(self, lane: Lane) -> None:
        """One model less uses it; the last one closes its encoders."""
        with self._lock:
            held = self._held[lane.key]
            held.holders -= 1
            if held.holders:
                return
            del self._held[lane.key]
        for encoder in lane.encoders:
            encoder.close()

    def _key(self, bundle: Bundle) -> str:
        """Equal where the encoders are: the same files, geometry, device and options."""
        entry = bundle.manifest.get("encoder")
        if entry is None:
            raise EncoderError(
                f"{bundle.path}: this bundle has no encoder; build it with one: kpl-engine knowledge build"
            )
        parts = [thaw(bundle.manifest[name]) for name in ("encoder", "preprocess")]
        image = entry["image"]
        names = (image["file"], *(image.get("data") or ()))
        parts += [[bundle.entry(name).sha256 for name in names], thaw(bundle.manifest.get("plans") or {})]
        parts += [self._settings.device, self._settings.instances, repr(self._config)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()

    def _build(self, bundle: Bundle, key: str) -> Lane:
        encoders: list[Encoder] = []
        try:
            started = perf_counter()
            for instance in range(self._settings.instances):
                encoders.append(self._open_encoder(bundle, self._device(instance, encoders), self._config))
            opened = perf_counter()
            # A plan of TensorRT may have been built for smaller batches.
            buckets = buckets_up_to(min(self._settings.max_batch, *(encoder.batch_size for encoder in encoders)))
            for encoder in encoders:
                warm_encoder(encoder, buckets)
        except BaseException:
            for encoder in encoders:
                encoder.close()
            raise
        first = encoders[0]
        _log.info(
            "encoder %s on %s: %d of it opened in %.0f ms, batches of %s run in %.0f ms",
            *(first.name, ", ".join(first.providers), len(encoders), (opened - started) * 1e3),
            *(", ".join(map(str, buckets)), (perf_counter() - opened) * 1e3),
        )
        return Lane(key, tuple(encoders), buckets, pads=isinstance(first, DeviceEncoder))

    def _device(self, instance: int, opened: list[Encoder]) -> str:
        """Where the next copy goes: the first decides between GPUs and the CPU."""
        asked, count = self._settings.device, self._settings.instances
        if count == 1 or asked == "cpu":
            return asked
        if asked not in ("auto", "cuda"):
            raise ConfigError(
                f"device: expected 'cuda' with {count} instances, which go to cuda:0 to cuda:{count - 1}, got {asked!r}"
            )
        if asked == "auto" and instance > 0 and not isinstance(opened[0], DeviceEncoder):
            return "cpu"
        gpus = self._gpus()
        if asked == "auto" and gpus == 0:
            return "cpu"
        if gpus < count:
            raise ConfigError(f"instances: expected at most {gpus}, the GPUs of this machine, got {count}")
        return "auto" if asked == "auto" and instance == 0 else f"cuda:{instance}"
