"""Tiny checkpoints of many kinds, made on the spot: no weights and no network are needed."""

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the export room needs torch (the export extra)")
pytest.importorskip("onnx", reason="the export room needs onnx (the export extra)")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript (the export extra)")

from kpl_engine.export.environment import prepare_torch

prepare_torch()

SIMPLE_TEXT = {"context_length": 12, "vocab_size": 0, "width": 32, "heads": 2, "layers": 2}
SIMPLE_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}


def make_merges(path, words=("chest", "lung", "nodule", "effusion", "of", "the")):
    """A gzipped merges file in the layout open_clip reads; returns the vocabulary size it leads to."""
    merges = []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols[:2] = ["".join(pair)]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write("\n".join(lines).encode())
    return 512 + len(merges) + 2


def write_folder(folder, *, vision=None, text=None, preprocess=None, **model):
    """An open_clip checkpoint folder without weights, tokenizer merges included; returns it."""
    folder.mkdir(parents=True)
    text = {**SIMPLE_TEXT, **(text or {})}
    if not text.get("hf_tokenizer_name"):
        text["vocab_size"] = make_merges(folder / "merges.txt.gz")
        text["tokenizer_kwargs"] = {"bpe_path": "merges.txt.gz", **text.get("tokenizer_kwargs", {})}
    config = {"embed_dim": 24, "vision_cfg": {**SIMPLE_VIT, **(vision or {})}, "text_cfg": text, **model}
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_wordpiece(folder):
    """A BERT configuration and its WordPiece tokenizer, as `transformers` reads them from a folder."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), "chest", "lung", "."]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    options = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(vocab), "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(bert), encoding="utf-8")


def write_siglip_json(path):
    """A small `tokenizers` JSON of T5's layout: words, then the end token, then padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "a", "chest", "x", "ray", "of", "lung", "with", "small", "nodule", "and"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path))
    return len(words)


def random_batch_norms(model, seed=0):
    """Batch-norm statistics as a trained ResNet has them; fresh ones are zero and would hide a branch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.4, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory):
    """A tiny CLIP with a ViT and a shortened BPE, random weights saved as safetensors."""
    import safetensors.torch

    from kpl_engine.export.load import load_model

    folder = write_folder(tmp_path_factory.mktemp("checkpoints") / "tiny-vit")
    loaded = load_model(f"local-dir:{folder}", "none")
    safetensors.torch.save_file(loaded.model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def vit_export(vit_folder, tmp_path_factory):
    """The report of one export of `vit_folder`, shared by the tests that only read it."""
    from kpl_engine.export.exporter import export_encoder

    output = tmp_path_factory.mktemp("bundles") / "tiny.kpl"
    return export_encoder(f"local-dir:{vit_folder}", None, Path(output), max_batch=7)
