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

SIMPLE_TEXT = {"context_length": 12, "vocab_size": 0, "width": 32, "heads": 2, "layers": 1}
SIMPLE_VIT = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
TEXTS = ["a chest x-ray of a lung", "", "Effusion &amp; “small” nodule_s, 3.5 µg!", "nodule of the lung " * 30]


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
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(vocab), "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(bert), encoding="utf-8")


def write_siglip_json(path, pad=None):
    """A small `tokenizers` JSON of T5's layout: words, then the end token, then padding; ``pad`` is its padding token.

    Beside it the configuration that makes its folder a tokenizer for `transformers`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "a", "chest", "x", "ray", "of", "lung", "with", "small", "nodule", "and"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    options |= {"pad_token": pad} if pad else {}
    (path.parent / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
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


def write_weights(folder):
    """Random weights beside the configuration, made by open_clip's own factory; returns the folder."""
    import open_clip
    import safetensors.torch
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    safetensors.torch.save_file(random_batch_norms(model).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_pictures(folder, height, width):
    """Picture files of several formats, modes and shapes for a model input of that size; their paths."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(11)
    paths = []
    shapes = {"wide.png": (0.8, 2.1), "tall.jpg": (2.7, 1.3), "grey.png": (1.6, 1.6), "same.png": (1, 1)}
    for name, (tall, broad) in shapes.items():
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((round(broad * width), round(tall * height)), Image.Resampling.BICUBIC)
        paths.append(folder / name)
        (picture.convert("L") if name.startswith("grey") else picture).save(paths[-1])
    return paths


def assert_equals_open_clip(bundle_path, checkpoint, paths, texts=TEXTS, atol=2e-6):
    """Picture files and texts through the runtime alone, against open_clip's own loading, transform and tokenizer.

    ``checkpoint`` is a folder with weights. Nothing of the export room takes part. Measured: 4e-7 at most.
    """
    import numpy as np
    import open_clip
    import torch
    from PIL import Image

    from kpl_engine.bundle.reader import Bundle
    from kpl_engine.encoder.pipeline import encode_stream
    from kpl_engine.encoder.select import load_encoder

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}", require_pretrained=True)
    with torch.no_grad():
        pictures = torch.stack([transform(Image.open(path)) for path in paths])
        wanted = model.eval().encode_image(pictures, normalize=True).numpy()
        wanted_texts = None
        if texts:
            wanted_texts = model.encode_text(own_tokenizer(checkpoint)(texts), normalize=True).numpy()
    with Bundle.open(bundle_path) as bundle, load_encoder(bundle, "cpu") as encoder:
        encoded = encode_stream(paths, encoder)
        assert encoded.failures == ()
        np.testing.assert_allclose(encoded.features, wanted, atol=atol, rtol=0)
        assert np.abs(wanted[0] - wanted[1]).max() > 100 * atol  # the pictures matter
        if texts:
            np.testing.assert_allclose(encoder.encode_texts(texts, truncate=True), wanted_texts, atol=atol, rtol=0)
            assert np.abs(wanted_texts[0] - wanted_texts[1]).max() > 100 * atol


def own_tokenizer(checkpoint):
    """open_clip's tokenizer of a checkpoint folder; a merges file lies in the folder, which open_clip cannot say."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    text = json.loads((checkpoint / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    if "bpe_path" not in options:
        return open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    return SimpleTokenizer(str(checkpoint / options.pop("bpe_path")), context_length=text["context_length"], **options)


def assert_exact(report, towers=("image", "text"), batches=(1, 2, 3, 5, 6)):
    """The gates were held with room to spare, at every batch; measured: 4e-7 at most."""
    for tower in towers:
        parity = report.encoder["parity"][tower]
        assert parity["batches"] == list(batches)
        assert 0 < parity["max_abs"] < 5e-6, tower
        assert parity["max_one_minus_cos"] < 1e-9, tower


def check_checkpoint(folder, tmp_path, **options):
    """Fill a folder with weights, export it, compare picture files and texts with open_clip; the report."""
    from kpl_engine.export.exporter import export_encoder

    report = export_encoder(f"local-dir:{write_weights(folder)}", None, tmp_path / "out", max_batch=6, **options)
    has_text = report.encoder["text"] is not None
    assert_exact(report, ("image", "text") if has_text else ("image",))
    paths = write_pictures(tmp_path, report.preprocess["height"], report.preprocess["width"])
    assert_equals_open_clip(report.path, folder, paths, TEXTS if has_text else ())
    return report


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory):
    """A tiny CLIP with a ViT and a shortened BPE, random weights saved as safetensors."""
    return write_weights(write_folder(tmp_path_factory.mktemp("checkpoints") / "tiny-vit"))


@pytest.fixture(scope="session")
def vit_export(vit_folder, tmp_path_factory):
    """The report of one export of `vit_folder`, shared by the tests that only read it."""
    from kpl_engine.export.exporter import export_encoder

    output = tmp_path_factory.mktemp("bundles") / "tiny.kpl"
    return export_encoder(f"local-dir:{vit_folder}", None, Path(output), max_batch=7)
