"""The same for the gRPC door: mutated messages as bytes, so that also what is no protobuf arrives."""

import os
import random

import pytest

from tests.server.faults.process import MODEL
from tests.server.faults.requests import mutate_bytes

grpc = pytest.importorskip("grpc", reason="needs the grpc extra")
grpcclient = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
pytestmark = pytest.mark.usefixtures("unharmed")
MUTATIONS = int(os.environ.get("KPL_FAULTS", "2500"))
AT_ONCE = 16
ALLOWED = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
}
METHODS = ("ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics", "RepositoryIndex")


def _valid(pictures):
    """(method, message) pairs that are answered OK."""
    import numpy as np
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc._utils import _get_inference_request

    rows = np.random.default_rng(3).standard_normal((2, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    images = np.array(pictures[:2], dtype=np.object_)
    pixels = np.zeros((1, 20, 30, 3), np.uint8)
    made = []
    for name, datatype, data in (("features", "FP32", rows), ("image", "BYTES", images), ("pixels", "UINT8", pixels)):
        given = grpcclient.InferInput(name, list(data.shape), datatype)
        given.set_data_from_numpy(data)
        wanted = [grpcclient.InferRequestedOutput("label"), grpcclient.InferRequestedOutput("probabilities", 2)]
        request = _get_inference_request(
            MODEL, [given], "", "a1", wanted, 0, False, False, 0, 2_000_000, {"mode": "batch", "top_k": 1}
        )
        made.append(("ModelInfer", request.SerializeToString()))
    made.append(("ModelMetadata", pb.ModelMetadataRequest(name=MODEL).SerializeToString()))
    made.append(("ModelReady", pb.ModelReadyRequest(name=MODEL, version="1").SerializeToString()))
    return made


def _send(channel, method, message):
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", lambda data: data, lambda data: data)
    return call.future(message, timeout=20)


def _code(future):
    error = future.exception()
    return "OK" if error is None else error.code().name


def test_valid_messages_are_answered(server, pictures):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        for method, message in _valid(pictures):
            future = _send(channel, method, message)
            assert _code(future) == "OK", (method, future.exception())


def test_mutated_messages(server, pictures, seed):
    rng = random.Random(seed)
    valid = _valid(pictures)
    seen = {}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        for start in range(0, MUTATIONS, AT_ONCE):
            batch = []
            for number in range(start, min(start + AT_ONCE, MUTATIONS)):
                method, message = rng.choice(valid)
                for _ in range(rng.randint(1, 3)):
                    message = mutate_bytes(rng, message)
                if rng.random() < 0.05:
                    method = rng.choice(METHODS)
                batch.append((number, method, message, _send(channel, method, message)))
            for number, method, message, future in batch:
                code = _code(future)
                seen[code] = seen.get(code, 0) + 1
                where = f"KPL_FAULTS_SEED={seed} KPL_FAULTS={MUTATIONS}: mutation {number} of {method}"
                assert code in ALLOWED, (where, future.exception(), message[:300])
    assert seen.get("OK", 0) > 0
    assert seen.get("INVALID_ARGUMENT", 0) > 0
