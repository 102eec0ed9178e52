"""The models of a server: loaded, swapped under load, and taken away."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from kpl_engine.config import EngineConfig
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import KplError, NotReadyError, UnknownModelError
from kpl_engine.server.defaults import complete
from kpl_engine.server.lanes import LanePool, OpenEncoder, count_gpus
from kpl_engine.server.loaded import VERSION, LoadedModel
from kpl_engine.server.parts import Lane, Model
from kpl_engine.server.port import IndexEntry
from kpl_engine.server.settings import ServerSettings, is_model_name, model_name

__all__ = ["LoadedModels"]

_log = logging.getLogger("kpl_engine.server")
_MOST_SHOWN = 16


@dataclass(eq=False)
class _Entry:
    """A name the server knows. ``turn`` is held while it is loaded or unloaded; the lock guards the rest."""

    name: str
    turn: threading.Lock = field(default_factory=threading.Lock)
    current: LoadedModel | None = None
    is_loading: bool = False
    reason: str = "not loaded"

    def told(self) -> IndexEntry:
        if self.current is not None:
            return IndexEntry(self.name, VERSION, "READY", self.reason)
        if self.is_loading:
            return IndexEntry(self.name, VERSION, "LOADING", "being loaded")
        return IndexEntry(self.name, VERSION, "UNAVAILABLE", self.reason)


class LoadedModels:
    """`parts.Models` over bundles on disk.

    A model is built and warmed beside the one that serves, then takes its place; who holds the old one keeps it, and
    the last of them closes it. For that time both are in memory. An encoder that did not change is not opened again.

    Parameters
    ----------
    settings : ServerSettings
    config : EngineConfig, optional
        How all models answer; threads and batch size of the encoder are those of ``settings``.
    open_encoder, gpus : callable
        What opens an encoder, and how many GPUs there are; tests pass their own.
    """

    def __init__(
        self,
        settings: ServerSettings,
        config: EngineConfig | None = None,
        *,
        open_encoder: OpenEncoder = load_encoder,
        gpus: Callable[[], int] = count_gpus,
    ) -> None:
        self._settings = complete(settings)
        self._config = EngineConfig() if config is None else config
        self._pool = LanePool(self._settings, self._config.encoder, open_encoder, gpus)
        # A link to a bundle given at the start is the operator's own and followed, each time it is loaded.
        self._given = {model_name(path): Path(os.path.abspath(path)) for path in settings.bundles}
        self._entries = {name: _Entry(name) for name in self._given}
        self._listed: dict[str, Path] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def start(self) -> None:
        """Load and warm every bundle of the settings; raises what the first unusable one raises, with all closed."""
        self._offered()
        try:
            for name in self._given:
                self._load(self._entries[name])
        except BaseException:
            self.close()
            raise

    def acquire(self, name: str, version: str = "") -> Model:
        """A loaded model, held until `release`."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is not None and version in ("", VERSION):
                if entry.current is None:
                    raise NotReadyError(f"model {name!r} is {'being' if entry.is_loading else 'not'} loaded")
                entry.current.holders += 1
                return entry.current
        if entry is not None:
            raise UnknownModelError(f"model {name!r} has no version {version[:80]!r}; it has {VERSION!r}")
        if name in self._listed:  # as last seen: a name from outside is no reason to read the folder
            raise NotReadyError(f"model {name!r} is not loaded")
        raise self._unknown(name)

    def release(self, model: Model) -> None:
        """Give back what `acquire` gave; the last one out of a replaced model closes it."""
        if not isinstance(model, LoadedModel):
            raise TypeError(f"expected a model that acquire() gave, got {type(model).__name__}")
        with self._changed:
            model.holders -= 1
            is_last = model.is_retired and model.holders == 0
        if is_last:
            self._close_model(model)

    def lanes(self) -> Sequence[Lane]:
        """The encoders in use now."""
        return self._pool.lanes()

    def index(self) -> Sequence[IndexEntry]:
        """Every model the server knows: those it was given, those it has loaded, and what lies in the repository."""
        offered = self._offered()
        with self._changed:
            known = {
                name: entry.told()
                for name, entry in self._entries.items()
                if name in self._given or name in offered or entry.current is not None or entry.is_loading
            }
        rest = {name: IndexEntry(name, VERSION, "UNAVAILABLE", "not loaded") for name in offered if name not in known}
        return [(known | rest)[name] for name in sorted(known | rest)]

    def load(self, name: str) -> None:
        """Load, or load again; on an error what served before goes on. Whether a client may is the service's to say."""
        self._path_of(name)  # before an entry is made: a client must not fill the table with names
        with self._changed:
            entry = self._entries.setdefault(name, _Entry(name))
        try:
            self._load(entry)
        except KplError as error:
            raise self._without_folder(error, name) from error

    def unload(self, name: str) -> None:
        """Take a model away: at once for `acquire`, and back when nobody holds it any more."""
        with self._changed:
            entry = self._entries.get(name)
        if entry is None:
            if name in self._offered():
                return
            raise self._unknown(name)
        with entry.turn:
            with self._changed:
                old, entry.current, entry.reason = entry.current, None, "unloaded"
            if old is not None:
                self._retire(old)
                with self._changed:
                    self._changed.wait_for(lambda: old.is_closed)
                _log.info("model %s: unloaded", name)

    def close(self) -> None:
        """Retire every model; what is still held is closed by its last holder. Calling it twice is harmless."""
        with self._changed:
            self._is_closed = True
            old = [entry.current for entry in self._entries.values() if entry.current is not None]
            for entry in self._entries.values():
                entry.current, entry.reason = None, "the server is stopping"
        for model in old:
            self._retire(model)

    def _load(self, entry: _Entry) -> None:
        with entry.turn:
            with self._changed:
                self._check_open()
                entry.is_loading = True
            started = perf_counter()
            try:
                path = self._path_of(entry.name)
                model = LoadedModel.open(entry.name, path, self._pool, self._config, self._settings.device)
            except BaseException as error:
                told = self._without_folder(error, entry.name)
                with self._changed:
                    entry.reason = f"the last load failed: {told!s:.300}"
                raise
            finally:
                with self._changed:
                    entry.is_loading = False
            self._put(entry, model)
            _log.info("model %s: loaded in %.0f ms, %s", entry.name, (perf_counter() - started) * 1e3, path)

    def _put(self, entry: _Entry, model: LoadedModel) -> None:
        """The moment of the swap."""
        with self._changed:
            is_closed = self._is_closed
            if not is_closed:
                old, entry.current, entry.reason = entry.current, model, ""
        if is_closed:
            model.close()
            self._check_open()
        elif old is not None:
            self._retire(old)

    def _retire(self, model: LoadedModel) -> None:
        with self._changed:
            model.is_retired = True
            is_free = model.holders == 0
        if is_free:
            self._close_model(model)

    def _close_model(self, model: LoadedModel) -> None:
        try:
            model.close()
        finally:
            with self._changed:
                model.is_closed = True
                self._changed.notify_all()

    def _path_of(self, name: str) -> Path:
        """Where the bundle of that name lies: one of those given, or of the names that the repository lists.

        A name from outside is compared with names and never becomes a path.
        """
        if not is_model_name(name):
            raise self._unknown(name)
        if name in self._given:
            return self._given[name]
        found = self._offered().get(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _offered(self) -> dict[str, Path]:
        """The bundles in the repository by name; links that lead out of it are passed over."""
        if self._settings.repository is None:
            return {}
        folder = Path(os.path.realpath(self._settings.repository))
        try:
            listed = [each for each in os.listdir(folder) if each.endswith(".kpl")]
        except OSError:
            return {}  # taken away meanwhile: then it offers nothing
        paths = {model_name(Path(each)): Path(os.path.realpath(folder / each)) for each in listed}
        self._listed = {
            name: path
            for name, path in paths.items()
            if is_model_name(name) and path.is_relative_to(folder) and path.exists()
        }
        return self._listed

    def _without_folder(self, error: BaseException, name: str) -> BaseException:
        """The error as a client is told it: where the bundles lie on this machine is none of its business."""
        with self._changed:
            path = self._given.get(name) or self._listed.get(name)
        if path is None or str(path.parent) not in str(error):
            return error
        told = copy(error)
        told.args = (str(error).replace(f"{path.parent}{os.sep}", ""), *error.args[1:])
        return told

    def _unknown(self, name: str) -> UnknownModelError:
        with self._changed:
            have = sorted({*self._entries, *self._listed})
        shown = ", ".join(have[:_MOST_SHOWN]) + (", ..." if len(have) > _MOST_SHOWN else "")
        return UnknownModelError(f"no model {name[:128]!r}; this server has: {shown or 'none'}")

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotReadyError("the server is stopping; no model is loaded any more")
