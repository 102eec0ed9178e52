"""Building plans on the strict double: what TensorRT is told, what is compared, what is kept, and every failure."""

from __future__ import annotations

import json
import signal

import numpy as np
import onnx
import pytest

from kpl_engine.bundle import Bundle, pack
from kpl_engine.encoder.plans import GATES, PARITY_FILE, Plan, describe_machine
from kpl_engine.errors import (
    BackendUnavailableError,
    BundleChangedError,
    ConfigError,
    ExportError,
    MissingExtraError,
    ParityError,
)
from kpl_engine.export import agreement, compile_plan, to_tensorrt
from kpl_engine.export.agreement import check_labels, make_pictures

from ..tensorrt_stubs.bundles import SIZE, D, Workshop, knowledge, pictures, write_tiny_bundle
from ..tensorrt_stubs.double import assert_freed_in_order

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path / "tiny.kpl")


def entries(shop, name):
    return [arguments for called, arguments in shop.state.log if called == name]


def content(path):
    with Bundle.open(path) as bundle:
        return {name: bundle.read_bytes(name) for name in bundle.names}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_is_built_compared_and_stored_and_then_runs(tmp_path, version, precision):
    shop = Workshop(tmp_path / "tiny.kpl", version)
    before = content(shop.path)
    lines = []
    report = shop.build(precision=precision, max_batch=9, progress=lines.append)
    assert_freed_in_order(shop.state)
    assert report.plan.name == f"nvidia-h100-80gb-hbm3-{version}-{precision}"
    assert 0 <= report.plan.parity["max_one_minus_cos"] <= GATES[precision]
    assert report.plan.parity["batches"] == [1, 2, 4, 8, 9]
    assert report.plan.parity["layers"] == ({"fp32": 1} if precision == "fp32" else {"fp16": 1, "fp32": 1})
    assert any(line.startswith("build: Building, step 1 of 3") for line in lines)
    after = content(shop.path)
    assert set(after) - set(before) == {report.plan.file, PARITY_FILE}
    assert all(after[name] == before[name] for name in before)
    assert len(after[report.plan.file]) == report.num_bytes
    with Bundle.open(shop.path) as bundle:
        entry = bundle.manifest["plans"][report.plan.name]
        assert Plan.from_manifest(report.plan.name, entry).to_manifest() == report.plan.to_manifest()
    with shop.open() as encoder:
        assert encoder.plan.name == report.plan.name
        assert encoder.encode_images(pictures(9)).shape == (9, D)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_portable", [False, True])
def test_what_the_builder_is_told(tmp_path, version, is_portable):
    shop = Workshop(tmp_path / "tiny.kpl", version)
    report = shop.build(is_portable=is_portable, workspace_bytes=1 << 21, max_batch=8)
    assert entries(shop, "Builder.create_network") == [{"flags": 0 if version.startswith("11") else 2}]
    (limit,) = entries(shop, "IBuilderConfig.set_memory_pool_limit")
    assert (limit["pool"].name, limit["pool_size"]) == ("WORKSPACE", 1 << 21)
    assert entries(shop, "IBuilderConfig.builder_optimization_level") == [{"value": 3}]
    assert [entry["value"].name for entry in entries(shop, "IBuilderConfig.profiling_verbosity")] == ["DETAILED"]
    assert [entry["flag"].name for entry in entries(shop, "IBuilderConfig.clear_flag")] == ["TF32"]
    flags = [entry["flag"].name for entry in entries(shop, "IBuilderConfig.set_flag")]
    assert flags == (["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"] if is_portable else [])
    levels = [entry["value"].name for entry in entries(shop, "IBuilderConfig.hardware_compatibility_level")]
    assert levels == (["SAME_COMPUTE_CAPABILITY"] if is_portable and version != "10.3.0" else [])
    shapes = [(entry["min"], entry["opt"], entry["max"]) for entry in entries(shop, "IOptimizationProfile.set_shape")]
    assert [[shape[0] for shape in group] for group in shapes] == [[1, 1, 1], [2, 4, 8]]
    assert {shape[1:] for group in shapes for shape in group} == {(*SIZE, 3)}
    allowed = entries(shop, "Runtime.engine_host_code_allowed")
    assert allowed == ([{"value": True}] if is_portable else [])  # once: for the comparison
    assert report.plan.is_portable == is_portable


