"""The named methods end to end, their guards, frozen answers and streams."""

import numpy as np
import pytest

from kpl_engine.config import MethodConfig
from kpl_engine.errors import ConfigError, ShapeError
from kpl_engine.solver import reference
from kpl_engine.solver.base import FrozenProxies
from kpl_engine.solver.guards import answer_notices, method_notices
from kpl_engine.solver.select import METHODS, StreamSolver, freeze, solve, solve_frozen

FAST = MethodConfig(proxy_iters=200)


def codes(answer):
    return {notice.code for notice in answer.warnings}


@pytest.fixture
def data(make_clip_like):
    return make_clip_like(120, 32, 3, seed=3, separation=0.3)


def softmax(Z):
    return reference.softmax(np.asarray(Z, dtype=np.float64))


@pytest.mark.parametrize("method", METHODS)
def test_every_answer_is_whole(data, method):
    answer = solve(data.features, data.descriptions, method, FAST)
    n, c = 120, 3
    assert answer.labels.shape == (n,)
    assert answer.labels.dtype == np.int64
    assert answer.probabilities.dtype == np.float32
    assert np.abs(answer.probabilities.sum(axis=1, dtype=float) - 1).max() < 1e-6
    np.testing.assert_array_equal(answer.probabilities.argmax(axis=1), answer.labels)
    top = np.sort(answer.probabilities, axis=1)
    np.testing.assert_allclose(answer.margins, top[:, -1] - top[:, -2], atol=1e-6)
    np.testing.assert_allclose(softmax(answer.logits / answer.temperature), answer.probabilities, atol=1e-5)
    assert (answer.method, answer.method_used, answer.mode) == (method, method, "batch")
    assert set(answer.timings_ms) == {"text_proxies", "labels", "proxies"}
    assert answer.agreement == np.mean(answer.labels == answer.text_labels)
    S = data.features.astype(np.float64) @ answer.text_proxies.proxies
    np.testing.assert_array_equal(answer.text_labels, S.argmax(axis=1))
    np.testing.assert_allclose(answer.text_probabilities, softmax(S / 0.01), atol=1e-6)
    assert answer.proxies.shape == answer.discriminants.shape == (32, c)


def test_methods_are_the_published_ones(data):
    X = data.features.astype(np.float64)
    T, _ = reference.text_proxies(X, data.descriptions)
    S = X @ T
    pseudo = {
        "proxy": reference.softmax_labels(S),
        "inmap": reference.sinkhorn_labels(S),
        "kpl": reference.greenkhorn_labels(S),
    }
    for method, P in pseudo.items():
        W, _ = reference.schedule(X, T, P)
        answer = solve(data.features, data.descriptions, method)
        Z = X @ W
        top = np.sort(Z, axis=1)
        clear = top[:, -1] - top[:, -2] > (1e-4 if method != "kpl" else 1e-8)
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(answer.labels[clear], Z.argmax(axis=1)[clear])
        if method != "kpl":  # labels of mass n: the probabilities are softmax(X W / tau_i) itself
            assert np.abs(answer.probabilities - softmax(Z / 0.04)).max() < 1e-2
    zeroshot = solve(data.features, data.descriptions, "zeroshot")
    np.testing.assert_array_equal(zeroshot.labels, S.argmax(axis=1))
    assert zeroshot.solution is None
    assert solve(data.features, data.descriptions).solution.solver == "closed_form"
    forced = solve(data.features, data.descriptions, config=MethodConfig(solver="schedule"))
    assert forced.solution.solver == "schedule"
    np.testing.assert_array_equal(forced.labels, solve(data.features, data.descriptions).labels)


def test_kpl_probabilities_are_the_discriminant_posterior(data):
    """softmax(c xᵀ (S + tau_i mu I)^-1 D_j), to the O(1/n) of the closed form."""
    X = data.features.astype(np.float64)
    T, _ = reference.text_proxies(X, data.descriptions)
    P = reference.greenkhorn_labels(X @ T)
    expected = softmax(3 * X @ reference.closed_form(X, P) / P.sum())
    got = solve(data.features, data.descriptions).probabilities
    assert np.abs(got - expected).max() < 0.05
    assert got.max() > 0.5  # comparable to other posteriors although the margins of X W are 1e-4


@pytest.mark.parametrize("method", [m for m in METHODS if m != "onzeta"])
def test_permutations_only_reorder(data, method):
    rows, columns = np.random.default_rng(0).permutation(120), np.array([2, 0, 1])
    straight = solve(data.features, data.descriptions, method, FAST)
    turned = solve(data.features[rows], [data.descriptions[j] for j in columns], method, FAST)
    np.testing.assert_array_equal(columns[turned.labels], straight.labels[rows])
    np.testing.assert_allclose(turned.probabilities, straight.probabilities[rows][:, columns], atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "onzeta"])
