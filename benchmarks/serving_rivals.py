"""Rivals that serve the same image.onnx: a real Triton, and MLServer. Set up as one who knows them would.

Both take the tensors that kpl-engine takes (`pixels`, uint8) and give the features; they classify nothing. Batches of
up to `max_batch` form from whatever waits, without an added delay, and ONNX Runtime has one thread a core.

The virtual environments are made beforehand::

    python -m venv rivals-triton   && rivals-triton/bin/pip install nvidia-pytriton onnxruntime
    python -m venv rivals-mlserver && rivals-mlserver/bin/pip install mlserver onnxruntime

The wheel of nvidia-pytriton holds a whole Triton with its Python back end and no other, so the model is a Python one.
It is run by the server itself, without pytriton's own proxy, which costs a hop more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from serving_processes import Served, free_ports, served

_SESSION = """
import onnxruntime

def open_session(path, threads, spins):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""

_TRITON_MODEL = (
    _SESSION
    + """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        value = lambda name: given[name]["string_value"]
        self.session = open_session(value("path"), int(value("threads")), value("spins") == "1")
        pixels = np.zeros((%(max_batch)d, 224, 224, 3), np.uint8)
        for size in range(1, %(max_batch)d + 1):
            self.session.run(None, {"pixels": pixels[:size]})

    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(each, "pixels").as_numpy() for each in requests]
        (features,) = self.session.run(None, {"pixels": np.concatenate(given) if len(given) > 1 else given[0]})
        replies, start = [], 0
        for rows in given:
            tensor = pb_utils.Tensor("features", features[start : start + len(rows)])
            replies.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            start += len(rows)
        return replies
"""
)

_TRITON_CONFIG = """
name: "rival"
backend: "python"
max_batch_size: %(max_batch)d
input [{ name: "pixels" data_type: TYPE_UINT8 dims: [224, 224, 3] }]
output [{ name: "features" data_type: TYPE_FP32 dims: [%(width)d] }]
instance_group [{ count: %(instances)d kind: KIND_CPU }]
dynamic_batching { %(queue)s }
parameters [
  { key: "path" value: { string_value: "%(onnx)s" } },
  { key: "threads" value: { string_value: "%(threads)d" } },
  { key: "spins" value: { string_value: "%(spins)d" } }
]
"""

_MLSERVER_MODEL = (
    _SESSION
    + """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Rival(MLModel):
    async def load(self):
        extra = self.settings.parameters.extra
        self.session = open_session(extra["path"], extra["threads"], extra["spins"])
        self.session.run(None, {"pixels": np.zeros((1, 224, 224, 3), np.uint8)})
        return True

    async def predict(self, payload):
        pixels = NumpyCodec.decode_input(payload.inputs[0])
        (features,) = self.session.run(None, {"pixels": pixels})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("features", features)])
"""
)


def start_triton(
    venv: Path, work: Path, *, max_batch: int, threads: int, spins: bool = False, instances: int = 1, queue: int = 0
) -> Served:
    """Triton on free ports; ``queue`` is its max_queue_size (0: none, its default)."""
    home = next(venv.glob("lib/python3.*/site-packages"))
    server = home / "pytriton" / "tritonserver"
    root = work / "triton"
    shutil.rmtree(root, ignore_errors=True)
    model = root / "rival"
    (model / "1").mkdir(parents=True)
    python = home.parent.name.removeprefix("python")
    backends = work / "triton-backends"  # Triton looks for the stub of this Python beside the back end
    shutil.rmtree(backends, ignore_errors=True)
    shutil.copytree(server / "backends", backends)
    shutil.copy(server / "python_backend_stubs" / python / "triton_python_backend_stub", backends / "python")
    (model / "1" / "model.py").write_text(_TRITON_MODEL % {"max_batch": max_batch})
    config = {
        "max_batch": max_batch,
        "width": 512,
        "instances": instances,
        "onnx": work / "lung.kpl" / "image.onnx",
        "threads": threads,
        "spins": spins,
        "queue": f"default_queue_policy {{ max_queue_size: {queue} }}" if queue else "",
    }
    (model / "config.pbtxt").write_text(_TRITON_CONFIG % config)
    http, grpc, metrics = free_ports(3)
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={root}"]
    command += [f"--backend-directory={backends}", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += [f"--metrics-port={metrics}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--log-info=false"]
    libraries = [str(home / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    libraries += [os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PYTHONPATH": str(home),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    return served("triton", command, http, grpc, work / "triton.log", environment)


def start_mlserver(venv: Path, work: Path, *, max_batch: int, threads: int, spins: bool = False) -> Served:
    """MLServer on free ports, its adaptive batching on, the model in its own process."""
    root = work / "mlserver"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    http, grpc, metrics = free_ports(3)
    (root / "rival_model.py").write_text(_MLSERVER_MODEL)
    extra = {"path": str(work / "lung.kpl" / "image.onnx"), "threads": threads, "spins": spins}
    model = {
        "name": "rival",
        "implementation": "rival_model.Rival",
        "parameters": {"extra": extra},
        "max_batch_size": max_batch,
        "max_batch_time": 0.001,  # its batching is off at 0
    }
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "host": "127.0.0.1"}
    (root / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 1}))
    (root / "model-settings.json").write_text(json.dumps(model))
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    return served(
        "mlserver", [str(venv / "bin" / "mlserver"), "start", str(root)], http, grpc, work / "mlserver.log", environment
    )


def version_in(venv: Path, package: str) -> str:
    """The version of ``package`` in a virtual environment, "" where it is not."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()
