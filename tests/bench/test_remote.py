"""A server as a target, through both doors: answers, refusals, patience, and the wrong server."""

import queue
import socket
import threading
import time

import numpy as np
import pytest

from kpl_engine.bench.address import Address
from kpl_engine.bench.remote import Payloads, RemoteTarget, ServerModel
from kpl_engine.bench.server_model import find_model
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.data import demo_bundle
from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.engine import Engine
from kpl_engine.errors import (
    ConfigError,
    NotReadyError,
    ServiceError,
    UnauthorizedError,
    UnknownModelError,
)
from tests.bench.made import fitted_bundle, pictures
from tests.bench.serving import FittedServer

PATIENCE_S = 20
BOUND = 5e-5  # as test_inprocess
TOKEN = "a-token-of-the-bench"
SCHEMES = ["http", "grpc"]

pytest.importorskip("grpc", reason="needs the extra grpc")
rng = np.random.default_rng()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("bench") / "lung.kpl")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    with FittedServer(folder, bundle, "--tokens-file", str(tokens)) as server:
        server.tokens = tokens
        yield server


@pytest.fixture(scope="module")
def engine(bundle):
    with Engine.load(bundle, "cpu") as engine:
        yield engine


def settings_for(server, scheme, **options):
    return BenchSettings(server.bundle, url=server.url(scheme), token_file=server.tokens, **options)


def target_for(server, scheme, payloads, **options):
    parameters = (("mode", "frozen"),)
    return RemoteTarget(ServerModel(Address.parse(server.url(scheme)), "lung", TOKEN, parameters), payloads, **options)


def codes_of(target, queries):
    ended = queue.Queue()
    for indices in queries:
        target.submit(indices, ended.put)
    return [ended.get(timeout=PATIENCE_S) for _ in queries]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["files", "pixels", "features"])
def test_answers_are_the_engines(server, engine, scheme, kind):
    files = pictures(9)
    given = {
        "files": files,
        "pixels": list(rng.integers(0, 256, (9, *engine.encoder.image_size, 3), dtype=np.uint8)),
        "features": list(engine.encode(files).features),
    }[kind]
    target = target_for(server, scheme, Payloads.of(kind, given))
    indices = rng.permutation(9)[:7].tolist()
    chosen = [given[i] for i in indices]
    source = {"features": np.stack(chosen)} if kind == "features" else {"images": chosen}
    expected = engine.classify(**source, mode="frozen")
    assert np.abs(target.answer_of(indices) - expected.probabilities).max() <= BOUND
    if kind == "files":
        assert np.abs(target.features_of(indices) - engine.encode(chosen).features).max() <= 2e-6
    good = "200" if scheme == "http" else "OK"
    assert codes_of(target, [[0], [5, 2, 3], [8]]) == [good] * 3
    target.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_refusals_keep_their_code(server, scheme):
    target = target_for(server, scheme, Payloads.of("files", [b"no picture", *pictures(3)]))
    assert codes_of(target, [[0]]) == ["400" if scheme == "http" else "INVALID_ARGUMENT"]
    many = codes_of(target, [[1, 2, 3]] * 200)  # 600 pictures where 64 are admitted
    full = "429" if scheme == "http" else "RESOURCE_EXHAUSTED"
    assert set(many) == {"200" if scheme == "http" else "OK", full}
    with pytest.raises(ServiceError, match="image 0"):
        target.answer_of([0])
    target.close()


def test_requests_wait_here_where_few_may_be_under_way(server):
    target = target_for(server, "http", Payloads.of("files", pictures(3)), at_once=2)
    assert set(codes_of(target, [[0, 1, 2]] * 200)) == {"200"}
    target.close()


class SilentServer:
    """Accepts, reads, and never answers; ``reply`` where it does."""

    def __init__(self, reply=b""):
        self.reply, self.connections = reply, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._held = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return
            self.connections += 1
            if self.reply:
                self._held[-1].recv(65536)
                self._held[-1].sendall(self.reply)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for each in self._held:
            each.close()


