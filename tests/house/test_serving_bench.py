"""The load generator against servers whose delays are known, and the arithmetic of the server's figures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.bench.doors import Answer, HttpDoor
from kpl_engine.bench.messages import http_request

ROOT = Path(__file__).parents[2]
SERVICE_S = 0.01


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import load.client
    import load.loops
    import load.outcomes
    import load.payloads

    return load


@pytest.fixture
def benchmarks(load):
    """The parts of benchmarks/serving.py."""
    import serving_rounds
    import serving_soak

    return serving_rounds, serving_soak


class SlowServer:
    """Answers one request at a time, ``SERVICE_S`` each; refuses those beyond ``most`` waiting, at once."""

    def __init__(self, reply=b"{}", header_bytes=None, most=10**6):
        self._reply, self._header, self._most = reply, header_bytes, most
        self._waiting = 0
        self._loop = asyncio.new_event_loop()
        self._turn = asyncio.Lock()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
                status = await self._status()
                extra = f"Inference-Header-Content-Length: {self._header}\r\n" if self._header else ""
                writer.write(
                    f"HTTP/1.1 {status} x\r\n{extra}Content-Length: {len(self._reply)}\r\n\r\n".encode() + self._reply
                )

    async def _status(self):
        if self._waiting >= self._most:
            return 429
        self._waiting += 1
        async with self._turn:
            await asyncio.sleep(SERVICE_S)
        self._waiting -= 1
        return 200

    async def _stop(self):
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a closed transport lets go of its socket in the next round

    def __enter__(self):
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def http_send(load, port, codes=None):
    door = HttpDoor("127.0.0.1", port, "/infer")

    async def send(index):
        answer = await door.send(b"x" * 1000, None)
        if codes is not None:
            codes.append(answer.code)
        return answer.code, 1, None

    return door, send


def run_loop(load, port, loop):
    async def run():
        door, send = http_send(load, port)
        try:
            return await loop(send)
        finally:
            await door.close()

    return asyncio.run(run())


def test_the_open_loop_reports_the_queueing_that_a_closed_loop_hides(load):
    """One client of a closed loop sees the service time for ever. Arrivals at twice the capacity queue: after T
    seconds the next one waits T, so the median over a second is about half a second, 50 service times."""
    with SlowServer() as server:
        closed = run_loop(load, server.port, lambda send: load.loops.closed_loop(send, 1, 0.6, 0.1))
        opened = run_loop(load, server.port, lambda send: load.loops.open_loop(send, 2 / SERVICE_S, 1.0, 0.0, seed=3))
    assert SERVICE_S * 1e3 <= closed["latency"]["p50_ms"] < 3 * SERVICE_S * 1e3
    assert opened["codes"] == {"200": opened["requests"]}  # all were answered, however late
    assert opened["latency"]["count"] == opened["requests"] > 150
    assert opened["latency"]["p50_ms"] > 20 * SERVICE_S * 1e3
    assert opened["latency"]["max_ms"] > 700
    # the rate counts what was answered inside the window: the capacity, not the offer
    assert opened["images_per_s"] <= 1.05 / SERVICE_S < opened["offered_images_per_s"]


def test_a_generator_that_is_held_up_counts_it_as_latency(load):
    """Coordinated omission by the sender itself: it sleeps 50 ms in the middle, and the requests due meanwhile
    are late by what they waited."""

    async def send(index):
        if index == 20:
            time.sleep(0.05)  # blocks the loop, as a long collection would
        return "200", 1, None

    found = asyncio.run(load.loops.open_loop(send, 1000, 0.3, 0.0, seed=1))
    assert found["late_starts"] >= 20
    assert found["latest_start_ms"] > 40
    assert found["latency"]["max_ms"] >= found["latest_start_ms"] > found["latency"]["p50_ms"]


def test_refusals_are_counted_apart_from_answers(load):
    with SlowServer(most=2) as server:
        found = run_loop(load, server.port, lambda send: load.loops.open_loop(send, 3 / SERVICE_S, 0.6, 0.0, seed=5))
    assert set(found["codes"]) == {"200", "429"}
    assert found["latency"]["count"] == found["codes"]["200"]
    assert found["refusal"]["count"] == found["codes"]["429"] > 50
    assert found["refusal"]["p50_ms"] < SERVICE_S * 1e3 < found["latency"]["p50_ms"]


def test_what_is_never_answered_is_told(load):
    async def send(index):
        await asyncio.sleep(60)
        return "200", 1, None

    found = asyncio.run(load.loops.open_loop(send, 50, 0.2, 0.0, patience_s=0.05))
    assert found["codes"] == {"unanswered": found["requests"]}
    assert found["images_per_s"] == 0
    assert found["latency"]["count"] == 0


def test_a_closed_door_and_a_broken_reply_are_broken_requests(load):
    async def run():
        sock = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = sock.sockets[0].getsockname()[1]
        door, send = http_send(load, port)
        hung_up = (await send(0))[0]
        sock.close()
        await sock.wait_closed()
        gone = (await send(1))[0]
        await door.close()
        return hung_up, gone

    assert asyncio.run(run()) == ("broken", "broken")


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process(load):
    rng_rate, seconds = 200.0, 50.0
    arrivals = np.array(load.loops.poisson_arrivals(rng_rate, seconds, seed=11))
    # 10,000 expected, standard deviation 100; five of them
    assert abs(len(arrivals) - rng_rate * seconds) < 500
    gaps = np.diff(arrivals)
    assert (gaps >= 0).all()
    # exponential gaps: standard deviation = mean; its relative error is about 1 / sqrt(10,000), here ten times that
    assert gaps.std() * rng_rate == pytest.approx(1.0, abs=0.1)


def test_quantiles_are_values_that_were_seen_and_tails_need_samples(load):
    values = [float(i) for i in range(1, 1001)]
    quantile = load.outcomes.quantile
    assert [quantile(values, q) for q in (0.5, 0.99, 0.999)] == [500.0, 990.0, 999.0]
    assert quantile(values[:999], 0.999) is None
    assert quantile(values[:99], 0.99) is None
    assert quantile([], 0.5) is None


@pytest.mark.parametrize("phase", [0.0, 0.03, 0.07, 0.099])
def test_a_rate_does_not_depend_on_where_the_window_cuts_a_batch(load, phase):
    """Batches of 8 every 0.1 s are 80 images/s, wherever a window of 0.75 s begins; plain counting says 75 or 85."""
    Outcome, summarise = load.outcomes.Outcome, load.outcomes.summarise
    done = [0.1 * batch for batch in range(1, 40) for _ in range(8)]
    outcomes = [Outcome(at - 0.2, at - 0.2, at, "200") for at in done]
    assert summarise(outcomes, 1.0 + phase, 1.75 + phase)["images_per_s"] == pytest.approx(80, rel=1e-9)
    # and a server that stopped is not flattered: nothing after 2.0 in a window to 3.0
    stopped = [each for each in outcomes if each.done <= 2.0]
    assert summarise(stopped, 1.0 + phase, 3.0)["images_per_s"] < 50


@pytest.fixture
def rows():
    return np.random.default_rng().random((3, 4), dtype=np.float32)


def http_reply(rows, first=b""):
    outputs = [{"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(first)}}]
    size = {"binary_data_size": rows.nbytes}
    outputs.append({"name": "probabilities", "datatype": "FP32", "shape": list(rows.shape), "parameters": size})
    header = json.dumps({"outputs": outputs}).encode()
    return header + first + rows.tobytes(), len(header)


def grpc_reply(rows, first=b""):
    from tritonclient.grpc import service_pb2

    reply = service_pb2.ModelInferResponse()
    reply.outputs.add(name="label", datatype="BYTES", shape=[1])
    reply.outputs.add(name="probabilities", datatype="FP32", shape=rows.shape)
    reply.raw_output_contents.extend([first, rows.tobytes()])
    return reply.SerializeToString(), None


@pytest.mark.parametrize(("door", "reply"), [("http", http_reply), ("grpc", grpc_reply)])
def test_wrong_answers_are_found(load, rows, tmp_path, door, reply):
    payloads = load.payloads
    tensor = payloads.pixels_input("pixels", np.zeros((3, 5, 7, 3), np.uint8))
    payloads.PayloadSet.write(tmp_path, door, "lung", [(tensor, rows)], "probabilities", 1e-6, {"mode": "frozen"})
    known = payloads.PayloadSet(tmp_path)
    code = "200" if door == "http" else "OK"
    good = Answer(code, *reply(rows, b"\x02\0\0\0ok"))
    assert known.is_right(0, good)
    off = rows.copy()
    off[2, 3] += 1e-4
    assert not known.is_right(0, Answer(code, *reply(off)))
    assert not known.is_right(0, Answer(code, *reply(rows[:2])))
    assert not known.is_right(0, Answer(code, b"{}", None))


def test_requests_are_those_of_the_protocol(load, tmp_path):
    from tritonclient.grpc import service_pb2

    tensor = load.payloads.bytes_input("image", [b"abc", b""])
    body, length = http_request(tensor, {"mode": "frozen"})
    header = json.loads(body[:length])
    assert body[length:] == b"\x03\0\0\0abc\0\0\0\0"
    assert header["inputs"][0]["shape"] == [2]
    assert header["inputs"][0]["parameters"]["binary_data_size"] == len(body) - length
    parsed = service_pb2.ModelInferRequest.FromString(load.payloads.grpc_body("lung", tensor, {"top_k": 0}))
    assert parsed.raw_input_contents[0] == body[length:]
    assert parsed.parameters["top_k"].int64_param == 0


def test_the_generator_runs_as_its_own_process(load, rows, tmp_path):
    """End to end, and every reply is looked at: a server that gives the rows of another request is caught."""
    payloads = load.payloads
    tensor = payloads.bytes_input("image", [b"jpeg"] * 3)
    payloads.PayloadSet.write(tmp_path / "right", "http", "m", [(tensor, rows)], "probabilities", 1e-6, {})
    payloads.PayloadSet.write(tmp_path / "wrong", "http", "m", [(tensor, rows + 1)], "probabilities", 1e-6, {})
    with SlowServer(*http_reply(rows)) as server, load.client.Generator() as generator:
        job = {"host": "127.0.0.1", "port": server.port, "seconds": 0.4, "warm_s": 0.1}
        right = generator.ask(payloads=str(tmp_path / "right"), clients=2, **job)
        wrong = generator.ask(payloads=str(tmp_path / "wrong"), rate=50, **job)
    assert right["wrong"] == 0 < right["checked"]
    assert wrong["wrong"] == wrong["checked"] > 0
    assert right["images_per_s"] == pytest.approx(3 / SERVICE_S, rel=0.5)  # a busy machine sleeps longer
    assert right["generator_cpu_s"] > 0


def test_shares_are_ratios_within_a_round(benchmarks):
    """A round in which the machine was half as fast leaves the shares alone."""
    rounds, _ = benchmarks
    speeds = (1.0, 0.5, 1.0)
    usage = {"foreign_cpu_cores": 0.0}
    samples = {
        "bare decode": [{"images_per_s": 40 * v, "cpu_s_per_image": 0.05 / v, **usage} for v in speeds],
        "bare tensor": [{"images_per_s": 50 * v, "cpu_s_per_image": 0.04 / v, **usage} for v in speeds],
        "kpl http jpeg": [{"images_per_s": 36 * v, "server_cpu_s_per_image": 0.0625 / v, **usage} for v in speeds],
        "kpl http pixels": [{"images_per_s": 48 * v, "server_cpu_s_per_image": 0.05 / v, **usage} for v in speeds],
    }
    table = rounds.shares(samples)
    assert table["kpl http jpeg"]["share_of_bare"] == pytest.approx(36 / 40)  # of the loop that decodes
    assert table["kpl http jpeg"]["share_spread"] == pytest.approx([36 / 40] * 2)
    assert table["kpl http pixels"]["share_of_bare"] == pytest.approx(48 / 50)
    assert table["kpl http pixels"]["cpu_share_of_bare"] == pytest.approx(0.04 / 0.05)


def test_the_simulated_server_without_costs_is_the_queue_of_the_books(benchmarks):
    """M/D/1: one at a time, fixed service s, load r = 0.5. P(wait <= t) = (1 - r) exp(r t / s) for t < s (Erlang), so
    half the arrivals do not wait; the p99 of wait and service is near 3.5 s."""
    rounds, _ = benchmarks
    found = rounds.ideal_open_loop({"1": 0.01}, 50.0, seed=9)
    assert found["p50_ms"] == pytest.approx(10.0, rel=0.05)  # 200,000 arrivals: the median moves by under a percent
    assert 25 < found["p99_ms"] < 45
    # with batches that cost no more than one image the tail is two services at most: one runs, the next takes all
    free = rounds.ideal_open_loop({str(n): 0.01 for n in range(1, 65)}, 200.0, seed=9)
    assert free["p99.9_ms"] <= 20.0 + 1e-6


def test_the_slope_of_memory_has_an_interval_that_holds_the_truth(benchmarks):
    """Saw teeth and noise on a known slope; a start that fills caches is left out."""
    _, soak = benchmarks
    rng = np.random.default_rng()

    def samples(per_hour):
        return [
            {"at_s": 5.0 * i, "rss_mib": 500 + min(i, 100) + per_hour * 5 * i / 3600 + i % 7 + rng.normal(0, 2)}
            for i in range(720)
        ]

    growing, flat = soak.slope_per_hour(samples(60.0), "rss_mib"), soak.slope_per_hour(samples(0.0), "rss_mib")
    assert growing["low"] > 30 * 2**20  # a leak of 60 MiB an hour is no noise
    assert growing["per_hour"] == pytest.approx(60 * 2**20, rel=0.1)  # its standard error is near 1 %
    assert abs(flat["per_hour"]) < 6 * 2**20
    assert soak.slope_per_hour(samples(0.0)[:10], "rss_mib") is None
