"""Every kind of tower open_clip builds passes the exporter's own gates at every batch."""

import json

import numpy as np
import onnxruntime
import pytest

from kpl_engine.bundle.reader import Bundle
from kpl_engine.export import load
from kpl_engine.export.exporter import export_encoder
from kpl_engine.export.verify import random_pixels

from .conftest import random_batch_norms, write_folder, write_siglip_json, write_wordpiece

pytestmark = pytest.mark.torch


def export(folder, output, **options):
    return export_encoder(f"local-dir:{folder}", "none", output, **{"max_batch": 6, **options})


def assert_exact(report, towers=("image", "text")):
    for tower in towers:
        parity = report.encoder["parity"][tower]
        assert parity["batches"] == [1, 2, 3, 5, 6]
        assert 0 < parity["max_abs"] < 5e-6, tower  # measured: 2e-7 at most
        assert parity["max_one_minus_cos"] < 1e-9, tower


def assert_depends_on_input(report):
    session = onnxruntime.InferenceSession(str(report.path / "image.onnx"))
    pixels = random_pixels(4, report.preprocess["height"], report.preprocess["width"], seed=9)
    features = session.run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-6)
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_resnet_with_attention_pool(tmp_path, monkeypatch):
    build = load._build
    monkeypatch.setattr(load, "_build", lambda *args: random_batch_norms(build(*args)))
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}
    report = export(write_folder(tmp_path / "rn", vision=vision, quick_gelu=True), tmp_path / "out")
    assert_exact(report)
    assert_depends_on_input(report)


def test_coca_class_token_and_attentional_pool(tmp_path):
    vision = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True}
    text = {"embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1}
    decoder |= {"attn_pooler_heads": 2, "dim_head": 16}
    folder = write_folder(tmp_path / "coca", vision=vision, text=text, multimodal_cfg=decoder, custom_text=True)
    report = export(folder, tmp_path / "out")
    assert_exact(report)
    assert_depends_on_input(report)


def test_siglip_map_pool_and_text_without_causal_mask(tmp_path):
    size = write_siglip_json(tmp_path / "tokenizer.json")
    vision = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    text = {"hf_tokenizer_name": "given-by-option", "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": size, "pad_id": 1}
    colours = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder = write_folder(
        tmp_path / "siglip", vision=vision, text=text, preprocess=colours, embed_dim=64, init_logit_bias=-10
    )
    report = export(folder, tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"))
    assert_exact(report)
    assert_depends_on_input(report)
    assert report.preprocess == {
        "resize": "squash",
        "height": 160,
        "width": 160,
        "interpolation": "bicubic",
        "fill": 0,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    descriptor = json.loads((report.path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (descriptor["type"], descriptor["clean"], descriptor["pad"]) == ("hf", "canonicalize", 0)


def test_bert_text_tower_from_a_local_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = {"hf_model_name": "org/bert-on-the-hub", "hf_tokenizer_name": "org/bert-on-the-hub", "context_length": 20}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    folder = write_folder(tmp_path / "biomed", vision=vision, text=text)
    write_wordpiece(folder)
    report = export(folder, tmp_path / "out")
    assert_exact(report)
    assert report.encoder["text"]["context_length"] == 20  # not the 64 positions BERT has


def test_non_square_input_and_mean_tokens(tmp_path):
    vision = {"image_size": [32, 48], "pool_type": "avg", "ls_init_value": 0.1}
    folder = write_folder(tmp_path / "wide", vision=vision, preprocess={"interpolation": "bilinear"})
    report = export(folder, tmp_path / "out", with_text=False)
    assert_exact(report, ["image"])
    image = report.encoder["image"]
    assert (image["height"], image["width"]) == (32, 48)
    # open_clip's resize to a non-square target ignores the interpolation option
    assert report.preprocess["interpolation"] == "bicubic"
    assert report.encoder["text"] is None
    with Bundle.open(report.path) as bundle:
        assert bundle.names == ("image.onnx",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "RN50"])
def test_real_architectures(name, tmp_path, monkeypatch):
    build = load._build
    monkeypatch.setattr(load, "_build", lambda *args: random_batch_norms(build(*args)))
    report = export_encoder(name, "none", tmp_path / "out", max_batch=6)
    assert_exact(report)
    assert report.encoder["embed_dim"] == {"ViT-B-32": 512, "ViT-B-16": 512, "RN50": 1024}[name]
    assert (report.preprocess["height"], report.preprocess["resize"]) == (224, "shortest")
