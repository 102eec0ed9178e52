"""Atomic writing: all of the new bundle or all of the old one, whatever happens."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kpl_engine.bundle import Bundle, pack, reader, swap, write_bundle
from kpl_engine.bundle import writer as writing
from kpl_engine.errors import BundleChangedError, BundleError

CONFTEST = Path(__file__).with_name("conftest.py")


def start(script: str, *args: object) -> subprocess.Popen[str]:
    """A fresh Python with `make_manifest` and `make_files` of the conftest at hand."""
    head = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("made", {str(CONFTEST)!r})
        made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)
        from kpl_engine.bundle import Bundle, write_bundle
        from pathlib import Path
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def seed_of(path: Path) -> int:
    with Bundle.open(path) as bundle:
        seed = int(bundle.manifest["encoder"]["fingerprint"].removeprefix("encoder"))
        assert bundle.read_bytes("image.onnx") == b"image graph %d " % seed * 40
        assert bundle.read_bytes("knowledge/lung.safetensors") == b"not tensors %d" % seed
        return seed


@pytest.fixture(params=["exchange", "fallback"])
def swapping(request, monkeypatch):
    """Both ways to swap: with renameat2, and as on a system without it."""
    if request.param == "fallback":
        monkeypatch.setattr(swap, "_rename_exchange", lambda first, second: False)
    return request.param


def test_overwriting_replaces_and_leaves_nothing_behind(make_bundle, tmp_path, swapping):
    path = make_bundle(seed=1)
    make_bundle(seed=2, overwrite=True)
    assert seed_of(path) == 2
    packed = pack(path, tmp_path / "packed.kpl")
    make_bundle("packed.kpl", seed=3, overwrite=True)
    assert packed.is_file()
    assert seed_of(packed) == 3
    assert sorted(os.listdir(tmp_path)) == ["a.kpl", "packed.kpl"]


def test_writing_through_a_link_replaces_what_it_points_to(make_bundle, tmp_path):
    path = make_bundle(seed=1)
    (tmp_path / "latest.kpl").symlink_to(path)
    make_bundle("latest.kpl", seed=2, overwrite=True)
    assert (tmp_path / "latest.kpl").is_symlink()
    assert seed_of(path) == 2


def test_an_existing_bundle_is_kept_unless_asked(make_bundle, tmp_path):
    path = make_bundle(seed=1)
    with pytest.raises(BundleError, match="exists"):
        make_bundle(seed=2)
    with pytest.raises(BundleError, match="exists"):
        pack(path, path)
    assert seed_of(path) == 1


def _photos(path):
    path.mkdir()
    (path / "cat.jpg").write_bytes(b"cat")


def _foreign_manifest(path):
    _photos(path)
    (path / "manifest.json").write_text('{"name": "my web app"}')


def _broken_manifest(path):
    _photos(path)
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    "make",
    [_photos, _foreign_manifest, _broken_manifest, Path.mkdir, Path.touch, lambda p: p.write_bytes(b"data" * 99)],
)
def test_what_is_no_bundle_is_never_replaced(make, make_bundle, tmp_path):
    make(tmp_path / "a.kpl")
    before = sorted((str(p), p.read_bytes() if p.is_file() else b"") for p in tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="not clearly a bundle"):
        make_bundle(overwrite=True)
    assert sorted((str(p), p.read_bytes() if p.is_file() else b"") for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["notes.txt", "knowledge/notes.txt", "my notes.txt"])
def test_a_users_file_inside_a_bundle_is_not_lost(bundle_path, make_bundle, name):
    (bundle_path / name).write_text("mine")
    with pytest.raises(BundleError, match="notes"):
        make_bundle(seed=2, overwrite=True)
    assert (bundle_path / name).read_text() == "mine"


def test_a_damaged_bundle_may_be_replaced(bundle_path, make_bundle):
    (bundle_path / "image.onnx").write_bytes(b"damaged")
    make_bundle(seed=2, overwrite=True)
    assert seed_of(bundle_path) == 2


def test_another_writers_work_is_not_lost(bundle_path, make_bundle, manifest, files):
    with Bundle.open(bundle_path) as bundle:
        expected = bundle.manifest["manifest_sha256"]
    make_bundle(seed=2, overwrite=True)
    with pytest.raises(BundleChangedError, match="meanwhile"):
        write_bundle(bundle_path, manifest, files, overwrite=True, expected_sha256=expected)
    assert seed_of(bundle_path) == 2


def test_a_bundle_replaced_after_opening_says_so(bundle_path, make_bundle):
    with Bundle.open(bundle_path) as bundle:
        make_bundle(seed=2, overwrite=True)
        for use in (bundle.read_bytes, bundle.local_path):
            with pytest.raises(BundleError, match="was replaced since it was opened"):
                use("text.onnx")


def test_failures_leave_nothing_behind(tmp_path, manifest, files, make_bundle):
    with pytest.raises(BundleError, match=r"cannot read .*gone"):
        write_bundle(tmp_path / "a.kpl", manifest, {**files, "x": tmp_path / "gone"})
    with pytest.raises(BundleError, match="make it first"):
        write_bundle(tmp_path / "no" / "a.kpl", manifest, files)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_old_bundle(bundle_path, tmp_path, manifest, files):
    # A file size limit makes write() fail half-way like a full disk does.
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(BundleError, match=r"could not write .*nothing was changed"):
            write_bundle(bundle_path, manifest, {**files, "big.bin": bytes(3_000_000)}, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path) == ["a.kpl"]
    assert seed_of(bundle_path) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_clear_error(tmp_path, manifest, files):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="Permission denied"):
            write_bundle(tmp_path / "a.kpl", manifest, files)
    finally:
        tmp_path.chmod(0o700)


KILL = """
    import os, shutil, signal
    path, way = Path(sys.argv[1]), sys.argv[2]
    from kpl_engine.bundle import swap
    if way == "fallback":
        swap._rename_exchange = lambda first, second: False
    watched = (os.path.dirname(swap.__file__), shutil.__file__)
    limit, count = None, 0
    def trace(frame, event, arg):
        global count
        if not frame.f_code.co_filename.startswith(watched):
            return None
        count += 1
        if limit is not None and count >= limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    def write(seed):
        global count
        count = 0
        sys.settrace(trace)
        try:
            write_bundle(path, made.make_manifest(seed), made.make_files(seed), overwrite=True).close()
        finally:
            sys.settrace(None)
    write(0); write(1)
    total, held = count, 1
    seen = set()
    points = [*range(1, total, max(1, total // 60)), *range(total - 400, total, 9)]
    for number, limit_here in enumerate(points):
        pid = os.fork()
        if pid == 0:
            limit = limit_here
            write(number + 2)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child was not killed"
        if way == "fallback" and not path.exists():
            seen.add("aside")
            write(number + 2)  # the next writer puts the old one back, or writes its own
        with Bundle.open(path) as bundle:
            now = int(bundle.manifest["encoder"]["fingerprint"].removeprefix("encoder"))
        assert now in (held, number + 2), (now, held, number)
        seen.add("old" if now == held else "new")
        held = now
    write(999)
    assert os.listdir(path.parent) == [path.name], os.listdir(path.parent)
    print(*sorted(seen))
"""


@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_kill_9_at_any_point_leaves_a_whole_bundle(tmp_path, way):
    seen = finish(start(KILL, tmp_path / "a.kpl", way)).split()
    assert {"old", "new"} <= set(seen)


def test_many_writers_and_a_reader(tmp_path, make_bundle):
    path = make_bundle(seed=0)
    script = """
        for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 25):
            write_bundle(sys.argv[1], made.make_manifest(seed), made.make_files(seed), overwrite=True).close()
    """
    writers = [start(script, path, 1 + 100 * number) for number in range(4)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(seed_of_racing(path))
    for writer in writers:
        finish(writer)
    assert seed_of(path) % 100 == 25
    assert len(seen) > 3
    assert os.listdir(tmp_path) == ["a.kpl"]


def seed_of_racing(path: Path) -> int:
    """Every byte is verified while opening; nothing is read later, when the folder may be gone."""
    with Bundle.open(path) as bundle:
        return int(bundle.manifest["encoder"]["fingerprint"].removeprefix("encoder"))


def test_two_writers_of_a_new_bundle_leave_one(tmp_path):
    script = """
        from kpl_engine.errors import BundleError
        try:
            write_bundle(sys.argv[1], made.make_manifest(int(sys.argv[2])), made.make_files(int(sys.argv[2]))).close()
            print("won")
        except BundleError as error:
            assert "exists" in str(error), error
    """
    out = [finish(p) for p in [start(script, tmp_path / "a.kpl", number) for number in range(4)]]
    assert out.count("won\n") == 1
    assert seed_of(tmp_path / "a.kpl") == out.index("won\n")
    assert os.listdir(tmp_path) == ["a.kpl"]


class FullDisk(io.BytesIO):
    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_of_the_copy_and_not_of_the_original(tmp_path, monkeypatch):
    write_bundle(tmp_path / "first.kpl", {}, {"a.bin": b"content"}).close()
    monkeypatch.setattr(writing, "open", lambda *_: FullDisk(), raising=False)
    with (
        Bundle.open(tmp_path / "first.kpl") as origin,
        pytest.raises(BundleError, match=r"could not write the bundle .*second\.kpl: No space left"),
    ):
        write_bundle(tmp_path / "second.kpl", {}, {"a.bin": origin})
    assert [path.name for path in tmp_path.iterdir()] == ["first.kpl"]


def test_a_zip_that_cannot_be_unpacked_says_where(tmp_path, monkeypatch):
    write_bundle(tmp_path / "first.kpl", {}, {"a.bin": b"content"}).close()
    pack(tmp_path / "first.kpl", tmp_path / "zipped.kpl")
    monkeypatch.setattr(reader, "open", lambda *_: FullDisk(), raising=False)
    with Bundle.open(tmp_path / "zipped.kpl") as bundle, pytest.raises(BundleError, match="TMPDIR"):
        bundle.local_path("a.bin")
