"""A real GPU in trouble: too little memory, a kernel that fails, what closing gives back, a second device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kpl_engine.cuda.probe import probe
from kpl_engine.errors import CudaError, CudaMemoryError

from .workloads import WORKLOADS, clip_like

ROOT = Path(__file__).parents[2]


def used_mib(ordinal=0):
    """Memory in use on the whole GPU, as nvidia-smi counts it; reads only."""
    command = ["nvidia-smi", f"--id={ordinal}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_closing_gives_all_memory_back(open_context):
    open_context().close()  # the context of the driver itself stays
    before = used_mib()
    for _ in range(8):
        context = open_context()
        kept = [context.zeros((256 << 20,), np.uint8) for _ in range(4)]
        context.driver.synchronize()
        assert used_mib() - before >= 1000, "the figure does not show what is allocated"
        context.close()
        assert len(kept) == 4
    assert used_mib() - before < 256


def test_a_freed_array_makes_room_for_the_next(context):
    size = int(0.6 * context.driver.info.total_bytes)
    for _ in range(3):
        array = context.empty((size,), np.uint8)
        array.owner.free()


def test_too_little_memory_is_named_and_survived(context):
    with pytest.raises(CudaMemoryError, match=r"memory"):
        context.empty((2 * context.driver.info.total_bytes,), np.uint8)
    array = context.upload(np.arange(5.0))
    np.testing.assert_array_equal(context.download(array), np.arange(5.0))


def test_what_waits_for_the_host_cannot_be_captured(context):
    """The other side of the tests of graphs: a capture would not let it pass."""
    array = context.zeros((4,), np.float64)
    with pytest.raises(CudaError):
        context.driver.capture(context.stream, lambda: context.download(array))
    context.driver.synchronize()
    np.testing.assert_array_equal(context.download(array), np.zeros(4))


FAULT = """
import numpy as np
from kpl_engine.cuda.context import Context, DeviceArray
from kpl_engine.cuda.ops.unit_rows import UnitRows
from kpl_engine.cuda.select import open_driver
from kpl_engine.errors import CudaStickyError
context = Context(open_driver())
nowhere = DeviceArray(256, (8, 64), np.dtype(np.float32), None)
UnitRows(context, 0.1).scale(nowhere)
for attempt in (context.driver.synchronize, lambda: context.zeros((1,), np.uint8)):
    try:
        attempt()
    except CudaStickyError as error:
        print(type(error).__name__, error.code, error)
    else:
        print("NOT RAISED")
context.close()
context.close()
print("closed")
"""


def test_a_kernel_that_fails_is_named_and_the_next_process_works(context):
    done = subprocess.run(
        [sys.executable, "-c", FAULT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in lines] == ["CudaStickyError", "CudaStickyError", "closed"]
    assert lines[0].split()[1] in {"700", "717", "719"}  # illegal address, address space, launch failed
    np.testing.assert_array_equal(context.download(context.zeros((3,), np.float32)), np.zeros(3))


@pytest.mark.parametrize("name", ["dual", "primal", "closed_form"])
def test_another_device_gives_the_same(open_context, name):
    gpus = probe().gpus
    if len(gpus) < 2:
        pytest.skip(f"this machine has one GPU ({gpus[0].name})")
    found = []
    for ordinal in range(2):
        context = open_context(f"cuda:{ordinal}")
        assert context.driver.info.ordinal == ordinal
        workload = WORKLOADS[name](context)
        workload.start()
        workload.work()
        found.append(workload.read())
    for key in found[0]:
        if key.startswith("W"):  # GPUs of another size round sums in another order
            np.testing.assert_allclose(found[0][key], found[1][key], rtol=0, atol=1e-10)


def test_memory_of_one_context_is_read_by_another(open_context):
    """Both use the GPU's primary context, as torch, TensorRT and ONNX Runtime do."""
    rows = clip_like(5, 8, 2, seed=1)[0]
    one, other = open_context(), open_context()
    array = one.upload(rows)
    one.driver.synchronize(one.stream)
    np.testing.assert_array_equal(other.download(array), rows)
