"""Names, folders and weights files that are wrong each give an error that says what to do."""

import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from kpl_engine.errors import ConfigError, ExportError, InputError, ParityError
from kpl_engine.export import hub, load
from kpl_engine.export.load import list_architectures, load_model
from kpl_engine.export.preprocess import verify_preprocess
from kpl_engine.export.weights import find_weights

from .conftest import write_folder

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def weights(vit_folder):
    return safetensors.torch.load_file(vit_folder / "open_clip_model.safetensors")


def load_with(vit_folder, path):
    return load_model(f"local-dir:{vit_folder}", str(path))


def test_architectures_are_listed_by_pattern():
    assert "ViT-B-32" in list_architectures()
    assert list_architectures("rn50") == [name for name in list_architectures() if "RN50" in name]
    assert list_architectures("no such thing") == []


def test_wrong_name_gives_nearest_names():
    with pytest.raises(ConfigError, match=r"ViT-B-23.*nearest names: .*ViT-B-32"):
        load_model("ViT-B-23", "none")


def test_missing_pretrained_lists_the_tags():
    with pytest.raises(ConfigError, match=r"ViT-B-32 needs a tag.*openai"):
        load_model("ViT-B-32")


def test_wrong_tag_lists_the_tags():
    with pytest.raises(ConfigError, match=r"'opnai' is neither.*nearest: openai.*laion2b_s34b_b79k"):
        load_model("ViT-B-32", "opnai")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that cannot be reached, an empty cache, and a download that must not even be tried."""

    class Session:
        def head(self, *args, **options):
            raise OSError("no route to host")

    def fail(*args, **options):
        raise AssertionError("would wait for minutes")

    monkeypatch.setattr(hub.huggingface_hub, "get_session", Session)
    monkeypatch.setattr(hub.registry, "download_pretrained", fail)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.is_reachable.cache_clear()
    yield tmp_path / "cache"
    hub.is_reachable.cache_clear()


def put_in_cache(cache, repository, file, content):
    """A file as ``huggingface_hub`` lays it down."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit, encoding="utf-8")
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "snapshots" / commit / file).write_bytes(content)


def test_tag_without_a_network_says_at_once_what_to_fetch(no_network):
    with pytest.raises(ExportError, match=r"huggingface\.co/timm/vit_base_patch32.*--pretrained FILE"):
        load_model("ViT-B-32", "openai")


def test_tag_without_a_network_is_taken_from_the_cache(no_network):
    put_in_cache(no_network, "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", b"<html>")
    with pytest.raises(InputError, match=r"open_clip_model\.safetensors: is a web page"):
        load_model("ViT-B-32", "openai")


def test_hub_model_and_text_tower_without_a_network(no_network):
    with pytest.raises(ExportError, match="local-dir:FOLDER"):
        load_model("hf-hub:some/where")
    with pytest.raises(ConfigError, match="its own weights"):
        load_model("hf-hub:some/where", "openai")
    with pytest.raises(ExportError, match=r"FacebookAI/roberta-base is not in the cache|roberta.*local-dir:"):
        load_model("roberta-ViT-B-32", "none")


def test_reachable_hub_is_asked(monkeypatch):
    asked = []
    hub.is_reachable.cache_clear()
    session = type("Session", (), {"head": lambda self, url, timeout: asked.append((url, timeout))})
    monkeypatch.setattr(hub.huggingface_hub, "get_session", session)
    monkeypatch.setattr(hub.registry, "download_pretrained", lambda config: config["hf_hub"] + "weights.bin")
    try:
        path = hub.download_weights("ViT-B-32", "tag", {"hf_hub": "org/model/"})
        assert str(path) == "org/model/weights.bin"
        assert asked == [(hub.constants.ENDPOINT, hub.TIMEOUT_S)]
    finally:
        hub.is_reachable.cache_clear()


