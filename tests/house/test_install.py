"""Every way to install finds the whole package: modules, the export room, the embedded bundle, the compiled core."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_COMPILER = "/nowhere/c++"

compiled = pytest.mark.skipif(
    not any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))),
    reason="this machine has no C++ compiler, which the compiled core is built with",
)


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """What `command` prints; its failure is the test's."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tracked files alone, so that nothing lying about can make a build pass, in a path with a space."""
    copy = tmp_path_factory.mktemp("source") / "a checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(source, out, *settings, kind="--wheel", env=None):
    """The archive that `python -m build` makes, and what it said."""
    said = run(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", out, *settings, source, env=env)
    return next(out.iterdir()), said


@pytest.fixture(scope="module")
def pure_wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("pure"), "-Cwheel.cmake=false")[0]


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    archive, _ = build(source, folder / "archive", kind="--sdist")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def core_wheel(unpacked, tmp_path_factory):
    """Built from the source archive, which must hence hold all that the build needs."""
    return build(unpacked, tmp_path_factory.mktemp("core"), "-Ccmake.define.KPL_CORE=ON")[0]


def files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def expected_files():
    inside = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kpl_engine").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    kernels = ROOT / "kernels"
    for_gpus = [path.relative_to(kernels) for path in (*kernels.glob("*.cu"), *kernels.glob("device/*.cuh"))]
    inside |= {f"kpl_engine/cuda/kernels/{path}" for path in for_gpus}
    return inside | {f"kpl_engine/export/{path.name}" for path in (ROOT / "export").glob("*.py")}


def is_core(name):
    return name.startswith("kpl_engine/_core.") and name.endswith(".so")


def test_a_pure_wheel_holds_every_module_and_the_data_and_nothing_else(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert {name for name in files(pure_wheel) if ".dist-info/" not in name} == expected_files()


@compiled
def test_a_wheel_holds_the_compiled_core_besides(core_wheel):
    more = {name for name in files(core_wheel) if ".dist-info/" not in name} - expected_files()
    assert len(more) == 1
    assert all(map(is_core, more))
    assert "none-any" not in core_wheel.name


def test_without_a_compiler_the_install_says_so_and_succeeds(source, tmp_path):
    wheel, said = build(source, tmp_path, env={"CXX": NO_COMPILER})
    assert {name for name in files(wheel) if ".dist-info/" not in name} == expected_files()
    assert "kpl_engine._core is left out: no working C++ compiler" in said


def test_a_core_that_was_demanded_and_cannot_be_built_is_an_error(source, tmp_path):
    with pytest.raises(AssertionError, match=r"pip install -Cwheel.cmake=false"):
        build(source, tmp_path, "-Ccmake.define.KPL_CORE=ON", env={"CXX": NO_COMPILER})


def test_the_source_archive_holds_no_leftovers(unpacked):
    assert not any((unpacked / name).exists() for name in ("build", "dist", "tests", "benchmarks", ".ci"))


WORKS_AWAY_FROM_THE_SOURCE = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
import kpl_engine, kpl_engine.export
from kpl_engine import Engine
from kpl_engine.data import demo_bundle, demo_images
assert kpl_engine.__file__.startswith(sys.argv[1]) and kpl_engine.export.__file__.startswith(sys.argv[1])
if sys.argv[2] == "core":
    import kpl_engine._core
    assert kpl_engine._core.__file__.startswith(sys.argv[1])
else:
    assert importlib.util.find_spec("kpl_engine._core") is None
with Engine.load(demo_bundle()) as engine:
    print(engine.classify(sorted(demo_images().glob("*/*.*"))).labels)
"""


@pytest.mark.parametrize("kind", ["pure", pytest.param("core", marks=compiled)])
def test_an_installed_wheel_works_away_from_the_source(kind, request, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(request.getfixturevalue(f"{kind}_wheel")) as archive:
        archive.extractall(site)
    # -S keeps out what else is installed here; the dependencies come by path, without its import hooks.
    libraries = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    command = (sys.executable, "-S", "-c", WORKS_AWAY_FROM_THE_SOURCE, site, kind)
    assert "normal" in run(*command, env={"PYTHONPATH": libraries}, cwd=tmp_path)


@compiled
def test_an_editable_install_finds_the_core_and_files_added_later(source, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    site = tmp_path / "site"
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", site)
    settings = ("-Ccmake.define.KPL_CORE=ON", "-Ccmake.build-type=Debug")  # compiles in a third of the time
    run(sys.executable, "-m", "pip", "install", *options, *settings, "--editable", checkout)
    (checkout / "kpl_engine" / "solver" / "added.py").touch()
    (checkout / "export" / "added.py").touch()
    code = (
        f"import site; site.addsitedir({str(site)!r})\n"
        "import kpl_engine._core, kpl_engine.solver.added, kpl_engine.export.added as late\n"
        "print(kpl_engine._core.__file__); print(late.__file__)"
    )
    # The new site comes first: an editable install in the test environment has an import hook of the same name.
    libraries = os.pathsep.join([str(site), *(path for path in sys.path if path.endswith("site-packages"))])
    said = run(sys.executable, "-S", "-c", code, env={"PYTHONPATH": libraries}, cwd=tmp_path)
    assert said.splitlines()[0].startswith(str(site))
    assert said.splitlines()[1] == str(checkout / "export" / "added.py")
