"""Many queries at once: each is answered as if it were alone."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from kpl_engine.config import MethodConfig
from kpl_engine.encoder.pipeline import EncodedImages
from kpl_engine.engine import Engine
from kpl_engine.errors import ConfigError, ImageError, InputError, KnowledgeError, ShapeError
from kpl_engine.solver import cpu


def query(features, mode="frozen", knowledge="chest", method=None, prior=None, top=2):
    encoded = features if isinstance(features, EncodedImages) else EncodedImages.from_features(features)
    return SimpleNamespace(
        encoded=encoded, knowledge=knowledge, method=method, mode=mode, prior=prior, top_evidence=top
    )


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.fixture
def fitted(encoder, make_knowledge, images):
    """An engine with two knowledge bases, proxies fitted for both."""
    engine = Engine(encoder, [make_knowledge(), make_knowledge("eye", ("clear", "clouded"))])
    for name in engine.knowledge_names:
        engine.fit(images, knowledge=name)
    return engine


def remarkable_sets(rng, d):
    """Rows in sets of odd sizes; among them zero, long and repeated ones."""
    sets = [unit(rng.normal(size=(n, d))) for n in (1, 1, 3, 1, 17, 2, *[1] * 60)]
    sets[1] = np.zeros((1, d), np.float32)
    sets[2][1] *= 3
    sets[5][1] = sets[5][0]
    return sets


def same(got, want, atol=0.0):
    assert got.labels == want.labels
    assert got.text_labels == want.text_labels
    assert got.warnings == want.warnings
    assert got.names == want.names
    assert got.failures == want.failures
    assert (got.method, got.method_used, got.mode, got.knowledge) == (
        want.method,
        want.method_used,
        want.mode,
        want.knowledge,
    )
    np.testing.assert_array_equal(got.is_undecided, want.is_undecided)
    for name in ("probabilities", "text_probabilities", "margins"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=atol, rtol=0, err_msg=name)
    assert [[e.description for e in each] for each in got.evidence] == [
        [e.description for e in each] for each in want.evidence
    ]
    assert [[e.is_kept for e in each] for each in got.evidence] == [[e.is_kept for e in each] for each in want.evidence]


@pytest.mark.parametrize("computes", ["core", "numpy"])
def test_grouped_frozen_answers_are_those_of_each_alone(fitted, rng, computes):
    if computes == "core" and cpu.core() is None:
        pytest.skip(f"the compiled core is not installed: {cpu.describe()}")
    # In the core a row of a product does not depend on its neighbours. BLAS may add its d terms in another order, which
    # moves a score by at most d eps64 |x| |D|, far below the float32 that probabilities are handed out in.
    atol = 0.0 if computes == "core" else 2e-7
    with contextlib.nullcontext() if computes == "core" else cpu.numpy_only():
        queries = [
            query(rows, knowledge=name, top=top % 4)
            for top, rows in enumerate(remarkable_sets(rng, 16))
            for name in ("chest", "eye")
        ]
        found = fitted._answers.answer_many(queries)
        codes = set()
        for each, got in zip(queries, found, strict=True):
            same(
                got,
                fitted.answer(each.encoded, mode="frozen", knowledge=each.knowledge, top_evidence=each.top_evidence),
                atol,
            )
            codes |= {notice.code for notice in got.warnings}
        assert {"zero_vectors", "not_unit", "label_flip"} <= codes  # the notices that have to be told apart did occur


def test_an_image_is_answered_alike_with_any_neighbours(fitted, rng):
    rows = unit(rng.normal(size=(23, 16)))
    alone = [fitted.classify(features=rows[i : i + 1], knowledge="chest", mode="frozen") for i in range(23)]
    together = fitted.classify(features=rows, knowledge="chest", mode="frozen")
    atol = 0.0 if cpu.core() is not None else 2e-7  # as above
    for i, each in enumerate(alone):
        np.testing.assert_allclose(each.probabilities[0], together.probabilities[i], atol=atol, rtol=0)
        similarities = [[e.similarity for e in found] for found in (each.evidence[0], together.evidence[i])]
        np.testing.assert_allclose(*similarities, atol=atol, rtol=0)


def test_pictures_that_failed_keep_their_places_in_a_group(fitted, images):
    encoded = fitted.encode([images[0], b"no picture", images[1]])
    empty = fitted.encode([b"no picture"])
    queries = [query(encoded), query(empty), query(fitted.encode([images[2]]))]
    found = fitted._answers.answer_many(queries)
    assert found[0].labels[1] is None
    assert found[1].labels == (None,)
    assert isinstance(found[0].failures[0].message, str)
    assert isinstance(encoded.failures[0][2], ImageError)
    for each, got in zip(queries, found, strict=True):
        want = fitted.answer(each.encoded, mode="frozen", knowledge="chest")
        assert got.labels == want.labels
        assert got.failures == want.failures
        np.testing.assert_array_equal(got.probabilities, want.probabilities)


@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_the_error_of_one_query_is_its_own(fitted, rng, mode):
    good = [unit(rng.normal(size=(n, 16))) for n in (13, 14, 15)]
    nan = good[0].copy()
    nan[3, 5] = np.nan
    queries = [
        query(good[0], mode),
        query(nan, mode),
        query(good[1], mode),
        query(good[1][:, :15], mode),
        query(good[2], mode, knowledge="heart"),
        query(good[2], mode, method="guess"),
        query(good[2], mode, prior={"normal": 1.0}),
        query(good[2], mode, top=-1),
        query(good[2], mode, knowledge="eye"),
    ]
    found = fitted._answers.answer_many(queries)
    kinds = [type(each) for each in found]
    assert kinds[1] is kinds[3] is ShapeError
    assert kinds[4] is KnowledgeError
    assert kinds[5] is kinds[7] is ConfigError
    assert kinds[6] is InputError
    assert "problem" not in str(found[1])  # of no place in a group that the client knows nothing of
    for place in (0, 2, 8):
        each = queries[place]
        same(found[place], fitted.answer(each.encoded, mode=mode, knowledge=each.knowledge))


@pytest.mark.parametrize("method", ["kpl", "inmap", "zeroshot", "kpl_stream"])
def test_batches_are_those_of_each_alone(fitted, rng, method):
    queries = [
        query(unit(rng.normal(size=(n, 16))), "batch", name, method)
        for n, name in ((40, "chest"), (3, "eye"), (31, "eye"))
    ]
    for each, got in zip(queries, fitted._answers.answer_many(queries), strict=True):
        # The primal form rounds otherwise with another number of threads; 2000 steps leave that below 1e-5.
        same(got, fitted.answer(each.encoded, method, knowledge=each.knowledge), atol=1e-5)


def test_modes_and_knowledge_bases_may_be_mixed_in_any_order(fitted, rng):
    queries = [
        query(unit(rng.normal(size=(n, 16))), mode, name)
        for n, mode, name in (
            (20, "batch", "eye"),
            (1, "frozen", "eye"),
            (1, "frozen", "chest"),
            (16, "batch", "chest"),
        )
    ] * 2
    for each, got in zip(queries, fitted._answers.answer_many(queries), strict=True):
        same(got, fitted.answer(each.encoded, mode=each.mode, knowledge=each.knowledge), atol=1e-5)


def test_no_query_no_answer(fitted):
    assert fitted._answers.answer_many([]) == []


def test_encoded_once_answered_as_classified(fitted, images):
    encoded = fitted.encode(images)
    for mode in ("batch", "frozen", "stream"):
        got = fitted.answer(encoded, mode=mode, knowledge="eye", top_evidence=1)
        if mode == "stream":
            fitted._answers._streams.clear()
        want = fitted.classify(images, mode=mode, knowledge="eye", top_evidence=1)
        assert got.labels == want.labels
        np.testing.assert_array_equal(got.probabilities, want.probabilities)


WRONG = {
    "method": ({"method": "guess"}, ConfigError, "guess"),
    "mode": ({"mode": "often"}, ConfigError, "often"),
    "fitted with another method": ({"mode": "frozen", "method": "inmap"}, InputError, "inmap"),
    "prior, frozen": ({"mode": "frozen", "prior": {"clear": 0.5, "clouded": 0.5}}, InputError, "prior"),
    "classes of the prior": ({"prior": {"clear": 0.5, "foggy": 0.5}}, InputError, "foggy"),
    "shares of the prior": ({"prior": {"clear": -0.5, "clouded": 1.5}}, InputError, "prior"),
    "method of a stream": ({"mode": "stream", "method": "inmap"}, ConfigError, "stream"),
    "settings": ({"settings": {"k": 3}}, ConfigError, "MethodConfig"),
    "settings the method has not": (
        {"method": "kpl_stream", "settings": MethodConfig(retrieval="per_image")},
        ConfigError,
        "per_image",
    ),
    "knowledge base": ({"knowledge": "heart"}, KnowledgeError, "heart"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_check_raises_what_answering_would(fitted, images, case):
    wrong, error, word = WRONG[case]
    asked = {"knowledge": "eye", **wrong}
    with pytest.raises(error, match=word) as checked:
        fitted.check(**asked)
    with pytest.raises(error) as answered:
        fitted.classify(images, **asked)
    assert str(checked.value) == str(answered.value)


def test_a_check_knows_what_was_not_fitted(engine):
    with pytest.raises(InputError, match="none; fit them"):
        engine.check(mode="frozen")


@pytest.mark.parametrize("mode", ["batch", "frozen", "stream"])
def test_a_check_lets_pass_what_is_answered(fitted, images, mode):
    fitted.check(mode=mode, knowledge="chest")
    assert None not in fitted.classify(images, mode=mode, knowledge="chest").labels
