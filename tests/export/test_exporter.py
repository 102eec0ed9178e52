"""One small export, looked at from all sides: content, determinism, refusal, and what is left behind."""

import getpass
import hashlib
import json
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from kpl_engine.bundle.reader import Bundle
from kpl_engine.encoder.pipeline import encode_stream
from kpl_engine.encoder.select import load_encoder
from kpl_engine.errors import ConfigError, ExportError, ParityError
from kpl_engine.export import exporter, to_onnx, verify
from kpl_engine.export.exporter import export_encoder
from kpl_engine.export.load import load_model
from kpl_engine.export.record import Tower, encoder_fields
from kpl_engine.export.to_onnx import WrittenGraph
from kpl_engine.export.tokenizer import load_tokenizer

from .conftest import TEXTS, write_pictures

pytestmark = pytest.mark.torch


def test_bundle_describes_itself(vit_export, vit_folder):
    with Bundle.open(vit_export.path) as bundle:
        encoder, preprocess = bundle.manifest["encoder"], bundle.manifest["preprocess"]
        assert bundle.names == ("image.onnx", "text.onnx", "tokenizer.json")
    assert (encoder["name"], encoder["pretrained"]) == ("tiny-vit", "file:open_clip_model.safetensors")
    assert (encoder["embed_dim"], encoder["precision"], encoder["opset"]) == (24, "fp32", 20)
    assert encoder["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    assert encoder["image"]["input"] == "pixels"
    assert encoder["text"]["context_length"] == 12
    assert list(encoder["parity"]["image"]["batches"]) == [1, 2, 3, 5, 7]
    assert dict(encoder["parity"]["gates"]) == {"max_one_minus_cos": 1e-6, "max_abs": 1e-4}
    assert set(encoder["versions"]) == {"torch", "open_clip", "onnx", "onnxruntime"}
    assert preprocess["height"] == preprocess["width"] == 32
    assert preprocess["resize"] == "shortest"


def test_graph_signature(vit_export):
    session = onnxruntime.InferenceSession(str(vit_export.path / "image.onnx"))
    (pixels,), (features,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["n", 32, 32, 3])
    assert (features.name, features.type, features.shape) == ("features", "tensor(float)", ["n", 24])
    session = onnxruntime.InferenceSession(str(vit_export.path / "text.onnx"))
    (tokens,) = session.get_inputs()
    assert (tokens.name, tokens.type, tokens.shape) == ("tokens", "tensor(int64)", ["n", 12])


def test_fingerprints_are_the_hashes_of_the_files(vit_export):
    encoder = vit_export.encoder
    for tower in ("image", "text"):
        digest = hashlib.sha256((vit_export.path / encoder[tower]["file"]).read_bytes()).hexdigest()
        assert encoder[tower]["fingerprint"] == f"sha256:{digest}"


def test_fingerprint_follows_preprocessing(vit_export, vit_folder):
    loaded = load_model(f"local-dir:{vit_folder}")
    descriptor = (vit_export.path / "tokenizer.json").read_bytes()
    towers = [
        Tower(
            WrittenGraph(vit_export.path / f"{name}.onnx", (), 1),
            verify.Parity(0.0, 0.0, (1,)),
            24,
            vit_export.encoder[name]["fingerprint"],
        )
        for name in ("image", "text")
    ]
    same = encoder_fields(loaded, *towers, descriptor, 20)
    assert same["fingerprint"] == vit_export.encoder["fingerprint"]
    for key, value in {"resize": "squash", "mean": [0.5] * 3, "fill": 7, "interpolation": "bilinear"}.items():
        changed = replace(loaded, preprocess={**loaded.preprocess, key: value})
        assert encoder_fields(changed, *towers, descriptor, 20)["fingerprint"] != same["fingerprint"], key


def test_graphs_tell_nothing_of_this_machine(vit_export, vit_folder):
    words = ["site-packages", "stack_trace", "pkg.torch", "encode_image", 'File "', str(torch.__path__[0])]
    words += [str(vit_folder.parent), str(vit_export.path.parent), str(Path.cwd()), tempfile.gettempdir()]
    words += [socket.gethostname(), getpass.getuser(), str(Path.home())]
    for path in vit_export.path.iterdir():
        content = path.read_bytes()
        assert [word for word in words if len(word) > 3 and word.encode() in content] == [], path.name


def test_weights_outside_the_graph(vit_export, vit_folder, tmp_path):
    report = export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=2, external_data="always")
    assert report.encoder["image"]["data"] == ["image.onnx.data"]
    with Bundle.open(report.path) as bundle:
        assert bundle.names == ("image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data", "tokenizer.json")
    paths = write_pictures(tmp_path, 32, 32)
    features = []
    for path in (report.path, vit_export.path):
        with Bundle.open(path) as bundle, load_encoder(bundle, "cpu") as encoder:
            features += [encode_stream(paths, encoder).features, encoder.encode_texts(TEXTS[:2])]
    np.testing.assert_array_equal(features[0], features[2])
    np.testing.assert_array_equal(features[1], features[3])
    assert report.encoder["image"]["fingerprint"] != vit_export.encoder["image"]["fingerprint"]


