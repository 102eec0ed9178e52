"""Towers and tokenizers of the Hugging Face kind, from local files alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kpl_engine.bundle.reader import Bundle
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import ExportError
from kpl_engine.export.exporter import export_encoder

from .conftest import check_checkpoint, write_folder, write_siglip_json, write_wordpiece

pytestmark = pytest.mark.torch

OFFLINE = """
import sys
import socket
def refuse(*args, **options):
    raise SystemExit("the network was asked")
socket.getaddrinfo = refuse
from kpl_engine.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def siglip_folder(tmp_path):
    vision = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    text = {"hf_tokenizer_name": "in-the-folder", "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": 13, "norm_kwargs": {"eps": 1e-6}}
    colours = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder = write_folder(
        tmp_path / "siglip",
        vision=vision,
        text=text,
        preprocess=colours,
        embed_dim=64,
        init_logit_bias=-10,
        custom_text=True,
    )
    assert write_siglip_json(folder / "tokenizer.json", pad="</s>") == 13
    return folder


def test_siglip_map_pool_and_text_without_causal_mask(tmp_path):
    report = check_checkpoint(siglip_folder(tmp_path), tmp_path)
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
    assert (descriptor["type"], descriptor["clean"], descriptor["pad"]) == ("hf", "canonicalize", 1)


def test_bert_text_tower_from_a_local_config(tmp_path):
    folder = tmp_path / "biomed"
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": "in-the-folder", "context_length": 20}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    write_folder(folder, vision=vision, text=text)
    write_wordpiece(folder)
    report = check_checkpoint(folder, tmp_path)
    assert report.encoder["text"]["context_length"] == 20  # not the 64 positions BERT has


def test_bert_named_as_on_the_hub_needs_no_network(tmp_path):
    """In a process of its own: HF_HUB_OFFLINE is read when the hub's package is imported."""
    text = {"hf_model_name": "org/bert", "hf_tokenizer_name": "org/bert", "context_length": 20}
    text |= {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    folder = write_folder(tmp_path / "biomed", text=text)
    write_wordpiece(folder)
    arguments = ["export", "--model", f"local-dir:{folder}", "--pretrained", "none", "-o", "out", "--max-batch", "1"]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", OFFLINE, *arguments],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "equal to torch" in done.stdout
    with Bundle.open(tmp_path / "out") as bundle, load_encoder(bundle, "cpu") as encoder:
        features = encoder.encode_texts(["a chest", "no lung"])
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_pooler_that_does_not_run_in_open_clip_is_refused_with_its_reason(tmp_path):
    text = {"hf_model_name": "org/bert", "hf_tokenizer_name": "org/bert", "context_length": 20}
    folder = write_folder(tmp_path / "biomed", text={**text, "hf_pooler_type": "max_pooler"})
    write_wordpiece(folder)
    with pytest.raises(ExportError, match=r"could not trace the tokens tower.*expected predicate to be bool"):
        export_encoder(f"local-dir:{folder}", "none", tmp_path / "out", max_batch=1)
    assert not (tmp_path / "out").exists()