def test_frozen_answers_each_image_alone(data, method):
    answer = solve(data.features, data.descriptions, method, FAST)
    frozen = FrozenProxies.from_tensors(*freeze(answer).to_tensors())
    assert frozen.method == method
    again = solve_frozen(data.features, frozen)
    np.testing.assert_array_equal(again.labels, answer.labels)
    assert np.abs(again.probabilities - answer.probabilities).max() < 1e-5
    assert again.mode == "frozen"
    np.testing.assert_array_equal(again.text_labels, answer.text_labels)
    alone = np.concatenate([solve_frozen(x[None], frozen).probabilities for x in data.features])
    assert np.abs(alone - again.probabilities).max() <= 1.2e-7  # one float32 ulp
    with pytest.raises(ShapeError, match="width d = 32"):
        solve_frozen(data.features[:, :5], frozen)


def test_streams_carry_their_state(data):
    shuffled = data.features
    stream = StreamSolver(data.descriptions, config=FAST)
    first = stream.answer(shuffled[:5])
    assert first.method_used == "zeroshot"
    assert codes(first) >= {"few_images"}
    later = [stream.answer(part) for part in np.split(shuffled[5:], [40, 80])]
    assert {a.method_used for a in later} == {"kpl_stream"}
    assert {a.mode for a in later} == {"stream"}
    assert stream.sums.num_images == 120
    alone = StreamSolver(data.descriptions, config=FAST)
    alone.text_proxies, alone.sums = stream.text_proxies, type(stream.sums).from_tensors(stream.sums.to_tensors())
    np.testing.assert_array_equal(alone.answer(shuffled[:9]).probabilities, stream.answer(shuffled[:9]).probabilities)
    zeta = StreamSolver(data.descriptions, "onzeta", FAST, horizon=120)
    parts = np.concatenate([zeta.answer(part).probabilities for part in np.split(shuffled, [1, 60])])
    T = zeta.text_proxies.proxies
    np.testing.assert_allclose(parts, reference.onzeta(shuffled, T, horizon=120)[0], atol=1e-5)
    with pytest.raises(ConfigError, match="stream"):
        StreamSolver(data.descriptions, "kpl")


def test_few_images_are_answered_by_the_text(data):
    for method in ("proxy", "inmap", "kpl", "kpl_stream"):
        answer = solve(data.features[:11], data.descriptions, method, FAST)
        assert (answer.method, answer.method_used) == (method, "zeroshot")
        assert "few_images" in codes(answer)
        np.testing.assert_array_equal(answer.labels, answer.text_labels)
        enough = solve(data.features[:12], data.descriptions, method, FAST)
        assert enough.method_used == method
    asked = solve(data.features[:1], data.descriptions, "kpl", MethodConfig(min_batch=1, proxy_iters=20))
    assert asked.method_used == "kpl"
    assert np.isfinite(asked.probabilities).all()


def test_frozen_after_too_few_images_says_zeroshot(data):
    frozen = freeze(solve(data.features[:5], data.descriptions, "kpl", FAST))
    assert frozen.method == "zeroshot"
    assert frozen.temperature == FAST.tau_t
    again = solve_frozen(data.features, frozen)
    assert again.method_used == "zeroshot"
    np.testing.assert_array_equal(again.labels, again.text_labels)


def test_frozen_per_image_answers_stand_on_the_mean_proxies(data):
    config = MethodConfig(retrieval="per_image", k=3)
    frozen = freeze(solve(data.features, data.descriptions, "zeroshot", config))
    mean = solve(data.features, data.descriptions, "zeroshot", MethodConfig(k=3))
    np.testing.assert_array_equal(solve_frozen(data.features, frozen).probabilities, mean.probabilities)


@pytest.mark.parametrize("rows", ["all zero", "zero mean"])
def test_streams_without_a_direction_are_answered_by_the_text(data, rows):
    X = np.zeros((12, 32)) if rows == "all zero" else np.vstack([data.features[:6], -data.features[:6]])
    batch = solve(X, data.descriptions, "kpl_stream", FAST)
    stream = StreamSolver(data.descriptions, config=FAST)
    for answer in (batch, stream.answer(X)):
        assert (answer.method, answer.method_used) == ("kpl_stream", "zeroshot")
        assert "zero_mean" in codes(answer)
        np.testing.assert_array_equal(answer.labels, answer.text_labels)
    assert stream.sums.num_images == 12  # seen, and of use once others follow
    assert stream.answer(data.features).method_used == "kpl_stream"


