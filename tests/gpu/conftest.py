"""Real GPUs only: without ``--gpu`` these tests are skipped. ``make test-gpu`` runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kpl_engine.cuda import select
from kpl_engine.cuda.context import Context


def pytest_collection_modifyitems(config, items):
    if config.getoption("--gpu"):
        return
    for item in items:
        if "/tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: make test-gpu"))


@pytest.fixture
def open_context() -> Iterator[Callable[..., Context]]:
    """Opens a context on a GPU, by default the first; all are closed after the test."""
    with ExitStack() as stack:
        yield lambda device="cuda": stack.enter_context(Context(select.open_driver(device)))


@pytest.fixture
def context(open_context) -> Context:
    return open_context()


@pytest.fixture
def small_context(open_context) -> Context:
    """For small sizes: tests with it also run under compute-sanitizer."""
    return open_context()
