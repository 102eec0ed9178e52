"""The life of a serving process: doors open, models load, ready, drain, snapshot, gone."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from kpl_engine.errors import KplError
from kpl_engine.server.auth import TokenGuard
from kpl_engine.server.doors import LeavingApp, http_app, http_server, metrics_server
from kpl_engine.server.listening import address_of, notify_systemd, open_listener, raise_open_files
from kpl_engine.server.logs import AccessLog, logging_to
from kpl_engine.server.metrics import Metrics, metrics_app
from kpl_engine.server.models import LoadedModels
from kpl_engine.server.observer import Observer, Observers
from kpl_engine.server.reload import ChangedBundles
from kpl_engine.server.service import BatchingService
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.streams import Streams
from kpl_engine.server.tls import Certificate
from kpl_engine.server.tracing import Tracing

__all__ = ["ServiceFactory", "serve"]

_LOG = logging.getLogger("kpl_engine.server")
_AFTER_DEATH_S = 1.0  # for the errors of what was in flight to reach their clients
_LINGER_S = 0.5  # for connections that were made and have sent nothing yet
_LAST_BYTES_S = 2.0  # from the last answer to the last connection closed
ServiceFactory = Callable[[ServerSettings, Observer, Callable[[BaseException], None]], Any]


def _build_service(
    settings: ServerSettings, observer: Observer, on_death: Callable[[BaseException], None]
) -> BatchingService:
    streams = Streams(settings.state_dir, settings.snapshot_interval_s, report=observer.snapshot)
    return BatchingService(LoadedModels(settings), settings, streams=streams, observer=observer, on_death=on_death)


def serve(
    settings: ServerSettings,
    *,
    notify_socket: str = "",
    announce: Callable[[str], None] | None = None,
    build: ServiceFactory = _build_service,
) -> int:
    """Serve until SIGTERM or SIGINT; in the main thread.

    Parameters
    ----------
    settings : ServerSettings
        Complete (`defaults.complete`).
    notify_socket : str
        Where systemd wants to be told, or "".
    announce : callable, optional
        Takes the line that says the server is ready; by default it is printed.
    build : callable
        Makes the service from settings, observer and what to call when a worker died; tests pass their own.

    Returns
    -------
    int
        0 after a signal; 1 where a worker died or accepted requests were not answered in time.

    Raises
    ------
    ConfigError, BundleError, MissingExtraError ...
        What keeps it from starting; nothing is open then.
    """
    with logging_to(settings.log_format, settings.log_level):
        raise_open_files()
        process = _Process(settings, notify_socket, announce or _print, build)
        try:
            code = asyncio.run(process.main())
        finally:
            process.close()
    if process.is_loading:
        # Loading cannot be broken off, and must not hold up who wants the process gone.
        os._exit(code)
    return code


def _print(line: str) -> None:
    print(line, flush=True)


class _Process:
    """One asyncio loop with both doors and the metrics in it; the service has threads of its own."""

    def __init__(
        self, settings: ServerSettings, notify_socket: str, announce: Callable[[str], None], build: ServiceFactory
    ) -> None:
        self._settings, self._notify_socket, self._announce = settings, notify_socket, announce
        self._started_s = perf_counter()
        self._tokens = TokenGuard(settings.tokens_file) if settings.tokens_file else None
        if self._tokens is not None and self._tokens.is_exposed:
            _LOG.warning("the tokens file can be read by everybody on this machine: chmod 600 it")
        has_tls = settings.tls_cert is not None and settings.tls_key is not None
        self._certificate = Certificate(settings.tls_cert, settings.tls_key) if has_tls else None  # type: ignore[arg-type]
        self._metrics = Metrics()
        self._tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
        told: list[Observer] = [self._metrics, AccessLog()]
        self._observer = Observers(*told, *([self._tracing] if self._tracing is not None else []))
        self._service = build(settings, self._observer, self._died)
        self._app = LeavingApp(
            http_app(self._service, self._observer, None if self._tokens is None else self._tokens.check_scope)
        )
        self._changed = ChangedBundles(settings.bundles)
        self._reloading = threading.Lock()
        self._num_signals = 0
        self._is_dead = False
        self.is_loading = False  # a signal came before the models were there
        self._addresses: dict[str, str] = {}

    async def main(self) -> int:
        """See `serve`."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        async with contextlib.AsyncExitStack() as doors:
            await self._open_doors(doors)
            if await self._load():
                self._tell_ready()
                await self._stop.wait()
            return await self._leave()

    async def _open_doors(self, doors: contextlib.AsyncExitStack) -> None:
        """Listen before the models are there: a probe is answered "not ready" instead of being refused.

        All ports are taken before anything answers, so that one that is taken leaves nothing behind.
        """
        settings = self._settings
        secure = "s" if self._certificate is not None else ""
        listeners = {"http": open_listener(settings.host, settings.http_port, "http_port")}
        doors.callback(_close_all, listeners)
        if settings.metrics:
            listeners["metrics"] = open_listener(settings.host, settings.metrics_port, "metrics_port")
        self._grpc = await self._open_grpc()
        if self._grpc is not None:
            doors.push_async_callback(self._grpc.stop, 0)
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            self._addresses["grpc"] = f"grpc{secure}://{host}:{self._grpc.port}"
        self._http = http_server(self._app, settings, self._certificate)
        self._addresses["http"] = address_of(f"http{secure}", listeners["http"][0])
        self._http.begin(listeners["http"])
        doors.push_async_callback(self._http.stop, _LINGER_S, _LAST_BYTES_S)
        if settings.metrics:
            metrics = metrics_server(metrics_app(self._metrics.registry), settings)
            self._addresses["metrics"] = address_of("http", listeners["metrics"][0]) + "/metrics"
            metrics.begin(listeners["metrics"])
            doors.push_async_callback(metrics.stop, 0.0, _LAST_BYTES_S)

    async def _open_grpc(self) -> Any:
        settings = self._settings
        if settings.grpc == "off" or (settings.grpc == "auto" and not _has_grpc()):
            return None
        from kpl_engine.server.grpc import start_grpc

        for each in open_listener(settings.host, settings.grpc_port, "grpc_port"):  # gRPC's own error names no reason
            each.close()
        return await start_grpc(self._service, settings, self._observer, self._tokens, self._certificate)

    async def _load(self) -> bool:
        """Start the service in a thread; False where a signal came first. Raises what keeps it from starting."""
        done: asyncio.Future[None] = self._loop.create_future()

        def work() -> None:
            error: BaseException | None = None
            try:
                self._service.start()
            except BaseException as found:
                error = found
            with contextlib.suppress(RuntimeError):  # the loop may be gone: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, done, error)

        threading.Thread(target=work, name="kpl-start", daemon=True).start()
        stopped = asyncio.ensure_future(self._stop.wait())
        waited: set[asyncio.Future[Any]] = {done, stopped}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if done.done():
            done.result()
            return not self._stop.is_set()
        self.is_loading = True
        return False

    def _tell_ready(self) -> None:
        seconds = perf_counter() - self._started_s
        names = ", ".join(entry.name for entry in self._service.index() if entry.state == "READY")
        places = " ".join(self._addresses[name] for name in ("http", "grpc", "metrics") if name in self._addresses)
        line = f"ready: {places} models {names or 'none'} in {seconds:.2f} s"
        notify_systemd(self._notify_socket, "READY=1")
        if self._settings.log_format == "json":
            _LOG.info(line)
        self._announce(line)

    async def _leave(self) -> int:
        """Drain and close the service; the doors close after it."""
        settings = self._settings
        notify_systemd(self._notify_socket, "STOPPING=1")
        if self.is_loading:
            _LOG.warning("stopped while models were loading")
            return 0
        if self._is_dead:
            await asyncio.sleep(_AFTER_DEATH_S)
            await asyncio.to_thread(self._service.close)
            return 1
        _LOG.info("stopping: not ready, accepting for %g s more", settings.drain_accept_s)
        self._service.stop_being_ready()
        self._app.is_leaving = True
        self._stop.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop.wait(), settings.drain_accept_s)  # set again where a worker dies
        is_done = await asyncio.to_thread(self._service.drain, settings.drain_finish_s)
        if not is_done:
            _LOG.error("not all that was accepted was answered within %g s", settings.drain_finish_s)
        if self._grpc is not None:
            await self._grpc.stop(_LAST_BYTES_S)
        await asyncio.to_thread(self._service.close)
        _LOG.info("stopped")
        return 0 if is_done and not self._is_dead else 1

    def _signalled(self) -> None:
        self._num_signals += 1
        if self._num_signals > 1:
            os._exit(1)
        self._stop.set()

    def _died(self, error: BaseException) -> None:
        """A worker thread died; called from it. The service has logged it."""
        self._is_dead = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    def _hang_up(self) -> None:
        threading.Thread(target=self._reload, name="kpl-reload", daemon=True).start()

    def _reload(self) -> None:
        """Tokens, certificate and bundles as they are on the disk now; what cannot be used leaves the old one."""
        with self._reloading:
            steps: list[tuple[str, Callable[[], object]]] = []
            if self._tokens is not None:
                steps.append(("tokens", self._tokens.reload))
            if self._certificate is not None:
                steps.append(("certificate", self._certificate.reload))
            steps += [(f"model {name}", partial(self._load_again, name)) for name in self._changed.names()]
            for what, step in steps:
                try:
                    step()
                except (KplError, OSError) as error:
                    _LOG.error("reload: %s stays as it was: %s", what, error)
                else:
                    _LOG.info("reload: %s read again", what)

    def _load_again(self, name: str) -> None:
        try:
            self._service.reload(name)
        except BaseException:
            self._changed.not_taken(name)
            raise

    def close(self) -> None:
        """What must be closed whatever happened: threads and the last traces."""
        if not self.is_loading:
            self._service.close()
        if self._tracing is not None:
            self._tracing.close()


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if not done.done():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _close_all(listeners: dict[str, list[socket.socket]]) -> None:
    for several in listeners.values():
        for each in several:
            each.close()


def _has_grpc() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("grpc", "google.protobuf"))
