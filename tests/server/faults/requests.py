"""Valid requests of every form a door takes, and mutations of them."""

import base64
import gzip
import json
import random
import struct
from dataclasses import dataclass, replace

import numpy as np

from tests.server.faults.process import MODEL

INFER = f"/v2/models/{MODEL}/infer"
WIDTH = 64
_ODD_NUMBERS = (0, -1, 1, 2, 3, 63, 255, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 64, 10**30, 0.5, 1e308)
_ODD_VALUES = (*_ODD_NUMBERS, None, True, "", "x", "\x00", "\ud800", "../../etc/passwd", "é" * 50, [], {}, [[]], [None])
_ODD_NAMES = ("BYTES", "FP32", "UINT8", "FP16", "BOOL", "image", "pixels", "features", "label", "task", "mode", "id")
_ODD_MODES = ("batch", "frozen", "stream", "kpl", "onzeta", "zeroshot", "inmap", "kpl_stream", "chest")


@dataclass(frozen=True)
class Request:
    """``json_bytes``: how much of the front of the body is JSON (0: none, -1: all of it)."""

    name: str
    method: str
    path: str
    headers: dict
    body: bytes
    json_bytes: int = 0

    def wire(self, length=None):
        """Its bytes; ``length`` is what Content-Length says, by default the truth."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {text}" for name, text in self.headers.items()]
        if self.method != "GET" or self.body:
            lines.append(f"Content-Length: {len(self.body) if length is None else length}")
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + self.body


def valid(pictures):
    """One request of each form; every one is answered 200."""
    rows = np.random.default_rng(3).standard_normal((2, WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    small = np.random.default_rng(4).integers(0, 256, (1, 24, 30, 3), np.uint8)
    first, second = pictures[:2]
    plain = {
        "id": "a1",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [2, WIDTH], "data": rows.ravel().tolist()}],
        "parameters": {"task": "chest", "method": "kpl", "mode": "batch", "top_k": 1},
        "outputs": [{"name": "label"}, {"name": "probabilities", "parameters": {"classification": 2}}],
    }
    text = json.dumps(plain).encode()
    return [
        Request("json", "POST", INFER, {"Content-Type": "application/json"}, text, -1),
        Request(
            "gzip",
            "POST",
            INFER,
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            gzip.compress(text, mtime=0),
        ),
        _binary("binary image", "image", "BYTES", [2], b"".join(_framed(each) for each in (first, second))),
        _binary("binary features", "features", "FP32", [2, WIDTH], rows.tobytes()),
        _binary("binary pixels", "pixels", "UINT8", list(small.shape), small.tobytes()),
        Request(
            "raw",
            "POST",
            INFER,
            {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"},
            first,
        ),
        _form("form", first, second),
        Request(
            "classify",
            "POST",
            "/v1/classify",
            {"Content-Type": "application/json"},
            json.dumps(
                {"images": [{"data": base64.b64encode(first).decode(), "name": "a"}], "task": "chest", "top_k": 1}
            ).encode(),
            -1,
        ),
        Request("metadata", "GET", f"/v2/models/{MODEL}", {}, b""),
        Request("ready", "GET", "/v2/health/ready", {}, b""),
    ]


def _framed(data):
    return struct.pack("<I", len(data)) + data


def _binary(name, tensor, datatype, shape, data):
    entry = {"name": tensor, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": "label", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [entry], "outputs": outputs, "parameters": {"mode": "batch"}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(name, "POST", INFER, headers, head + data, len(head))


def _form(name, *pictures):
    mark = "kplboundary"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="images"; filename="p{i}.png"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for i, data in enumerate(pictures)
    ]
    parts.append(f'--{mark}\r\nContent-Disposition: form-data; name="task"\r\n\r\nchest\r\n--{mark}--\r\n'.encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return Request(name, "POST", "/v1/classify", headers, b"".join(parts))


def mutate(rng, request):
    """(request, length): one to three changes; ``length`` other than None is a false Content-Length."""
    length = None
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(12)
        if kind < 4 and request.body:
            request = replace(request, body=mutate_bytes(rng, request.body))
        elif kind < 8 and request.json_bytes:
            request = _mutate_json(rng, request)
        elif kind == 8:
            request = replace(request, headers=_mutate_headers(rng, request))
        elif kind == 9:
            request = replace(request, path=_mutate_path(rng, request.path))
        elif kind == 10 and rng.random() < 0.2:
            request = replace(request, method=rng.choice(["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "BREW"]))
        elif kind == 11 and rng.random() < 0.2:
            length = rng.choice([0, 1, len(request.body) // 2, len(request.body) + 9, 1 << 40, -1, "x", "1, 2"])
    return request, length


def mutate_bytes(rng, data):
    """Flip, cut, double, insert, or overwrite with a number at the border of what fits."""
    data = bytearray(data)
    where = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0 and data:
        for _ in range(rng.choice([1, 1, 4, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[where:]
    elif kind == 2:
        del data[where : where + rng.choice([1, 4, 40])]
    elif kind == 3:
        data[where:where] = rng.randbytes(rng.choice([1, 4, 40]))
    elif kind == 4:
        data[where : where + 4] = struct.pack("<I", rng.choice([0, 1, 255, 1 << 31, (1 << 32) - 1, len(data)]))
    else:
        data += data[: rng.randrange(1, 400)]
    return bytes(data)


def _mutate_json(rng, request):
    size = len(request.body) if request.json_bytes < 0 else request.json_bytes
    try:
        found = json.loads(request.body[:size])
    except ValueError:
        return request
    _mutate_tree(rng, found)
    text = json.dumps(found, allow_nan=True).encode()
    if request.json_bytes < 0:
        return replace(request, body=text)
    headers = {**request.headers, "Inference-Header-Content-Length": str(len(text))}
    return replace(request, body=text + request.body[size:], headers=headers, json_bytes=len(text))


def _mutate_tree(rng, node):
    """Change one place of a JSON value, deep down more often than at the top."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        break
    kind = rng.randrange(4)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = rng.choice([*_ODD_VALUES, float("nan"), float("inf")])
    elif kind == 2:
        node[key] = rng.choice([*_ODD_NAMES, *_ODD_MODES])
    elif isinstance(node, dict):
        node[rng.choice([*_ODD_NAMES, "sequence_id", "triton_x", "binary_data_size"])] = node[key]
    else:
        node.insert(key, node[key])


