"""A pytest plugin that writes down what really ran on a GPU: tests, and kernels by name.

python -m pytest --gpu -p tests.gpu.plugin --gpu-report report.json ...
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kpl_engine.cuda import select
from kpl_engine.cuda.context import Context

SMALL_FIXTURES = {"checked_context", "seeded_context", "small_context"}


def pytest_addoption(parser):
    parser.addoption("--gpu-report", type=Path, help="where to write what ran on a GPU")
    parser.addoption(
        "--small-only",
        action="store_true",
        help="only tests of small sizes: those that the shim runs with its race check",
    )


def pytest_configure(config):
    config.pluginmanager.register(Report(), "gpu-report")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--small-only"):
        small = [item for item in items if SMALL_FIXTURES & set(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=[item for item in items if item not in small])
        items[:] = small


class Report:
    """Counts a test as run on a GPU when it passed and a driver was opened in its time, its fixtures included."""

    def __init__(self):
        self.opened, self.kernels, self.outcomes = 0, Counter(), Counter()
        self.ran_on_gpu, self.failed, self.skipped = [], [], []
        self._gpus = set()
        self._undo = pytest.MonkeyPatch()

    def pytest_sessionstart(self):
        genuine_open, genuine_launch = select.open_driver, Context.launch

        def open_driver(*args, **kwargs):
            driver = genuine_open(*args, **kwargs)
            self.opened += 1
            self._gpus.add(driver.info.name)
            return driver

        def launch(context, kernel, shape, *args):
            genuine_launch(context, kernel, shape, *args)
            self.kernels[kernel.name] += 1

        self._undo.setattr(select, "open_driver", open_driver)
        self._undo.setattr(Context, "launch", launch)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        before, failed = self.opened, len(self.failed)
        passed = self.outcomes["passed"]
        yield
        if self.opened > before and self.outcomes["passed"] > passed and len(self.failed) == failed:
            self.ran_on_gpu.append(item.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(f"{report.nodeid} ({report.when})")
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append([report.nodeid, reason])
        if report.when == "call":
            self.outcomes[report.outcome] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(f"{report.nodeid} (collection)")

    def pytest_sessionfinish(self, session):
        self._undo.undo()
        path = session.config.getoption("--gpu-report")
        if path is None:
            return
        found = {
            "num_passed": self.outcomes["passed"],
            "num_on_gpu": len(self.ran_on_gpu),
            "failed": self.failed,
            "skipped": sorted({reason for _, reason in self.skipped}),
            "num_skipped": len(self.skipped),
            "kernels": dict(sorted(self.kernels.items())),
            "gpus": sorted(self._gpus),
        }
        path.write_text(json.dumps(found))
