"""The engine on the fake encoder: what every caller relies on."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from kpl_engine.config import EngineConfig, MethodConfig
from kpl_engine.engine import Engine
from kpl_engine.errors import BundleError, ConfigError, ImageError, InputError, KnowledgeError, KplError, ShapeError
from kpl_engine.solver.select import METHODS
from kpl_engine.solver.text_proxy import select_text_proxies


def as_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_every_image(engine, images, method):
    result = engine.classify(images, method)
    assert result.method == method
    assert set(result.labels) <= {"normal", "nodule", "effusion"}
    assert len(result.labels) == len(result.evidence) == 40
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert (result.margins >= 0).all()
    assert result.is_ok.all()
    top = result.probabilities[np.arange(40), result.class_indices]
    assert (top >= result.probabilities.max(axis=1) - 1e-6).all()
    for stage in ("read", "decode", "preprocess", "encode", "text_proxies", "labels", "proxies", "total"):
        assert result.timings_ms[stage] >= 0


def test_sources_of_every_kind_give_one_answer(engine, images, tmp_path):
    paths = []
    for index, pixels in enumerate(images):
        paths.append(tmp_path / f"{index:02d}.png")
        paths[-1].write_bytes(as_png(pixels))
    from_array = engine.classify(images)
    kinds = {
        "paths": paths,
        "strings": [str(path) for path in paths],
        "bytes": [path.read_bytes() for path in paths],
        "PIL": [Image.fromarray(pixels) for pixels in images],
        "list of arrays": list(images),
        "generator": (path for path in paths),
    }
    for kind, sources in kinds.items():
        result = engine.classify(sources)
        np.testing.assert_array_equal(result.probabilities, from_array.probabilities, err_msg=kind)
        assert result.labels == from_array.labels


def test_features_give_the_answer_of_their_images(engine, images):
    encoded = engine.encode(images)
    np.testing.assert_array_equal(
        engine.classify(features=encoded.features).probabilities, engine.classify(images).probabilities
    )


def test_a_bad_image_keeps_its_place_and_changes_nothing_else(engine, images):
    good = engine.classify(list(images))
    result = engine.classify([*images[:3], b"not an image", *images[3:]])
    assert result.labels[3] is None
    assert result.class_indices[3] == -1
    assert np.isnan(result.probabilities[3]).all()
    assert [failure.index for failure in result.failures] == [3]
    assert result.evidence[3] == ()
    assert np.isnan(result.margins[3])
    keep = np.arange(41) != 3
    np.testing.assert_array_equal(result.probabilities[keep], good.probabilities)
    np.testing.assert_array_equal(result.margins[keep], good.margins)


def test_only_bad_images_is_an_answer_without_labels(engine):
    result = engine.classify([b"", b"x"])
    assert result.labels == (None, None)
    assert len(result.failures) == 2


def test_evidence_is_the_nearest_descriptions_of_the_label(engine, encoder, images):
    result = engine.classify(images, top_evidence=3)
    base = engine.knowledge()
    features = engine.encode(images).features
    for i in (0, 17, 39):
        j = result.class_indices[i]
        cosines = base.class_embeddings(j) @ features[i]
        assert len(result.evidence[i]) == 3
        np.testing.assert_allclose(
            [e.similarity for e in result.evidence[i]], np.sort(cosines)[::-1][:3], atol=1e-6, rtol=0
        )
        assert result.evidence[i][0].description == base.descriptions[j][int(cosines.argmax())]


def test_evidence_says_which_descriptions_made_the_text_proxy(engine, images):
    base, features = engine.knowledge(), engine.encode(images).features
    kept = select_text_proxies(features, base, k=3).kept
    result = engine.classify(images, settings=MethodConfig(k=3), top_evidence=10)
    for i, reasons in enumerate(result.evidence):
        j = result.class_indices[i]
        marked = {reason.description for reason in reasons if reason.is_kept}
        assert marked == {base.descriptions[j][position] for position in kept[j]}


def test_frozen_answers_each_image_alone(engine, images):
    frozen, fitted = engine.fit(images)
    assert frozen.method == "kpl"
    together = engine.classify(images, mode="frozen")
    alone = [engine.classify(images[i : i + 1], mode="frozen") for i in range(8)]
    assert [a.labels[0] for a in alone] == list(together.labels[:8])
    spread = max(np.abs(a.probabilities[0] - together.probabilities[i]).max() for i, a in enumerate(alone))
    assert spread < 1e-5
    assert together.labels == fitted.labels
    assert together.method_used == "kpl"
    assert together.mode == "frozen"


def test_frozen_mode_refuses_what_it_cannot_do(engine, images):
    with pytest.raises(InputError, match="kpl-engine fit"):
        engine.classify(images, mode="frozen")
    engine.fit(images, "inmap")
    assert engine.classify(images, mode="frozen").method == "inmap"
    with pytest.raises(InputError, match="fitted with 'inmap'"):
        engine.classify(images, "kpl", "frozen")
    with pytest.raises(InputError, match="prior"):
        engine.classify(images, mode="frozen", prior=[0.2, 0.3, 0.5])


def test_fit_on_too_few_images_is_refused_and_keeps_what_was_fitted(engine, images):
    engine.fit(images)
    before = engine.frozen_proxies()
    with pytest.raises(InputError, match="cannot fit"):
        engine.fit(images[:2])
    assert engine.frozen_proxies() is before


def test_few_images_are_answered_by_the_text_proxy_and_it_says_so(engine, images):
    result = engine.classify(images[:2])
    assert (result.method, result.method_used) == ("kpl", "zeroshot")
    assert any("few" in notice.code for notice in result.warnings)
    assert result.labels == result.text_labels


def test_stream_mode_carries_state_across_calls(engine, encoder, make_knowledge, images):
    first = engine.classify(images[:20], mode="stream")
    second = engine.classify(images[20:], mode="stream")
    assert (first.method, first.mode) == ("kpl_stream", "stream")
    again = Engine(encoder, [make_knowledge()])
    assert again.classify(images[20:], mode="stream").probabilities.tobytes() != second.probabilities.tobytes()
    with pytest.raises(ConfigError, match="kpl_stream"):
        engine.classify(images, "kpl", "stream")


def test_a_stream_with_another_prior_is_another_stream(engine, encoder, make_knowledge, images):
    engine.classify(images[:20], mode="stream")
    other = engine.classify(images[20:], mode="stream", prior=[0.6, 0.2, 0.2])
    alone = Engine(encoder, [make_knowledge()]).classify(images[20:], mode="stream", prior=[0.6, 0.2, 0.2])
    np.testing.assert_array_equal(other.probabilities, alone.probabilities)


def test_several_knowledge_bases_share_one_encoding(encoder, make_knowledge, images):
    lung, eye = make_knowledge("lung"), make_knowledge("eye", ("healthy", "cataract"))
    engine = Engine(encoder, [lung, eye])
    with pytest.raises(KnowledgeError, match="lung, eye"):
        engine.classify(images)
    each = engine.classify_each(images)
    assert set(each) == {"lung", "eye"}
    for name, result in each.items():
        np.testing.assert_array_equal(result.probabilities, engine.classify(images, knowledge=name).probabilities)


def test_arguments_are_not_changed(engine, images):
    features = engine.encode(images).features
    before, prior = features.copy(), np.array([0.2, 0.3, 0.5])
    features.flags.writeable = False
    for method in METHODS:
        engine.classify(features=features, method=method, prior=prior if method in ("inmap", "kpl") else None)
    np.testing.assert_array_equal(features, before)
    assert prior.tolist() == [0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"images": []}, InputError, "at least one image"),
        ({"images": "film.png"}, InputError, "put it in a list"),
        ({"images": b"bytes"}, InputError, "put it in a list"),
        ({"images": np.zeros((4, 4, 3), np.uint8)}, ImageError, "(n, h, w, 3)"),
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, ImageError, "uint8"),
        ({}, InputError, "neither"),
        ({"images": [b""], "features": np.ones((1, 16))}, InputError, "both"),
        ({"features": np.ones((4, 7))}, ShapeError, "16"),
        ({"features": np.full((4, 16), np.nan)}, ShapeError, "finite"),
        ({"features": [[1.0, 2.0], [3.0]]}, ShapeError, "rectangular"),
        ({"features": np.ones((20, 16)), "method": "magic"}, ConfigError, "kpl"),
        ({"features": np.ones((20, 16)), "mode": "magic"}, ConfigError, "frozen"),
        ({"features": np.ones((20, 16)), "knowledge": "eye"}, KnowledgeError, "chest"),
        ({"features": np.ones((20, 16)), "prior": [1.0]}, ShapeError, "prior"),
    ],
)
def test_bad_calls_say_what_to_do(engine, call, error, says):
    with pytest.raises(error) as caught:
        engine.classify(**call)
    assert says in str(caught.value)


def test_knowledge_of_another_width_is_refused(encoder):
    from kpl_engine.knowledge import KnowledgeBase

    with pytest.raises(KnowledgeError, match="build it again"):
        Engine(encoder, [KnowledgeBase.from_arrays([np.ones((2, 5)), np.eye(5)[:2]])])


def test_threads_get_the_same_answers(engine, images):
    expected = engine.classify(images).probabilities
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: engine.classify(images), range(8)):
            np.testing.assert_array_equal(result.probabilities, expected)


def test_settings_reach_the_solver(engine, images):
    wide = engine.classify(images, "zeroshot", settings=MethodConfig(k=10))
    narrow = engine.classify(images, "zeroshot", settings=MethodConfig(k=1))
    assert wide.probabilities.tobytes() != narrow.probabilities.tobytes()


def test_progress_is_reported(engine, images):
    seen = []
    engine.classify(images, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)


def test_every_refusal_is_a_kpl_error(engine):
    with pytest.raises(KplError):
        engine.classify(features=np.zeros((0, 16)))


def test_a_prior_may_be_named(engine, images):
    by_name = engine.classify(images, prior={"effusion": 0.5, "normal": 0.2, "nodule": 0.3})
    np.testing.assert_array_equal(by_name.probabilities, engine.classify(images, prior=[0.2, 0.3, 0.5]).probabilities)
    with pytest.raises(InputError, match="every class"):
        engine.classify(images, prior={"normal": 1.0})


def test_frozen_mode_says_that_settings_are_not_used(engine, images):
    engine.fit(images)
    plain = engine.classify(images, mode="frozen")
    changed = engine.classify(images, mode="frozen", settings=MethodConfig(tau_i=1.0))
    assert [notice.code for notice in plain.warnings] == []
    assert [notice.code for notice in changed.warnings] == ["settings_unused"]
    np.testing.assert_array_equal(plain.probabilities, changed.probabilities)


def test_paths_in_an_array(engine, images, tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        path.write_bytes(as_png(pixels))
    for array in (np.array([str(path) for path in paths]), np.array(paths, dtype=object)):
        np.testing.assert_array_equal(engine.classify(array).probabilities, engine.classify(images).probabilities)


def test_classify_each_takes_what_classify_takes(engine, images):
    features = engine.encode(images).features
    each = engine.classify_each(features=features, method="inmap", top_evidence=1)
    expected = engine.classify(features=features, method="inmap", top_evidence=1)
    np.testing.assert_array_equal(each["chest"].probabilities, expected.probabilities)
    assert each["chest"].evidence == expected.evidence
    with pytest.raises(KnowledgeError, match=r"\['chest'\]"):
        engine.classify_each(images, "chest")


FEATURES = {"features": np.eye(16)[np.arange(20) % 16]}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"images": 5}, InputError, "sequence"),
        ({"images": Image.new("RGB", (4, 4))}, InputError, "put it in a list"),
        ({"images": bytearray(b"x")}, InputError, "put it in a list"),
        ({"images": memoryview(b"x")}, InputError, "put it in a list"),
        ({"images": io.BytesIO(b"x")}, InputError, "put it in a list"),
        ({"images": {"a.png": 1}}, InputError, "put it in a list"),
        ({"images": np.ma.masked_array(np.zeros((2, 4, 4, 3), np.uint8), True)}, ImageError, "masked"),
        ({"features": np.ma.masked_array(np.ones((20, 16)), np.eye(20, 16))}, ShapeError, "masked"),
        ({**FEATURES, "top_evidence": -1}, ConfigError, "-1"),
        ({**FEATURES, "top_evidence": 1.5}, ConfigError, "1.5"),
        ({**FEATURES, "settings": {"k": 3}}, ConfigError, "dict"),
        ({**FEATURES, "settings": {}}, ConfigError, "dict"),
        ({**FEATURES, "settings": {"k": 3}, "mode": "stream"}, ConfigError, "dict"),
        ({**FEATURES, "method": ""}, ConfigError, "''"),
        ({**FEATURES, "method": np.array(["kpl", "kpl"])}, ConfigError, "kpl"),
        ({**FEATURES, "mode": ["batch"]}, ConfigError, "batch"),
        ({**FEATURES, "knowledge": ["chest"]}, KnowledgeError, "chest"),
        ({**FEATURES, "prior": "abc", "mode": "stream"}, ShapeError, "prior"),
        ({**FEATURES, "prior": [None] * 3, "mode": "stream"}, ShapeError, "prior"),
        ({**FEATURES, "prior": np.full((1, 3), 0.3), "mode": "stream"}, ShapeError, "prior"),
    ],
)
def test_odd_arguments_say_what_was_expected(engine, call, error, says):
    with pytest.raises(error) as caught:
        engine.classify(**call)
    assert says in str(caught.value)


def test_odd_engines_are_refused(engine, encoder, make_knowledge):
    with pytest.raises(KnowledgeError, match="different names"):
        Engine(encoder, [make_knowledge(), make_knowledge()])
    for config in (5, {}, MethodConfig()):
        with pytest.raises(ConfigError, match="EngineConfig"):
            Engine(encoder, [make_knowledge()], config=config)
        with pytest.raises(ConfigError, match="EngineConfig"):
            Engine.load("anywhere", config=config)
    for path in (5, None, b"x", "a\0b", []):
        with pytest.raises(BundleError, match="path of a bundle"):
            Engine.load(path)
    with pytest.raises(InputError, match="none of the 2 images"):
        engine.fit([b"", b"x"])


@pytest.mark.parametrize("options", [{"lr": 10**400}, {"alpha": 10**400}])
def test_numbers_beyond_float64_are_refused(options):
    with pytest.raises(ConfigError, match="number"):
        MethodConfig(**options)


def test_nested_settings_of_a_wrong_type_are_refused():
    with pytest.raises(ConfigError, match=r"EngineConfig\.encoder: expected a EncoderConfig"):
        EngineConfig(encoder=MethodConfig())


def test_a_label_that_rounding_decided_is_marked(encoder, make_knowledge, images):
    """Two classes with one description: every margin is zero, and no label may pass for a decided one."""
    from kpl_engine.knowledge import KnowledgeBase

    rows = encoder.encode_texts([f"sign {i}" for i in range(8)])
    engine = Engine(encoder, [KnowledgeBase.from_arrays({"a": rows, "b": rows})])
    result = engine.classify(images)
    assert result.is_undecided.all()
    assert {"identical_classes", "decided_by_rounding"} <= {notice.code for notice in result.warnings}
    assert not engine.classify([b"", *images]).is_undecided[0]


def test_agreement_counts_the_answered_images(engine, images):
    result = engine.classify([b"", *images], "kpl")
    alike = [a == b for a, b in zip(result.labels[1:], result.text_labels[1:], strict=True)]
    assert result.agreement == pytest.approx(np.mean(alike))
    assert engine.classify(images, "zeroshot").agreement == 1.0
    assert np.isnan(engine.classify([b""]).agreement)