@pytest.mark.parametrize(
    ("name", "pretrained", "quick_gelu"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", None),
        ("ViT-B-32-quickgelu", "openai", None),
        # trained with QuickGELU as its configuration says; the tag is silent
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", None),
    ],
)
def test_tag_decides_on_quick_gelu(monkeypatch, tmp_path, name, pretrained, quick_gelu):
    built = {}

    def build(identifier, overrides):
        built.update(overrides)
        raise ExportError("far enough")

    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 64)
    monkeypatch.setattr(load, "_build", build)
    monkeypatch.setattr(load.hub, "download_weights", lambda *args: tmp_path / "weights.safetensors")
    with pytest.raises(ExportError, match="far enough"):
        load_model(name, pretrained)
    assert built.get("quick_gelu") is quick_gelu
    assert set(built) <= {"quick_gelu", "force_preprocess_cfg"}


def test_weights_without_a_tag_are_preprocessed_like_the_published_ones(monkeypatch):
    built = {}

    def build(identifier, overrides):
        built.update(overrides)
        raise ExportError("far enough")

    monkeypatch.setattr(load, "_build", build)
    with pytest.raises(ExportError, match="far enough"):
        load_model("ViT-B-16-SigLIP", "none")
    assert built["force_preprocess_cfg"]["resize_mode"] == "squash"
    assert tuple(built["force_preprocess_cfg"]["mean"]) == (0.5, 0.5, 0.5)


def test_random_weights_are_said_and_reproducible(vit_folder):
    first, second = (load_model(f"local-dir:{vit_folder}", "none") for _ in range(2))
    assert first.pretrained == "none"
    assert any("RANDOM WEIGHTS" in note for note in first.notes)
    for (name, a), (_, b) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_global_random_state_is_left_alone(vit_folder):
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    load_model(f"local-dir:{vit_folder}", "none")
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_files_of_each_kind(vit_folder, tmp_path, weights, suffix):
    path = tmp_path / f"weights{suffix}"
    changed = {name: value + 1 for name, value in weights.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(changed, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in changed.items()}}, path)
    loaded = load_with(vit_folder, path)
    assert loaded.pretrained == f"file:weights{suffix}"
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, changed[name]), name


