"""A wheel holds the whole package: every module, the export room, the embedded bundle."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the tracked files alone, so that nothing lying about can make it pass."""
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((copy / "dist").glob("*.whl"))


def test_the_wheel_holds_every_module_and_the_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "kpl_engine").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    for path in (ROOT / "export").glob("*.py"):
        assert f"kpl_engine/export/{path.name}" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "export/")) for name in names)


def test_the_installed_wheel_works_away_from_the_source(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import kpl_engine, kpl_engine.export\n"
        "from kpl_engine import Engine\n"
        "from kpl_engine.data import demo_bundle, demo_images\n"
        "assert kpl_engine.__file__.startswith(sys.path[0]) and kpl_engine.export.__file__.startswith(sys.path[0])\n"
        "with Engine.load(demo_bundle()) as engine: print(engine.classify(sorted(demo_images().glob('*/*.*'))).labels)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "normal" in done.stdout
