"""Every bad picture of the imaging tests through the server: a refusal that names it, or its place in the answer."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.server.faults.process import Server
from tests.server.faults.requests import INFER

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM")


@pytest.fixture(scope="module")
def server(tmp_path_factory, seed):
    with Server(tmp_path_factory.mktemp("server"), "--max-pixels", "1000000") as found:
        # Damage in a header makes sizes up to the limit, each in the arena of the thread that decodes it, and libraries
        # load for formats not seen before. That costs once; what a test may not do is make it grow.
        _send_damaged(found, np.random.default_rng((seed, 0)))
        found.wait_idle()
        yield found


def _encoded(size, name, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name)
    return stream.getvalue()


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(bytes(9))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + body


def _bad():
    """Pictures that cannot be used, by what is wrong with them (tests/imaging/test_decode.py has each)."""
    found = {
        "empty": b"",
        "text": b"this is a text called .png",
        "another RIFF": b"RIFF1234WAVE",
        "icon": _encoded((40, 30), "ICO"),
        "targa": _encoded((40, 30), "TGA"),
        "bomb": _bomb(60_000, 60_000),
        "too many pixels": _bomb(1001, 1000),
        "no pixels": _bomb(0, 5),
        "zeros": bytes(10_000),
    }
    for name in FORMATS:
        whole = _encoded((64, 64), name)
        for share in (0.1, 0.5, 0.9):
            found[f"{name} cut at {share}"] = whole[: int(len(whole) * share)]
    png = bytearray(_encoded((64, 64), "PNG"))
    png[200:260] = bytes(60)
    found["damaged"] = bytes(png)
    return found


BAD = _bad()


def _binary(pictures):
    data = b"".join(struct.pack("<I", len(each)) + each for each in pictures)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(pictures)]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def _json_classify(server, pictures):
    images = [{"data": base64.b64encode(each).decode(), "name": f"p{i}"} for i, each in enumerate(pictures)]
    return server.get("/v1/classify", json.dumps({"images": images}).encode(), {"Content-Type": "application/json"})


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_picture(server, pictures, name):
    bad = BAD[name]
    status, body = server.get(INFER, *_binary([pictures[0], bad]))
    assert status in (400, 413), (status, body)
    assert "image 1" in json.loads(body)["error"]
    if bad:
        raw = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
        assert server.get(INFER, bad, raw)[0] in (400, 413)
        status, body = _json_classify(server, [bad])
        assert status in (400, 413), (status, body)
        status, body = _json_classify(server, [pictures[0], bad, pictures[1]])
        assert status == 200, (status, body)
        first, middle, last = json.loads(body)["images"]
        assert first["label"]
        assert last["label"]
        assert middle["label"] is None
        assert "p1" in middle["error"]


@pytest.mark.usefixtures("unharmed")
def test_one_pixel_is_a_picture(server):
    for name in FORMATS:
        assert server.classify(_encoded((1, 1), name))["label"], name


def _send_damaged(server, rng, rounds=40):
    """Pictures of every format with four bytes of their first 400 replaced; each is answered or refused."""
    whole = [_encoded((24, 24), name) for name in FORMATS]
    for _ in range(rounds):
        pictures = []
        for each in whole:
            data = np.frombuffer(each, np.uint8).copy()
            data[rng.integers(0, min(len(data), 400), 4)] = rng.integers(0, 256, 4)
            pictures.append(data.tobytes())
        status, body = _json_classify(server, pictures)
        assert status in (200, 400, 413), (status, body)


@pytest.mark.usefixtures("unharmed")
def test_random_damage_is_never_a_fault_of_the_server(server, seed):
    _send_damaged(server, np.random.default_rng((seed, 1)))
