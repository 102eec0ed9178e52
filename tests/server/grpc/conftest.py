"""A door over the double of the service, in an event loop of its own thread, as the server's loop is another's."""

import asyncio
import queue
import threading
from dataclasses import replace

import grpc
import numpy as np
import pytest

from kpl_engine.server.grpc import start_grpc
from kpl_engine.server.grpc.messages import message
from kpl_engine.server.observer import Observers
from kpl_engine.server.settings import ServerSettings
from tests.server.doubles import EngineService

TIMEOUT_S = 20
SERVICE = "/inference.GRPCInferenceService/"


def set_parameter(request, name, **value):
    for kind, each in value.items():
        setattr(request.parameters[name], kind, each)
    if not value:
        request.parameters[name].SetInParent()
    return request


class Recorder(Observers):
    """Keeps what the door tells: (operation, code)."""

    def __init__(self):
        super().__init__()
        self.calls = queue.Queue()

    def replied(self, door, operation, code, seconds):
        assert door == "grpc"
        assert seconds >= 0
        self.calls.put((operation, code))

    def next(self):
        return self.calls.get(timeout=TIMEOUT_S)


class WatchedService(EngineService):
    """Tells when a request was submitted and when its ticket was cancelled."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.submitted, self.cancelled = queue.Queue(), queue.Queue()

    def submit(self, request):
        ticket = super().submit(request)
        cancel = ticket.cancel

        def tell():
            cancel()
            self.cancelled.put(request)

        ticket.cancel = tell
        self.submitted.put(request)
        return ticket


class OpenDoor:
    def __init__(self, engine, auth=None, certificate=None, **settings):
        self.settings = replace(ServerSettings(grpc_port=0, http_port=0, metrics_port=0), **settings)
        self.service, self.observer = WatchedService(engine, settings=self.settings), Recorder()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        try:
            self.door = self.run(start_grpc(self.service, self.settings, self.observer, auth, certificate))
        except BaseException:
            self._end_loop()
            raise
        self.address = f"127.0.0.1:{self.door.port}"
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_send_message_length", -1)])

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def call(self, method, request=b"", metadata=(), timeout=TIMEOUT_S, service=SERVICE):
        """The bytes of the reply and the metadata that ended it; ``request`` a message or bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        reply, ended = self.channel.unary_unary(service + method).with_call(data, metadata=metadata, timeout=timeout)
        return reply, dict(ended.trailing_metadata())

    def infer(self, request, **options):
        reply, _ = self.call("ModelInfer", request, **options)
        return message("ModelInferResponse").FromString(reply)

    def fails(self, request, method="ModelInfer", **options):
        """(code, details, trailing metadata) of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, request, **options)
        return caught.value.code(), caught.value.details(), dict(caught.value.trailing_metadata() or ())

    def stop(self, grace=0.0):
        self.run(self.door.stop(grace))

    def close(self):
        if self.service.hold is not None:
            self.service.hold.set()
        self.channel.close()
        self.stop()
        self._end_loop()
        self.service._pool.shutdown()

    def _end_loop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(TIMEOUT_S)
        self.loop.close()


@pytest.fixture
def open_door(demo_engine):
    """Opens doors with the settings given; all are closed at the end."""
    doors = []

    def opened(**options):
        doors.append(OpenDoor(demo_engine, **options))
        return doors[-1]

    yield opened
    for door in doors:
        door.close()


@pytest.fixture
def door(open_door):
    return open_door()


@pytest.fixture
def unit_rows():
    """Fresh features, an odd number of them."""
    rows = np.random.default_rng().standard_normal((3, 64)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def features_request(unit_rows):
    """A valid request of raw features."""
    request = message("ModelInferRequest")(model_name="demo", raw_input_contents=[unit_rows.tobytes()])
    request.inputs.add(name="features", datatype="FP32", shape=unit_rows.shape)
    return request
