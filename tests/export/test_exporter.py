"""One small export, looked at from all sides: content, determinism, refusal, and what is left behind."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from kpl_engine.bundle.reader import Bundle
from kpl_engine.errors import ConfigError, ExportError, ParityError
from kpl_engine.export import exporter, to_onnx, verify
from kpl_engine.export.exporter import export_encoder
from kpl_engine.export.load import load_model

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


def test_features_equal_open_clip(vit_export, vit_folder):
    """Against open_clip's own loading and validation transform, not through any code of the exporter."""
    import open_clip
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{vit_folder}")
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        images = torch.stack([transform(Image.fromarray(array)) for array in pixels])
        wanted = model.eval().encode_image(images, normalize=True).numpy()
    session = onnxruntime.InferenceSession(str(vit_export.path / "image.onnx"))
    got = session.run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=0)


def test_two_exports_are_the_same_bytes(vit_export, vit_folder, tmp_path):
    again = export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "again", max_batch=3)
    for name in ("image.onnx", "text.onnx", "tokenizer.json"):
        assert (again.path / name).read_bytes() == (vit_export.path / name).read_bytes(), name
    assert again.encoder["fingerprint"] == vit_export.encoder["fingerprint"]


def test_fingerprints_are_the_hashes_of_the_files(vit_export):
    encoder = vit_export.encoder
    for tower in ("image", "text"):
        digest = hashlib.sha256((vit_export.path / encoder[tower]["file"]).read_bytes()).hexdigest()
        assert encoder[tower]["fingerprint"] == f"sha256:{digest}"


def test_fingerprint_follows_preprocessing(vit_export, vit_folder, tmp_path, monkeypatch):
    from kpl_engine.export import load

    preprocess = load._preprocess
    monkeypatch.setattr(load, "_preprocess", lambda model: {**preprocess(model), "resize": "squash"})
    changed = export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "changed", max_batch=1)
    assert changed.encoder["image"]["fingerprint"] == vit_export.encoder["image"]["fingerprint"]
    assert changed.encoder["fingerprint"] != vit_export.encoder["fingerprint"]


def test_graphs_tell_nothing_of_this_machine(vit_export, vit_folder):
    secrets = [b"site-packages", b"stack_trace", b"pkg.torch", b"encode_image", str(vit_folder.parent).encode()]
    secrets += [str(torch.__path__[0]).encode(), b'File "']
    for name in ("image.onnx", "text.onnx", "manifest.json", "tokenizer.json"):
        content = (vit_export.path / name).read_bytes()
        assert [secret for secret in secrets if secret in content] == [], name


def test_weights_outside_the_graph(vit_export, vit_folder, tmp_path):
    report = export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=2, external_data="always")
    assert report.encoder["image"]["data"] == ["image.onnx.data"]
    with Bundle.open(report.path) as bundle:
        assert bundle.names == ("image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data", "tokenizer.json")
    pixels = verify.random_pixels(3, 32, 32, seed=2)
    features = [
        onnxruntime.InferenceSession(str(path / "image.onnx")).run(None, {"pixels": pixels})[0]
        for path in (report.path, vit_export.path)
    ]
    np.testing.assert_array_equal(*features)
    assert report.encoder["image"]["fingerprint"] != vit_export.encoder["image"]["fingerprint"]


def test_large_tower_cannot_be_inlined(vit_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "MAX_INLINE_BYTES", 1000)
    with pytest.raises(ConfigError, match="use 'auto'"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=1, external_data="never")
    assert list(tmp_path.iterdir()) == []


def break_graphs(monkeypatch, change):
    """Let ``change`` act on the weights of each graph between tracing and comparison."""
    write = to_onnx._write

    def write_broken(model, path, external_data):
        graph = write(model, path, external_data)
        proto = onnx.load(path)
        change(proto)
        onnx.save(proto, path)
        return graph

    monkeypatch.setattr(to_onnx, "_write", write_broken)


def scale_largest(proto, factor):
    tensor = max(proto.graph.initializer, key=lambda item: len(item.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[: values.size // 2] *= factor
    tensor.raw_data = values.tobytes()


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_broken_graph_is_refused_and_leaves_nothing(vit_folder, tmp_path, monkeypatch, factor):
    break_graphs(monkeypatch, lambda proto: scale_largest(proto, factor))
    with pytest.raises(ParityError, match=r"image\.onnx"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=2)
    assert list(tmp_path.iterdir()) == []


def test_refusal_keeps_the_bundle_that_was_there(vit_export, vit_folder, tmp_path, monkeypatch):
    output = tmp_path / "out"
    export_encoder(f"local-dir:{vit_folder}", None, output, max_batch=1, with_text=False)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    break_graphs(monkeypatch, lambda proto: scale_largest(proto, 1.1))
    with pytest.raises(ParityError):
        export_encoder(f"local-dir:{vit_folder}", None, output, max_batch=1, overwrite=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_outputs(vit_folder, tmp_path):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "holiday.txt").write_text("keep me", encoding="utf-8")
    model = f"local-dir:{vit_folder}"
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not a bundle"):
            export_encoder(model, None, precious, overwrite=overwrite)
    assert (precious / "holiday.txt").read_text(encoding="utf-8") == "keep me"
    output = tmp_path / "empty"
    output.mkdir()
    export_encoder(model, None, output, max_batch=1, with_text=False)
    with pytest.raises(ConfigError, match="--force"):
        export_encoder(model, None, output, max_batch=1)
    report = export_encoder(model, None, output, max_batch=1, overwrite=True)
    assert report.encoder["text"] is not None


def test_unwritable_place_is_named(vit_folder, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ExportError, match=r"file/out: cannot be written"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "file" / "out", max_batch=1)


def test_disk_full_while_writing(vit_folder, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_onnx.onnx_ir, "save", fail)
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


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_opset_out_of_range(vit_folder, tmp_path, opset):
    with pytest.raises(ConfigError, match="opset"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", opset=opset)


def test_opset_18_is_written_as_asked(vit_folder, tmp_path):
    report = export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", opset=18, max_batch=2, with_text=False)
    opsets = {entry.domain: entry.version for entry in onnx.load(report.path / "image.onnx").opset_import}
    assert opsets[""] == report.encoder["opset"] == 18


def test_max_batch_is_checked(vit_folder, tmp_path):
    with pytest.raises(ConfigError, match="--max-batch"):
        export_encoder(f"local-dir:{vit_folder}", None, tmp_path / "out", max_batch=0)


def test_attention_is_written_out_and_put_back(vit_folder, vit_export):
    loaded = load_model(f"local-dir:{vit_folder}")
    attention = loaded.model.visual.transformer.resblocks[0].attn
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    tower = to_onnx.ImageTower(loaded.model, [0.5] * 3, [0.5] * 3)
    with to_onnx.explicit_attention(tower) as num_written:
        assert num_written == 4  # two blocks in each tower
        assert loaded.model.visual.transformer.resblocks[0].attn is not attention
        tower(example)
    assert loaded.model.visual.transformer.resblocks[0].attn is attention
    kinds = [node.op_type for node in onnx.load(vit_export.path / "image.onnx").graph.node]
    assert kinds.count("Softmax") == 2
    assert kinds.count("Slice") <= 1  # the class token; packed projections would be sliced too


def test_reports_are_json(vit_export):
    assert json.loads(json.dumps(dict(vit_export.encoder)))["embed_dim"] == 24
    assert set(vit_export.timings_s) >= {"load model", "trace image tower", "compare text tower", "write bundle"}
    assert exporter.DEFAULT_MAX_BATCH == 64
