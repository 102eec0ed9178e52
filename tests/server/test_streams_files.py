"""Snapshot files: every damage is seen, nothing that is not a snapshot is taken for one, nothing is deleted."""

import logging
import os
import random

import numpy as np
import pytest

from kpl_engine.bundle.tensors import dump_tensors
from kpl_engine.errors import BundleCorruptError, BundleVersionError
from kpl_engine.server.snapshots import SnapshotFolder, StreamKey, decode_snapshot, encode_snapshot
from kpl_engine.server.streams import Streams
from tests.server.streaming import answers, ask, knowledge, same

KEY = StreamKey("demo", "chest", "kpl_stream", "f" * 64)


def snapshot(folder, method="kpl_stream"):
    """The bytes a server leaves after two answers, and where."""
    streams = Streams(folder, 3600.0)
    streams.start()
    for number in range(2):
        ask(streams, number, knowledge(), method)
    streams.close()
    (path,) = folder.glob("*.safetensors")
    return path, path.read_bytes()


@pytest.mark.parametrize("method", ["kpl_stream", "onzeta"])
def test_every_truncation_is_seen(tmp_path, method):
    _, data = snapshot(tmp_path, method)
    for length in range(len(data)):
        with pytest.raises(BundleCorruptError):
            decode_snapshot(data[:length], "a file")
    with pytest.raises(BundleCorruptError):
        decode_snapshot(data + b"\0", "a file")


def test_every_flipped_byte_is_seen(tmp_path):
    _, data = snapshot(tmp_path)
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(2000):
        position, change = rng.randrange(len(data)), rng.randrange(1, 256)
        flipped = bytearray(data)
        flipped[position] ^= change
        try:
            decode_snapshot(bytes(flipped), "a file")
        except (BundleCorruptError, BundleVersionError):
            continue
        pytest.fail(f"seed {seed}: byte {position} ^ {change} was not seen")


def test_every_single_bit_of_the_head_is_seen(tmp_path):
    _, data = snapshot(tmp_path)
    head = 8 + int.from_bytes(data[:8], "little")
    for bit in range(8 * head):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BundleCorruptError, BundleVersionError)):
            decode_snapshot(bytes(flipped), "a file")


def test_a_snapshot_is_read_back_bit_for_bit():
    rng = np.random.default_rng()
    tensors = {
        "a": rng.standard_normal((5, 3)),
        "b": rng.standard_normal(7).astype(np.float32),
        "c": rng.integers(0, 9, 4),
        "d": np.array([np.nan, -0.0, np.inf]),
        "e": np.asfortranarray(rng.standard_normal((4, 6))),
    }
    key, found = decode_snapshot(encode_snapshot(KEY, tensors), "a file")
    assert key == KEY
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


def test_a_later_format_is_named():
    with pytest.raises(BundleVersionError, match="kpl-engine-stream-9"):
        decode_snapshot(dump_tensors({}, {"format": "kpl-engine-stream-9"}), "a file")
    with pytest.raises(BundleVersionError, match="None"):
        decode_snapshot(dump_tensors({"a": np.zeros(3)}, {}), "a file")


def test_damaged_and_foreign_files_are_set_aside_and_the_others_restored(tmp_path, caplog):
    path, data = snapshot(tmp_path)
    other, _ = snapshot(tmp_path / "other", "onzeta")
    other.rename(tmp_path / other.name)
    path.write_bytes(data[: len(data) // 2])
    (tmp_path / "weights.safetensors").write_bytes(dump_tensors({"w": np.zeros(3)}, {}))
    (tmp_path / "copy.safetensors").write_bytes(data)  # a good one under another name
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    streams = Streams(tmp_path, 3600.0)
    with caplog.at_level(logging.WARNING):
        streams.start()
    told = [record.getMessage() for record in caplog.records]
    bad = [path.name, *(f"{name}.safetensors" for name in ("weights", "copy", "folder", "link", "pipe"))]
    assert len(told) == len(bad)
    for name in bad:
        assert not os.path.lexists(tmp_path / name)
        assert os.path.lexists(tmp_path / f"{name}.aside-1")
        assert sum(f"{name} was set aside" in line for line in told) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert same(ask(streams, 2, knowledge(), "onzeta"), answers(3, knowledge(), "onzeta")[2])
    assert same(ask(streams, 0, knowledge()), answers(1, knowledge())[0])
    streams.close()
    assert path.read_bytes() != data[: len(data) // 2]
    assert (tmp_path / f"{path.name}.aside-1").read_bytes() == data[: len(data) // 2]


def test_a_file_that_spoils_while_the_server_runs(tmp_path, caplog):
    path, data = snapshot(tmp_path)
    streams = Streams(tmp_path, 3600.0)
    streams.start()
    path.write_bytes(data[:-1])
    with caplog.at_level(logging.WARNING):
        assert same(ask(streams, 0, knowledge()), answers(1, knowledge())[0])
    assert "set aside" in caplog.text
    streams.close()
    assert (tmp_path / f"{path.name}.aside-1").read_bytes() == data[:-1]
    path.write_bytes(b"")
    SnapshotFolder(tmp_path).close()
    assert (tmp_path / f"{path.name}.aside-2").read_bytes() == b""


def test_a_good_snapshot_whose_state_fits_nothing_is_set_aside(tmp_path, caplog):
    path, data = snapshot(tmp_path)
    key, tensors = decode_snapshot(data, "a file")
    path.write_bytes(encode_snapshot(key, {**tensors, "class_mass": tensors["class_mass"][:-1]}))
    streams = Streams(tmp_path, 3600.0)
    streams.start()
    with caplog.at_level(logging.WARNING):
        assert same(ask(streams, 0, knowledge()), answers(1, knowledge())[0])
    assert "class_mass" in caplog.text
    streams.close()
    assert path.read_bytes() != data


def test_what_cannot_be_set_aside_is_not_overwritten(tmp_path, monkeypatch):
    path, data = snapshot(tmp_path)
    path.write_bytes(data[:-1])

    def fails(source, target):
        raise PermissionError(1, "Operation not permitted", str(source))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        streams = Streams(tmp_path, 3600.0)
        streams.start()
        ask(streams, 0, knowledge())
        assert not streams.snapshot_now()
    assert path.read_bytes() == data[:-1]
    assert streams.snapshot_now()
    assert (tmp_path / f"{path.name}.aside-1").read_bytes() == data[:-1]
    streams.close()


def test_temporary_files_of_dead_servers_are_removed(tmp_path):
    path, _ = snapshot(tmp_path)
    left = tmp_path / f".{path.name}.kpl-tmp"
    left.write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"another program's")
    folder = SnapshotFolder(tmp_path)
    assert not left.exists()
    assert (tmp_path / ".mine.tmp").exists()
    folder.close()


def test_names_of_keys_differ():
    keys = [StreamKey("a.b", "c", "m", "f"), StreamKey("a", "b.c", "m", "f"), StreamKey("a_b", "c", "m", "f")]
    keys += [StreamKey("a.b", "c", "m", "g"), StreamKey("x" * 500, "y" * 500, "m", "f")]
    names = {key.file_name for key in keys}
    assert len(names) == len(keys)
    assert max(map(len, names)) < 230
    assert not any(name.startswith(".") or "/" in name for name in names)