def test_the_default_workspace_is_a_part_of_the_gpu(shop):
    shop.build()
    assert entries(shop, "IBuilderConfig.set_memory_pool_limit")[0]["pool_size"] == 4 << 30


def test_tensorrt_reads_the_cast_graph(shop, monkeypatch):
    seen = []
    parser = shop.library.OnnxParser
    original = parser.parse_from_file

    def look(self, model):
        seen.append(onnx.load(model))
        return original(self, model)

    monkeypatch.setattr(parser, "parse_from_file", look)
    shop.build(precision="fp16")
    (graph,) = [model.graph for model in seen]
    assert graph.node[0].op_type == "Cast"  # bytes may only be converted
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["wide"] == onnx.TensorProto.FLOAT16
    assert types["gain"] == onnx.TensorProto.FLOAT


def test_plans_of_others_stay_and_the_same_one_is_replaced(tmp_path):
    path = tmp_path / "tiny.kpl"
    first = Workshop(path).build().plan
    second = Workshop(path, gpu="NVIDIA L4", capability=(8, 9), num_multiprocessors=58).build().plan
    third = Workshop(path, version="10.16.1.11").build().plan
    fourth = Workshop(path).build(precision="fp32").plan
    again = Workshop(path).build(max_batch=2).plan
    assert again.name == first.name
    assert again.key != first.key
    with Bundle.open(path) as bundle:
        assert set(bundle.manifest["plans"]) == {first.name, second.name, third.name, fourth.name}
        assert bundle.manifest["plans"][first.name]["max_batch"] == 2
        assert sum(name.endswith(".plan") for name in bundle.names) == 4
    for shop in (Workshop(path), Workshop(path, version="10.16.1.11")):
        shop.open().close()


def test_a_zipped_bundle_takes_a_plan(tmp_path):
    write_tiny_bundle(tmp_path / "folder.kpl")
    pack(tmp_path / "folder.kpl", tmp_path / "packed.kpl")
    shop = Workshop(tmp_path / "packed.kpl")
    shop.build()
    assert shop.path.is_file()
    shop.open().close()


def test_nothing_is_left_beside_the_bundle(shop):
    shop.build()
    shop.state.faults.add("no plan")
    with pytest.raises(ExportError):
        shop.build(precision="fp32")
    assert [path.name for path in shop.path.parent.iterdir()] == ["tiny.kpl"]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("no builder", BackendUnavailableError, "did not start: pybind11"),
        (
            "parse",
            ExportError,
            r"cannot read the graph: node 0 Resize 'node_0': complaint 0; .*complaint 19; and 5 more",
        ),
        ("dtype", ExportError, "expected the tensors .*got .*HALF"),
        ("profile", ExportError, r"refuses the profile \(1, 1, 1\) of 'pixels'"),
        ("no plan", ExportError, "could not build the plan: the builder gave up. Try a smaller --max-batch"),
        ("no engine", BackendUnavailableError, "refuses it on this NVIDIA H100"),
        ("execute", ParityError, "TensorRT failed on 1 pictures.*Nothing was written"),
        ("other features", ParityError, "batch 1: expected features within 1-cos 1e-05.*Nothing was written"),
        ("nan", ParityError, "got nan at row 0"),
    ],
)
def test_every_failure_is_named_and_changes_nothing(shop, fault, error, words):
    before = content(shop.path)
    shop.state.faults.add(fault)
    with pytest.raises(error, match=words):
        shop.build()
    assert content(shop.path) == before
    with Bundle.open(shop.path) as bundle:
        assert "plans" not in bundle.manifest
    assert_freed_in_order(shop.state)


