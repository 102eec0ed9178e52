"""One server process for the tests of a module, and what it must answer after each of them."""

import os

import pytest

from tests.server.faults.process import Server
from tests.server.faults.requests import valid


@pytest.fixture(scope="session")
def seed():
    """Of everything random; ``KPL_FAULTS_SEED`` repeats a run."""
    return int(os.environ.get("KPL_FAULTS_SEED") or int.from_bytes(os.urandom(4), "little"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def unharmed(server, pictures):
    """After the test the same process answers as before, and holds no more than before."""
    expected = server.classify(pictures[0])
    before = server.usage()
    yield
    assert server.process.poll() is None, server.tail()
    server.wait_idle()
    assert server.is_ready()
    assert server.classify(pictures[0]) == expected
    server.settle(before)


@pytest.fixture(scope="session")
def whole_requests(pictures):
    return valid(pictures)