def _mutate_headers(rng, request):
    headers = dict(request.headers)
    choice = rng.choice(
        [
            (
                "Inference-Header-Content-Length",
                rng.choice(["0", "1", "-1", "x", "", str(len(request.body) + 1), "9" * 30]),
            ),
            ("Content-Type", rng.choice(["", "text/plain", "application/json", "multipart/form-data", "a/b; c=\xff"])),
            ("Content-Encoding", rng.choice(["gzip", "deflate", "br", "gzip, gzip", "identity", ""])),
            ("x-request-id", rng.choice(["", "a" * 300, "\xe9", "ok", "a\tb"])),
            ("Accept-Encoding", rng.choice(["gzip", "deflate", "*;q=0", "gzip;q=x"])),
            ("Expect", "100-continue"),
            ("Origin", "https://example.org"),
            ("traceparent", rng.choice(["", "00-0-0-00", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"])),
            ("Authorization", "Bearer x"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", rng.choice(["0", "7"])),
            (rng.choice(["A", "x" * 200]), "y" * rng.choice([1, 5000, 70_000])),
        ]
    )
    headers[choice[0]] = choice[1]
    if rng.random() < 0.2:
        headers.pop(rng.choice(list(headers)))
    return headers


def _mutate_path(rng, path):
    return rng.choice(
        [
            path + "/",
            path + "?mode=" + rng.choice(["batch", "frozen", "stream", "x", "%00", "%ff"]),
            path + "?top_k=" + rng.choice(["0", "-1", "9" * 40, "x"]),
            path.replace(MODEL, rng.choice(["nobody", "..", "%2e%2e", "%00", "a" * 200, "../../etc/passwd"])),
            path + "%",
            path.replace("/v2", "//v2"),
            path + "?" + "a=b&" * rng.choice([1, 50]),
            path.replace("/infer", "/versions/" + rng.choice(["1", "2", "x", ""]) + "/infer"),
        ]
    )


def shuffled(seed, requests, count):
    """``count`` mutations with the place of their seed, the same for the same seed."""
    rng = random.Random(seed)
    return [mutate(rng, rng.choice(requests)) for _ in range(count)]