def test_a_graph_replaced_meanwhile_keeps_its_bundle(shop, monkeypatch):
    original = to_tensorrt.add_plan

    def replaced(path, *rest):
        import shutil

        shutil.rmtree(path)
        write_tiny_bundle(path, seed=9)
        return original(path, *rest)

    monkeypatch.setattr(to_tensorrt, "add_plan", replaced)
    with pytest.raises(BundleChangedError, match="the image graph was replaced"):
        shop.build()
    with Bundle.open(shop.path) as bundle:
        assert "plans" not in bundle.manifest


def test_what_another_writer_added_meanwhile_stays(shop, monkeypatch):
    from kpl_engine.building import add_proxies
    from kpl_engine.bundle import plans

    original, once = plans.write_bundle, []

    def late(path, *rest, **options):
        if not once:
            once.append(True)
            add_proxies(path, "lung", {"proxies": np.ones((2, 2), np.float32)}, {}, {"method": "kpl"})
        return original(path, *rest, **options)

    monkeypatch.setattr(plans, "write_bundle", late)
    report = shop.build()
    with Bundle.open(shop.path) as bundle:
        assert set(bundle.manifest["proxies"]) == {"lung"}
        assert report.plan.name in bundle.manifest["plans"]


def test_plans_survive_a_knowledge_base_that_is_added(shop, tmp_path):
    from kpl_engine.building import build_knowledge
    from kpl_engine.encoder.ort import OrtEncoder

    shop.build()
    source = tmp_path / "lung.json"
    source.write_text(json.dumps({"lung": ["lung", "a lung"], "ab": ["ab"]}))
    build_knowledge(source, shop.path, shop.path, encoder_loader=OrtEncoder, truncate=True)
    shop.open().close()


def test_ctrl_c_ends_the_build(shop):
    def interrupt(line):
        if line.startswith("build: "):
            signal.raise_signal(signal.SIGINT)

    # Inside step_complete, where it must not unwind through the builder. "build: 0.1 s" comes after it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            shop.build(progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Runtime.__init__" not in shop.state.names()
    assert_freed_in_order(shop.state)


