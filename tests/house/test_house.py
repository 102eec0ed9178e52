"""The rules of the house that a machine can check."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import kpl_engine

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kpl_engine").rglob("*.py"))
MODULES = [
    info.name
    for info in pkgutil.walk_packages(kpl_engine.__path__, "kpl_engine.")
    if info.name not in {"kpl_engine.__main__", "kpl_engine._core"} and ".export" not in info.name
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_exists(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    if exported is None:
        assert not Path(module.__file__).read_text().strip(), f"{name} has code and no __all__"
        return
    assert len(set(exported)) == len(exported)
    for public in exported:
        assert hasattr(module, public), f"{name}.__all__ promises {public}"


def test_public_names_load_and_are_listed():
    assert set(kpl_engine.__all__) == {*kpl_engine._HOMES, "__version__"}
    for name in kpl_engine.__all__:
        assert getattr(kpl_engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kpl_engine.nothing


def test_promised_names_have_the_promised_signatures():
    import inspect

    from kpl_engine import Engine, learn_proxies, refine_labels, select_text_proxies

    def defaults(function):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }

    assert defaults(select_text_proxies)["k"] == 8
    wanted = {"method": "stable_greenkhorn", "tau_t": 0.01, "gamma": 0.0, "iters": 20, "prior": None}
    assert wanted.items() <= defaults(refine_labels).items()
    wanted = {"lr": 10.0, "iters": 2000, "tau_i": 0.04, "alpha": 0.6, "solver": "auto", "device": "cpu"}
    assert wanted.items() <= defaults(learn_proxies).items()
    assert defaults(Engine.load)["device"] == "auto"
    assert defaults(Engine.classify)["mode"] == "batch"


def test_import_contracts_hold():
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_everything_never_imports_torch():
    code = (
        "import sys, importlib\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'open_clip', 'onnx', 'transformers', 'scipy', 'tokenizers', 'pydicom', 'onnxruntime'}\n"
        "heavy |= {'cuda', 'cuda.core', 'cuda.bindings', 'pycuda', 'tensorrt'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, f"imported at package import: {done.stderr}"


def test_importing_the_package_is_nearly_free():
    done = run(sys.executable, "-c", "import sys, kpl_engine; sys.exit('numpy' in sys.modules)")
    assert done.returncode == 0, "importing kpl_engine must not import numpy"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_no_pickle_no_environment_outside_the_door(path):
    text = path.read_text()
    tree = ast.parse(text)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "python -O would drop it"
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}
    if "cli" not in path.parts:
        assert not names & {"environ", "getenv"} or path.name == "kernel_cache.py", "read at the door only"


def test_the_cache_of_kernels_asks_the_environment_for_the_cache_folder_alone():
    """Where a user's caches are is the system's to say, as where the home folder is."""
    text = (ROOT / "kpl_engine/cuda/kernel_cache.py").read_text()
    assert text.count("environ") == text.count('environ.get("XDG_CACHE_HOME"') == 1


def test_every_error_is_in_the_drawn_tree():
    from kpl_engine import errors

    for name in errors.__all__:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), errors.KplError)
