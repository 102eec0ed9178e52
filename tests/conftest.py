"""What several rooms' tests share."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="run the tests of kernels on this machine's GPU")


@pytest.fixture(scope="session")
def open_clip():
    """open_clip itself, the independent side of every comparison with it."""
    pytest.importorskip("torch", reason="needs the export extra")
    pytest.importorskip("onnxscript", reason="needs the export extra")
    from kpl_engine.export.environment import prepare_torch

    prepare_torch()
    return pytest.importorskip("open_clip", reason="needs the export extra")