def test_timings_are_kept_and_used_and_begun_again_when_they_do_not_fit(shop, tmp_path):
    folder = tmp_path / "caches" / "timings"
    machine = describe_machine(shop.driver.info, shop.state.version)
    path = compile_plan.timing_cache_file(folder, machine)
    assert shop.build(timing_caches=folder).notes == ()
    assert path.read_bytes() == b"timings 11.4.0.106"
    shop.build(timing_caches=folder)
    assert shop.state.timing == b"timings 11.4.0.106"
    path.write_bytes(b"damaged")
    (note,) = shop.build(timing_caches=folder).notes
    assert "damaged; begun again" in note
    assert path.read_bytes() == b"timings 11.4.0.106"
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_timings_that_cannot_be_kept_are_a_note(shop, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    read, kept = shop.build(timing_caches=tmp_path / "file").notes
    assert "not used" in read
    assert "not kept" in kept


def test_timing_files_differ_for_different_machines(shop, tmp_path):
    from dataclasses import replace

    machine = describe_machine(shop.driver.info, "11.4.0.106")
    others = [
        replace(machine, gpu="NVIDIA L4"),
        replace(machine, tensorrt="11.4.0.107"),
        replace(machine, cuda_major=12),
    ]
    others.append(replace(machine, compute_capability=(8, 9)))
    assert len({compile_plan.timing_cache_file(tmp_path, one) for one in (machine, *others)}) == 5


def test_a_silent_inspector_and_a_graph_that_is_not_recorded_are_notes(shop):
    from kpl_engine.errors import CudaError

    shop.state.faults.add("silent inspector")
    shop.driver.capture_error = CudaError("no capture", 900)
    report = shop.build(max_batch=1)
    assert "TensorRT's inspector shows no layer in fp16 (no types at all)" in report.notes
    assert any("batches of 1 run without a CUDA graph" in note for note in report.notes)


def test_a_float32_plan_with_layers_of_less_is_not_kept(shop):
    shop.state.faults.add("half layers")
    with pytest.raises(ParityError, match=r"expected layers in fp32, the plan has .*Nothing was written"):
        shop.build(precision="fp32")
    assert shop.build(precision="fp16").notes == ()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_plans_need_images_and_compare_labels(tmp_path, precision, monkeypatch):
    shop = Workshop(tmp_path / "tiny.kpl", bundle_options={"has_knowledge": True})
    with pytest.raises(ConfigError, match=f"{precision}: expected at least 8 images of your own.*got 3"):
        shop.build(pictures(3), precision=precision)
    with pytest.raises(ConfigError, match=f"{precision}: expected at least 8 images of your own.*got 0"):
        shop.build(precision=precision)
    monkeypatch.setitem(GATES, precision, 0.1)  # a tower of 5 numbers is no measure of 8 bits
    monkeypatch.setattr(agreement, "MIN_AGREEMENT", 0.9)
    images = pictures(40, seed=7)
    report = shop.build(images, precision=precision)
    assert report.cast["num_products"] == report.cast["num_candidates"] == 2
    assert report.cast["num_images"] == 40 + 6
    assert report.plan.parity["num_label_images"] == 40
    assert 0.9 <= report.plan.parity["label_agreement"] <= 1
    for name, data in content(shop.path).items():  # none of the user's pictures is stored
        assert not any(picture.tobytes() in data for picture in images), name
    with Bundle.open(shop.path) as bundle:
        tensors, _ = bundle.tensors(PARITY_FILE)
    np.testing.assert_array_equal(tensors["pixels"], make_pictures(*SIZE))


def test_labels_are_compared_for_every_precision_when_images_are_given(tmp_path):
    without = Workshop(tmp_path / "a.kpl")
    report = without.build(pictures(10))
    assert report.plan.parity["label_agreement"] is None
    assert any("holds no knowledge base" in note for note in report.notes)
    shop = Workshop(tmp_path / "b.kpl", bundle_options={"has_knowledge": True})
    assert shop.build(pictures(10)).plan.parity["label_agreement"] == 1.0
    with Bundle.open(shop.path) as bundle:
        base = knowledge()
        wanted = base.embeddings[[0, 1, 2] * 20]
        assert check_labels(bundle, wanted, wanted, "plan") == 1.0
        got = wanted.copy()
        got[0] = base.embeddings[1]
        assert check_labels(bundle, got, wanted, "plan") == pytest.approx(59 / 60)
        got[3] = base.embeddings[1]
        with pytest.raises(Exception, match=r"plan: expected .* at least 98% of the 60 images, got 96.7%"):
            check_labels(bundle, got, wanted, "plan")


def test_all_plans_of_a_bundle_share_the_stored_pictures(shop):
    shop.build()
    stored = content(shop.path)[PARITY_FILE]
    shop.build(precision="fp32")
    assert content(shop.path)[PARITY_FILE] == stored


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp64"}, {"max_batch": 0}, {"workspace_bytes": 5}, {"optimization_level": 6}]
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        to_tensorrt.BuildSettings(**wrong)


def test_a_bundle_without_an_encoder_or_a_runtime_that_builds_nothing_is_said(shop, tmp_path):
    from kpl_engine.bundle import write_bundle

    write_bundle(tmp_path / "empty.kpl", {}, {}).close()
    with pytest.raises(Exception, match="has no encoder to build a plan from"):
        to_tensorrt.build_plan(tmp_path / "empty.kpl", shop.context, library=shop.library)
    del shop.library.Builder
    with pytest.raises(BackendUnavailableError, match="only runs plans"):
        shop.build()


def test_without_onnx_the_extra_is_named(shop, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'onnx'.*kpl-engine\[export\]"):
        shop.build()


def test_the_pictures_differ_and_come_again():
    first = make_pictures(24, 17)
    assert first.shape == (6, 24, 17, 3)
    np.testing.assert_array_equal(first, make_pictures(24, 17))
    spread = first.reshape(6, -1).std(axis=1)
    assert spread.min() > 3
    smooth = np.abs(np.diff(first[1].astype(int), axis=1)).max()
    assert smooth < np.abs(np.diff(first[0].astype(int), axis=1)).max() / 2
