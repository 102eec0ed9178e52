"""The README's examples are run as they stand; names of things a reader brings are the only change."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from kpl_engine.cli.main import build_parser, main
from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.imaging.sources import list_images

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


# Those that speak to a server are run by test_readme_serve.py.
ALONE = [code for code in blocks("python") if ":8000" not in code]


@pytest.mark.parametrize("code", ALONE, ids=lambda code: code.splitlines()[0])
def test_python_examples_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


@pytest.mark.torch
def test_the_five_lines_run(tmp_path, monkeypatch, capsys):
    """With the small checkpoint in place of ViT-L-14, and the bundled phantoms in place of films."""
    pytest.importorskip("torch", reason="exporting needs the export extra")
    monkeypatch.chdir(tmp_path)
    descriptions = json.loads(next(block for block in blocks("json") if "effusion" in block))
    Path("lung.json").write_text(json.dumps(descriptions))
    for name in descriptions:
        shutil.copytree(demo_images() / name, Path("Shenzhen") / name)
    shutil.copytree("Shenzhen", "films")
    (block,) = (text for text in blocks("bash") if "kpl-engine export" in text)
    brought = {"ViT-L-14 --pretrained openai": f"local-dir:{ROOT}/tests/phantom/phantom-clip-v1 --max-batch 5"}
    ran = []
    for line in block.splitlines():
        command = line.split("#")[0].strip()
        if command.startswith("pip install"):
            continue
        for reader, here in brought.items():
            command = command.replace(reader, here)
        assert command.startswith("kpl-engine "), f"an example this test does not know: {line}"
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
        ran.append(command.split()[1])
    assert ran == ["export", "knowledge", "classify", "eval"]


def test_every_command_the_readme_names_exists():
    parser = build_parser()
    known = set(next(action for action in parser._actions if action.dest == "command").choices)
    named = set(re.findall(r"(?:^|`)kpl-engine ([a-z]+)", README, flags=re.MULTILINE))
    assert named
    assert named <= known


def test_every_path_the_readme_links_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_stated_number_of_bundled_images_is_true():
    stated = int(re.search(r"classifies (\d+) bundled images", README)[1])
    assert stated == len(list_images(demo_images()))
    assert demo_bundle().is_dir()
