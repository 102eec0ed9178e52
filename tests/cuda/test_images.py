"""Where compiled kernels come from: fat binaries, NVRTC, nvcc, and the cache between them."""

import os
import shutil
import struct
import subprocess
import threading
import time

import pytest

from kpl_engine.cuda import fatbin, images, kernel_cache
from kpl_engine.cuda.fatbin import Entry
from kpl_engine.cuda.images import Images, sources
from kpl_engine.cuda.kernel_cache import KernelCache, default_folder
from kpl_engine.cuda.nvcc import find_nvcc
from kpl_engine.cuda.nvrtc import find_nvrtc
from kpl_engine.cuda.probe import Gpu, Probe
from kpl_engine.cuda.select import compile_kernels
from kpl_engine.errors import BackendUnavailableError, ConfigError, CudaModuleError

NVRTC, _ = find_nvrtc()
NVCC = find_nvcc()
needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
KERNEL = '#include "device/scale.cuh"\nextern "C" __global__ void twice(float* x) { x[threadIdx.x] *= kpl::factor; }\n'
HEADER = "namespace kpl { static constexpr float factor = 2; }\n"
ELF = b"\x7fELF"


def pack(*forms):
    """A fat binary of (kind, architecture, flags, payload)."""
    body = b"".join(
        struct.pack("<HHIQ12xI8xQ", kind, 0x101, 64, len(payload), architecture, flags) + bytes(16) + payload
        for kind, architecture, flags, payload in forms
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one kernel, as `images.folder` finds it; no editable build beside it."""
    (tmp_path / "kernels" / "device").mkdir(parents=True)
    (tmp_path / "kernels" / "twice.cu").write_text(KERNEL)
    (tmp_path / "kernels" / "device" / "scale.cuh").write_text(HEADER)
    monkeypatch.setattr(images, "folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(images, "_built_folder", lambda: tmp_path / "built")
    return tmp_path / "kernels"


class Compiler:
    """Counts what it compiles."""

    name = "Fake 13.0"
    architectures = (75, 80, 90)

    def __init__(self):
        self.asked = []

    def compile(self, name, text, headers, flags, *, ptx):
        self.asked.append((name, tuple(flags), ptx))
        return b"code of " + text.encode()


@pytest.fixture
def compiler(monkeypatch):
    found = Compiler()
    monkeypatch.setattr(images, "Nvrtc", Compiler)
    monkeypatch.setattr(images, "find_nvrtc", lambda major: (found, ""))
    return found


def first(place_of_cache, capability=(9, 0), source="twice"):
    return next(Images(capability, 13000, KernelCache(place_of_cache)).candidates(source))


# --- fat binaries


@pytest.mark.parametrize(
    ("entry", "runs", "does_not"),
    [
        (Entry("cubin", 80, False), [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        (Entry("cubin", 86, False), [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (Entry("ptx", 80, False), [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        (Entry("cubin", 90, True), [(9, 0)], [(10, 0), (8, 9)]),
        (Entry("ptx", 90, True), [(9, 0)], [(10, 0)]),
        (Entry("cubin", 120, False), [(12, 0), (12, 1)], [(10, 0), (11, 0)]),
    ],
)
def test_what_runs_where(entry, runs, does_not):
    assert [entry.runs_on(capability) for capability in runs] == [True] * len(runs)
    assert [entry.runs_on(capability) for capability in does_not] == [False] * len(does_not)


def test_entries_of_a_fat_binary():
    image = pack((2, 75, 0x11, b"abc"), (2, 90, 0x100011, b""), (9, 50, 0, b"other"), (1, 120, 0x8011, b"x" * 100))
    assert fatbin.entries(image) == [Entry("cubin", 75, False), Entry("cubin", 90, True), Entry("ptx", 120, False)]
    assert fatbin.fits(image, (9, 0))
    assert not fatbin.fits(image, (10, 0))


@pytest.mark.parametrize(
    ("architecture", "fitting", "others"),
    [(75, [(7, 5)], [(8, 0), (9, 0)]), (80, [(8, 0), (8, 9)], [(9, 0), (12, 0)]), (90, [(9, 0), (12, 0)], [(8, 9)])],
)
def test_ptx_of_before_clusters_does_not_do_for_a_gpu_that_is_given_clusters(architecture, fitting, others):
    image = pack((1, architecture, 0, b"text"))
    assert [fatbin.fits(image, gpu) for gpu in fitting] == [True] * len(fitting)
    assert not any(fatbin.fits(image, gpu) for gpu in others)


def test_a_damaged_fat_binary_fits_nothing():
    image = pack((2, 90, 0, b"abcdefgh"))
    for cut in range(len(image)):
        with pytest.raises(ValueError, match="fat binary"):
            fatbin.entries(image[:cut])
        assert not fatbin.fits(image[:cut], (9, 0))
    with pytest.raises(ValueError, match="no fat binary"):
        fatbin.entries(b"\x7fELF" + image[4:])
    too_long = image[:24] + struct.pack("<Q", 1 << 40) + image[32:]
    with pytest.raises(ValueError, match="ends inside"):
        fatbin.entries(too_long)


@needs_nvcc
def test_fat_binaries_as_nvcc_makes_them(place, tmp_path):
    target = tmp_path / "twice.fatbin"
    forms = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]
    command = [NVCC.path, "-std=c++17", "-fatbin", "-I", str(place), "-o", str(target), str(place / "twice.cu")]
    for options in ([], ["-Xfatbin=-compress-all"]):
        subprocess.run([*command, *options, *(f"-gencode={form}" for form in forms)], check=True, capture_output=True)
        found = fatbin.entries(target.read_bytes())
        assert {(entry.kind, entry.architecture, entry.is_specific) for entry in found} == {
            ("cubin", 80, False),
            ("cubin", 90, False),
            ("ptx", 90, False),
        }


def test_the_fat_binary_comes_first_when_it_fits(place, tmp_path, compiler):
    (place / "twice.fatbin").write_bytes(pack((2, 90, 0, b"code")))
    found = Images((9, 0), 13000, KernelCache(tmp_path / "cache"))
    assert found.describe() == "fat binary"
    best, second = found.candidates("twice")
    assert (best.kind, best.origin) == ("fatbin", "fat binary")
    assert best.code == (place / "twice.fatbin").read_bytes()
    assert second.kind == "cubin"
    assert first(None, (7, 5)).kind == "cubin", "no code in it for sm_75"
    (place / "twice.fatbin").write_bytes(b"damaged")
    assert first(None).kind == "cubin"


def test_a_fat_binary_of_an_editable_install_must_be_newer_than_the_sources(place, tmp_path, compiler):
    built = tmp_path / "built"
    built.mkdir()
    (built / "twice.fatbin").write_bytes(pack((1, 90, 0, b"code")))
    later = time.time() + 60
    os.utime(built / "twice.fatbin", (later, later))
    assert first(None).kind == "fatbin"
    os.utime(place / "device" / "scale.cuh", (later + 1, later + 1))
    assert first(None).kind == "cubin"


# --- compilers


def test_code_for_the_very_gpu_or_ptx_for_a_newer_one(place, compiler):
    assert first(None, (8, 0)).kind == "cubin"
    assert first(None, (8, 6)).kind == "ptx"
    assert first(None, (12, 1)).kind == "ptx"
    flags = [(flags, ptx) for _, flags, ptx in compiler.asked]
    assert flags == [
        (("-std=c++17", "-arch=sm_80"), False),
        (("-std=c++17", "-arch=compute_80"), True),
        (("-std=c++17", "-arch=compute_90"), True),
    ]
    compiler.architectures = (100,)
    with pytest.raises(CudaModuleError, match="sm_90, only for sm_100"):
        first(None)


def test_an_unknown_source_names_the_others(place):
    with pytest.raises(CudaModuleError, match="'thrice': expected one of twice"):
        first(None, source="thrice")


@pytest.mark.parametrize(("driver", "package"), [(13000, "nvidia-cuda-nvrtc,"), (12060, "nvidia-cuda-nvrtc-cu12,")])
def test_without_any_compiler_the_command_is_named(place, monkeypatch, driver, package):
    monkeypatch.setattr(images, "find_nvrtc", lambda major: (None, "NVRTC is not installed"))
    monkeypatch.setattr(images, "find_nvcc", lambda major: None)
    found = Images((9, 0), driver, KernelCache(None))
    for call in (found.describe, lambda: next(found.candidates("twice"))):
        with pytest.raises(CudaModuleError, match=f"NVRTC is not installed.*pip install {package}"):
            call()


def test_a_compiler_newer_than_the_driver_is_passed_over():
    library, why = find_nvrtc(max_major=1)
    assert library is None
    assert ("too new" in why) if NVRTC else ("not installed" in why)
    assert find_nvcc(max_major=1) is None


@needs_nvrtc
def test_nvrtc_compiles_and_says_what_is_wrong(place):
    image = first(None)
    assert image.code[:4] == ELF
    assert image.origin == NVRTC.name
    assert b"twice" in NVRTC.compile("twice", KERNEL, {"device/scale.cuh": HEADER}, ["-arch=compute_75"], ptx=True)
    with pytest.raises(CudaModuleError, match=r"cannot compile wrong\.cu with NVRTC") as told:
        NVRTC.compile("wrong", "__global__ void f() { undefined(); }", {}, ["-arch=compute_75"], ptx=True)
    assert "undefined" in told.value.log
    assert told.value.log in str(told.value)
    with pytest.raises(CudaModuleError, match=r"absent\.cuh"):
        NVRTC.compile("alone", '#include "device/absent.cuh"\n', {}, ["-arch=compute_75"], ptx=True)


@needs_nvcc
def test_nvcc_serves_where_nvrtc_is_missing(place, monkeypatch):
    monkeypatch.setattr(images, "find_nvrtc", lambda major: (None, "NVRTC is not installed"))
    image = first(None)
    assert image.code[:4] == ELF
    assert image.origin == NVCC.name
    (place / "twice.cu").write_text(KERNEL.replace("kpl::factor", "kpl::nothing"))
    with pytest.raises(CudaModuleError, match="nothing") as told:
        first(None)
    assert "twice.cu" in told.value.log


def compile_real(source, *flags):
    path = images.folder() / f"{source}.cu"
    return NVRTC.compile(source, path.read_text(), images._headers(path.parent), ["-std=c++17", *flags], ptx=True)


@needs_nvrtc
@pytest.mark.parametrize("architecture", [75, 80, 90, 120])
@pytest.mark.parametrize("source", sources())
def test_nvrtc_reads_every_kernel(source, architecture):
    compile_real(source, f"-arch=compute_{architecture}", "-fdevice-syntax-only")


@needs_nvrtc
def test_a_kernel_of_the_engine_becomes_code():
    (best, *_) = Images((9, 0), 13000, KernelCache(None)).candidates("unit_rows")
    assert best.code[:4] in {ELF, struct.pack("<I", 0xBA55ED50)}
    assert b"unit_rows" in best.code


# From PTX on it is the assembler of nvcc, which the figures of kernels/ are checked with.
@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("source", sources())
def test_nvrtc_translates_every_kernel(source):
    assert b".entry" in compile_real(source, "-arch=compute_90")


# --- the cache


def test_a_kernel_is_compiled_once(place, tmp_path, compiler):
    assert first(tmp_path / "cache").origin == "Fake 13.0"
    again = first(tmp_path / "cache")
    assert again.origin == "Fake 13.0, from the cache"
    assert again.code == b"code of " + KERNEL.encode()
    assert len(compiler.asked) == 1
    assert Images((9, 0), 13000, KernelCache(tmp_path / "cache")).describe() == "Fake 13.0, 1 of 1 kernels in the cache"
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["source", "header", "new header", "architecture", "compiler", "schema"])
def test_any_change_compiles_again(place, tmp_path, compiler, monkeypatch, change):
    first(tmp_path / "cache")
    capability = (9, 0)
    if change == "source":
        (place / "twice.cu").write_text(KERNEL + "\n")
    elif change == "header":
        (place / "device" / "scale.cuh").write_text(HEADER + "\n")
    elif change == "new header":
        (place / "device" / "more.cuh").write_text("")
    elif change == "architecture":
        capability = (8, 0)
    elif change == "compiler":
        compiler.name = "Fake 13.1"
    else:
        monkeypatch.setattr(images, "_SCHEMA", "next")
    assert "cache" not in first(tmp_path / "cache", capability).origin
    assert len(compiler.asked) == 2


def test_a_damaged_entry_is_made_again(tmp_path):
    cache = KernelCache(tmp_path)
    cache.get("key", lambda: b"payload")
    whole = (tmp_path / "key").read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], whole[:-1] + b"x", b"X" + whole[1:]):
        (tmp_path / "key").write_bytes(damaged)
        fresh = KernelCache(tmp_path)
        assert not fresh.has("key")
        assert fresh.get("key", lambda: b"payload") == (b"payload", False)
        assert len(fresh.notes) == 1
        assert "damaged" in fresh.notes[0]
        assert (tmp_path / "key").read_bytes() == whole
    assert cache.notes == []


def test_a_failed_build_keeps_nothing_and_holds_no_lock(tmp_path):
    cache = KernelCache(tmp_path)

    def fail():
        raise CudaModuleError("does not compile")

    with pytest.raises(CudaModuleError):
        cache.get("key", fail)
    assert cache.get("key", lambda: b"x") == (b"x", False)


def test_two_at_once_build_once(tmp_path):
    built, results = [], []
    started = threading.Barrier(4)

    def build():
        built.append(1)
        time.sleep(0.1)
        return b"payload"

    def ask():
        started.wait()
        results.append(KernelCache(tmp_path).get("key", build)[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"payload"] * 4
    assert built == [1]


def test_a_cache_that_cannot_be_written_is_done_without_and_told_once(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    cache = KernelCache(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(kernel_cache.os, "replace", full)
        assert cache.get("one", lambda: b"x") == (b"x", False)
        assert cache.get("two", lambda: b"y") == (b"y", False)
    assert len(cache.notes) == 1
    assert "No space left" in cache.notes[0]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".lock"], "no half-written file stays"
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", tmp_path / "file"):
        blocked = KernelCache(folder)
        assert blocked.get("key", lambda: b"x") == (b"x", False)
        assert len(blocked.notes) == 1
    assert KernelCache(None).get("key", lambda: b"x") == (b"x", False)


def test_notes_of_the_cache_reach_who_asks_for_images(place, tmp_path, compiler):
    tmp_path.chmod(0o777)
    found = Images((9, 0), 13000, KernelCache(tmp_path))
    assert found.notes == ()
    for _ in range(2):
        next(found.candidates("twice"))
    assert len(found.notes) == 1
    assert "compiled at each start" in found.notes[0]


def test_a_long_compilation_is_told_once_and_not_from_the_cache(place, tmp_path, compiler, monkeypatch):
    clock = iter(range(0, 100, 40))
    monkeypatch.setattr(images.time, "perf_counter", lambda: next(clock))
    found = Images((9, 0), 13000, KernelCache(tmp_path / "cache"))
    next(found.candidates("twice"))
    assert len(found.notes) == 1
    assert "twice.cu were compiled for this GPU, which took 40 s" in found.notes[0]
    monkeypatch.undo()
    again = Images((9, 0), 13000, KernelCache(tmp_path / "cache"))
    monkeypatch.setattr(images, "folder", lambda: place)
    monkeypatch.setattr(images, "find_nvrtc", lambda major: (compiler, ""))
    next(again.candidates("twice"))
    assert again.notes == ()


def test_all_kernels_are_compiled_beforehand(place, tmp_path, compiler):
    (place / "thrice.cu").write_text(KERNEL)
    seen = []
    machine = Probe("", 13000, (Gpu("T4", (7, 5)), Gpu("H200", (9, 0))))
    for origin in ("Fake 13.0", "Fake 13.0, from the cache"):
        ready = compile_kernels("cuda:1", lambda *at: seen.append(at), cache_folder=tmp_path / "cache", found=machine)
        assert ready == [("thrice", origin), ("twice", origin)]
    assert seen[:3] == [(0, 2), (1, 2), (2, 2)]
    assert {flags for _, flags, _ in compiler.asked} == {("-std=c++17", "-arch=sm_90")}
    with pytest.raises(BackendUnavailableError, match="there is no GPU 2"):
        compile_kernels("cuda:2", found=machine)
    with pytest.raises(ConfigError, match="expected 'cuda' or 'cuda:N'"):
        compile_kernels("cpu", found=machine)


def test_a_folder_that_everyone_may_write_is_not_trusted(tmp_path):
    tmp_path.chmod(0o777)
    cache = KernelCache(tmp_path)
    assert cache.get("key", lambda: b"x") == (b"x", False)
    assert "everyone may write" in cache.notes[0]
    assert not (tmp_path / "key").exists()


def test_the_least_recently_used_go_first(tmp_path):
    cache = KernelCache(tmp_path, max_bytes=3 * 140)
    for name in "abc":
        cache.get(name, lambda: bytes(100))
        os.utime(tmp_path / name, (ord(name), ord(name)))
    cache.get("a", lambda: b"not built")  # used again, so younger than b and c
    (tmp_path / ".new-left").write_bytes(b"of a writer that died")
    cache.get("d", lambda: bytes(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a", "c", "d"]
    cache.get("large", lambda: bytes(10_000))
    assert (tmp_path / "large").exists(), "what was just asked for stays, whatever its size"


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "kpl-engine" / "kernels"
    monkeypatch.setenv("HOME", "/home/someone")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert str(default_folder()) == "/home/someone/.cache/kpl-engine/kernels"


def test_the_sources_are_found():
    assert {"text_proxy", "unit_rows"} <= set(sources())
    assert (images.folder() / "device" / "platform.cuh").is_file()


def test_missing_sources_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "_HERE", tmp_path / "kpl_engine" / "cuda")
    with pytest.raises(CudaModuleError, match="install kpl-engine again"):
        images.folder()
    shutil.copytree(images.Path(images.__file__).parents[2] / "kernels" / "device", tmp_path / "kernels" / "device")
    assert images.folder() == tmp_path / "kernels"
