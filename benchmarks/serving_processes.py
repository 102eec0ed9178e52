"""Servers as processes: start to ready, and what they use of the machine, children included."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

START_S = 60.0
STOP_S = 60.0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@dataclass
class Served:
    """A running server; ``with`` stops it by SIGTERM."""

    name: str
    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    ready_s: float
    log: Path

    def usage(self) -> dict[str, float]:
        """CPU seconds so far, resident memory in MiB, threads and open files, of the process and its children."""
        total = {"cpu_s": 0.0, "rss_mib": 0.0, "threads": 0.0, "fds": 0.0}
        for each in _tree(self.process.pid):
            with contextlib.suppress(psutil.Error), each.oneshot():
                times = each.cpu_times()
                total["cpu_s"] += times.user + times.system
                total["rss_mib"] += each.memory_info().rss / 2**20
                total["threads"] += each.num_threads()
                total["fds"] += each.num_fds()
        return total

    def post(self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """A POST to the HTTP door."""
        url = f"http://127.0.0.1:{self.http}{path}"
        request = urllib.request.Request(url, body, dict(headers or {}), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL to what is left after a minute; its exit code."""
        tree = _tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            code = -9
        for each in tree:
            with contextlib.suppress(psutil.Error):
                each.kill()
        self.process.wait()
        return code


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def served(
    name: str, command: list[str], http: int, grpc: int, log: Path, environment: Mapping[str, str] | None = None
) -> Served:
    """Start ``command`` and wait until its v2 door says that it is ready."""
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
    server = Served(name, process, http, grpc, 0.0, log)
    try:
        while not _is_ready(http):
            if process.poll() is not None or time.perf_counter() - began > START_S:
                tail = log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{name} did not start ({' '.join(command)}):\n{tail}")
            time.sleep(0.02)
    except BaseException:
        server.stop()
        raise
    server.ready_s = time.perf_counter() - began
    return server


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def start_kpl(bundles: list[Path], work: Path, options: list[str], log: str = "kpl.log") -> Served:
    """`kpl-engine serve` on free ports."""
    http, grpc, metrics = free_ports(3)
    command = [sys.executable, "-m", "kpl_engine", "serve", *map(str, bundles)]
    command += ["--device", "cpu", "--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    return served("kpl-engine", [*command, *options], http, grpc, work / log, dict(os.environ))


@dataclass
class ForeignCpu:
    """Cores that processes other than this one and its children kept busy, on average."""

    cores: float = 0.0


@contextlib.contextmanager
def foreign_cpu() -> Iterator[ForeignCpu]:
    """Who shares the machine during the block: above a few hundredths of a core its figures are not those of a quiet
    one."""
    found, begin, before = ForeignCpu(), time.perf_counter(), _busy_s()
    yield found
    after = _busy_s()
    others = (after[0] - before[0]) - (after[1] - before[1])
    found.cores = max(others / (time.perf_counter() - begin), 0.0)


def _busy_s() -> tuple[float, float]:
    """CPU seconds since the start: of the whole machine, of this process and its children."""
    times = psutil.cpu_times()
    own = 0.0
    for each in _tree(os.getpid()):
        with contextlib.suppress(psutil.Error):
            spent = each.cpu_times()
            own += spent.user + spent.system
    return times.user + times.nice + times.system, own


class Sampler:
    """Calls ``look`` every ``every_s`` seconds in a thread and keeps what it gave, with the time."""

    def __init__(self, look: Callable[[], dict[str, float]], every_s: float) -> None:
        self.samples: list[dict[str, float]] = []
        self._look, self._every = look, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        begin = time.perf_counter()
        while not self._stop.wait(self._every):
            self.samples.append({"at_s": time.perf_counter() - begin, **self._look()})

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()


def json_reply(reply: tuple[int, bytes]) -> Any:
    """The body of `Served.post`, parsed."""
    return json.loads(reply[1] or b"{}")
