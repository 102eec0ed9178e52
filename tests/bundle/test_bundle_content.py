"""What goes in comes out, and any change in between is detected and named."""

from __future__ import annotations

import copy
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpl_engine.bundle import Bundle, pack, write_bundle
from kpl_engine.bundle.manifest import FileEntry, seal
from kpl_engine.bundle.tensors import dump_tensors, load_tensors
from kpl_engine.errors import BundleCorruptError, BundleError, BundleVersionError
from kpl_engine.strict_json import dump_canonical

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def content_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read_bytes(name) for name in bundle.names}


def test_round_trip_folder_and_zip(bundle_path, files, tmp_path):
    packed = pack(bundle_path, tmp_path / "packed.kpl")
    assert zipfile.is_zipfile(packed)
    for path in (bundle_path, packed):
        with Bundle.open(path) as bundle:
            assert content_of(bundle) == files
            assert bundle.manifest["encoder"]["embed_dim"] == 4
            assert bundle.manifest["created_with"].startswith("kpl-engine ")
            local = bundle.local_path("image.onnx")
            assert local.read_bytes() == files["image.onnx"]
            assert (local.parent / "image.onnx.data").read_bytes() == files["image.onnx.data"]
        assert local.exists() == (path == bundle_path)
        with pytest.raises(BundleError, match="closed"):
            bundle.read_bytes("image.onnx")


def test_manifest_is_read_only_and_arguments_are_not_changed(tmp_path, manifest, files):
    before = copy.deepcopy(manifest)
    bundle = write_bundle(tmp_path / "a.kpl", manifest, files)
    assert manifest == before
    with pytest.raises(TypeError):
        bundle.manifest["encoder"]["embed_dim"] = 5
    with pytest.raises(AttributeError):
        bundle.manifest["preprocess"]["mean"].append(1)


def test_equal_content_gives_equal_bytes(make_bundle, tmp_path):
    first, second = make_bundle("a.kpl"), make_bundle("b.kpl")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert pack(first, tmp_path / "a.zip").read_bytes() == pack(second, tmp_path / "b.zip").read_bytes()


def test_files_from_disk_and_from_another_bundle(bundle_path, manifest, files, tmp_path):
    source = tmp_path / "graph"
    source.write_bytes(b"from disk")
    with Bundle.open(bundle_path) as other:
        mixed = dict.fromkeys(other.names, other) | {"image.onnx": source}
        bundle = write_bundle(tmp_path / "b.kpl", manifest, mixed)
    assert content_of(bundle) == {**files, "image.onnx": b"from disk"}


@FUZZ
@given(data=st.data())
def test_every_flipped_byte_of_a_folder_is_named(bundle_path, data):
    names = sorted(str(p.relative_to(bundle_path)) for p in bundle_path.rglob("*") if p.is_file() and p.stat().st_size)
    name = data.draw(st.sampled_from(names))
    original = (bundle_path / name).read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] ^= data.draw(st.integers(1, 255))
    (bundle_path / name).write_bytes(damaged)
    try:
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle_path)
        assert name in str(caught.value)
        if name != "manifest.json":
            with Bundle.open(bundle_path, verify=False) as lazy:
                for use in (lazy.read_bytes, lazy.local_path, lazy.tensors):
                    with pytest.raises(BundleCorruptError, match=name):
                        use(name)
    finally:
        (bundle_path / name).write_bytes(original)


@FUZZ
@given(data=st.data())
def test_a_flipped_byte_of_a_zip_is_an_error_or_changes_nothing(bundle_path, files, tmp_path, data):
    packed = tmp_path / "packed.zip"
    if not packed.exists():
        pack(bundle_path, packed)
    damaged = bytearray(packed.read_bytes())
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with suppress(BundleError), Bundle.open(tmp_path / "damaged.zip") as bundle:
        assert content_of(bundle) == files


