"""`kpl-engine serve` as a process of its own, and what must be back to where it was after any fault."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from kpl_engine.data import demo_bundle

MODEL = demo_bundle().name.removesuffix(".kpl")
START_S = 60.0


def free_ports(count):
    """Ports nobody listens on now; all are held while they are chosen, so they differ."""
    with contextlib.ExitStack() as held:
        made = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in made:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in made]


class Server:
    """``options`` are flags of the command; ``prelude`` is Python that the process runs before the command."""

    def __init__(self, folder, *options, prelude=""):
        self.http, self.grpc, self.metrics = free_ports(3)
        command = [
            "serve",
            str(demo_bundle()),
            *(f"--http-port {self.http} --grpc-port {self.grpc} --metrics-port {self.metrics}".split()),
            *("--device", "cpu"),
            *options,
        ]
        code = f"{prelude}\nimport sys\nfrom kpl_engine.cli.main import main\nsys.exit(main({command!r}))"
        self.log = Path(folder) / f"log-{self.http}.txt"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("KPL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        # By a pipe: a process that may not write files can still write its log.
        self._reader = threading.Thread(target=self._copy_log)
        self._reader.start()
        self._seen = psutil.Process(self.process.pid)

    def __enter__(self):
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._reader.join(30)

    def _copy_log(self):
        with self.log.open("wb") as log, self.process.stdout:
            while part := self.process.stdout.read1(65536):
                log.write(part)
                log.flush()

    def wait_ready(self):
        end = time.monotonic() + START_S
        while not self.is_ready():
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def is_ready(self):
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def get(self, path, data=None, headers=None, timeout=30.0):
        """(status, body) of one request on a connection of its own."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def connect(self, timeout=30.0):
        return socket.create_connection(("127.0.0.1", self.http), timeout=timeout)

    def classify(self, picture, model=MODEL, query=""):
        """The answer of `/v1/classify` to one raw picture... by protocol v2, as a dict of outputs."""
        status, body = self.get(
            f"/v2/models/{model}/infer{query}",
            picture,
            {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"},
        )
        assert status == 200, (status, body, self.tail())
        return {each["name"]: each["data"] for each in json.loads(body)["outputs"]}

    def counters(self):
        """Every metric without labels, by name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line and line[0] != "#"}

    def in_flight(self):
        """Images that the service counts as accepted and not yet answered."""
        return self.counters()["kpl_inflight_images"]

    def wait_idle(self, seconds=30.0):
        """Until nothing is in flight; fails when something was lost on the way."""
        end = time.monotonic() + seconds
        while left := self.in_flight():
            assert time.monotonic() < end, f"{left} images are in flight for ever"
            time.sleep(0.02)

    def usage(self):
        """(bytes resident, file descriptors, threads)."""
        return self._seen.memory_info().rss, self._seen.num_fds(), self._seen.num_threads()

    def settle(self, before, seconds=15.0, more_bytes=48 << 20):
        """Until descriptors and threads are as ``before``; memory may have grown by ``more_bytes``.

        asyncio's pool for blocking calls grows to cores + 4 threads as it is used and keeps them. The allocator keeps
        pages, and the first odd sizes of a batch make the encoder's arena grow: tens of MiB at most, whatever the
        number of requests.
        """
        end = time.monotonic() + seconds
        most = before[2] + (os.cpu_count() or 1) + 4
        while True:
            memory, handles, threads = self.usage()
            if handles <= before[1] and threads <= most:
                break
            assert time.monotonic() < end, f"descriptors, threads: before {before[1:]}, now {handles, threads}"
            time.sleep(0.05)
        assert memory - before[0] < more_bytes, f"memory grew by {(memory - before[0]) >> 20} MiB"

    def terminate(self, seconds=60.0):
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def tail(self):
        return self.log.read_text()[-3000:]
