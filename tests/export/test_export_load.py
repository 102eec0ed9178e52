"""Names, folders and weights files that are wrong each give an error that says what to do."""

import io
import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from kpl_engine.errors import ConfigError, ExportError, InputError
from kpl_engine.export import load
from kpl_engine.export.load import list_architectures, load_model
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


def test_download_without_a_network_says_what_to_fetch(monkeypatch):
    def fail(config):
        raise OSError("no route to host")

    monkeypatch.setattr(load.registry, "download_pretrained", fail)
    with pytest.raises(ExportError, match=r"huggingface\.co/timm/vit_base_patch32.*--pretrained FILE"):
        load_model("ViT-B-32", "openai")


def test_hub_model_without_a_network(monkeypatch):
    def fail(name):
        raise OSError("no route to host")

    monkeypatch.setattr(load.open_clip, "get_model_config", fail)
    with pytest.raises(ExportError, match="local-dir:FOLDER"):
        load_model("hf-hub:some/where")
    with pytest.raises(ConfigError, match="its own weights"):
        load_model("hf-hub:some/where", "openai")


def test_tag_decides_on_quick_gelu_and_preprocessing(monkeypatch):
    built = {}

    def build(identifier, overrides):
        built.update(overrides)
        raise ExportError("far enough")

    monkeypatch.setattr(load, "_build", build)
    monkeypatch.setattr(load.registry, "download_pretrained", lambda config: "weights.safetensors")
    with pytest.raises(ExportError, match="far enough"):
        load_model("ViT-B-32", "openai")
    assert built["quick_gelu"] is True
    built.clear()
    with pytest.raises(ExportError, match="far enough"):
        load_model("ViT-B-32", "laion2b_s34b_b79k")
    assert "quick_gelu" not in built
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


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))


def test_code_in_a_checkpoint_is_not_run(vit_folder, tmp_path, weights):
    path = tmp_path / "bomb.pt"
    torch.save({"state_dict": weights, "extra": Bomb()}, path)
    with pytest.raises(InputError, match="tensors only"):
        load_with(vit_folder, path)
    (tmp_path / "bomb.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="tensors only"):
        load_with(vit_folder, tmp_path / "bomb.bin")


def test_torchscript_archives_are_refused_with_a_way_out(vit_folder, tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ViT-B-32/constants.pkl", b"")
        archive.writestr("ViT-B-32/code/__torch__.py", b"")
    with pytest.raises(InputError, match=r"TorchScript.*--pretrained openai"):
        load_with(vit_folder, path)


def test_state_dict_of_another_architecture(vit_folder, tmp_path, weights):
    fewer = {name: value for name, value in weights.items() if name != "visual.proj"}
    safetensors.torch.save_file({**fewer, "visual.strange": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(first: visual\.proj\); 1 unexpected \(first: visual\.strange\)"):
        load_with(vit_folder, tmp_path / "other.safetensors")
    wrong = {**weights, "text_projection": torch.zeros(3, 3)}
    safetensors.torch.save_file(wrong, tmp_path / "shapes.safetensors")
    with pytest.raises(InputError, match="size mismatch for text_projection"):
        load_with(vit_folder, tmp_path / "shapes.safetensors")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(InputError, match="state dict"):
        load_with(vit_folder, tmp_path / "list.pt")


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


def test_half_precision_weights_become_float32(vit_folder, tmp_path, weights):
    stream = io.BytesIO()
    torch.save({name: value.half() for name, value in weights.items()}, stream)
    (tmp_path / "half.pt").write_bytes(stream.getvalue())
    loaded = load_with(vit_folder, tmp_path / "half.pt")
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