def test_a_flipped_content_byte_of_a_zip_names_its_file(bundle_path, files, tmp_path):
    packed = pack(bundle_path, tmp_path / "packed.zip")
    data = packed.read_bytes()
    for name in ("image.onnx", "text.onnx", "image.onnx.data"):
        damaged = bytearray(data)
        damaged[data.index(files[name])] ^= 1
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with pytest.raises(BundleCorruptError, match=name):
            Bundle.open(tmp_path / "damaged.zip")


@pytest.mark.parametrize("change", [b"", b"short", b"image graph 0 " * 41])
def test_truncated_and_grown_files_are_named(bundle_path, change):
    (bundle_path / "image.onnx").write_bytes(change)
    for verify in (True, False):
        with pytest.raises(BundleCorruptError, match=r"image\.onnx' is damaged"):
            Bundle.open(bundle_path, verify=verify)


def test_missing_and_unlisted_files_are_named(bundle_path):
    (bundle_path / "text.onnx").rename(bundle_path / "other.onnx")
    with pytest.raises(BundleCorruptError, match=r"text\.onnx' is missing"):
        Bundle.open(bundle_path)
    (bundle_path / "text.onnx").write_bytes((bundle_path / "other.onnx").read_bytes())
    with pytest.raises(BundleCorruptError, match=r"other\.onnx' is not listed"):
        Bundle.open(bundle_path)
    (bundle_path / "other.onnx").unlink()
    (bundle_path / "plans").mkdir()
    with pytest.raises(BundleCorruptError, match="plans' is empty"):
        Bundle.open(bundle_path)


def test_damage_after_opening_is_detected(bundle_path):
    with Bundle.open(bundle_path) as bundle:
        assert bundle.local_path("text.onnx").is_file()
        (bundle_path / "text.onnx").write_bytes(b"text graph 1")
        for use in (bundle.read_bytes, bundle.local_path):
            with pytest.raises(BundleCorruptError, match=r"text\.onnx"):
                use("text.onnx")


def test_a_half_bundle_never_loads(bundle_path):
    (bundle_path / "manifest.json").unlink()
    with pytest.raises(BundleCorruptError, match=r"no manifest\.json"):
        Bundle.open(bundle_path)
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.open(bundle_path / "nothing")


def reseal(path: Path, **changes) -> None:
    """Change fields of a manifest and make its checksum right again, as an attacker could."""
    import hashlib

    content = json.loads((path / "manifest.json").read_bytes())
    content.update(changes)
    content.pop("manifest_sha256")
    content["manifest_sha256"] = hashlib.sha256(dump_canonical(content)).hexdigest()
    (path / "manifest.json").write_bytes(dump_canonical(content))


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, True, 1.0])
def test_unknown_versions_are_refused_with_advice(bundle_path, version):
    reseal(bundle_path, format_version=version)
    with pytest.raises(BundleVersionError, match=r"reads version 1.*[Bb]uild the bundle again"):
        Bundle.open(bundle_path)


