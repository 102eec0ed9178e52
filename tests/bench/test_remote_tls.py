"""A server behind TLS: trusted by the authorities of this machine, or not measured."""

import shutil
import ssl
import subprocess
import urllib.request

import pytest

from kpl_engine.bench.server_model import find_model
from kpl_engine.bench.settings import BenchSettings
from kpl_engine.engine import Engine
from kpl_engine.errors import NotReadyError
from tests.bench.made import fitted_bundle
from tests.bench.serving import FittedServer

pytest.importorskip("grpc", reason="needs the extra grpc")


class SecureServer(FittedServer):
    """Asked for readiness without looking at its certificate."""

    def is_ready(self):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            address = f"https://127.0.0.1:{self.http}/v2/health/ready"
            with urllib.request.urlopen(address, timeout=20, context=context) as reply:
                return reply.status == 200
        except OSError:
            return False


def test_both_doors_trust_what_openssl_trusts(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench"
    made = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    bundle = fitted_bundle(tmp_path / "lung.kpl")
    options = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with Engine.load(bundle, "cpu") as engine, SecureServer(tmp_path, bundle, *options) as server:
        for scheme, port in (("https", server.http), ("grpcs", server.grpc)):
            settings = BenchSettings(bundle, url=f"{scheme}://127.0.0.1:{port}")
            with pytest.raises(NotReadyError, match=r"certificate|CERTIFICATE|handshake"):
                find_model(settings, engine)
            with monkeypatch.context() as trusting:
                trusting.setenv("SSL_CERT_FILE", str(certificate))
                assert find_model(settings, engine).name == "lung"
