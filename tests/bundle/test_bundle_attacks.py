"""Bundles made to harm: each is refused before a byte of it is used."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import warnings
import zipfile

import pytest

from kpl_engine.bundle import Bundle, pack, write_bundle
from kpl_engine.errors import BundleCorruptError, BundleError, BundlePathError
from kpl_engine.strict_json import dump_canonical

BAD_NAMES = [
    "../evil",
    "a/../../evil",
    "/etc/passwd",
    "a\\b",
    "..\\evil",
    "C:evil",
    "C:/evil",
    "nul\0byte",
    "line\nbreak",
    "",
    ".",
    "..",
    ".hidden",
    "a//b",
    "a/./b",
    "a/",
    "trailing.",
    "space name",
    "é.onnx",
    "x" * 300,
    "/".join("abcdefghij"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_by_the_writer(tmp_path, manifest, files, name):
    with pytest.raises(BundlePathError):
        write_bundle(tmp_path / "b.kpl", manifest, {**files, name: b"x"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_in_a_sealed_manifest_are_refused(bundle_path, name):
    content = json.loads((bundle_path / "manifest.json").read_bytes())
    content["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    content.pop("manifest_sha256")
    content["manifest_sha256"] = hashlib.sha256(dump_canonical(content)).hexdigest()
    (bundle_path / "manifest.json").write_bytes(dump_canonical(content))
    with pytest.raises(BundlePathError):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["Image.onnx"], "case"), (["KNOWLEDGE/x"], "case"), (["text.onnx/x"], "folder"), (["Manifest.JSON"], "manifest")],
)
def test_clashing_names_are_refused(tmp_path, manifest, files, names, reason):
    with pytest.raises(BundlePathError, match=reason):
        write_bundle(tmp_path / "b.kpl", manifest, {**files, **dict.fromkeys(names, b"x")})


@pytest.mark.parametrize("name", ["text.onnx", "knowledge/lung.safetensors", "manifest.json"])
def test_a_link_in_place_of_a_file_is_refused(bundle_path, tmp_path, name):
    (bundle_path / name).rename(tmp_path / "outside")
    (bundle_path / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundlePathError, match="symbolic link"):
        Bundle.open(bundle_path)


def test_a_link_in_place_of_a_folder_is_refused(bundle_path, tmp_path):
    with Bundle.open(bundle_path) as opened:
        (bundle_path / "knowledge").rename(tmp_path / "outside")
        (bundle_path / "knowledge").symlink_to(tmp_path / "outside")
        with pytest.raises(BundlePathError, match="symbolic link"):
            opened.read_bytes("knowledge/lung.safetensors")
    with pytest.raises(BundlePathError, match="symbolic link"):
        Bundle.open(bundle_path)


def test_a_link_to_a_bundle_is_the_users_own(bundle_path, tmp_path):
    (tmp_path / "latest.kpl").symlink_to(bundle_path)
    with Bundle.open(tmp_path / "latest.kpl") as bundle:
        assert bundle.path == bundle_path.resolve()


def test_a_pipe_is_refused_and_does_not_hang(bundle_path):
    with Bundle.open(bundle_path, verify=False) as opened:
        (bundle_path / "text.onnx").unlink()
        os.mkfifo(bundle_path / "text.onnx")
        with pytest.raises(BundlePathError, match="not a plain file"):
            opened.read_bytes("text.onnx")
    with pytest.raises(BundlePathError, match="neither a file nor a folder"):
        Bundle.open(bundle_path)


def rezip(source, target, change=lambda info, data: [(info, data)]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names warn
        for info in old.infolist():
            for entry, data in change(info, old.read(info)):
                new.writestr(entry, data)


@pytest.fixture
def packed(bundle_path, tmp_path):
    return pack(bundle_path, tmp_path / "packed.zip")


def test_a_plain_zip_of_the_same_files_is_read(packed, tmp_path, files):
    def with_folders(info, data):
        return [(zipfile.ZipInfo("knowledge/"), b""), (info, data)] if info.filename == "image.onnx" else [(info, data)]

    rezip(packed, tmp_path / "b.zip", with_folders)
    with Bundle.open(tmp_path / "b.zip") as bundle:
        assert {name: bundle.read_bytes(name) for name in bundle.names} == files


@pytest.mark.parametrize("name", [n for n in BAD_NAMES if n])
def test_bad_names_in_a_zip_are_refused(packed, tmp_path, name):
    def add(info, data):
        extra = zipfile.ZipInfo("x")
        extra.filename = name
        return [(info, data), (extra, b"x")] if info.filename == "image.onnx" else [(info, data)]

    rezip(packed, tmp_path / "b.zip", add)
    with pytest.raises((BundlePathError, BundleCorruptError)):
        Bundle.open(tmp_path / "b.zip")


def test_a_name_cut_at_nul_does_not_pass_for_another(packed, tmp_path):
    data = packed.read_bytes().replace(b"text.onnx", b"tex\0.onnx")
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "b.zip")


def _link(info, data):
    if info.filename == "text.onnx":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [(info, data)]


def _compress(info, data):
    info.compress_type = zipfile.ZIP_DEFLATED
    return [(info, data)]


def _twice(info, data):
    return [(info, data), (info, data)]


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (_link, BundlePathError, "symbolic link"),
        (_compress, BundleCorruptError, "compressed"),
        (_twice, BundleCorruptError, "twice"),
    ],
)
def test_zip_entries_that_are_not_plain_stored_files_are_refused(packed, tmp_path, change, kind, reason):
    rezip(packed, tmp_path / "b.zip", change)
    with pytest.raises(kind, match=reason):
        Bundle.open(tmp_path / "b.zip")


def _patch_central(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite bytes of one central directory record."""
    start = data.index(b"PK\1\2", data.rindex(b"manifest.json", 0, data.index(b"PK\1\2")))
    while data[start + 46 : start + 46 + len(name)] != name:
        start = data.index(b"PK\1\2", start + 1)
    return data[: start + offset] + value + data[start + offset + len(value) :]


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (8, struct.pack("<H", 1), "encrypted"),
        (24, struct.pack("<I", 1 << 31), "compressed"),
        (20, struct.pack("<II", 1 << 31, 1 << 31), "more bytes than it has"),
        (42, struct.pack("<I", 5), "zip|damaged"),
    ],
)
def test_lying_zip_records_are_refused(packed, tmp_path, offset, value, reason):
    (tmp_path / "b.zip").write_bytes(_patch_central(packed.read_bytes(), b"text.onnx", offset, value))
    with pytest.raises(BundleCorruptError, match=reason):
        Bundle.open(tmp_path / "b.zip")


def test_cut_zips_never_load(packed, tmp_path):
    data = packed.read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "b.zip").write_bytes(data[:size])
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "b.zip")


def test_a_pickle_in_place_of_tensors_is_not_run(tmp_path, manifest, files):
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    bundle = write_bundle(tmp_path / "b.kpl", manifest, {**files, "x.safetensors": pickle.dumps(Evil())})
    with pytest.raises(BundleCorruptError):
        bundle.tensors("x.safetensors")
    assert not (tmp_path / "pwned").exists()
