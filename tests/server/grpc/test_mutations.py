"""Two thousand requests with something broken in them: each is answered with a status, and so is the next."""

import random

import grpc
import numpy as np

from kpl_engine.server.grpc.messages import message
from tests.server.grpc.conftest import SERVICE, TIMEOUT_S

NUM_MUTATIONS = 2000
AT_ONCE = 50
# Anything that may truly be wrong with a request. INTERNAL or UNKNOWN would be an error nobody thought of.
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


def seeds(picture):
    rows = np.eye(2, 64, dtype=np.float32)
    raw = message("ModelInferRequest")(model_name="demo", id="1", raw_input_contents=[rows.tobytes()])
    raw.inputs.add(name="features", datatype="FP32", shape=rows.shape)
    raw.parameters["method"].string_param = "proxy"
    raw.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    contents = message("ModelInferRequest")(model_name="demo")
    contents.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 2, 3]).contents.uint_contents.extend(range(12))
    image = message("ModelInferRequest")(model_name="demo", model_version="1")
    image.inputs.add(name="image", datatype="BYTES", shape=[1])
    image.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    image.parameters["top_k"].int64_param = 1
    return [each.SerializeToString() for each in (raw, contents, image)]


def mutate(data, chance):
    data = bytearray(data)
    # Mostly near an end, where the structure is: pictures and rows fill the rest.
    place = chance.choice([chance.randrange(min(120, len(data))), chance.randrange(len(data))])
    kind = chance.randrange(6)
    if kind == 0:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        del data[place : place + chance.randrange(1, 9)]
    elif kind == 4:
        data[place:place] = chance.randbytes(chance.randrange(1, 9))
    else:
        data += data[place : place + chance.randrange(1, 200)]
    return bytes(data)


def test_every_mutation_is_answered_with_a_status(door, pictures, caplog):
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    started = seeds(min(pictures, key=len))
    ask = door.channel.unary_unary(SERVICE + "ModelInfer")
    codes = {}
    for _ in range(0, NUM_MUTATIONS, AT_ONCE):
        sent = [mutate(chance.choice(started), chance) for _ in range(AT_ONCE)]
        for data, asked in [(data, ask.future(data, timeout=TIMEOUT_S)) for data in sent]:
            error = asked.exception()
            code = "OK" if error is None else error.code().name
            codes[code] = codes.get(code, 0) + 1
            assert code in EXPECTED, f"seed {seed}: {data!r}: {error}"
    assert codes["INVALID_ARGUMENT"] > NUM_MUTATIONS // 10
    assert not caplog.records
    assert all(asked is None for asked in [ask.future(data, timeout=TIMEOUT_S).exception() for data in started])
    assert door.service.inflight_bytes == 0


def test_mutations_in_a_stream_leave_it_open(door, pictures):
    chance = random.Random()
    started = seeds(min(pictures, key=len))
    sent = [mutate(chance.choice(started), chance) for _ in range(200)]
    ask = door.channel.stream_stream(SERVICE + "ModelStreamInfer")
    kind = message("ModelStreamInferResponse")
    answers = [kind.FromString(data) for data in ask(iter([*sent, started[0]]), timeout=TIMEOUT_S)]
    assert len(answers) == 201
    assert any(not each.error_message and each.infer_response.id == "1" for each in answers)
    assert all(each.error_message or each.infer_response.outputs for each in answers)
    assert isinstance(door.channel, grpc.Channel)
