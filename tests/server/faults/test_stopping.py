"""The end of the process: SIGTERM drops nothing that was accepted, a worker that dies ends it, a full disk does not."""

import json
import signal
import threading
import time

import pytest

from tests.server.faults.process import Server
from tests.server.faults.requests import INFER

DRAIN = ("--drain-accept", "0.5", "--drain-finish", "20")


def test_sigterm_under_load_drops_nothing(tmp_path, whole_requests):
    """Clients that ask until they are refused: no request was cut, every one before the end got its answer."""
    request = next(each for each in whole_requests if each.name == "raw")
    told, lost = [], []
    with Server(tmp_path, *DRAIN) as server:
        enough = threading.Event()

        def ask():
            while True:
                try:
                    status, body = server.get(request.path, request.body, request.headers)
                except OSError as error:
                    lost.append(error)
                    return
                told.append(status)
                if status == 503:
                    return
                assert status == 200, body
                if len(told) > 40:
                    enough.set()

        work = [threading.Thread(target=ask) for _ in range(8)]
        for thread in work:
            thread.start()
        assert enough.wait(60)
        server.process.terminate()
        assert server.process.wait(60) == 0
        for thread in work:
            thread.join(60)
    assert told.count(200) > 40
    for error in lost:  # refused at the door: nothing had been accepted
        assert isinstance(getattr(error, "reason", error), ConnectionRefusedError), repr(error)


def test_not_ready_before_it_stops_to_accept(tmp_path, pictures):
    with Server(tmp_path, "--drain-accept", "3", "--drain-finish", "20") as server:
        server.process.terminate()
        _wait(lambda: not server.is_ready())
        assert server.classify(pictures[0])["label"]
        assert server.get("/v2/health/live")[0] == 200
        assert server.process.wait(60) == 0


def test_a_second_sigterm_ends_it_at_once_and_leaves_the_snapshots_whole(tmp_path, pictures):
    state = tmp_path / "state"
    options = ("--state-dir", str(state), "--snapshot-interval", "0.05")
    with Server(tmp_path, *options, "--drain-accept", "30", "--drain-finish", "30") as server:
        expected = [server.classify(each, query="?mode=stream") for each in pictures[:2]]
        _wait(lambda: list(state.glob("*.safetensors")))
        server.process.terminate()
        _wait(lambda: not server.is_ready())
        server.process.terminate()
        assert server.process.wait(10) == 1
    with Server(tmp_path, *options, *DRAIN) as server:
        assert not list(state.glob("*aside*"))
        assert server.classify(pictures[1], query="?mode=stream")["label"]
        assert server.terminate() == 0
    assert expected[1]["label"]


def test_streams_go_on_after_a_restart(tmp_path, pictures):
    state = ("--state-dir", str(tmp_path / "state"), *DRAIN)
    with Server(tmp_path) as server:
        expected = [server.classify(each, query="?mode=stream") for each in pictures[:8]]
    with Server(tmp_path, *state) as server:
        found = [server.classify(each, query="?mode=stream") for each in pictures[:5]]
        assert server.terminate() == 0
    with Server(tmp_path, *state) as server:
        found += [server.classify(each, query="?mode=stream") for each in pictures[5:8]]
    assert found == expected


def test_a_full_disk_at_the_snapshot(tmp_path, pictures):
    """The process may write files of 64 bytes only: what a full disk does to a snapshot."""

    small = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))"
    options = ("--state-dir", str(tmp_path / "state"), "--snapshot-interval", "0.1", *DRAIN)
    with Server(tmp_path, *options, prelude=small) as server:
        first = server.classify(pictures[0], query="?mode=stream")
        _wait(lambda: "streams could not be written" in server.tail())
        assert server.classify(pictures[1], query="?mode=stream")["label"]
        assert first["label"]
        assert server.is_ready()
        told = json.loads(server.get("/v1/status")[1])["streams"]
        assert told["last_error"] == "File too large"
        assert str(tmp_path) not in str(told)
        assert server.terminate() == 0
    assert not list((tmp_path / "state").glob("*.safetensors"))
    assert not list((tmp_path / "state").glob(".*.kpl-tmp"))


def _wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Every thread of the service calls the encoder or the decoder; either raises what no handler of requests may swallow.
KILL_THE_ENCODER = """
import threading
from kpl_engine.encoder import ort
real = ort.OrtEncoder.encode_images
armed = threading.Event()
class Poison(BaseException):
    pass
def encode_images(self, pixels, *rest, **options):
    if armed.is_set():
        raise Poison("the encoder's thread dies")
    return real(self, pixels, *rest, **options)
ort.OrtEncoder.encode_images = encode_images
import signal
signal.signal(signal.SIGUSR1, lambda *_: armed.set())
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_thread_that_dies_ends_the_process(tmp_path, pictures):
    with Server(tmp_path, *DRAIN, prelude=KILL_THE_ENCODER) as server:
        assert server.classify(pictures[0])["label"]
        server.process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        try:
            status, _ = server.get("/v2/health/ready")
            assert status == 200
            status, _ = server.get(
                INFER,
                pictures[0],
                {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"},
            )
            assert status in (500, 503)
        except OSError:
            pass  # it ended before it could say so
        assert server.process.wait(60) not in (0, None)
