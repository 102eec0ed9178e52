"""What the classes of the TensorRT double share: a log of calls, lifetimes, and no attribute that was not promised."""

from __future__ import annotations

import enum
import weakref


class Wrong(AssertionError):
    """The double was used as TensorRT must not be."""


class State:
    """What one double remembers. ``faults`` are the things that go wrong, by name; ``log`` the calls in order."""

    def __init__(self, version, driver):
        self.version, self.driver = version, driver
        self.faults, self.log = set(), []
        self.living = weakref.WeakSet()  # builders, networks, parsers, configs, runtimes, engines, contexts
        self.logger = None  # weak: TensorRT does not keep it alive
        self.num_executions = 0
        self.timing = b""
        self.scale = 1.0  # of the features: 0.5 is a plan that computes something else

    def fails(self, fault):
        return fault in self.faults

    def say(self, message):
        self.logger().log(self.library.ILogger.ERROR, message)

    def check(self, ok, what):
        if not ok:
            raise Wrong(what)

    def called(self, name, /, **arguments):
        self.log.append((name, {key: plain(value) for key, value in arguments.items()}))
        self.check(self.logger is not None and self.logger() is not None, f"{name}: the logger is gone")
        self.check(self.driver.is_current(), f"{name}: the GPU's context is not current in this thread")

    def names(self):
        return [name for name, _ in self.log]


def plain(value):
    """What may be kept of an argument: the log must not keep TensorRT's objects alive."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value if isinstance(value, (int, str, enum.Enum, type(None))) else type(value).__name__


class Strict:
    """Takes no attribute that it was not given as a property, as pybind's objects do."""

    _state: State

    def __setattr__(self, name, value):
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)

    def _born(self, *parents):
        self._state.living.add(self)
        self._parents = [weakref.ref(parent) for parent in parents]
        self._names = [type(parent).__name__ for parent in parents]

    def _use(self, method, **arguments):
        self._state.called(f"{type(self).__name__}.{method}", **arguments)
        for parent, name in zip(self._parents, self._names, strict=True):
            self._state.check(parent() is not None, f"{type(self).__name__}.{method}: its {name} was destroyed before")


def kept(name):
    """A property that is read and written and remembered."""

    def read(self):
        return getattr(self, f"_{name}")

    def write(self, value):
        self._use(name, value=value)
        setattr(self, f"_{name}", value)

    return property(read, write)
