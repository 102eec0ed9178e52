"""Profiles, names and keys of plans, and which plan of a bundle fits which machine. No TensorRT and no GPU."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from kpl_engine.cuda.base import DeviceInfo
from kpl_engine.encoder.plans import (
    GATES,
    MAX_BATCH,
    Machine,
    Plan,
    bucket_for,
    buckets_of,
    choose_plan,
    describe_machine,
    measure_parity,
    plan_key,
    plan_name,
    profiles_of,
)
from kpl_engine.errors import BackendUnavailableError, ConfigError, EncoderError

H200 = Machine("NVIDIA H200", (9, 0), 132, "10.16.1.11", 13, "linux-x86_64")


def make_plan(name="p", **changes):
    plan = Plan(
        name=name,
        file=f"plans/{name}.plan",
        parity_file="plans/parity.safetensors",
        precision="fp16",
        max_batch=64,
        profiles=profiles_of(64),
        is_portable=False,
        graph="graph",
        key="sha256:1",
        machine=H200,
        parity={"max_one_minus_cos": 1e-7},
    )
    return replace(plan, **changes)


def manifest_of(*plans):
    entries = {plan.name: plan.to_manifest() for plan in plans}
    return {"encoder": {"image": {"fingerprint": "graph"}}, "plans": entries}


@pytest.mark.parametrize(
    ("max_batch", "wanted"),
    [
        (1, ((1, 1, 1),)),
        (2, ((1, 1, 1), (2, 2, 2))),
        (5, ((1, 1, 1), (2, 4, 5))),
        (8, ((1, 1, 1), (2, 4, 8))),
        (9, ((1, 1, 1), (2, 4, 8), (8, 9, 9))),
        (64, ((1, 1, 1), (2, 4, 8), (8, 16, 32), (32, 64, 64))),
        (200, ((1, 1, 1), (2, 4, 8), (8, 16, 32), (32, 64, 64), (64, 128, 128), (128, 200, 200))),
    ],
)
def test_profiles(max_batch, wanted):
    assert profiles_of(max_batch) == wanted


@pytest.mark.parametrize("max_batch", [*range(1, 130), 1000, MAX_BATCH])
def test_every_batch_has_a_bucket_and_every_bucket_a_profile(max_batch):
    profiles, buckets = profiles_of(max_batch), buckets_of(max_batch)
    assert profiles[-1][2] == buckets[-1] == max_batch
    assert all(low <= best <= high for low, best, high in profiles)
    for bucket in buckets:
        assert any(low <= bucket <= high for low, _, high in profiles)
    for count in range(1, max_batch + 1):
        bucket = bucket_for(count, buckets)
        assert count <= bucket < 2 * count or bucket == count


@pytest.mark.parametrize("max_batch", [0, -1, MAX_BATCH + 1, 2.0, True, "8"])
def test_a_batch_out_of_range_is_refused(max_batch):
    with pytest.raises(ConfigError, match="max_batch: expected a whole number from 1 to 1024"):
        profiles_of(max_batch)


def test_a_plan_survives_the_manifest():
    plan = make_plan(is_portable=True)
    assert Plan.from_manifest("p", plan.to_manifest()) == plan


@pytest.mark.parametrize("field", sorted(set(make_plan().to_manifest()) - {"is_portable", "parity"}))
def test_a_damaged_entry_is_said(field):
    entry = make_plan().to_manifest()
    for damaged in ({key: value for key, value in entry.items() if key != field}, {**entry, field: None}):
        if field in ("file", "parity_file", "graph", "key", "precision") and damaged.get(field, 0) is None:
            continue  # becomes a name that nothing has
        with pytest.raises(EncoderError, match=r"plan 'p': its (entry in the manifest|precision or profiles)"):
            Plan.from_manifest("p", damaged)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gpu", "NVIDIA H100 PCIe", "GPU NVIDIA H200, this is NVIDIA H100 PCIe"),
        ("compute_capability", (10, 0), "compute capability 9.0, this is 10.0"),
        ("num_multiprocessors", 114, "multiprocessors 132, this is 114"),
        ("tensorrt", "10.16.1.12", "TensorRT 10.16.1.11, this is 10.16.1.12"),
        ("cuda_major", 12, "CUDA 13, this is 12"),
        ("platform", "linux-aarch64", "system linux-x86_64, this is linux-aarch64"),
    ],
)
def test_a_plan_of_another_machine_is_refused_with_the_reason(field, value, words):
    assert make_plan().refusal(H200, "graph") == ""
    other = replace(H200, **{field: value})
    assert words in make_plan().refusal(other, "graph")
    with pytest.raises(BackendUnavailableError, match=r"(?s)plan 'p': it was built for .*kpl-engine build"):
        choose_plan(manifest_of(make_plan()), other)


def test_a_plan_of_another_graph_is_refused():
    assert "another image graph" in make_plan().refusal(H200, "other")


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.3.0", "10.16.1.11", True),
        ("10.16.1.11", "10.16.1.12", True),
        ("10.16.1", "10.3.0", False),
        ("10.16.1", "11.4.0.106", False),
        ("11.4.0", "11.4.0", True),
    ],
)
def test_a_portable_plan_asks_for_the_compute_capability_and_no_older_library(built, here, fits):
    plan = make_plan(is_portable=True, machine=replace(H200, tensorrt=built))
    elsewhere = replace(H200, gpu="NVIDIA H100 PCIe", num_multiprocessors=114, cuda_major=12, tensorrt=here)
    assert (plan.refusal(elsewhere, "graph") == "") == fits
    assert plan.refusal(replace(elsewhere, compute_capability=(8, 9)), "graph")
    assert plan.refusal(replace(elsewhere, platform="linux-aarch64"), "graph")


def test_the_plan_for_exactly_this_machine_and_the_most_faithful_fast_precision_goes_first():
    plans = [make_plan(f"p-{precision}", precision=precision) for precision in GATES]
    assert choose_plan(manifest_of(*plans), H200).precision == "fp16"
    assert choose_plan(manifest_of(*plans), H200, "int8").precision == "int8"
    without = [plan for plan in plans if plan.precision not in ("fp16", "bf16")]
    assert choose_plan(manifest_of(*without), H200).precision == "fp32"
    portable, exact = make_plan("a", is_portable=True), make_plan("b", precision="bf16")
    assert choose_plan(manifest_of(portable, exact), H200).name == "b"
    assert choose_plan(manifest_of(portable, exact), H200, portable_only=True).name == "a"
    with pytest.raises(BackendUnavailableError, match="only the lean runtime"):
        choose_plan(manifest_of(exact), H200, portable_only=True)
    with pytest.raises(BackendUnavailableError, match="its precision is bf16, not fp8"):
        choose_plan(manifest_of(exact), H200, "fp8")
    with pytest.raises(BackendUnavailableError, match="holds no TensorRT plan"):
        choose_plan({"encoder": {"image": {"fingerprint": "graph"}}}, H200)


def test_a_damaged_entry_does_not_hide_a_good_one():
    manifest = manifest_of(make_plan("good"))
    manifest["plans"]["bad"] = {"file": "x"}
    assert choose_plan(manifest, H200).name == "good"


def test_names_are_short_plain_and_different_for_different_gpus():
    assert plan_name(H200, "fp16", False) == "nvidia-h200-10.16.1.11-fp16"
    assert plan_name(H200, "int8", True) == "nvidia-h200-10.16.1.11-int8-portable"
    long = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"
    names = {plan_name(replace(H200, gpu=f"{long} {i}"), "fp16", True) for i in range(3)}
    assert len(names) == 3
    assert all(len(name) <= 64 for name in names)


def test_the_key_changes_with_everything_that_shapes_a_plan():
    settings = {"profiles": [[1, 1, 1]], "workspace_bytes": 1, "precision": "fp16"}
    key = plan_key(H200, "graph", "cast", settings)
    assert key == plan_key(H200, "graph", "cast", dict(reversed(settings.items())))
    changed = {field: replace(H200, **{field: value}) for field, value in CHANGES.items()}
    assert set(changed) == set(asdict(H200))
    others = [plan_key(machine, "graph", "cast", settings) for machine in changed.values()]
    others += [plan_key(H200, "other", "cast", settings), plan_key(H200, "graph", "other", settings)]
    others += [plan_key(H200, "graph", "cast", {**settings, name: 7}) for name in settings]
    assert len({key, *others}) == len(others) + 1


CHANGES = {
    "gpu": "x",
    "compute_capability": (8, 0),
    "num_multiprocessors": 1,
    "tensorrt": "11.4.0",
    "cuda_major": 12,
    "platform": "win32-AMD64",
}


def test_the_machine_is_described_from_the_driver_and_the_wheel(monkeypatch):
    from kpl_engine.encoder import plans

    info = DeviceInfo(0, "NVIDIA H200", (9, 0), 132, 1, 1, 1, 12080)
    assert describe_machine(info, "10.3.0").cuda_major == 12  # no wheel: the driver's
    monkeypatch.setattr(plans, "version", lambda package: "11.4.0.106")
    assert describe_machine(info, "11.4.0.106").cuda_major == 13  # of tensorrt-cu13-bindings
    assert describe_machine(info, "11.4.0.107").cuda_major == 12  # another TensorRT than the wheel's


@pytest.mark.parametrize("precision", sorted(GATES))
def test_parity_is_measured_without_cancellation_and_held_to_the_gate(precision):
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((4, 50))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    across = rng.standard_normal((4, 50))
    across -= (across * wanted).sum(axis=1, keepdims=True) * wanted
    across /= np.linalg.norm(across, axis=1, keepdims=True)

    def turned(one_minus_cos):
        return wanted * (1 - one_minus_cos) + across * np.sqrt(2 * one_minus_cos - one_minus_cos**2)

    gate = GATES[precision]
    found = measure_parity(turned(0.9 * gate), wanted, precision, "plan")
    assert found["max_one_minus_cos"] == pytest.approx(0.9 * gate, rel=1e-6)  # float64 arithmetic on values of 1e-7
    with pytest.raises(EncoderError, match="plan: expected features within 1-cos"):
        measure_parity(turned(1.1 * gate), wanted, precision, "plan")
    broken = wanted.copy()
    broken[2, 3] = np.nan
    with pytest.raises(EncoderError, match="nan at row 2"):
        measure_parity(broken, wanted, precision, "plan")