def test_a_stream_may_start_with_one_image(data):
    stream = StreamSolver(data.descriptions, config=FAST)
    answers = [stream.answer(x[None]) for x in data.features[:20]]
    assert [a.method_used for a in answers] == ["zeroshot"] * 11 + ["kpl_stream"] * 9
    assert all(np.isfinite(a.probabilities).all() for a in answers)
    alone = StreamSolver(data.descriptions, config=MethodConfig(min_batch=1)).answer(data.features[:1])
    assert alone.method_used == "kpl_stream"
    assert np.isfinite(alone.probabilities).all()


def test_onzeta_logits_are_finite_where_a_probability_is_zero(data):
    answer = solve(data.features, data.descriptions, "onzeta", MethodConfig(tau_t=1e-5, tau_i=1e-5))
    assert (answer.probabilities == 0).any()
    assert np.isfinite(answer.logits).all()


def test_many_classes_name_inmap(make_clip_like):
    many = make_clip_like(130, 24, 30, seed=0)
    answer = solve(many.features, many.descriptions, config=FAST)
    notice = next(n for n in answer.warnings if n.code == "many_classes")
    assert "inmap" in notice.message
    assert "schedule_used" in codes(answer)
    plan = solve(many.features, many.descriptions, config=MethodConfig(ot_iters="converged", proxy_iters=50))
    assert "many_classes" not in codes(plan)
    assert "converged_plan" in codes(plan)
    assert "many_classes" not in codes(solve(many.features, many.descriptions, "inmap", FAST))


def test_label_flip_is_said(data):
    """Text that points the wrong way: labels that the images support disagree with it below chance."""
    X, T = data.features, data.descriptions
    found = [solve(X, T, "kpl", MethodConfig(min_batch=1))]
    assert "label_flip" not in codes(found[0])

    labels, text = np.array([0, 1, 0, 1]), np.array([1, 0, 1, 1])
    said = answer_notices(labels, text, 2, np.zeros(4, bool), assumes_equal_shares=False)
    assert [notice.code for notice in said] == ["label_flip"]
    assert "25%" in said[0].message
    even = answer_notices(np.array([0, 1]), np.array([0, 0]), 2, np.zeros(2, bool), assumes_equal_shares=False)
    assert even == []  # exactly chance is not below it


def test_imbalance_is_hinted_unless_a_prior_is_given(make_clip_like):
    data = make_clip_like(150, 32, 2, seed=1, separation=0.4)
    rare = np.flatnonzero(data.classes == 1)[:6]
    X = np.concatenate([data.features[data.classes == 0], data.features[rare]])
    X = X[np.argsort(-(X @ (data.descriptions[0].mean(0) - data.descriptions[1].mean(0))))]
    text = solve(X, data.descriptions, "zeroshot")
    lopsided = np.bincount(text.labels, minlength=2).max() / len(X) > 0.7
    assert ("imbalance" in codes(solve(X, data.descriptions, "kpl"))) == lopsided
    assert lopsided
    given = solve(X, data.descriptions, "kpl", prior=[0.93, 0.07])
    assert "imbalance" not in codes(given)
    assert "prior_unused" not in codes(given)
    assert "prior_unused" in codes(solve(X, data.descriptions, "proxy", FAST, prior=[0.93, 0.07]))


def test_a_share_of_zero_is_said_where_it_does_not_bind(data):
    prior = [0.0, 1.0, 1.0]
    for method, said in (("kpl", True), ("kpl_stream", True), ("inmap", False)):
        answer = solve(data.features, data.descriptions, method, FAST, prior=prior)
        assert ("zero_share" in codes(answer)) == said
        assert (answer.labels == 0).any() == said
    assert "zero_share" not in codes(solve(data.features, data.descriptions, "kpl", prior=[1, 2, 3]))
    stream = StreamSolver(data.descriptions, config=FAST, prior=prior)
    assert "zero_share" in codes(stream.answer(data.features))


def test_zero_and_repeated_vectors_are_said(data):
    X = np.vstack([data.features, data.features[:2], np.zeros((1, 32))])
    answer = solve(X, data.descriptions, "kpl")
    assert {"zero_vectors", "duplicate_images", "decided_by_rounding"} <= codes(answer)
    assert answer.decided_by_rounding[-1]
    assert answer.margins[-1] < 1e-6
    np.testing.assert_array_equal(answer.labels[120:122], answer.labels[:2])


def test_identical_classes_are_said_and_tied(data):
    same = [data.descriptions[0], data.descriptions[0]]
    for method in METHODS:
        answer = solve(data.features, same, method, FAST)
        assert "identical_classes" in codes(answer)
        if method not in ("onzeta",):
            np.testing.assert_allclose(answer.probabilities, 0.5, atol=1e-4)
            assert answer.margins.max() < 1e-4