def test_large_tower_cannot_be_inlined(vit_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "MAX_INLINE_BYTES", 1000)
    with pytest.raises(ConfigError, match="use 'auto'"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=1, external_data="never")
    assert list(tmp_path.iterdir()) == []


def scale_largest(path, factor):
    proto = onnx.load(path)
    tensor = max(proto.graph.initializer, key=lambda item: len(item.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[: values.size // 2] *= factor
    tensor.raw_data = values.tobytes()
    onnx.save(proto, path)


def break_graph(monkeypatch, name, factor):
    """Change the weights of one graph between tracing and comparison."""
    write = to_onnx._write

    def write_broken(model, path, external_data):
        graph = write(model, path, external_data)
        if path.name == name:
            scale_largest(path, factor)
        return graph

    monkeypatch.setattr(to_onnx, "_write", write_broken)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_gates_see_a_changed_weight(vit_export, vit_folder, tmp_path, tower):
    loaded = load_model(f"local-dir:{vit_folder}")
    path = tmp_path / f"{tower}.onnx"
    if tower == "image":
        inputs = verify.random_pixels(8, 32, 32)
        reference = verify.image_reference(loaded.model, loaded.preprocess["mean"], loaded.preprocess["std"])
    else:
        tokenizer = load_tokenizer(loaded)
        inputs = verify.random_tokens(tokenizer, loaded.model.vocab_size, 8)
        reference = verify.text_reference(loaded.model)
    shutil.copy(vit_export.path / path.name, path)
    verify.verify_graph(path, inputs, reference, (1, 5))
    for factor in (1.01, float("nan")):
        shutil.copy(vit_export.path / path.name, path)
        scale_largest(path, factor)
        with pytest.raises(ParityError, match=rf"{tower}\.onnx, batch 1"):
            verify.verify_graph(path, inputs, reference, (1, 5))


def test_broken_text_graph_is_refused_and_leaves_nothing(vit_folder, tmp_path, monkeypatch):
    break_graph(monkeypatch, "text.onnx", 1.01)
    with pytest.raises(ParityError, match=r"text\.onnx"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "a" / "b" / "out", max_batch=1)
    assert list(tmp_path.iterdir()) == []  # not even the folders that would have been made


def test_refusal_keeps_the_bundle_that_was_there(vit_export, vit_folder, tmp_path, monkeypatch):
    output = shutil.copytree(vit_export.path, tmp_path / "out")
    break_graph(monkeypatch, "image.onnx", 1.1)
    with pytest.raises(ParityError, match=r"image\.onnx"):
        export_encoder(f"local-dir:{vit_folder}", None, output, max_batch=1, overwrite=True)
    for path in vit_export.path.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_not_numbers_are_refused(vit_folder, tmp_path):
    weights = safetensors.torch.load_file(vit_folder / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(ParityError, match=r"the original model gives NaN"):
        export_encoder(f"local-dir:{vit_folder}", str(tmp_path / "nan.safetensors"), tmp_path / "out", max_batch=1)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]


def test_interruption_leaves_nothing(vit_folder, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        assert len(list(tmp_path.iterdir())) == 1  # the working folder is here, and must go
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "verify_graph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "new" / "out", max_batch=1, with_text=False)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_would_lose_something_are_refused_at_once(vit_export, vit_folder, tmp_path, monkeypatch):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "holiday.txt").write_text("keep me", encoding="utf-8")
    existing = shutil.copytree(vit_export.path, tmp_path / "bundle")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    refused = [
        (precious, True, "not a bundle"),
        (precious / "holiday.txt", True, "not a bundle"),
        (precious / "holiday.txt" / "out", False, "is not a folder"),
        (vit_folder, True, "not a bundle"),
        (existing, False, "--force"),
        (".", True, "working directory"),
    ]
    for output, overwrite, message in refused:
        with pytest.raises(ConfigError, match=message):
            export_encoder("no-such-model", None, output, overwrite=overwrite)
    assert (precious / "holiday.txt").read_text(encoding="utf-8") == "keep me"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "empty", "photos"]


def test_existing_bundle_is_replaced_when_asked(vit_export, vit_folder, tmp_path, monkeypatch):
    """Through a relative path with a space, a link, and inside the checkpoint's own folder."""
    checkpoint = shutil.copytree(vit_folder, tmp_path / "check point")
    shutil.copytree(vit_export.path, checkpoint / "my bundle")
    (tmp_path / "link").symlink_to(checkpoint / "my bundle")
    monkeypatch.chdir(tmp_path)
    report = export_encoder(
        "local-dir:check point", None, "link", max_batch=1, opset=18, with_text=False, overwrite=True
    )
    assert report.path == (checkpoint / "my bundle").resolve()
    opsets = {entry.domain: entry.version for entry in onnx.load(report.path / "image.onnx").opset_import}
    assert opsets[""] == report.encoder["opset"] == 18
    assert not (report.path / "text.onnx").exists()
    assert len(list(checkpoint.iterdir())) == len(list(vit_folder.iterdir())) + 1


def test_unwritable_folder_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter.os, "access", lambda *args: False)  # the superuser may write anywhere
    with pytest.raises(ConfigError, match="is not writable"):
        export_encoder("no-such-model", None, tmp_path / "out")


def test_disk_full_while_writing(vit_folder, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_onnx, "export_tower", fail)
    with pytest.raises(ExportError, match="No space left"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=1)
    assert list(tmp_path.iterdir()) == []


def test_batch_of_one_example_is_refused(vit_folder, tmp_path):
    loaded = load_model(f"local-dir:{vit_folder}")
    tower = to_onnx.ImageTower(loaded.model, [0.5] * 3, [0.5] * 3)
    example = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="batch of 1"):
        to_onnx.export_tower(tower, example, tmp_path / "image.onnx", input_name="pixels")


class Untraceable(torch.nn.Module):
    def forward(self, pixels):
        return pixels.float().sum() if pixels.sum().item() > 3 else pixels.float().mean()


def test_untraceable_tower_gives_one_clear_line(tmp_path):
    example = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ExportError, match="could not trace the pixels tower"):
        to_onnx.export_tower(Untraceable(), example, tmp_path / "image.onnx", input_name="pixels")


