"""A real ``kpl-engine serve``: start, answers at every door, signals, and what keeps it from starting."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from ssl import CERT_NONE, create_default_context
from types import SimpleNamespace

import pytest

from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images

pytest.importorskip("uvicorn", reason="needs the serve extra")
grpc = pytest.importorskip("grpc", reason="needs the grpc extra")

TOKEN = "correct-horse-battery"
START_S = 60  # of one process on two busy cores; it takes about one second
PICTURE = list_images(demo_images())[0]


def command(*arguments):
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    return [sys.executable, "-m", "kpl_engine", "serve", *map(str, (*ports, "--device", "cpu", *arguments))]


@contextlib.contextmanager
def serving(*arguments, bundles=(), environment=None):
    """A process that said it is ready; killed at the end if it still runs. ``end()`` waits, code and stderr."""
    process = subprocess.Popen(
        command(*(bundles or [demo_bundle()]), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("KPL_")}, **(environment or {})},
    )
    killer = threading.Timer(START_S, process.kill)
    killer.start()

    def end():
        _, err = process.communicate(timeout=START_S)
        return process.returncode, err

    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), (line, process.communicate())
        words = line.split()
        found = {word.partition(":")[0]: word for word in words if "://" in word and not word.endswith("/metrics")}
        metrics = next((word for word in words if word.endswith("/metrics")), "")
        http = found.get("https") or found["http"]
        yield SimpleNamespace(process=process, line=line, http=http, metrics=metrics, found=found, end=end)
    finally:
        killer.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(url, body=None, **headers):
    """Status, headers, body."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    context = create_default_context()
    context.check_hostname, context.verify_mode = False, CERT_NONE
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def infer(server, **headers):
    headers = {"Content_Type": "image/png", "Inference_Header_Content_Length": "0", **headers}
    return ask(f"{server.http}/v2/models/demo/infer", PICTURE.read_bytes(), **headers)


def call_grpc(channel, method, token=""):
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"", timeout=20, metadata=metadata)


def test_every_door_answers_figures_move_and_a_signal_ends_it_well(tmp_path):
    with serving("--drain-accept", "100ms", "--log-format", "json", "--state-dir", tmp_path) as server:
        assert "models demo in" in server.line
        assert ask(f"{server.http}/v2/health/ready")[:1] == (200,)
        status, headers, body = infer(server, X_Request_Id="mine-1")
        assert (status, headers["x-request-id"]) == (200, "mine-1")
        assert json.loads(body)["model_name"] == "demo"
        assert "server" not in headers
        assert ask(f"{server.http}/v1/classify", PICTURE.read_bytes(), Content_Type="image/png")[0] == 200
        assert ask(f"{server.http}/v2/models/nobody", X_Request_Id="mine-2")[0] == 404
        with grpc.insecure_channel(server.found["grpc"].removeprefix("grpc://")) as channel:
            assert call_grpc(channel, "ServerReady") == b"\x08\x01"
        text = ask(server.metrics)[2].decode()
        assert 'kpl_images_total{model="demo"} 2.0' in text
        assert 'kpl_requests_total{code="200",door="http",operation="infer"} 1.0' in text
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end()
    assert code == 0, err
    records = [json.loads(line) for line in err.splitlines()]
    (mine,) = [record for record in records if record.get("request_id") == "mine-1"]
    assert {"door": "http", "operation": "infer", "code": "200", "num_images": 1, "client": "127.0.0.1"}.items() <= (
        mine.items()
    )
    (refused,) = [record for record in records if record.get("request_id") == "mine-2"]
    assert (refused["code"], refused["client"]) == ("404", "127.0.0.1")
    assert PICTURE.name not in err
    assert any("ready: " in record["message"] for record in records)


def test_requests_are_accepted_while_it_drains_and_finish():
    with serving("--drain-accept", "1s") as server:
        results = []
        is_over = threading.Event()

        def keep_asking():
            while not is_over.is_set():
                try:
                    results.append(infer(server)[0])
                except urllib.error.URLError as error:
                    # The door is shut: a new connection is refused, and none that was made is cut off.
                    results.append(type(error.reason).__name__)
                    return

        clients = [threading.Thread(target=keep_asking) for _ in range(4)]
        for client in clients:
            client.start()
        while len(results) < 8:
            is_over.wait(0.01)
        server.process.send_signal(signal.SIGTERM)
        was_unready = False
        while not was_unready and server.process.poll() is None:
            was_unready = ask(f"{server.http}/v2/health/ready")[0] == 503
        status, headers, _ = infer(server)  # not ready, and answered all the same
        code, err = server.end()
        is_over.set()
        for client in clients:
            client.join(20)
    assert (was_unready, status, headers["connection"], code) == (True, 200, "close", 0), err
    assert set(results) <= {200, 503, "ConnectionRefusedError"}, results
    assert results.count(200) > 8


def test_a_second_signal_ends_it_at_once():
    with serving("--drain-accept", "50s") as server:
        server.process.send_signal(signal.SIGINT)
        while ask(f"{server.http}/v2/health/ready")[0] == 200:
            pass
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 1


