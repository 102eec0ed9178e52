"""Plans in a bundle: the manifest vouches for them, and adding one keeps everything else."""

from __future__ import annotations

import pytest

from kpl_engine.bundle import Bundle, write_bundle
from kpl_engine.bundle.plans import add_plan
from kpl_engine.errors import BundleChangedError, BundleError

from .conftest import make_files, make_manifest

ENTRY = {"file": "plans/h200.plan", "parity_file": "plans/parity.safetensors", "graph": "tower0"}
FILES = {"plans/h200.plan": b"plan", "plans/parity.safetensors": b"pictures"}


def test_a_plan_is_added_and_everything_else_is_byte_for_byte_as_before(bundle_path):
    assert add_plan(bundle_path, "h200", ENTRY, FILES) == bundle_path
    with Bundle.open(bundle_path) as bundle:
        assert dict(bundle.manifest["plans"]["h200"]) == ENTRY
        for name, content in {**make_files(), **FILES}.items():
            assert bundle.read_bytes(name) == content


def test_the_same_name_is_replaced_and_its_old_file_goes(bundle_path):
    add_plan(bundle_path, "h200", ENTRY, FILES)
    renamed = {**ENTRY, "file": "plans/other.plan"}
    add_plan(bundle_path, "h200", renamed, {"plans/other.plan": b"new", "plans/parity.safetensors": b"pictures"})
    add_plan(bundle_path, "l4", ENTRY, FILES)
    with Bundle.open(bundle_path) as bundle:
        assert set(bundle.manifest["plans"]) == {"h200", "l4"}
        assert bundle.read_bytes("plans/other.plan") == b"new"
        assert bundle.read_bytes("plans/h200.plan") == b"plan"
    again = {**ENTRY, "file": "plans/third.plan"}
    add_plan(bundle_path, "h200", again, {"plans/third.plan": b"3", "plans/parity.safetensors": b"pictures"})
    with Bundle.open(bundle_path) as bundle:
        assert "plans/other.plan" not in bundle.names


def test_a_plan_of_another_graph_is_refused_and_nothing_is_changed(bundle_path):
    before = (bundle_path / "manifest.json").read_bytes()
    with pytest.raises(BundleChangedError, match="the image graph was replaced while a plan was built from it"):
        add_plan(bundle_path, "h200", {**ENTRY, "graph": "tower9"}, FILES)
    assert (bundle_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ([], "plans: expected an object"),
        ({"h200": "x"}, r"plans\.h200: expected an object"),
        ({"H 200": ENTRY}, r"plans\.H 200: expected a name of a-z"),
        ({"h200": {**ENTRY, "file": "plans/absent.plan"}}, r"plans\.h200\.file: expected one of the bundle's files"),
        ({"h200": {"file": "plans/h200.plan"}}, r"plans\.h200\.parity_file: expected one of the bundle's files"),
    ],
)
def test_a_manifest_with_plans_that_are_not_there_is_refused(tmp_path, plans, words):
    with pytest.raises(BundleError, match=words):
        write_bundle(tmp_path / "a.kpl", {**make_manifest(), "plans": plans}, {**make_files(), **FILES})
    assert list(tmp_path.iterdir()) == []
