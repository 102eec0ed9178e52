"""Thousands of mutations of valid requests: each gets a clear refusal or an answer, none harms the process."""

import asyncio
import json
import os

import pytest

from tests.server.faults.requests import shuffled
from tests.server.faults.wire import Line

pytestmark = pytest.mark.usefixtures("unharmed")
MUTATIONS = int(os.environ.get("KPL_FAULTS", "2500"))  # 10000 in the long run
LINES = 8
# What a client did wrong, or a limit; never 500, which is a fault of the server.
ALLOWED = {200, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 426, 429, 431, 501, 505}


async def _all(port, work, check):
    """Each piece of ``work`` in turn on one of several connections."""
    todo = iter(list(enumerate(work)))

    async def one():
        line = Line(port)
        try:
            for number, (request, length) in todo:
                # A body that is shorter than promised is waited for; nobody else has to wait with us.
                seconds = 20.0 if length is None and "Expect" not in request.headers else 0.3
                data = request.wire(length)
                reply = await line.ask(data, seconds, request.method == "HEAD")
                if seconds < 1.0 or _is_framed_oddly(request):
                    await line.close()
                check(number, request, length, reply, seconds)
        finally:
            await line.close()

    await asyncio.gather(*(one() for _ in range(LINES)))


def _is_framed_oddly(request):
    return any(name in request.headers for name in ("Transfer-Encoding", "Content-Length", "Expect"))


def test_valid_requests_are_answered(server, whole_requests):
    def check(_, request, __, reply, ___):
        assert reply.status == 200, (request.name, reply)

    asyncio.run(_all(server.http, [(each, None) for each in whole_requests], check))


def test_mutated_requests(server, whole_requests, seed):
    seen = {}

    def check(number, request, length, reply, seconds):
        where = f"KPL_FAULTS_SEED={seed} KPL_FAULTS={MUTATIONS}: mutation {number} of {request.name!r}"
        wire = request.wire(length)
        if reply is None:
            # The server hung up on bytes that are no HTTP, or still waits for those that were promised.
            assert seconds < 1.0 or _is_framed_oddly(request) or not _is_plain(request), (where, wire[:300])
            return
        seen[reply.status] = seen.get(reply.status, 0) + 1
        assert reply.status in ALLOWED, (where, reply, wire[:300], wire[-300:])
        if reply.status != 200 and request.method != "HEAD" and reply.headers.get("content-type") == "application/json":
            error = json.loads(reply.body)["error"]
            assert error if isinstance(error, str) else error["message"], where

    asyncio.run(_all(server.http, shuffled(seed, whole_requests, MUTATIONS), check))
    assert seen.get(200, 0) > MUTATIONS // 50  # they stay near what is valid
    assert seen.get(400, 0) > MUTATIONS // 10


def _is_plain(request):
    """Whether the head is within what any HTTP server reads."""
    head = request.wire()[: -len(request.body) or None]
    return len(head) < 16_000 and all(31 < byte < 127 or byte in b"\r\n\t" for byte in head)


def test_what_went_wrong_is_told_by_name(server, whole_requests):
    """Named faults of the protocol, each with its own words."""
    json_request = next(each for each in whole_requests if each.name == "json")
    binary = next(each for each in whole_requests if each.name == "binary image")
    tree = json.loads(json_request.body)
    features = tree["inputs"][0]
    cases = [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"null", {}, 400),
        (b'{"inputs": NaN}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (json.dumps({"inputs": [{**features, "datatype": "FP64"}]}).encode(), {}, 400),
        (json.dumps({"inputs": [{**features, "shape": [2, 65]}]}).encode(), {}, 400),
        (json.dumps({"inputs": [{**features, "data": features["data"][:-1]}]}).encode(), {}, 400),
        (json.dumps({"inputs": [{**features, "data": [float("nan"), *features["data"][1:]]}]}).encode(), {}, 400),
        (json.dumps({**tree, "parameters": {"task": "nobody"}}).encode(), {}, 400),
        (json.dumps({**tree, "parameters": {"method": "nobody"}}).encode(), {}, 400),
        (json.dumps({**tree, "parameters": {"surprise": 1}}).encode(), {}, 400),
        (binary.body, {"Inference-Header-Content-Length": str(len(binary.body) + 1)}, 400),
        (binary.body[:-1], binary.headers, 400),
        (binary.body + b"x", binary.headers, 400),
    ]
    for body, headers, status in cases:
        found, said = server.get(json_request.path, body, {"Content-Type": "application/json", **headers})
        assert found == status, (body[:80], found, said)
        assert json.loads(said)["error"]
    for path in ("/v2/models/nobody/infer", json_request.path.replace("/infer", "/versions/2/infer")):
        assert server.get(path, json_request.body)[0] == 404
    assert server.get(json_request.path)[0] == 405
    assert "Traceback" not in server.tail()
