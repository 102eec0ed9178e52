"""``kpl-engine build``: its options reach the builder, its report is readable, and what is missing is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from kpl_engine.cli import build_command
from kpl_engine.cli.main import main
from kpl_engine.errors import BackendUnavailableError

pytest.importorskip("onnx", reason="the builder needs the package onnx")

from kpl_engine.bundle import Bundle

from ..tensorrt_stubs.bundles import Workshop, pictures, write_tiny_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The command finds the double instead of TensorRT, and its driver instead of a GPU."""
    made = Workshop(tmp_path / "tiny.kpl", bundle_options={"has_knowledge": True})
    made.asked = []

    def open_driver(device):
        made.asked.append(device)
        return made.driver

    monkeypatch.setattr(build_command, "open_driver", open_driver)
    monkeypatch.setattr(build_command, "import_tensorrt", lambda: made.library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_a_plan_is_built_and_the_report_says_what_was_measured(shop, capsys, tmp_path):
    assert main(["build", str(shop.path), "--max-batch", "4", "--device", "cuda:1"]) == 0
    out, err = capsys.readouterr()
    assert shop.asked == ["cuda:1"]
    assert shop.driver.is_closed
    assert "plan nvidia-h100-80gb-hbm3-11.4.0.106-fp16: 0 MB, batches up to 4" in out
    assert "1-cos to float32" in out
    assert "(allowed 1e-05); layers by type: 1 fp16, 1 fp32" in out
    assert "build: Building, step 1 of 3" in err
    assert "compare with float32:" in err
    assert [path.suffix for path in (tmp_path / "cache" / "kpl-engine" / "timings").iterdir()] == [".timing"]
    with Bundle.open(shop.path) as bundle:
        assert set(bundle.manifest["plans"]) == {"nvidia-h100-80gb-hbm3-11.4.0.106-fp16"}


def test_the_record_is_json_and_options_reach_the_builder(shop, capsys, tmp_path):
    options = [
        "--precision",
        "fp32",
        "--max-batch",
        "3",
        "--portable",
        "--workspace-mb",
        "64",
        "--optimization-level",
        "5",
    ]
    assert main(["build", str(shop.path), *options, "--no-timing-cache", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"] == "nvidia-h100-80gb-hbm3-11.4.0.106-fp32-portable"
    assert record["is_portable"] is True
    assert record["profiles"] == [[1, 1, 1], [2, 3, 3]]
    assert record["parity"]["max_one_minus_cos"] <= 1e-6
    assert record["bytes"] > 0
    assert set(record["timings_s"]) >= {"build", "compare with float32", "write bundle"}
    assert not (tmp_path / "cache").exists()
    told = dict(shop.state.log)
    assert told["IBuilderConfig.set_memory_pool_limit"]["pool_size"] == 64 << 20
    assert told["IBuilderConfig.builder_optimization_level"]["value"] == 5


def test_images_are_read_and_labels_compared(shop, capsys, tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i, picture in enumerate(pictures(9)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    assert main(["build", str(shop.path), "--max-batch", "2", "--images", str(folder)]) == 0
    assert "same zero-shot labels: 100.0% of 9 images" in capsys.readouterr().out
    (folder / "broken.png").write_bytes(b"no picture")
    assert main(["build", str(shop.path), "--max-batch", "2", "--images", str(folder)]) == 2
    assert "broken.png" in capsys.readouterr().err


def test_more_images_than_are_needed_are_thinned_out_evenly(shop, capsys, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(build_command, "_MAX_IMAGES", 3)
    paths = []
    for i in range(7):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (6, 8), (i, i, i)).save(paths[-1])
    found = build_command._read_images(shop.path, paths)
    assert found[:, 0, 0, 0].tolist() == [0, 3, 6]
    assert "7 images were named, 3 of them are used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-batch", "0"], 2, "max_batch: expected a whole number from 1 to 1024, got 0"),
        (["--device", "cpu"], 2, "expected cuda or cuda:N, got 'cpu'"),
        (["--device", "auto"], 2, "expected cuda or cuda:N, got 'auto'"),
        (["--workspace-mb", "0"], 2, "workspace_bytes: expected at least 1 MiB"),
        (["--precision", "int8"], 2, "int8: expected at least 8 images of your own to set the ranges, got 0"),
    ],
)
def test_wrong_options_are_said_before_anything_is_built(shop, capsys, options, code, words):
    assert main(["build", str(shop.path), *options]) == code
    assert words in capsys.readouterr().err
    assert "Builder.__init__" not in shop.state.names()


def test_a_failed_build_is_one_line_and_leaves_the_bundle(shop, capsys):
    shop.state.faults.add("no plan")
    assert main(["build", str(shop.path)]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("kpl-engine build: TensorRT 11.4.0.106 could not build the plan: the builder gave up")
    assert shop.driver.is_closed
    with Bundle.open(shop.path) as bundle:
        assert "plans" not in bundle.manifest


def test_without_a_gpu_or_without_tensorrt_the_message_says_what_is_missing(shop, capsys, monkeypatch):
    def absent():
        raise BackendUnavailableError("TensorRT is not available. Install it")

    monkeypatch.setattr(build_command, "import_tensorrt", absent)
    assert main(["build", str(shop.path)]) == 1
    assert "kpl-engine build: TensorRT is not available. Install it" in capsys.readouterr().err
    assert shop.driver.is_closed
    monkeypatch.undo()
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    assert main(["build", str(shop.path)]) == 1
    assert "kpl-engine build: cuda:0 is not available: no NVIDIA driver" in capsys.readouterr().err


def test_the_help_says_that_plans_must_be_trusted(capsys):
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    text = capsys.readouterr().out
    assert "A plan holds code that runs on this machine" in text
    assert "example" in text


def test_the_help_and_a_refusal_need_no_torch(tmp_path):
    """With torch forbidden: building a plan is for machines that run the engine."""
    path = write_tiny_bundle(tmp_path / "tiny.kpl")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import kpl_engine.export.to_tensorrt, kpl_engine.export.quantize\n"
        "from kpl_engine.cli.main import main\n"
        f"sys.exit(main(['build', {str(path)!r}, '--device', 'cpu']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2, done.stderr
    assert "a plan is built on a GPU" in done.stderr


def test_reports_of_a_plan_without_known_types_are_readable():
    plan = types.SimpleNamespace(name="p", max_batch=1, parity={"layers": {}, "max_one_minus_cos": 1e-7, "gate": 1e-5})
    plan.parity["label_agreement"] = None
    report = types.SimpleNamespace(plan=plan, num_bytes=3_000_000, timings_s={"build": 61.0}, path="x.kpl")
    assert "3 MB, batches up to 1, 61 s" in build_command._summary(report)
    assert "layers by type: not told" in build_command._summary(report)