def test_missing_weights_file(vit_folder, tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        load_with(vit_folder, tmp_path / "nowhere.safetensors")


def test_corrupt_weights(vit_folder, tmp_path, weights):
    good = (vit_folder / "open_clip_model.safetensors").read_bytes()
    torch.save(weights, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    cases = {
        "cut.safetensors": good[: len(good) // 2],
        "noise.safetensors": b"\xff" * 4096,
        "empty.safetensors": b"",
        "cut.pt": whole[: len(whole) // 2],
        "noise.pt": b"not a checkpoint at all",
        "empty.bin": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="again"):
            load_with(vit_folder, tmp_path / name)


class Bomb(torch.nn.Linear):
    """A module whose pickle creates a file when it is loaded carelessly."""

    def __init__(self, path):
        super().__init__(2, 2)
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_checkpoint_is_not_run(vit_folder, tmp_path, weights):
    bomb = Bomb(tmp_path / "ran")
    torch.save({"state_dict": weights, "extra": bomb}, tmp_path / "extra.pt")
    torch.save(bomb, tmp_path / "module.pt")
    torch.save(bomb, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(bomb))
    for name in ("extra.pt", "module.pt", "old.pth", "plain.bin"):
        with pytest.raises(InputError, match="tensors only"):
            load_with(vit_folder, tmp_path / name)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.bin").read_bytes()).close()  # the payload is a live one
    assert (tmp_path / "ran").exists()


def test_torchscript_archives_are_refused_with_a_way_out(vit_folder, tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the layout of torch.jit.save
        archive.writestr("ViT-B-32/constants.pkl", b"")
        archive.writestr("ViT-B-32/code/__torch__.py", b"")
    with pytest.raises(InputError, match=r"TorchScript.*--pretrained openai"):
        load_with(vit_folder, path)


def test_what_downloads_leave_instead_of_weights_is_named(vit_folder, tmp_path):
    page = b"\n<!DOCTYPE html><html><head><title>404</title></head></html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6\n"
    for name in ("page.pt", "page.safetensors"):
        (tmp_path / name).write_bytes(page)
        with pytest.raises(InputError, match="is a web page, not weights"):
            load_with(vit_folder, tmp_path / name)
    (tmp_path / "pointer.bin").write_bytes(pointer)
    with pytest.raises(InputError, match="git lfs pull"):
        load_with(vit_folder, tmp_path / "pointer.bin")


def test_state_dict_of_another_architecture(vit_folder, tmp_path, weights):
    fewer = {name: value for name, value in weights.items() if name != "visual.proj"}
    safetensors.torch.save_file({**fewer, "visual.strange": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(first: visual\.proj\); 1 unexpected \(first: visual\.strange\)"):
        load_with(vit_folder, tmp_path / "other.safetensors")
    wrong = {**weights, "text_projection": torch.zeros(3, 3)}
    safetensors.torch.save_file(wrong, tmp_path / "shapes.safetensors")
    with pytest.raises(InputError, match="size mismatch for text_projection"):
        load_with(vit_folder, tmp_path / "shapes.safetensors")
    for name, content in (("list.pt", [1, 2, 3]), ("nested.pt", {"model": weights, "epoch": 3})):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=r"state dict.*got (list|a dict of 'model', 'epoch')"):
            load_with(vit_folder, tmp_path / name)


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load_model(f"local-dir:{tmp_path}/none")
    with pytest.raises(InputError, match=r"open_clip_config\.json"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="JSON"):
        load_model(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 3}}), encoding="utf-8")
    with pytest.raises(InputError, match="vision_cfg, text_cfg"):
        load_model(f"local-dir:{tmp_path}")


def test_folder_without_weights_is_not_silently_random(tmp_path):
    folder = write_folder(tmp_path / "bare")
    with pytest.raises(InputError, match="--pretrained none"):
        load_model(f"local-dir:{folder}")


def test_impossible_configuration(tmp_path):
    folder = write_folder(tmp_path / "odd", vision={"no_such_option": 1})
    with pytest.raises(ExportError, match="no_such_option"):
        load_model(f"local-dir:{folder}", "none")


def test_choice_among_several_weights_files(tmp_path):
    assert find_weights(tmp_path) is None
    for name in ("z.bin", "b.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"):
        (tmp_path / name).touch()
    for wanted in ("open_clip_model.safetensors", "pytorch_model.bin", "b.safetensors", "z.bin"):
        assert find_weights(tmp_path).name == wanted
        (tmp_path / wanted).unlink()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(vit_folder, tmp_path, weights, dtype):
    half = {name: value.to(dtype) for name, value in weights.items()}
    torch.save(half, tmp_path / "half.pt")
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    for name in ("half.pt", "half.safetensors"):
        loaded = load_with(vit_folder, tmp_path / name)
        assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
        assert torch.equal(loaded.model.visual.proj, half["visual.proj"].float())


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"std": [0, 1, 1]}, "std > 0"),
        ({"mean": "abc"}, "could not convert"),
        ({"mean": [0.5, 0.5]}, "three finite numbers"),
        ({"resize_mode": "stretch"}, "shortest, squash or longest"),
        ({"fill_color": [1, 2, 3]}, "int"),
    ],
)
def test_preprocessing_the_runtime_cannot_follow(tmp_path, preprocess, message):
    folder = write_folder(tmp_path / "odd", preprocess=preprocess)
    with pytest.raises(InputError, match=message):
        load_model(f"local-dir:{folder}", "none")


def test_preprocessing_is_held_to_open_clip(tmp_path):
    folder = write_folder(tmp_path / "zero", preprocess={"mean": 0, "std": 0.5})
    loaded = load_model(f"local-dir:{folder}", "none")
    assert loaded.preprocess["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])  # 0 counts as unset
    verify_preprocess(loaded.model, loaded.preprocess)
    changes = ({"resize": "squash"}, {"interpolation": "bilinear"}, {"mean": [0.5] * 3}, {"std": [0.4, 0.5, 0.5]})
    for change in (*changes, {"resize": "longest"}, {"height": 33, "width": 33}):
        with pytest.raises(ParityError, match="differ from open_clip's transform"):
            verify_preprocess(loaded.model, {**loaded.preprocess, **change})
    folder = write_folder(tmp_path / "grey", preprocess={"mode": "L"})
    grey = load_model(f"local-dir:{folder}", "none")
    with pytest.raises(InputError, match="open_clip cannot use"):
        verify_preprocess(grey.model, grey.preprocess)
