"""The rival that serves the same image.onnx: a real Triton, set up as one who knows it would.

It takes the tensors that kpl-engine takes (`pixels`, uint8) and gives the features; it classifies nothing. Batches of
up to `max_batch` form from whatever waits, without an added delay, and ONNX Runtime has one thread a core.

The virtual environment is made beforehand::

    python -m venv rivals-triton && rivals-triton/bin/pip install nvidia-pytriton onnxruntime

The wheel of nvidia-pytriton holds a whole Triton with its Python back end and no other, so the model is a Python one.
It is run by the server itself, without pytriton's own proxy, which costs a hop more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from serving_processes import Served, free_ports, served

_TRITON_MODEL = """
import json
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

def open_session(path, threads, spins):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

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


def start_triton(
    venv: Path,
    work: Path,
    name: str = "triton",
    *,
    max_batch: int,
    threads: int,
    spins: bool = False,
    instances: int = 1,
    queue: int = 0,
) -> Served:
    """Triton on free ports; ``queue`` is its max_queue_size (0: none, its default)."""
    home = next(venv.glob("lib/python3.*/site-packages"))
    server = home / "pytriton" / "tritonserver"
    root = work / name
    shutil.rmtree(root, ignore_errors=True)
    model = root / "rival"
    (model / "1").mkdir(parents=True)
    python = home.parent.name.removeprefix("python")
    backends = work / f"{name}-backends"  # Triton looks for the stub of this Python beside the back end
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
    return served(name, command, http, grpc, work / f"{name}.log", environment)


def version_in(venv: Path, package: str) -> str:
    """The version of ``package`` in a virtual environment, "" where it is not."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()
