"""Contexts for tests of kernels: the host shim, or with ``--gpu`` the GPU of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kpl_engine.cuda.context import Context

from .shim import ShimDriver


def _open(request: pytest.FixtureRequest, **options: Any) -> Context:
    if request.config.getoption("--gpu"):
        from kpl_engine.cuda.select import open_driver

        return Context(open_driver())
    return Context(ShimDriver(**options))


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    """A context in which threads run in order, without the race check."""
    with _open(request) as opened:
        yield opened


@pytest.fixture
def checked_context(request: pytest.FixtureRequest) -> Iterator[Context]:
    """The same with every access checked for races and bounds; on a GPU as `context`."""
    with _open(request, is_checked=True) as opened:
        yield opened


@pytest.fixture(params=[0, 1, 2])
def seeded_context(request: pytest.FixtureRequest) -> Iterator[Context]:
    """Contexts with several orders of threads and blocks, each checked."""
    if request.config.getoption("--gpu") and request.param != 0:
        pytest.skip("a GPU chooses its own order")
    with _open(request, is_checked=True, seed=request.param) as opened:
        yield opened


@pytest.fixture
def open_context(request: pytest.FixtureRequest) -> Iterator[Callable[..., Context]]:
    """Opens contexts on pretended GPUs, with the options of `ShimDriver`; skipped with ``--gpu``."""
    if request.config.getoption("--gpu"):
        pytest.skip("needs a GPU that can be described at will: only the host shim is one")
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Context(ShimDriver(**options)))
