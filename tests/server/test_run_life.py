"""The life of a process whose service is a double: workers that die, answers that never come, slow starts."""

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from kpl_engine.errors import ConfigError
from kpl_engine.server import listening
from kpl_engine.server.settings import ServerSettings
from tests.server.doubles import EngineService

pytest.importorskip("uvicorn", reason="needs the serve extra")
from kpl_engine.server.run import serve

FREE = {"http_port": 0, "metrics_port": 0, "grpc": "off", "drain_accept_s": 0.0, "drain_finish_s": 0.1}


class Living(EngineService):
    """`EngineService` with the life of the real one; ``calls`` is what it was asked to do, in order."""

    def __init__(self, engine, settings, drains=True, start=None):
        super().__init__(engine, settings=settings)
        self.calls, self.on_death = [], None
        self.ready = False
        self._drains, self._start = drains, start

    def start(self):
        self.calls.append("start")
        if self._start is not None:
            self._start(self)
        self.ready = True

    def stop_being_ready(self):
        self.calls.append("lame")
        self.ready = False

    def drain(self, timeout_s):
        self.calls.append(f"drain {timeout_s:g}")
        return self._drains

    def close(self):
        if "close" not in self.calls:
            self.calls.append("close")
            self._pool.shutdown()


def run(engine, then, **options):
    """`serve` with a `Living`; ``then(service, address)`` is called when it is ready. Exit code and the service."""
    made = []

    def build(settings, observer, on_death):
        made.append(Living(engine, settings, **options))
        made[0].on_death = on_death
        return made[0]

    def announce(line):
        then(made[0], line.split()[1])

    return serve(ServerSettings(**FREE), build=build, announce=announce), made[0]


def readiness(address):
    try:
        with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_signal_drains_then_closes(demo_engine):
    code, service = run(demo_engine, lambda *_: signal.raise_signal(signal.SIGTERM))
    assert (code, service.calls) == (0, ["start", "lame", "drain 0.1", "close"])


def test_accepted_requests_that_got_no_answer_are_told_by_the_exit_code(demo_engine):
    code, service = run(demo_engine, lambda *_: signal.raise_signal(signal.SIGTERM), drains=False)
    assert code == 1
    assert service.calls[-1] == "close"


def test_a_worker_that_died_ends_the_process_with_an_error(demo_engine):
    seen = []

    def die(service, address):
        def work():
            service.live = False
            service.on_death(RuntimeError("a bug"))
            seen.append(readiness(address))

        threading.Thread(target=work).start()

    code, service = run(demo_engine, die)
    assert (code, seen) == (1, [503])
    assert "drain 0.1" not in service.calls
    assert service.calls[-1] == "close"


def test_a_start_that_fails_is_raised_and_closes_everything(demo_engine):
    def fail(service):
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        run(demo_engine, None, start=fail)
    assert not [thread for thread in threading.enumerate() if thread.name == "kpl-logs"]


def test_probes_are_answered_while_models_load(demo_engine, monkeypatch):
    addresses, seen = [], []
    real = listening.address_of

    def remember(scheme, listener):
        addresses.append(real(scheme, listener))
        return addresses[-1]

    monkeypatch.setattr("kpl_engine.server.run.address_of", remember)
    code, _ = run(
        demo_engine,
        lambda *_: signal.raise_signal(signal.SIGTERM),
        start=lambda service: seen.append(readiness(addresses[0])),
    )
    assert (code, seen) == (0, [503])


SLOW = """
import threading, sys
from kpl_engine.server.run import serve
from kpl_engine.server.settings import ServerSettings

class Slow:
    settings = ServerSettings(http_port=0, metrics_port=0, grpc="off", log_format="json")
    def start(self):
        print("loading", flush=True)
        threading.Event().wait()

serve(Slow.settings, build=lambda *_: Slow())
"""


def test_a_signal_while_models_load_ends_it():
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "while models were loading" in json.loads(err.splitlines()[-1])["message"]
