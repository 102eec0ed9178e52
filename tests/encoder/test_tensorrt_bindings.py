"""Every name of TensorRT that the engine uses, held to NVIDIA's genuine bindings of three versions.

The bindings are imported over stub libraries, so neither TensorRT nor a GPU is needed. The double that the other tests
run on is held to them as well: what it accepts, they offer.
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest

from ..tensorrt_stubs import bindings
from ..tensorrt_stubs.double import CLASSES, SEVERITIES, enumerations

pytest.importorskip("onnx", reason="the builder needs the package onnx")

ROOT = Path(__file__).parents[2]
USERS = ("kpl_engine/encoder/tensorrt_engine.py", "kpl_engine/encoder/tensorrt_library.py", "export/compile_plan.py")
VERSIONS = sorted(bindings.PACKAGES)
# The bindings write some types as C++ has them, and lists with their elements (of which `surface.py` keeps the end)
RETURNS = {"list": ("list[str]", "List[str]", "Dims]"), "ParserError": ("IParserError",)}
PYTHON_ONLY = {"__bool__", "__init__"}


@pytest.fixture(scope="module", params=VERSIONS)
def genuine(request, tmp_path_factory):
    return bindings.surface(request.param, tmp_path_factory.mktemp("stubs"))


def chains(path):
    """Dotted names read from ``library``, ``trt`` or ``self._library`` in a source file."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            parts.append(inner.id)
        parts.reverse()
        if parts[:2] == ["self", "_library"]:
            parts = parts[1:]
        if parts and parts[0] in ("library", "trt", "_library") and len(parts) > 1:
            found.add(tuple(parts[1:]))
    return found


def test_every_name_of_the_library_is_there(genuine):
    used = set().union(*(chains(path) for path in USERS))
    assert {("Builder",), ("Runtime",), ("TensorIOMode", "INPUT"), ("BuilderFlag", "TF32")} <= used
    for name, *member in sorted(used):
        if name.startswith("__"):
            continue
        assert name in genuine["classes"] or name in genuine["enums"], name
        if not member:
            continue
        if name == "ILogger" and member[0] in SEVERITIES:
            assert member[0] in genuine["enums"]["Severity"]
        elif name in genuine["enums"]:
            assert member[0] in genuine["enums"][name], (name, member)
        else:
            assert member[0] in genuine["classes"][name], (name, member)


def test_the_double_has_the_numbers_of_the_genuine_enumerations(genuine):
    for name, members in {**enumerations(genuine["version"]), "Severity": SEVERITIES}.items():
        for key, number in members.items():
            assert genuine["enums"][name][key] == number, (name, key)
    has_level = "SAME_COMPUTE_CAPABILITY" in genuine["enums"]["HardwareCompatibilityLevel"]
    assert has_level == ("SAME_COMPUTE_CAPABILITY" in enumerations(genuine["version"])["HardwareCompatibilityLevel"])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_double_offers_nothing_that_the_genuine_class_lacks(genuine, kind):
    theirs = genuine["classes"][kind.__name__]
    ours = {name: value for name, value in vars(kind).items() if not name.startswith("_") or name in PYTHON_ONLY}
    for name, value in ours.items():
        if name == "__init__" and kind.__name__ in ("ITensor", "ParserError"):
            continue  # only TensorRT makes these
        assert name in theirs, f"{kind.__name__}.{name}"
        if isinstance(value, property):
            assert theirs[name]["kind"] == "property", f"{kind.__name__}.{name}"
            assert theirs[name]["is_writable"] or value.fset is None, f"{kind.__name__}.{name} cannot be written"
            continue
        assert theirs[name]["kind"] == "method", f"{kind.__name__}.{name}"
        assert_signature(f"{kind.__name__}.{name}", value, theirs[name]["overloads"])


def assert_signature(name, method, overloads):
    signature = inspect.signature(method)
    parameters = list(signature.parameters)
    matching = [returned for names, returned in overloads if names == parameters]
    assert matching, f"{name}: the double takes {parameters}, the genuine one {overloads}"
    wanted = signature.return_annotation
    if wanted is not inspect.Signature.empty and name.rsplit(".", maxsplit=1)[-1] != "__bool__":
        assert any(returned in RETURNS.get(str(wanted), (str(wanted),)) for returned in matching), (name, matching)


def test_the_comparison_would_find_a_wrong_name_a_wrong_parameter_and_a_wrong_type(genuine):
    theirs = genuine["classes"]["IBuilderConfig"]["set_memory_pool_limit"]["overloads"]

    def good(self, pool, pool_size) -> None: ...

    def renamed(self, pool, size) -> None: ...

    def retyped(self, pool, pool_size) -> bool: ...

    good.__annotations__["return"] = "None"
    renamed.__annotations__["return"] = "None"
    retyped.__annotations__["return"] = "bool"
    assert_signature("good", good, theirs)
    for wrong in (renamed, retyped):
        with pytest.raises(AssertionError):
            assert_signature("wrong", wrong, theirs)


@pytest.mark.parametrize("version", VERSIONS)
def test_our_classes_and_settings_work_on_the_genuine_bindings(version, tmp_path):
    found = json.loads(bindings.run(version, tmp_path, bindings.HERE / "under_genuine.py"))
    assert found["flags"] == (0 if version.startswith("11") else 2)
    assert found["messages"] == "said as Severity.ERROR; said as Severity.INTERNAL_ERROR"
    assert found["progress"] == [True, ["build: Building, step 1 of 4"]]
    assert found["is_genuine"] == [True, True]
    level = [["hardware_compatibility_level", "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"]]
    assert found["config"] == [
        ["MemoryPoolType.WORKSPACE", str(1 << 20)],
        ["builder_optimization_level", "3"],
        ["profiling_verbosity", "ProfilingVerbosity.DETAILED"],
        ["clear_flag", "BuilderFlag.TF32"],
        ["set_flag", "BuilderFlag.VERSION_COMPATIBLE"],
        ["set_flag", "BuilderFlag.EXCLUDE_LEAN_RUNTIME"],
        *([] if version.startswith("10.3") else level),
    ]
    assert f"TensorRT {version} did not start" in found["builder"]
    assert f"TensorRT {version} did not start" in found["runtime"]
