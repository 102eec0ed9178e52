"""The training script runs and learns, and its tokenizer and text tower are open_clip's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (the export extra)")
from kpl_engine.export.environment import prepare_torch  # noqa: E402

prepare_torch()

import train as training  # noqa: E402
from build_demo import CHECKPOINT  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("short")
    return folder, training.train(folder, steps=30, films=160, batch=48, seed=3)


def test_a_few_steps_lower_the_loss(short: tuple[Path, list[float]]) -> None:
    _, losses = short
    assert np.isfinite(losses).all()
    # the fixed rise of the logit scale alone would make it grow
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.1


def test_training_repeats_itself_bit_for_bit_on_one_machine(tmp_path: Path) -> None:
    runs = [training.train(tmp_path / name, steps=3, films=48, batch=24, seed=5) for name in ("first", "second")]
    assert runs[0] == runs[1]
    for file in ("open_clip_model.safetensors", training.MERGES_FILE, "open_clip_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_checkpoint_loads_offline_as_a_local_dir(short: tuple[Path, list[float]]) -> None:
    import open_clip

    folder, _ = short
    model = open_clip.create_model(f"local-dir:{folder}")
    saved = json.loads((folder / "open_clip_config.json").read_text())
    assert model.vocab_size == saved["model_cfg"]["text_cfg"]["vocab_size"]
    assert "not for clinical use" in saved["note"]
    tokens = training.load_tokenizer(folder)(["a nodule in the left lung", "Ångström & 漢字"])
    assert tokens.shape == (2, 77)
    assert int(tokens.max()) == model.vocab_size - 1  # the end of text stays the largest id: pooling looks for it


def test_short_merges_cut_training_words_as_clip_does() -> None:
    import open_clip

    full = open_clip.get_tokenizer("ViT-B-32")
    short = training.load_tokenizer(CHECKPOINT)
    corpus = training.make_corpus(11, 40)
    for caption in {text for group in corpus.captions for text in group}:
        assert [short.decode([i]) for i in short.encode(caption)] == [full.decode([i]) for i in full.encode(caption)]


def test_leaving_out_idle_padding_changes_no_text_feature() -> None:
    import open_clip

    model = open_clip.create_model(f"local-dir:{CHECKPOINT}").eval()
    tokens = training.load_tokenizer(CHECKPOINT)(["normal chest", "large left pleural effusion with a meniscus", ""])
    with torch.no_grad():
        whole = model.encode_text(tokens, normalize=True).numpy()
        cut = training._embed_texts(model, tokens).numpy()
    np.testing.assert_allclose(cut, whole, rtol=0, atol=2e-6)