class Constant(torch.nn.Module):
    def encode_image(self, images):
        return images.flatten(1)[:, :5] * 0.0


def test_zero_features_stay_zero(tmp_path):
    tower = to_onnx.ImageTower(Constant(), [0.5] * 3, [0.5] * 3)
    example = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    graph = to_onnx.export_tower(tower, example, tmp_path / "image.onnx", input_name="pixels")
    session = onnxruntime.InferenceSession(str(graph.path))
    features = session.run(None, {"pixels": verify.random_pixels(3, 4, 4)})[0]
    np.testing.assert_array_equal(features, np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("opset", [1, 17, 999])
def test_opset_out_of_range(vit_folder, tmp_path, opset):
    with pytest.raises(ConfigError, match="opset"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", opset=opset)


@pytest.mark.parametrize("max_batch", [0, -1, 1025])
def test_max_batch_is_checked(vit_folder, tmp_path, max_batch):
    with pytest.raises(ConfigError, match="--max-batch"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=max_batch)


def test_attention_is_written_out_and_put_back(vit_folder, vit_export):
    loaded = load_model(f"local-dir:{vit_folder}")
    attention = loaded.model.visual.transformer.resblocks[0].attn
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    tower = to_onnx.ImageTower(loaded.model, [0.5] * 3, [0.5] * 3)
    with to_onnx.explicit_attention(tower) as num_written:
        assert num_written == 2  # one block in each tower
        assert loaded.model.visual.transformer.resblocks[0].attn is not attention
        tower(example)
    assert loaded.model.visual.transformer.resblocks[0].attn is attention
    kinds = [node.op_type for node in onnx.load(vit_export.path / "image.onnx").graph.node]
    assert kinds.count("Softmax") == 1
    assert kinds.count("Slice") <= 1  # the class token; packed projections would be sliced too


def test_reports_are_json(vit_export):
    assert json.loads(json.dumps(dict(vit_export.encoder)))["embed_dim"] == 24
    assert set(vit_export.timings_s) >= {"load model", "trace image tower", "compare text tower", "write bundle"}
    assert exporter.DEFAULT_MAX_BATCH == 64