def fails(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=START_S, check=False)
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize("door", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named_with_its_flag(door):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, err = fails(demo_bundle(), f"--{door}-port", port)
    assert code == 2
    assert f"port {port}" in err
    assert f"--{door}-port" in err


def test_a_bundle_that_cannot_be_used_is_told(tmp_path):
    broken = tmp_path / "broken.kpl"
    shutil.copytree(demo_bundle(), broken)
    with (broken / "image.onnx").open("ab") as file:
        file.write(b"x")
    code, err = fails(broken)
    assert code == 2
    assert "image.onnx" in err
    code, err = fails(tmp_path / "missing.kpl")
    assert code == 2
    assert "missing.kpl" in err


def test_tokens_guard_both_doors_and_are_read_again_on_sighup(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"viewer:{TOKEN}\n")
    file.chmod(0o600)
    with serving("--tokens-file", file, "--drain-accept", "0", "--log-level", "debug") as server:
        assert [infer(server, **more)[0] for more in ({}, {"Authorization": "Bearer wrong-wrong-wrong"})] == [401, 401]
        assert infer(server, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(f"{server.http}/v2/health/ready")[0] == 200  # probes have no tokens
        with grpc.insecure_channel(server.found["grpc"].removeprefix("grpc://")) as channel:
            for token in ("", "wrong-wrong-wrong"):
                with pytest.raises(grpc.RpcError) as caught:
                    call_grpc(channel, "ServerMetadata", token)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert b"kpl-engine" in call_grpc(channel, "ServerMetadata", TOKEN)
        file.write_text("another-token-of-the-house\n")
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while infer(server, Authorization=f"Bearer {TOKEN}")[0] != 401:
            assert time.monotonic() < end
        assert infer(server, Authorization="Bearer another-token-of-the-house")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        code, err = server.end()
    assert code == 0
    assert "tokens read again" in err
    assert TOKEN not in err
    assert "wrong-wrong" not in err
    assert "another-token" not in err


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Folders with a pair each."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    folders = []
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-addext",
        ]
        made += ["subjectAltName=IP:127.0.0.1", "-subj", f"/CN={name}"]
        made += ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
        subprocess.run(made, check=True, capture_output=True)
        folders.append(folder)
    return folders


def peer_of(address):
    """The certificate a new connection is shown, DER."""
    host, port = address.rpartition("://")[2].split(":")
    context = create_default_context()
    context.check_hostname, context.verify_mode = False, CERT_NONE
    context.set_alpn_protocols(["h2"] if address.startswith("grpc") else ["http/1.1"])
    with socket.create_connection((host, int(port)), timeout=20) as plain, context.wrap_socket(plain) as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
        return secure.getpeercert(True)


def test_tls_at_both_doors_and_a_new_certificate_on_sighup(certificates, tmp_path):
    first, second = certificates
    for name in ("cert.pem", "key.pem"):
        shutil.copy(first / name, tmp_path / name)
    pair = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    with serving(*pair, "--drain-accept", "0") as server:
        assert server.http.startswith("https://")
        assert infer(server)[0] == 200
        trusted = grpc.ssl_channel_credentials((first / "cert.pem").read_bytes())
        with grpc.secure_channel(server.found["grpcs"].removeprefix("grpcs://"), trusted) as channel:
            assert call_grpc(channel, "ServerReady") == b"\x08\x01"
        old = peer_of(server.http)
        assert peer_of(server.found["grpcs"]) == old
        for name in ("cert.pem", "key.pem"):
            shutil.copy(second / name, tmp_path / name)
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while peer_of(server.http) == old or peer_of(server.found["grpcs"]) == old:
            assert time.monotonic() < end
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_pairs_that_do_not_fit_are_told(certificates, tmp_path):
    first, second = certificates
    code, err = fails(demo_bundle(), "--tls-cert", first / "cert.pem", "--tls-key", second / "key.pem")
    assert code == 2
    assert "does not belong" in err
    locked = tmp_path / "locked.pem"
    done = ["openssl", "pkey", "-in", first / "key.pem", "-out", locked, "-aes256", "-passout", "pass:x"]
    subprocess.run(done, check=True, capture_output=True)
    code, err = fails(demo_bundle(), "--tls-cert", first / "cert.pem", "--tls-key", locked)
    assert code == 2
    assert "has a pass phrase" in err
    code, err = fails(demo_bundle(), "--tls-cert", first / "cert.pem", "--tls-key", demo_bundle() / "manifest.json")
    assert code == 2
    assert "PEM" in err


def test_systemd_is_told_and_a_changed_bundle_is_loaded_on_sighup(tmp_path):
    bundle = tmp_path / "lung.kpl"
    shutil.copytree(demo_bundle(), bundle)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(START_S)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        options = ("--drain-accept", "0", "--no-grpc", "--no-model-control")  # that binds clients, not the operator
        with serving(*options, bundles=(bundle,), environment=environment) as server:
            assert inbox.recv(64) == b"READY=1"
            shutil.copytree(bundle, tmp_path / "new")
            (graph,) = (tmp_path / "new").glob("image.onnx")
            whole = graph.read_bytes()
            graph.write_bytes(whole[:1000])  # a copy that was cut off
            os.rename(bundle, tmp_path / "old")
            os.rename(tmp_path / "new", bundle)
            end, seen = time.monotonic() + 20, ""
            for told in ("model lung stays as it was", "model lung read again"):
                server.process.send_signal(signal.SIGHUP)
                while told not in seen:
                    assert time.monotonic() < end
                    seen += server.process.stderr.readline()
                (bundle / "image.onnx").write_bytes(whole)
            server.process.send_signal(signal.SIGTERM)
            assert server.end()[0] == 0
            assert inbox.recv(64) == b"STOPPING=1"
