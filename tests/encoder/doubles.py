"""Stand-ins for a GPU and for ONNX Runtime on it: memory is the host's, every call is written down.

The numbers are real: the session runs on the CPU provider, on the addresses it was bound to.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import onnxruntime

from kpl_engine.cuda.base import DeviceInfo, Features

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SETTINGS = ("session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback")
RUN_SETTINGS = ("disable_synchronize_execution_providers", "gpu_graph_id")


class HostMemory:
    def __init__(self, nbytes):
        self._held = np.full(nbytes + 256, 0xA5, dtype=np.uint8)
        self.address = -(-self._held.ctypes.data // 256) * 256
        self.nbytes = nbytes

    def free(self):
        self._held = None


class HostDriver:
    """`Driver` on host memory; the one kernel it knows is `unit_rows`."""

    name = "host"
    notes = ()
    features = Features(has_graphs=False, has_cooperative=False, max_cluster=1)

    def __init__(self, ordinal=0):
        self.info = DeviceInfo(ordinal, "no GPU", (9, 0), 1, 1 << 15, 1 << 20, 1 << 30, 13000)
        self.calls = []
        self.is_closed = False
        self.stream_error = None

    def load(self, source):
        return SimpleNamespace(kernel=lambda name: SimpleNamespace(name=name))

    def allocate(self, nbytes):
        return HostMemory(nbytes)

    def pinned(self, shape, dtype):
        self.calls.append(("pinned", tuple(shape)))
        return np.empty(shape, dtype)

    def new_stream(self):
        return SimpleNamespace(handle=0x1234)

    def copy_in(self, address, array, stream):
        self.calls.append(("copy_in", array.nbytes))
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, array, address, stream):
        self.calls.append(("copy_out", array.nbytes))
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_on(self, target, source, nbytes, stream):
        self.calls.append(("copy_on", nbytes))
        ctypes.memmove(target, source, nbytes)

    def fill(self, address, byte, nbytes, stream):
        ctypes.memset(address, byte, nbytes)

    def launch(self, kernel, launch, args, stream):
        self.calls.append(("launch", kernel.name))
        address, n, d, start, max_error, found = (value.item() for value in args)
        rows = view(address, (n, d), np.float32)
        counts = view(found, (2,), np.uint64)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) <= max_error))
        good = np.setdiff1d(np.arange(n), bad)
        rows[good] = rows[good] / norms[good, None]
        with np.errstate(over="ignore"):
            counts[0] += np.uint64(len(bad))
        counts[1] = min([*(start + bad).tolist(), counts[1].item()])

    def new_event(self):
        return SimpleNamespace(is_recorded=False)

    def record(self, event, stream):
        event.is_recorded = True

    def elapsed_ms(self, start, end):
        assert start.is_recorded
        assert end.is_recorded
        self.calls.append(("wait",))
        return 0.0

    def synchronize(self, stream=None):
        self.calls.append(("synchronize",))
        if self.stream_error is not None:
            raise self.stream_error

    def close(self):
        self.is_closed = True


def view(address, shape, dtype):
    """Host memory at an address as an array."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=dtype).reshape(shape)


class RecordingBinding:
    """An `IOBinding` whose "cuda" is the host."""

    def __init__(self, session, log):
        self.genuine, self._log = session.io_binding(), log

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self._log.append(("bind_input", name, device_type, device_id, np.dtype(element_type), list(shape), buffer_ptr))
        self.genuine.bind_input(name, "cpu", 0, element_type, shape, buffer_ptr)

    def bind_output(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        self._log.append(("bind_output", name, device_type, device_id, np.dtype(element_type), list(shape), buffer_ptr))
        self.genuine.bind_output(name, "cpu", 0, element_type, shape, buffer_ptr)


class Behaviour:
    """What the double of ONNX Runtime does; a test changes what it is about."""

    def __init__(self):
        self.providers = [CUDA, CPU]
        self.assigned = {CUDA: ["MatMul", "Cast"]}
        self.tells_assignment = True
        self.start_error = self.run_error = None


class OlderSession:
    """An `InferenceSession` that says it runs on CUDA; ``behaviour`` says otherwise."""

    behaviour = Behaviour()
    log = ()

    def __init__(self, path_or_bytes, sess_options=None, providers=None, provider_options=None, **kwargs):
        settings = {key: found for key in SETTINGS if (found := entry(sess_options.get_session_config_entry, key))}
        self.log.append(("session", tuple(providers), tuple(map(dict, provider_options)), settings, kwargs))
        if self.behaviour.start_error is not None:
            raise self.behaviour.start_error
        if "session.disable_cpu_ep_fallback" in settings:  # the genuine session would find itself on the CPU
            sess_options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        self.genuine = onnxruntime.InferenceSession(path_or_bytes, sess_options, providers=[CPU])

    def disable_fallback(self):
        self.log.append(("disable_fallback",))

    def get_providers(self):
        return self.behaviour.providers

    def get_inputs(self):
        return self.genuine.get_inputs()

    def get_outputs(self):
        return self.genuine.get_outputs()

    def io_binding(self):
        return RecordingBinding(self.genuine, self.log)

    def run(self, output_names, input_feed, run_options=None):
        self.log.append(("run",))
        return self.genuine.run(output_names, input_feed, run_options)

    def run_with_iobinding(self, iobinding, run_options=None):
        given = {key: found for key in RUN_SETTINGS if (found := entry(run_options.get_run_config_entry, key))}
        self.log.append(("run_with_iobinding", given))
        if self.behaviour.run_error is not None:
            raise self.behaviour.run_error
        self.genuine.run_with_iobinding(iobinding.genuine)


class NewerSession(OlderSession):
    """One that tells where its nodes run, as since 1.24."""

    def get_provider_graph_assignment_info(self):
        parts = []
        for name, op_types in self.behaviour.assigned.items():
            nodes = [SimpleNamespace(op_type=op_type, name="", domain="") for op_type in op_types]
            parts.append(SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes))
        return parts


def entry(read, key):
    """A configuration entry, or None; the genuine readers raise for what was not set."""
    try:
        return read(key)
    except RuntimeError:
        return None


def onnxruntime_double(behaviour, log):
    """A module with the names the engine uses: those of the genuine one, but for the session."""
    base = NewerSession if behaviour.tells_assignment else OlderSession
    session = type("InferenceSession", (base,), {"behaviour": behaviour, "log": log})
    names = ("GraphOptimizationLevel", "SessionOptions", "ExecutionMode", "RunOptions")
    return SimpleNamespace(InferenceSession=session, **{name: getattr(onnxruntime, name) for name in names})


def of_kind(log, kind):
    """The calls of one name, without it."""
    return [call[1:] for call in log if call[0] == kind]


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 6, 3), dtype=np.uint8)


def expected_images(bundle, pixels):
    """What the graph of `make_bundle` gives, in float64."""
    raw = (pixels.mean(axis=(1, 2), dtype=np.float64) + 1) @ bundle.weights.astype(np.float64)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)