def test_resealed_but_unchanged_manifest_loads(bundle_path):
    reseal(bundle_path)
    Bundle.open(bundle_path).close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{\n  "created', b'{ \n  "created'),
        (b'"format_version": 1', b'"format_version": 1,\n  "format_version": 1'),
        (b'"embed_dim": 4', b'"embed_dim": NaN'),
        (b'"embed_dim": 4', b'"embed_dim": 1e999'),
        (b'"embed_dim": 4', b'"embed_dim": ' + b"9" * 5000),
        (b'"embed_dim": 4', b'"embed_dim": ' + b"[" * 100000 + b"]" * 100000),
        (b'"embed_dim": 4', b'"embed_dim": "\\ud800"'),
        (b'"tiny"', b'"t\\u0069ny"'),
        (b'"tiny"', b'"t\xffny"'),
        (b'"image.onnx": {', b'"image.onnx": 7, "x": {'),
    ],
)
def test_a_manifest_not_in_its_one_form_is_refused(bundle_path, old, new):
    path = bundle_path / "manifest.json"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))
    with pytest.raises(BundleCorruptError, match=r"manifest\.json"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("encoder", "embed_dim"), 0, "encoder.embed_dim"),
        (("encoder", "embed_dim"), True, "encoder.embed_dim"),
        (("encoder", "fingerprint"), None, "encoder.fingerprint"),
        (("encoder", "image"), None, "encoder.image"),
        (("encoder", "image", "file"), "other.onnx", "encoder.image.file"),
        (("encoder", "image", "data"), ["gone.data"], "encoder.image.data"),
        (("encoder", "image", "height"), 2.5, "encoder.image.height"),
        (("encoder", "text", "context_length"), "77", "encoder.text.context_length"),
        (("encoder", "text"), [], "encoder.text"),
        (("preprocess",), None, "preprocess"),
        (("preprocess", "mean"), [0, 0], "preprocess.mean"),
        (("preprocess", "std"), [1, 0, 1], "preprocess.std"),
        (("knowledge",), {"lung": {"file": "gone"}}, "knowledge.lung.file"),
        (("knowledge",), {"../lung": {"file": "text.onnx"}}, "knowledge"),
        (("proxies",), {"lung": 3}, "proxies.lung"),
        (("defaults",), 3, "defaults"),
    ],
)
def test_wrong_fields_are_named_on_the_way_in_and_out(tmp_path, bundle_path, manifest, files, place, value, named):
    node = manifest
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(BundleError, match=named.replace(".", r"\.")):
        write_bundle(tmp_path / "b.kpl", manifest, files)
    assert os.listdir(tmp_path) == ["a.kpl"]
    reseal(bundle_path, **manifest)
    with pytest.raises(BundleCorruptError, match=named.replace(".", r"\.")):
        Bundle.open(bundle_path)


def test_image_only_and_encoderless_bundles_are_fine(tmp_path, manifest, files):
    manifest["encoder"]["text"] = None
    write_bundle(tmp_path / "image.kpl", manifest, files).close()
    write_bundle(tmp_path / "none.kpl", {}, {}).close()
    assert Bundle.open(tmp_path / "none.kpl").names == ()


def test_a_manifest_that_is_no_json_is_refused_at_writing(tmp_path, manifest, files):
    for value in (float("nan"), {1: 2}, object()):
        with pytest.raises(BundleError, match="manifest"):
            write_bundle(tmp_path / "b.kpl", {**manifest, "extra": value}, files)
    assert os.listdir(tmp_path) == []


def test_seal_is_over_the_form_without_itself(bundle_path):
    text = (bundle_path / "manifest.json").read_bytes()
    content = json.loads(text)
    entries = {name: FileEntry(e["sha256"], e["bytes"]) for name, e in content["files"].items()}
    assert seal(content, entries, content["created_with"]) == text


def test_tensors_round_trip_deterministically():
    rng = np.random.default_rng(3)
    arrays = {
        "b": rng.normal(size=(3, 4)).astype(np.float32),
        "a": np.arange(5),
        "c": np.array([], np.float64),
        "d": np.array(True),
    }
    metadata = {"z": "ü\n", "a": "1"}
    data = dump_tensors(arrays, metadata)
    assert data == dump_tensors(dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    loaded, texts = load_tensors(data, "x")
    assert texts == metadata
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    strided = rng.normal(size=(6, 4)).astype(">f4")[::2].T
    np.testing.assert_array_equal(
        load_tensors(dump_tensors({"s": strided.astype(np.float32)}, {}), "x")[0]["s"], strided
    )
    with pytest.raises(BundleError, match="complex128"):
        dump_tensors({"c": np.ones(2, complex)}, {})


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes_are_no_tensors(data):
    with pytest.raises(BundleCorruptError, match="safetensors"):
        load_tensors(data, "x")
