"""Embedding once, storing, reading back, and building bundles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from kpl_engine import building
from kpl_engine.building import add_proxies, build_knowledge, check_target
from kpl_engine.bundle import Bundle, pack, write_bundle
from kpl_engine.bundle.tensors import dump_tensors, load_tensors
from kpl_engine.cli.main import build_parser
from kpl_engine.errors import BundleChangedError, BundleError, EncoderError, KnowledgeError
from kpl_engine.knowledge.base import KnowledgeBase, check_name
from kpl_engine.knowledge.embed import embed_knowledge
from kpl_engine.knowledge.template import Template
from kpl_engine.knowledge.text import KnowledgeText

WIDTH = 6


class FakeText:
    """Random rows by text; remembers what it was asked."""

    def __init__(self, fingerprint: str = "tower0") -> None:
        self.text_fingerprint = fingerprint
        self.texts: list[str] = []
        self.truncate: set[bool] = set()

    def __call__(self, bundle):
        return self

    def encode_texts(self, texts, truncate=False):
        self.texts += texts
        self.truncate.add(truncate)
        seeds = [list(hashlib.sha256(text.encode()).digest()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]).astype(np.float32)


def refuse(bundle):
    raise AssertionError("the encoder was started although nothing had to be embedded")


@pytest.fixture
def write_encoder(tmp_path):
    def write(name="encoder.kpl", seed=0, text=True):
        graph = {"data": [], "input": "x", "output": "y", "fingerprint": f"tower{seed}"}
        encoder = {
            "embed_dim": WIDTH,
            "fingerprint": f"encoder{seed}",
            "image": {**graph, "file": "image.onnx", "height": 8, "width": 8},
            "text": {**graph, "file": "text.onnx", "context_length": 77} if text else None,
        }
        preprocess = {"height": 8, "width": 8, "resize": "shortest", "interpolation": "bicubic"}
        preprocess |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
        files = {"image.onnx": b"image", "text.onnx": b"text"}
        write_bundle(tmp_path / name, {"encoder": encoder, "preprocess": preprocess}, files).close()
        return tmp_path / name

    return write


@pytest.fixture
def write_file(tmp_path):
    def write(value, name="lung.json"):
        (tmp_path / name).write_text(json.dumps(value))
        return tmp_path / name

    return write


def read_base(path, name="lung"):
    with Bundle.open(path) as bundle:
        return KnowledgeBase.from_tensors(*bundle.tensors(bundle.manifest["knowledge"][name]["file"]))


def make_base(seed=0):
    text = KnowledgeText(("a", "b", "c"), (("one", "two"), (), ("one",)))
    return embed_knowledge(text, Template(), FakeText().encode_texts, "tower0", {}, f"n{seed}")[0]


def test_three_new_descriptions_embed_three(write_encoder, write_file, tmp_path):
    encoder, out = write_encoder(), tmp_path / "lung.kpl"
    groups = {"a": [f"a{i}" for i in range(60)], "b": [f"b{i}" for i in range(37)]}
    first = FakeText()
    report = build_knowledge(write_file(groups), encoder, out, encoder_loader=first, truncate=True)
    assert (report.num_embedded, report.num_reused) == (97, 0)
    assert len(set(first.texts)) == len(first.texts) == 97
    assert first.truncate == {True}
    old = read_base(out)
    groups = {"b": [*groups["b"], "new"], "a": ["newer", *groups["a"]], "c": []}
    second = FakeText()
    report = build_knowledge(write_file(groups), encoder, out, encoder_loader=second)
    assert (report.num_embedded, report.num_reused) == (3, 97)
    assert sorted(second.texts) == [
        "a photo of a a, which has newer",
        "a photo of a b, which has new",
        "a photo of a c",
    ]
    new = read_base(out)
    assert new.classes == ("b", "a", "c")
    assert new.descriptions[2] == ("c",)
    np.testing.assert_array_equal(new.class_embeddings(1)[1:], old.class_embeddings(0))
    np.testing.assert_array_equal(new.class_embeddings(0)[:-1], old.class_embeddings(1))
    report = build_knowledge(write_file(groups), encoder, out, encoder_loader=refuse)
    assert (report.num_embedded, report.num_reused) == (0, 100)
    assert report.knowledge.fingerprint == new.fingerprint


def test_one_prompt_is_embedded_once_even_across_classes():
    text = KnowledgeText(("a", "b"), (("x", "y"), ("x",)))
    encoder = FakeText()
    base, report = embed_knowledge(text, Template("{feature}"), encoder.encode_texts, "t", {}, "n", batch_size=1)
    assert encoder.texts == ["x", "y"]
    assert (report.num_embedded, report.num_reused) == (2, 0)
    np.testing.assert_array_equal(base.class_embeddings(0)[0], base.class_embeddings(1)[0])
    np.testing.assert_allclose(np.linalg.norm(base.embeddings, axis=1), 1, atol=1e-6)


def test_a_bad_encoder_is_caught():
    text = KnowledgeText(("a", "b"), (("x",), ("y",)))
    for rows in (np.zeros((2, 4)), np.full((2, 4), np.nan), np.ones((3, 4))):
        with pytest.raises(ValueError, match=r"text enc|text emb"):
            embed_knowledge(text, Template(), lambda texts, rows=rows: rows, "t", {}, "n")


def test_several_bases_share_an_encoder_in_place_and_zipped(write_encoder, write_file, tmp_path):
    encoder = write_encoder()
    fake = FakeText()
    build_knowledge(write_file({"a": ["x"], "b": ["y"]}), encoder, encoder, encoder_loader=fake)
    build_knowledge(write_file({"a": ["x"], "c": ["z"]}), encoder, encoder, encoder_loader=fake, name="other")
    assert len(fake.texts) == 3
    packed = pack(encoder, tmp_path / "packed.kpl")
    report = build_knowledge(write_file({"a": ["x"]}), packed, packed, encoder_loader=refuse, name="third")
    assert packed.is_file()
    assert "there is only one class, so every image will get it" in report.notices
    with Bundle.open(packed) as bundle:
        assert set(bundle.manifest["knowledge"]) == {"lung", "other", "third"}
        assert bundle.read_bytes("image.onnx") == b"image"


def test_replacing_knowledge_drops_its_proxies_only(write_encoder, write_file):
    path = write_encoder()
    fake = FakeText()
    for name in ("lung", "other"):
        build_knowledge(write_file({"a": ["x"], "b": ["y"]}), path, path, encoder_loader=fake, name=name)
        add_proxies(path, name, {"proxies": np.eye(3)}, {"k": "v"}, {"method": "kpl"})
    report = build_knowledge(write_file({"a": ["x"], "b": ["y"]}), path, path, encoder_loader=refuse)
    assert report.notices == ()
    report = build_knowledge(write_file({"a": ["x"], "b": ["new"]}), path, path, encoder_loader=fake)
    assert len(report.notices) == 1
    assert "'lung' were fitted to the old" in report.notices[0]
    with Bundle.open(path) as bundle:
        assert set(bundle.manifest["proxies"]) == {"other"}
        assert bundle.manifest["proxies"]["other"]["method"] == "kpl"
        tensors, metadata = bundle.tensors(bundle.manifest["proxies"]["other"]["file"])
    np.testing.assert_array_equal(tensors["proxies"], np.eye(3))
    assert metadata == {"k": "v"}


def test_two_writers_of_proxies_both_succeed(write_encoder, monkeypatch):
    path = write_encoder()
    add_proxies(path, "first", {"w": np.ones(2)}, {}, {})
    original, rivals = building.write_bundle, ["rival", "another"]

    def write_after_a_rival(*args, **options):
        if rivals:
            add_proxies(path, rivals.pop(), {"w": np.ones(3)}, {}, {})
        return original(*args, **options)

    monkeypatch.setattr(building, "write_bundle", write_after_a_rival)
    add_proxies(path, "last", {"w": np.ones(4)}, {}, {})
    with Bundle.open(path) as bundle:
        assert set(bundle.manifest["proxies"]) == {"first", "rival", "another", "last"}


def test_proxies_of_a_replaced_knowledge_base_are_refused(write_encoder, write_file):
    path, fake = write_encoder(), FakeText()
    base = build_knowledge(write_file({"a": ["x"], "b": ["y"]}), path, path, encoder_loader=fake).knowledge
    entry = {"method": "kpl", "knowledge_fingerprint": base.fingerprint}
    build_knowledge(write_file({"a": ["x"], "b": ["new"]}), path, path, encoder_loader=fake)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(BundleChangedError, match="fit again"):
        add_proxies(path, base.name, {"w": np.ones(2)}, {}, entry)
    assert (path / "manifest.json").read_bytes() == before


def test_a_target_is_checked_without_touching_it(write_encoder, tmp_path, monkeypatch):
    path = write_encoder()
    check_target(path, None)
    check_target(path, path)
    check_target(path, tmp_path / "new.kpl")
    assert not (tmp_path / "new.kpl").exists()
    (tmp_path / "mine").write_text("mine")
    for output, says in ((tmp_path / "mine", "exists"), (tmp_path / "absent" / "x.kpl", "does not exist")):
        with pytest.raises(BundleError, match=says):
            check_target(path, output)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(BundleError, match="not writable"):
        check_target(path, None)


def test_proxies_to_another_output_leave_the_input(write_encoder, tmp_path):
    path = write_encoder()
    before = (path / "manifest.json").read_bytes()
    assert add_proxies(path, "lung", {"w": np.ones(2)}, {}, {}, output=tmp_path / "b.kpl") == tmp_path / "b.kpl"
    assert (path / "manifest.json").read_bytes() == before
    assert "proxies/lung.safetensors" in Bundle.open(tmp_path / "b.kpl").names


def test_another_encoder_is_refused_unless_forced(write_encoder, write_file, tmp_path):
    first, second, out = write_encoder(), write_encoder("second.kpl", 1), tmp_path / "lung.kpl"
    source = write_file({"a": ["x"], "b": ["y"]})
    build_knowledge(source, first, out, encoder_loader=FakeText())
    with pytest.raises(BundleError, match=r"another encoder.*--force"):
        build_knowledge(source, second, out, encoder_loader=FakeText("tower1"))
    fake = FakeText("tower1")
    build_knowledge(source, second, out, encoder_loader=fake, force=True)
    assert len(fake.texts) == 2
    assert read_base(out).text_fingerprint == "tower1"


def test_no_or_wrong_text_encoder(write_encoder, write_file, tmp_path):
    source = write_file({"a": ["x"], "b": ["y"]})
    with pytest.raises(EncoderError, match="no text encoder"):
        build_knowledge(source, write_encoder("image.kpl", text=False), tmp_path / "o.kpl", encoder_loader=refuse)
    with pytest.raises(EncoderError, match="not the one its manifest"):
        build_knowledge(source, write_encoder(), tmp_path / "o.kpl", encoder_loader=FakeText("other"))
    assert not (tmp_path / "o.kpl").exists()


def test_the_template_is_kept_until_another_is_given(write_encoder, write_file):
    path, fake = write_encoder(), FakeText()
    source = write_file({"a": ["x"], "b": ["y"]})
    build_knowledge(source, path, path, encoder_loader=fake, template="{class} {feature}")
    report = build_knowledge(source, path, path, encoder_loader=refuse)
    assert report.knowledge.template == "{class} {feature}"
    report = build_knowledge(source, path, path, encoder_loader=fake, template="{feature}")
    assert (report.num_embedded, fake.texts[-2:]) == (2, ["x", "y"])


@pytest.mark.parametrize("name", ["", "Lung", "../x", "a b", "a/b", ".x", "-x", "x" * 65, "é"])
def test_bad_names_are_refused(name):
    with pytest.raises(KnowledgeError, match="name"):
        check_name(name)


def test_names_come_from_the_file_name(write_encoder, write_file):
    path = write_encoder()
    source = write_file({"a": ["x"], "b": ["y"]}, "My Lung (v2).json")
    assert build_knowledge(source, path, path, encoder_loader=FakeText()).knowledge.name == "my_lung__v2_"


def test_storage_round_trip_and_fingerprint():
    base = make_base()
    again = KnowledgeBase.from_tensors(*load_tensors(dump_tensors(*base.to_tensors()), "x"))
    for field in ("name", "classes", "descriptions", "template", "name_template", "text_fingerprint", "prompts"):
        assert getattr(again, field) == getattr(base, field)
    np.testing.assert_array_equal(again.embeddings, base.embeddings)
    np.testing.assert_array_equal(again.offsets, base.offsets)
    assert again.fingerprint == base.fingerprint == make_base(1).fingerprint
    changed = [
        replace(base, classes=("a", "b", "d")),
        replace(base, template="{feature}"),
        replace(base, text_fingerprint="tower1"),
        replace(base, embeddings=np.roll(base.embeddings, 1, axis=0)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in changed)}) == 5


def _with_string(key, value):
    def change(tensors, metadata):
        return tensors, {**metadata, "content": json.dumps({**json.loads(metadata["content"]), key: value})}

    return change


def _with_tensor(key, make):
    return lambda tensors, metadata: ({**tensors, key: make(tensors[key])}, metadata)


@pytest.mark.parametrize(
    "change",
    [
        _with_tensor("embeddings", lambda rows: rows * 1.01),
        _with_tensor("embeddings", lambda rows: np.where(rows == rows[0, 0], np.nan, rows)),
        _with_tensor("embeddings", lambda rows: rows[:-1]),
        _with_tensor("embeddings", np.ravel),
        _with_tensor("offsets", lambda offsets: offsets[::-1].copy()),
        _with_tensor("offsets", lambda offsets: offsets[:-1]),
        _with_tensor("offsets", lambda offsets: offsets.astype(np.float32)),
        _with_string("classes", ["a", "b"]),
        _with_string("classes", ["a", "b", "b"]),
        _with_string("classes", "abc"),
        _with_string("descriptions", [["x"], ["y"], ["z"]]),
        _with_string("descriptions", [["one", "two", "b", "one"], [], []]),
        _with_string("prompts", ["only one"]),
        _with_string("name", "../x"),
        _with_string("template", 3),
        _with_string("surprise", 3),
        lambda tensors, metadata: (tensors, {**metadata, "content": "{"}),
        lambda tensors, metadata: (tensors, {**metadata, "format": "kpl-engine-knowledge-2"}),
        lambda tensors, metadata: (tensors, {}),
        lambda tensors, metadata: ({"offsets": tensors["offsets"]}, metadata),
        lambda tensors, metadata: ({"embeddings": tensors["embeddings"]}, metadata),
    ],
)
def test_damaged_storage_is_refused(change):
    with pytest.raises(KnowledgeError):
        KnowledgeBase.from_tensors(*change(*make_base().to_tensors()))


def run(*words):
    args = build_parser().parse_args(["knowledge", *map(str, words)])
    return args.run(args)


def test_commands(write_encoder, write_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kpl_engine.building._load", FakeText())
    encoder, out = write_encoder(), tmp_path / "lung.kpl"
    source = write_file({"a": ["x", "y"], "b": []})
    assert run("build", source, "--encoder", encoder, "-o", out) == 0
    said = capsys.readouterr()
    assert "embedded 3, reused 0" in said.out
    assert "notice: class 'b' has no descriptions" in said.err
    assert run("build", source, "--encoder", encoder, "-o", out, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["embedded"], record["reused"], record["classes"]) == (0, 3, {"a": 2, "b": 1})
    assert run("show", out) == 0
    assert "a photo of a {class}" in capsys.readouterr().out
    assert run("show", out, "--json") == 0
    shown = json.loads(capsys.readouterr().out)["knowledge"]
    assert [base["fingerprint"] for base in shown] == [record["fingerprint"]]
    assert run("check", source, "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"a": 2, "b": 0}
    with pytest.raises(KnowledgeError):
        run("check", tmp_path / "gone.json")


def test_classes_from_arrays_have_names_and_embeddings():
    with pytest.raises(KnowledgeError, match="got none for"):
        KnowledgeBase.from_arrays({"a": np.ones((1, 3))}, ["a", "b"])
    with pytest.raises(KnowledgeError, match="texts"):
        KnowledgeBase.from_arrays({1: np.ones((1, 3)), 2: np.ones((1, 3))})
