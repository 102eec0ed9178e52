"""Architectures people use, at their real size, with random weights."""

import open_clip
import pytest

from kpl_engine.export import load
from kpl_engine.export.exporter import export_encoder

from .conftest import assert_exact, random_batch_norms

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "RN50"])
def test_real_architectures(name, tmp_path, monkeypatch):
    """The three have the same text tower, which is exported once."""
    configs = [open_clip.get_model_config(model)["text_cfg"] for model in (name, "ViT-B-32")]
    assert configs[0] == configs[1]
    build = load._build
    monkeypatch.setattr(load, "_build", lambda *args: random_batch_norms(build(*args)))
    with_text = name == "ViT-B-32"
    report = export_encoder(name, "none", tmp_path / "out", max_batch=5, with_text=with_text)
    assert_exact(report, ("image", "text") if with_text else ("image",), batches=(1, 2, 3, 5))
    assert report.encoder["embed_dim"] == {"ViT-B-32": 512, "ViT-B-16": 512, "RN50": 1024}[name]
    assert (report.preprocess["height"], report.preprocess["resize"]) == (224, "shortest")
