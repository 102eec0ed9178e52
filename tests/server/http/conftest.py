"""A real uvicorn on a free port, in a thread."""

import asyncio
import contextlib
import socket
import threading

import pytest
import uvicorn

from kpl_engine.server.http.app import build_app
from kpl_engine.server.http.connection import guarded
from tests.server.doubles import EngineService
from tests.server.recording import Recorder


class HttpServer:
    """``url`` and ``address`` of a server over ``service``; ``replies`` are what the observer heard."""

    def __init__(self, service, auth=None, extra_routes=()):
        self.service, self.recorder = service, Recorder()
        self.app = build_app(service, self.recorder, auth, extra_routes)
        config = uvicorn.Config(
            self.app, http=guarded(service.settings), ws="none", lifespan="off", log_config=None, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(self._server.serve(sockets=[self._socket]))
            loop.run_until_complete(loop.shutdown_default_executor())

    @property
    def connections(self):
        return self._server.server_state.connections

    def close(self):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def serve():
    """Start servers that the end of the test closes."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(HttpServer(*args, **options))


@pytest.fixture(scope="module")
def _running(demo_engine):
    # Starting and stopping takes uvicorn 0.2 s, so the tests of a file share one.
    with HttpServer(EngineService(demo_engine)) as server:
        yield server


@pytest.fixture
def service(_running):
    """The double of the service behind `http_server`, as new."""
    found = _running.service
    found.live = found.ready = found.loaded = True
    found.fail_with = found.hold = None
    found.tickets, found.requests = [], []
    return found


@pytest.fixture
def http_server(_running, service):
    """A server over ``service``."""
    _running.recorder.replies.clear()
    return _running