def test_one_class_is_certain(data):
    for method in METHODS:
        answer = solve(data.features, data.descriptions[:1], method, FAST)
        assert (answer.labels == 0).all()
        assert (answer.probabilities == 1).all()
        assert (answer.margins == 1).all()
        assert "label_flip" not in codes(answer)


def test_not_converged_names_the_knobs(data):
    answer = solve(data.features, data.descriptions, "proxy", MethodConfig(proxy_iters=5))
    notice = next(n for n in answer.warnings if n.code == "not_converged")
    assert "iters" in notice.message
    assert not answer.solution.converged


def test_bad_input_is_named_and_loses_nothing(data):
    before = data.features.copy()
    broken = data.features.copy()
    broken[[2, 9], 0] = [np.nan, -np.inf]
    for method in METHODS:
        with pytest.raises(ShapeError, match=r"2 of 120 rows \(2, 9\)"):
            solve(broken, data.descriptions, method)
        with pytest.raises(ShapeError, match="width d = 32"):
            solve(data.features[:, :8], data.descriptions, method)
        with pytest.raises(ShapeError, match="prior"):
            solve(data.features, data.descriptions, method, prior=[1.0])
        solve(data.features, data.descriptions, method, FAST)
    np.testing.assert_array_equal(data.features, before)
    with pytest.raises(ConfigError, match="method"):
        solve(data.features, data.descriptions, "KPL")
    with pytest.raises(ConfigError, match="MethodConfig"):
        solve(data.features, data.descriptions, "kpl", {"k": 3})
    for method in ("kpl_stream", "onzeta"):
        with pytest.raises(ConfigError, match="per_image"):
            solve(data.features, data.descriptions, method, MethodConfig(retrieval="per_image"))


@pytest.mark.parametrize("retrieval", ["per_image", "all"])
def test_other_retrievals_run(data, retrieval):
    config = MethodConfig(retrieval=retrieval, k=3, proxy_iters=50)
    for method in ("zeroshot", "proxy", "inmap", "kpl"):
        answer = solve(data.features, data.descriptions, method, config)
        assert np.isfinite(answer.probabilities).all()
        if retrieval == "per_image":
            np.testing.assert_array_equal(answer.text_labels, answer.text_proxies.logits.argmax(axis=1))


def test_the_edges_of_the_notices():
    def many(c):
        return any(n.code == "many_classes" for n in method_notices("kpl", c, MethodConfig(), None))

    def skewed(counts):
        text = np.repeat(np.arange(len(counts)), counts)
        found = answer_notices(text, text, len(counts), np.zeros(len(text), bool), assumes_equal_shares=True)
        return [notice.code for notice in found] == ["imbalance"]

    assert (many(20), many(21)) == (False, True)
    assert (skewed([69, 31]), skewed([71, 29])) == (False, True)


def test_batch_onzeta_takes_the_batch_for_its_horizon(data):
    answer = solve(data.features[:30], data.descriptions, "onzeta")
    expected = reference.onzeta(data.features[:30], answer.text_proxies.proxies)[0]
    assert np.abs(answer.probabilities - expected).max() < 1e-5


def test_a_stream_uses_its_prior(data):
    prior = [0.7, 0.2, 0.1]
    stream = StreamSolver(data.descriptions, config=FAST, prior=prior).answer(data.features)
    batch = solve(data.features, data.descriptions, "kpl_stream", FAST, prior=prior)
    np.testing.assert_array_equal(stream.probabilities, batch.probabilities)
    assert (
        np.abs(stream.probabilities - solve(data.features, data.descriptions, "kpl_stream").probabilities).max() > 0.01
    )


def test_features_that_are_not_unit_vectors_are_said():
    features, knowledge = np.eye(6, dtype=np.float32)[np.arange(24) % 6], [np.eye(6)[:2], np.eye(6)[3:]]
    codes = {
        scale: {notice.code for notice in solve(features * np.float32(scale), knowledge, "zeroshot").warnings}
        for scale in (1.0, 1.001, 3.0)
    }
    assert "not_unit" in codes[3.0]
    assert "not_unit" not in codes[1.0] | codes[1.001]


def test_frozen_answers_name_zero_vectors_but_not_repeats():
    features = np.eye(6, dtype=np.float32)[np.arange(24) % 6]
    frozen = freeze(solve(features, [np.eye(6)[:2], np.eye(6)[3:]], "zeroshot"))
    codes = {notice.code for notice in solve_frozen(np.concatenate([features, np.zeros((1, 6))]), frozen).warnings}
    assert "zero_vectors" in codes
    assert "duplicate_images" not in codes
