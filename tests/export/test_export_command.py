"""The command: what it prints, what it refuses, and what it does not import."""

import argparse
import json
import subprocess
import sys

import pytest

from kpl_engine.cli import export_command
from kpl_engine.errors import ConfigError, InputError

pytestmark = pytest.mark.torch

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from kpl_engine.errors import MissingExtraError
from kpl_engine.export.exporter import export_encoder
try:
    export_encoder("ViT-B-32", "none", "out")
except MissingExtraError as error:
    print(error)
"""

HELP = """
import argparse, sys
from kpl_engine.cli import export_command
parser = argparse.ArgumentParser()
export_command.add_parser(parser.add_subparsers())
try:
    parser.parse_args(["export", "--help"])
except SystemExit as stop:
    heavy = {"torch", "open_clip", "onnx", "transformers"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy or stop.code else 0)
"""


def parse(*arguments):
    parser = argparse.ArgumentParser()
    export_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["export", *map(str, arguments)])


def run(*arguments):
    args = parse(*arguments)
    return args.run(args)


def python(code, cwd):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_export_prints_a_table_and_repeats_itself_byte_by_byte(vit_folder, vit_export, tmp_path, capfd):
    code = run("--model", f"local-dir:{vit_folder}", "-o", tmp_path / "out", "--max-batch", 7)
    printed = capfd.readouterr()
    assert code == 0
    lines = printed.out.splitlines()
    assert lines[0].startswith("tiny-vit (file:open_clip_model.safetensors), 24 dimensions")
    assert [line.split()[0] for line in lines[3:5]] == ["image", "text"]
    assert lines[-1].endswith(str(tmp_path / "out"))
    assert "trace image tower:" in printed.err
    for path in vit_export.path.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_json_is_alone_on_stdout(vit_folder, tmp_path, capfd):
    model = f"local-dir:{vit_folder}"
    run("--model", model, "--pretrained", "none", "-o", tmp_path / "out", "--max-batch", 2, "--no-text", "--json")
    printed = capfd.readouterr()
    record = json.loads(printed.out)
    assert record["encoder"]["pretrained"] == "none"
    assert record["encoder"]["text"] is None
    assert record["encoder"]["parity"]["image"]["max_abs"] < 5e-6
    assert "RANDOM WEIGHTS" in printed.err


def test_list(capsys):
    assert run("--list", "siglip2") == 0
    names = capsys.readouterr().out.split()
    assert "ViT-B-16-SigLIP2" in names
    assert all("SigLIP2" in name for name in names)
    assert run("--list", "no such thing") == 1


def test_missing_options():
    with pytest.raises(ConfigError, match="--model and -o"):
        run("--model", "ViT-B-32")


def test_errors_reach_the_caller_before_anything_is_written(vit_folder, tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        run("--model", f"local-dir:{vit_folder}", "--pretrained", tmp_path / "x.pt", "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["torch", "open_clip", "onnx", "onnxscript"])
def test_missing_extra_is_named(package, tmp_path):
    done = python(BLOCK.format(package=package), tmp_path)
    name = "open_clip_torch" if package == "open_clip" else package
    assert done.returncode == 0, done.stderr
    assert repr(name) in done.stdout
    assert 'pip install "kpl-engine[export]"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch(tmp_path):
    done = python(HELP, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--pretrained openai -o" in done.stdout