def model_at(port, scheme="http"):
    return ServerModel(Address.parse(f"{scheme}://127.0.0.1:{port}"), "lung", "")


def test_a_server_that_says_nothing_is_not_waited_for():
    with SilentServer() as silent:
        target = RemoteTarget(model_at(silent.port), Payloads.of("files", [b"a"]), patience_s=0.2)
        started = time.monotonic()
        assert codes_of(target, [[0], [0]]) == ["timed out"] * 2
        assert 0.2 <= time.monotonic() - started < 10
        target.close()


def test_closing_ends_what_is_under_way():
    with SilentServer() as silent:
        target = RemoteTarget(model_at(silent.port), Payloads.of("files", [b"a"]), patience_s=30.0)
        ended = queue.Queue()
        target.submit([0], ended.put)
        while not silent.connections:
            time.sleep(0.01)
        started = time.monotonic()
        target.close()
        assert time.monotonic() - started < 20  # and not when its patience is out
        assert ended.get(timeout=PATIENCE_S) == "timed out"
        assert not target._thread.is_alive()


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "broken"),
        (b"nonsense\r\n\r\n", "broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nshort", "timed out"),
    ],
)
def test_half_an_answer_is_none(reply, code):
    with SilentServer(reply) as silent:
        target = RemoteTarget(model_at(silent.port), Payloads.of("files", [b"a"]), patience_s=1.0)
        assert codes_of(target, [[0]]) == [code]
        target.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_there(scheme, engine):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    target = RemoteTarget(model_at(port, scheme), Payloads.of("files", [b"a"]))
    assert codes_of(target, [[0]]) == ["broken" if scheme == "http" else "UNAVAILABLE"]
    target.close()
    with pytest.raises(NotReadyError, match="is the server running"):
        find_model(BenchSettings(demo_bundle(), url=f"{scheme}://127.0.0.1:{port}"), engine)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_model_is_found_and_its_mode_named(server, engine, scheme):
    found = find_model(settings_for(server, scheme), engine)
    assert (found.name, found.token) == ("lung", TOKEN)
    assert dict(found.parameters) == {"task": "chest", "mode": "frozen"}
    assert found.max_batch == 8
    named = find_model(settings_for(server, scheme, mode="batch", method="zeroshot"), engine)
    assert dict(named.parameters) == {"task": "chest", "method": "zeroshot", "mode": "batch"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_model_is_not_measured(server, engine, scheme, tmp_path):
    with pytest.raises(UnknownModelError, match="this server has: lung"):
        find_model(settings_for(server, scheme, model="brain"), engine)
    with pytest.raises(ConfigError, match="1 to 128 letters"):
        find_model(settings_for(server, scheme, model="a/b"), engine)
    other = FakeEncoder(embed_dim=engine.encoder.embed_dim, image_size=engine.encoder.image_size)
    with (
        Engine(other, [engine.knowledge()]) as stranger,
        pytest.raises(ConfigError, match=r"is not the bundle: .*cosine of 0.98 or more .* got -?0\."),
    ):
        find_model(settings_for(server, scheme), stranger)
    wrong = tmp_path / "wrong"
    wrong.write_text("another-token-123456\n")
    with pytest.raises(UnauthorizedError, match="--token-file"):
        find_model(BenchSettings(server.bundle, url=server.url(scheme), token_file=wrong), engine)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_without_proxies_answers_in_another_mode(engine, scheme, tmp_path):
    with FittedServer(tmp_path, demo_bundle()) as plain:
        settings = BenchSettings(demo_bundle(), url=plain.url(scheme))
        with pytest.raises(ConfigError, match="no fitted proxies, so it answers each picture in mode 'batch'"):
            find_model(settings, engine)


def test_another_server_is_named(engine):
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with SilentServer(reply) as other, pytest.raises(ConfigError, match="is this the address of `kpl-engine serve`"):
        find_model(BenchSettings(demo_bundle(), url=f"http://127.0.0.1:{other.port}"), engine)
