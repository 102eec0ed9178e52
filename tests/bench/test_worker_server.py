"""Scenarios against a running server, and one that dies meanwhile."""

import os
import signal

import pytest

from kpl_engine.bench.settings import SCENARIOS
from tests.bench.made import fitted_bundle
from tests.bench.serving import FittedServer
from tests.bench.workers import run, settings_for

pytest.importorskip("mlperf_loadgen", reason="needs the extra bench")
pytest.importorskip("grpc", reason="needs the extra grpc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("bench") / "lung.kpl")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_dies_in_mid_run(bundle, tmp_path, scheme):
    with FittedServer(tmp_path, bundle) as server:

        def progress(what, share):
            if what == "Server" and share > 0 and server.process.poll() is None:
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait(30)

        settings = settings_for(bundle, "Server", url=server.url(scheme), duration_s=10.0, target_qps=40.0)
        (record,) = run(settings, progress=progress)
    assert "20 queries in a row had no answer" in record["error"]
    good = record["codes"]["200" if scheme == "http" else "OK"]
    assert record["latency"]["count"] == record["num_samples"] == good > 10
    assert record["num_failed"] >= 20
    assert record["is_valid"] is False
    assert "check_after" not in record
    assert any("could not be checked after the run" in note for note in record["notes"])


def test_a_running_server(bundle, tmp_path):
    with FittedServer(tmp_path, bundle) as server:
        for scheme, code, names in (("http", "200", SCENARIOS), ("grpc", "OK", ("MultiStream",))):
            for record in run(settings_for(bundle, *names, url=server.url(scheme), target_qps=60.0)):
                assert "error" not in record, record["error"]
                assert record["how"] == server.url(scheme)
                assert set(record["codes"]) == {code}
                assert record["check_after"]["is_right"]
                assert record["resources"]["of"] == "the client"
                assert "client and server share the cores of this machine" in record["notes"]
