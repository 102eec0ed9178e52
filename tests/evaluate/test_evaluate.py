"""Reading labelled folders, matching class names, and the order of the figures."""

import numpy as np
import pytest
from PIL import Image

from kpl_engine.encoder.fake import FakeEncoder
from kpl_engine.engine import Engine
from kpl_engine.errors import InputError
from kpl_engine.evaluate import evaluate, match_classes, scan_folder
from kpl_engine.knowledge import KnowledgeBase


def write_images(folder, count, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def make_engine(classes=("Normal", "pleural effusion")):
    encoder = FakeEncoder(embed_dim=16, image_size=(16, 16), seed=0)
    texts = {label: [f"{label} {i}" for i in range(9)] for label in classes}
    return Engine(encoder, [KnowledgeBase.from_arrays({k: encoder.encode_texts(v) for k, v in texts.items()})])


def test_exact_names_come_before_normalised_ones():
    assert match_classes(["b", "a"], ["a", "b"]) == (1, 0)
    assert match_classes(["Pleural_Effusion", "NORMAL"], ["normal", "pleural effusion"]) == (1, 0)
    assert match_classes(["no-finding"], ["No Finding", "x"]) == (0,)


def test_a_folder_without_a_class_lists_both_sides():
    with pytest.raises(InputError) as caught:
        match_classes(["normal", "tumour"], ["normal", "nodule"])
    for word in ("tumour", "nodule", "normal", "rename"):
        assert word in str(caught.value)


def test_two_folders_of_one_class_are_refused():
    with pytest.raises(InputError, match="same class"):
        match_classes(["normal", "Normal"], ["normal"])
    with pytest.raises(InputError, match="A_B"):
        match_classes(["A_B"], ["a b", "a-b"])


def test_val_is_used_where_it_exists(tmp_path):
    write_images(tmp_path / "val" / "a", 2)
    write_images(tmp_path / "train" / "b", 3)
    folder = scan_folder(tmp_path)
    assert folder.folders == ("a",)
    assert len(folder.paths) == 2


def test_classes_are_folders_of_the_root_otherwise(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 1)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    folder = scan_folder(tmp_path)
    assert folder.folders == ("a", "b")
    assert folder.folder_index.tolist() == [0, 0, 1]


@pytest.mark.parametrize("make", [lambda p: p / "absent", lambda p: p, lambda p: (p / "a").mkdir() or p])
def test_nothing_to_evaluate_is_said(tmp_path, make):
    with pytest.raises(InputError, match="expected"):
        scan_folder(make(tmp_path))


def test_published_figures_come_first_and_methods_agree_with_classify(tmp_path):
    write_images(tmp_path / "normal", 12, seed=1)
    write_images(tmp_path / "Pleural_Effusion", 10, seed=2)
    (tmp_path / "normal" / "broken.png").write_bytes(b"no")
    engine = make_engine()
    report = evaluate(engine, tmp_path)
    assert [result.method for result in report.results[:3]] == ["zeroshot", "proxy", "kpl"]
    assert {r.method for r in report.results} == {"zeroshot", "proxy", "inmap", "kpl", "kpl_stream", "onzeta"}
    assert len(report.truth) == 22
    assert [failure.name.rsplit("/", 1)[-1] for failure in report.failures] == ["broken.png"]
    for result in report.results:
        truth = np.asarray(report.classes)[report.truth]
        right = np.mean(truth == np.asarray(result.answers.labels))
        assert result.metrics.accuracy == pytest.approx(right)


def test_a_class_without_images_is_a_notice(tmp_path):
    write_images(tmp_path / "normal", 10)
    report = evaluate(make_engine(), tmp_path, methods=("zeroshot",))
    assert any("pleural effusion" in text for text in report.notices)
