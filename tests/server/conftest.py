"""What the tests of the server share."""

import pytest

from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.engine import Engine
from kpl_engine.imaging.sources import list_images
from tests.server.doubles import EngineService


@pytest.fixture(scope="session")
def demo_engine():
    with Engine.load(demo_bundle(), device="cpu") as engine:
        yield engine


@pytest.fixture
def service(demo_engine):
    """A double of the service over the demo bundle."""
    return EngineService(demo_engine)


@pytest.fixture(scope="session")
def pictures():
    """Bytes of a few bundled pictures."""
    return [path.read_bytes() for path in list_images(demo_images())[:12]]
