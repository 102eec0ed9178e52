"""Every kind of tower open_clip builds passes the exporter's own gates, and equals open_clip from file to feature."""

import json
from pathlib import Path

import pytest

import kpl_engine.data
from kpl_engine.bundle.reader import Bundle
from kpl_engine.errors import ExportError
from kpl_engine.export.exporter import export_encoder

from .conftest import assert_equals_open_clip, check_checkpoint, write_folder, write_pictures

pytestmark = pytest.mark.torch


def test_plain_vit(vit_folder, vit_export, tmp_path):
    assert_equals_open_clip(vit_export.path, vit_folder, write_pictures(tmp_path, 32, 32))


def test_embedded_default_equals_its_checkpoint():
    """The bundle that is shipped, on the picture files that are shipped, PNG and JPEG, and on its own descriptions."""
    data = Path(kpl_engine.data.__file__).parent
    paths = sorted((data / "images").rglob("*_00[67].*"))
    assert {path.suffix for path in paths} == {".png", ".jpg"}
    phantom = Path(__file__).parent.parent / "phantom"
    knowledge = json.loads((phantom / "knowledge.json").read_text(encoding="utf-8"))
    texts = [entry["feature"] for entries in knowledge["Chest_Features"].values() for entry in entries[:3]]
    assert_equals_open_clip(data / "demo.kpl", phantom / "phantom-clip-v1", paths, texts)


def test_resnet_with_attention_pool(tmp_path):
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}
    check_checkpoint(write_folder(tmp_path / "rn", vision=vision, quick_gelu=True), tmp_path, with_text=False)


def test_coca_class_token_and_attentional_pool(tmp_path):
    vision = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True}
    text = {"embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1}
    decoder |= {"attn_pooler_heads": 2, "dim_head": 16}
    check_checkpoint(
        write_folder(tmp_path / "coca", vision=vision, text=text, multimodal_cfg=decoder, custom_text=True), tmp_path
    )


def test_non_square_input_mean_tokens_and_own_attention_blocks(tmp_path):
    vision = {"image_size": [32, 48], "pool_type": "avg", "ls_init_value": 0.1, "qk_norm": True, "scale_fc": True}
    text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "first", "scale_heads": True, "context_length": 9}
    folder = write_folder(
        tmp_path / "wide", vision=vision, text=text, preprocess={"interpolation": "bilinear"}, custom_text=True
    )
    report = check_checkpoint(folder, tmp_path)
    image = report.encoder["image"]
    assert (image["height"], image["width"]) == (32, 48)
    # open_clip's resize to a non-square target ignores the interpolation option
    assert report.preprocess["interpolation"] == "bicubic"


def test_timm_tower_alone(tmp_path):
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "mlp", "image_size": 64}
    colours = {"mean": [0.5], "std": 0.25, "resize_mode": "longest", "fill_color": 90, "interpolation": "bilinear"}
    folder = write_folder(tmp_path / "timm", vision=vision, preprocess=colours)
    report = check_checkpoint(folder, tmp_path, with_text=False)
    assert (report.preprocess["mean"], report.preprocess["std"], report.preprocess["fill"]) == (
        [0.5] * 3,
        [0.25] * 3,
        90,
    )
    with Bundle.open(report.path) as bundle:
        assert bundle.names == ("image.onnx",)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_towers_that_keep_all_tokens_are_refused(tmp_path, tower, monkeypatch):
    """Without pooling the features are (n, tokens, d): a graph that agrees with torch and encodes nothing."""
    from kpl_engine.export import verify

    monkeypatch.setattr(verify, "BATCHES", ())
    folder = write_folder(tmp_path / "all", **{tower: {"pool_type": "none"}}, custom_text=True)
    with pytest.raises(ExportError, match="one vector for each input"):
        export_encoder(f"local-dir:{folder}", "none", tmp_path / "out", max_batch=2, with_text=tower == "text")
    assert not (tmp_path / "out").exists()


def test_tower_that_fails_by_itself_is_named_with_its_reason(tmp_path):
    folder = write_folder(tmp_path / "tuple", vision={"output_tokens": True})
    with pytest.raises(ExportError, match=r"could not trace the pixels tower.*'tuple' object"):
        export_encoder(f"local-dir:{folder}", "none", tmp_path / "out", max_batch=1, with_text=False)
