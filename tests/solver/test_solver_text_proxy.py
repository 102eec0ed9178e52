"""Text Proxy Optimization against the reference and at its edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpl_engine.errors import ConfigError, KnowledgeError, ShapeError
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver import reference
from kpl_engine.solver.text_proxy import check_features, select_text_proxies

pytestmark = pytest.mark.usefixtures("backend")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 30), d=st.integers(3, 24), c=st.integers(1, 5), k=st.integers(1, 9)
)
def test_follows_the_reference(seed, n, d, c, k):
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, d)).astype(np.float32)
    blocks = [random.normal(size=(random.integers(1, 12), d)).astype(np.float32) for _ in range(c)]
    blocks = [b / np.linalg.norm(b, axis=1, keepdims=True) for b in blocks]
    found = select_text_proxies(X, blocks, k=k)
    T, kept = reference.text_proxies(X, blocks, k)
    assert [k.tolist() for k in found.kept] == [k.tolist() for k in kept]
    assert np.abs(found.proxies - T).max() < 1e-6
    assert found.proxies.dtype == np.float32
    assert np.abs(np.linalg.norm(found.proxies, axis=0) - 1).max() < 2e-7
    for block, scores in zip(blocks, found.scores, strict=True):
        np.testing.assert_allclose(scores, (X.astype(float) @ block.T.astype(float)).mean(axis=0), atol=1e-6)


def test_every_shape_of_knowledge_is_the_same(make_clip_like):
    data = make_clip_like(20, 16, 3, seed=0)
    named = {f"class {j}": block for j, block in enumerate(data.descriptions)}
    expected = select_text_proxies(data.features, KnowledgeBase.from_arrays(named)).proxies
    for knowledge in (named, list(data.descriptions), np.stack(data.descriptions)):
        np.testing.assert_array_equal(select_text_proxies(data.features, knowledge).proxies, expected)


def test_ties_keep_the_lowest_index_first():
    rows = np.eye(7, dtype=np.float32)[[0, 1, 1, 0, 1, 0]]
    found = select_text_proxies(np.array([[0.1, 0.9, 0, 0, 0, 0, 0]], np.float32), [rows], k=4)
    assert found.kept[0].tolist() == [1, 2, 4, 0]
    same = np.tile(np.random.default_rng(0).normal(size=(1, 771)), (11, 1))
    assert select_text_proxies(same[:1], [same], k=5).kept[0].tolist() == [0, 1, 2, 3, 4]


def test_short_classes_keep_what_they_have(make_clip_like):
    data = make_clip_like(20, 16, 3, seed=1)
    blocks = [data.descriptions[0][:2], data.descriptions[1], data.descriptions[2][:1]]
    found = select_text_proxies(data.features, blocks, k=8)
    assert [len(kept) for kept in found.kept] == [2, 8, 1]
    np.testing.assert_allclose(found.proxies[:, 2], data.descriptions[2][0], atol=1e-7)


def test_all_keeps_all(make_clip_like):
    data = make_clip_like(20, 16, 2, seed=2)
    found = select_text_proxies(data.features, data.descriptions, k=1, retrieval="all")
    means = np.stack([block.astype(float).mean(axis=0) for block in data.descriptions], axis=1)
    np.testing.assert_allclose(found.proxies, means / np.linalg.norm(means, axis=0), atol=1e-6)
    assert [len(kept) for kept in found.kept] == [12, 12]


def test_per_image_keeps_its_own(make_clip_like):
    data = make_clip_like(15, 16, 3, seed=3)
    found = select_text_proxies(data.features, data.descriptions, k=4, retrieval="per_image")
    for i, x in enumerate(data.features.astype(float)):
        for j, block in enumerate(data.descriptions):
            best = np.argsort(-(block.astype(float) @ x), kind="stable")[:4]
            mean = block[best].astype(float).mean(axis=0)
            assert abs(found.logits[i, j] - x @ mean / np.linalg.norm(mean)) < 1e-6
    alone = [select_text_proxies(x[None], data.descriptions, k=4, retrieval="per_image").logits for x in data.features]
    np.testing.assert_allclose(np.concatenate(alone), found.logits, atol=1e-7)


def test_cancelling_descriptions_and_zero_mean_are_defined():
    block = np.array([[1, 0, 0], [-1, 0, 0]], np.float32)
    X = np.array([[0.6, 0.8, 0]], np.float32)
    for retrieval in ("mean", "per_image", "all"):
        found = select_text_proxies(X, [block], retrieval=retrieval)
        np.testing.assert_array_equal(found.proxies[:, 0], [1, 0, 0])
        if found.logits is not None:
            np.testing.assert_allclose(found.logits, [[0.6]], rtol=1e-6)
    zero = select_text_proxies(np.array([[1, 0], [-1, 0]], np.float32), [np.eye(2)], k=1)
    assert zero.kept[0].tolist() == [0]
    assert np.isfinite(select_text_proxies(np.zeros((2, 3), np.float32), [block]).proxies).all()


def test_permuting_images_or_classes_only_reorders(make_clip_like):
    data = make_clip_like(25, 16, 4, seed=4)
    T = select_text_proxies(data.features, data.descriptions).proxies
    order = np.random.default_rng(0).permutation(25)
    np.testing.assert_allclose(select_text_proxies(data.features[order], data.descriptions).proxies, T, atol=1e-7)
    turned = select_text_proxies(data.features, [data.descriptions[j] for j in (2, 0, 3, 1)]).proxies
    np.testing.assert_array_equal(turned, T[:, [2, 0, 3, 1]])


def test_arguments_stay_and_layouts_do_not_matter(make_clip_like):
    data = make_clip_like(12, 16, 2, seed=5)
    X = data.features.copy()
    X.setflags(write=False)
    expected = select_text_proxies(X, data.descriptions).proxies
    np.testing.assert_array_equal(X, data.features)
    np.testing.assert_allclose(
        select_text_proxies(np.asfortranarray(X), data.descriptions).proxies, expected, atol=1e-7
    )
    assert select_text_proxies(np.eye(16, dtype=int), data.descriptions).proxies.dtype == np.float32


def test_bad_input_is_named(make_clip_like):
    data = make_clip_like(12, 16, 2, seed=6)
    with pytest.raises(ShapeError, match="width d = 16"):
        select_text_proxies(data.features[:, :8], data.descriptions)
    broken = data.features.copy()
    broken[3, 0], broken[7, 1] = np.nan, np.inf
    with pytest.raises(ShapeError, match=r"rows \(3, 7\)"):
        select_text_proxies(broken, data.descriptions)
    with pytest.raises(ShapeError, match="rows"):
        select_text_proxies(data.features.astype(float) * 1e300, data.descriptions)  # beyond float32
    for knowledge in (None, "text", 3, {"a": ["words, not embeddings"]}):
        with pytest.raises((KnowledgeError, ShapeError)):
            select_text_proxies(data.features, knowledge)
    for k in (0, -1, 2.5, True, None):
        with pytest.raises(ConfigError, match="k:"):
            select_text_proxies(data.features, data.descriptions, k=k)
    with pytest.raises(ConfigError, match="retrieval"):
        select_text_proxies(data.features, data.descriptions, retrieval="best")
    with pytest.raises(ShapeError, match="at least one image"):
        select_text_proxies(data.features[:0], data.descriptions)
    with pytest.raises(KnowledgeError):
        select_text_proxies(data.features, [])
    with pytest.raises(KnowledgeError, match="at least one embedding"):
        select_text_proxies(data.features, [data.descriptions[0], data.descriptions[1][:0]])


def test_ties_of_a_long_block_keep_their_order():
    same = np.tile(np.random.default_rng(0).normal(size=(1, 8)), (300, 1))
    assert select_text_proxies(same[:1], [same], k=200).kept[0].tolist() == list(range(200))


def test_per_image_with_more_asked_than_there_are(make_clip_like):
    data = make_clip_like(10, 16, 2, seed=7)
    found = select_text_proxies(data.features, data.descriptions, k=50, retrieval="per_image")
    everything = data.features @ select_text_proxies(data.features, data.descriptions, retrieval="all").proxies
    np.testing.assert_allclose(found.logits, everything, atol=1e-6)


def test_rows_that_are_too_long_are_named():
    X = np.eye(4, dtype=np.float32)
    X[2, 2] = 2e12
    for check in (check_features, lambda rows: select_text_proxies(rows, [np.eye(4)])):
        with pytest.raises(ShapeError, match="one of length 2e\\+12"):
            check(X)
        X[2, 2] *= -1
