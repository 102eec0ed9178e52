"""The check of answers: right ones pass, and each way of being wrong is caught."""

import numpy as np
import pytest

from kpl_engine.bench import checking
from kpl_engine.bench.checking import Reference, compare_answers, feature_error, frozen_tolerance, prepare_frozen
from kpl_engine.bench.exact import frozen_answers
from kpl_engine.bench.inprocess import EngineTarget
from kpl_engine.bench.samples import make_samples
from kpl_engine.errors import ConfigError, InputError
from kpl_engine.solver.base import FrozenProxies
from tests.bench.engines import make_engine, samples_of, settings_of


def ready(error=0.0, **given):
    """A reference, and what answers as a scenario does."""
    # What a batch keeps of the descriptions can be a tie, and then its answers are nobody's: not so with model 0.
    seed = 0 if given.get("mode") == "batch" else int(np.random.default_rng().integers(1000))
    engine = make_engine(error, seed=seed)
    settings, samples = samples_of(engine, **given)
    prepare_frozen(engine, samples, settings)
    target = EngineTarget(
        engine, samples.kind, samples.payloads, method=settings.method, mode=settings.mode or "frozen"
    )
    return Reference(engine, samples, settings), target.answer_of


@pytest.mark.parametrize("kind", ["files", "pixels", "features"])
@pytest.mark.parametrize(
    ("method", "mode"),
    [(None, None), ("kpl", "frozen"), ("zeroshot", "batch"), ("proxy", "batch"), ("kpl_stream", "batch")],
)
def test_right_answers_pass(kind, method, mode):
    if mode == "frozen":
        engine = make_engine()
        settings, samples = samples_of(engine, input_kind=kind, method=method, mode=mode)
        engine.fit(features=samples.features)
        reference = Reference(engine, samples, settings)
        answer_of = EngineTarget(engine, kind, samples.payloads, mode=mode).answer_of
    else:
        reference, answer_of = ready(input_kind=kind, method=method, mode=mode)
    for _ in range(2):
        check = reference.check(answer_of)
        assert (check["is_right"], check["reason"], check["num_other_labels"]) == (True, "", 0), check
        assert check["num_pictures"] == 16
        assert 0 <= check["max_error"] <= check["tolerance"] < 0.01


def swap(P):
    """The two rows that differ most."""
    apart = np.abs(P[:, None] - P[None]).max(axis=2)
    a, b = np.unravel_index(apart.argmax(), apart.shape)
    P[[a, b]] = P[[b, a]]
    return P


def shift(P):
    P[0, 0] += 1e-3
    return P


def with_nan(P):
    P[-1, 1] = np.nan
    return P


WRONG = {
    "two answers swapped": swap,
    "another temperature": lambda P: P**1.01 / (P**1.01).sum(axis=1, keepdims=True),
    "classes permuted": lambda P: P[:, [1, 0, 2]],
    "one probability": shift,
    "NaN": with_nan,
    "infinite": lambda P: P * np.inf,
    "a row too few": lambda P: P[:-1],
    "a row too many": lambda P: np.vstack([P, P[:1]]),
    "a class too few": lambda P: P[:, :-1],
    "the same answer to all": lambda P: np.repeat(P[:1], len(P), axis=0),
}


@pytest.mark.parametrize(("method", "mode"), [(None, None), ("kpl_stream", "batch")])
@pytest.mark.parametrize("how", WRONG)
def test_wrong_answers_are_caught(how, method, mode):
    reference, answer_of = ready(method=method, mode=mode)
    check = reference.check(lambda indices: WRONG[how](answer_of(indices).astype(np.float64)))
    assert not check["is_right"]
    assert check["max_error"] > check["tolerance"]
    assert np.isfinite(check["max_error"])  # a file holds no NaN
    assert "expected" in check["reason"]
    assert "got" in check["reason"]
    assert reference.check(answer_of)["is_right"]


def test_rows_in_the_wrong_reply_are_caught_though_their_number_is_right():
    reference, answer_of = ready()
    kept = []

    def late(indices):
        P = answer_of(indices)
        kept.append(P[-1:])
        return P[:-1] if len(kept) == 1 else np.vstack([kept[0], P])

    check = reference.check(late)
    assert not check["is_right"]
    assert check["reason"] == "expected probabilities of shape (8, 3), got (7, 3)"


def test_a_wrong_answer_to_one_picture_is_caught_where_it_is_asked_for():
    reference, answer_of = ready(check_samples=19)

    def wrong(indices):
        P = answer_of(indices).copy()
        P[[i for i, index in enumerate(indices) if index == 5]] = [0.9, 0.05, 0.05]
        return P

    check = reference.check(wrong)
    assert check["num_pictures"] == 19
    assert not check["is_right"]
    assert check["reason"].startswith("made-0005.jpg: expected probability 0.")


def test_pictures_are_chosen_anew_and_no_picture_twice():
    reference, answer_of = ready()
    asked = []
    for _ in range(4):
        chosen = []
        reference.check(lambda indices, chosen=chosen: chosen.extend(indices) or answer_of(indices))
        assert len(chosen) == len(set(chosen)) == 16
        asked.append(tuple(sorted(chosen)))
    assert len(set(asked)) > 1  # all four alike: once in 1e30 runs


def test_a_batch_is_one_question_with_enough_to_learn_from():
    sizes = []
    reference, answer_of = ready(method="proxy", mode="batch", check_samples=3)
    reference.check(lambda indices: sizes.append(len(indices)) or answer_of(indices))
    assert sizes == [12]  # four a class: fewer would be answered by the text
    reference, answer_of = ready(check_samples=11)
    sizes.clear()
    reference.check(lambda indices: sizes.append(len(indices)) or answer_of(indices))
    assert sizes == [8, 3]


def test_what_the_encoder_loses_in_a_batch_is_allowed_and_measured():
    tight, _ = ready()
    for error in (1e-4, 5e-4):
        reference, answer_of = ready(error)
        check = reference.check(answer_of)
        assert check["is_right"], check
        tolerance = tight.check(lambda indices: np.zeros((len(indices), 3)))["tolerance"]
        assert check["tolerance"] > 3 * tolerance


def test_answers_that_rounding_decides_cannot_be_checked(monkeypatch):
    monkeypatch.setattr(checking, "_LEAST_DELTA", 0.9)
    for mode in (None, "batch"):
        reference, answer_of = ready(method="proxy", mode=mode)
        with pytest.raises(InputError, match=r"cannot be checked.*another method or mode"):
            reference.check(answer_of)


def test_other_pictures_are_drawn_where_rounding_decides(monkeypatch):
    reference, answer_of = ready(method="proxy", mode="batch")
    limits = iter([0.0, 0.0, 0.0, 0.01])  # of the fourth draw anything may be said

    def usable(tolerance, delta):
        monkeypatch.setattr(checking, "_MOST_TOLERANCE", next(limits))
        return decide(tolerance, delta)

    decide = checking._usable
    monkeypatch.setattr(checking, "_usable", usable)
    asked = []
    check = reference.check(lambda indices: asked.append(len(indices)) or answer_of(indices))
    assert check["is_right"]
    assert asked == [16]  # nobody was asked about the others


@pytest.mark.parametrize(("rare_at", "is_right"), [(7, True), (10**9, False)])
def test_before_an_answer_is_wrong_the_reference_is_tried_more_often(monkeypatch, rare_at, is_right):
    reference, _ = ready(method="proxy", mode="batch")
    calls = []

    def answers(X, *_):
        calls.append(X)
        P = np.full((len(X), 3), 1 / 3)
        P[0, 0] += 0.002 * (len(calls) == rare_at)  # 1 + 3 calls, then 1 + 16: the second of the trials to come
        return P

    monkeypatch.setattr(checking, "batch_answers", answers)
    check = reference.check(lambda indices: np.full((len(indices), 3), 1 / 3 + 0.001))
    assert check["is_right"] == is_right
    assert len(calls) == 1 + 3 + 1 + 16


def test_compare_answers_tells_labels_only_where_the_reference_is_decided():
    expected = np.array([[0.5000004, 0.4999996], [0.6, 0.4], [0.2, 0.8]])
    turned = np.array([[0.4999998, 0.5000002], [0.6, 0.4], [0.2, 0.8]])
    names, classes = ["a", "b", "c"], ["x", "y"]
    check = compare_answers(turned, expected, 1e-6, names, classes)
    assert (check["is_right"], check["num_other_labels"]) == (True, 0)
    turned[1] = [0.4, 0.6]
    check = compare_answers(turned, expected, 1e-6, names, classes)
    assert (check["is_right"], check["num_other_labels"]) == (False, 1)
    assert check["reason"] == "b: expected probability 0.6 of 'x' within 1e-06, got 0.4"
    assert check["max_error"] == pytest.approx(0.2, abs=1e-12)
    assert compare_answers(expected[:, :1], expected[:, :1], 0.0, names, classes)["is_right"]  # one class


def random_frozen(d, c, rng):
    D = rng.normal(size=(d, c)).astype(np.float32)
    return FrozenProxies(D, D, 0.3, D, 0.01, tuple(np.zeros(1, np.int64) for _ in range(c)), "kpl", 9)


def test_the_tolerance_of_one_picture_is_a_bound_and_is_reached():
    rng = np.random.default_rng()
    for c in (2, 5):
        frozen, delta = random_frozen(13, c, rng), 1e-3
        bound = frozen_tolerance(frozen, delta)
        X = rng.normal(size=(500, 13))
        step = rng.normal(size=X.shape)
        step *= delta / np.linalg.norm(step, axis=1, keepdims=True)
        assert np.abs(frozen_answers(X + step, frozen) - frozen_answers(X, frozen)).max() <= bound
    frozen = random_frozen(13, 2, rng)
    between = (frozen.discriminants[:, 0] - frozen.discriminants[:, 1]).astype(np.float64)
    x = np.zeros((1, 13))  # both classes alike, where the answer is steepest
    moved = frozen_answers(x + 1e-3 * between / np.linalg.norm(between), frozen) - frozen_answers(x, frozen)
    assert moved[0, 0] > 0.99 * frozen_tolerance(frozen, 1e-3)


def test_feature_error_is_the_largest_distance_in_any_batch():
    rows = np.eye(20, 9)
    asked = []

    def features_of(indices):
        asked.append(list(indices))
        return rows[list(indices)] + (0.25 if 13 in indices else 0.0) * np.eye(9)[[3]]

    assert feature_error(rows, features_of) == 0.25
    assert [len(each) for each in asked] == [2, 3, 4, 5, 6]
    assert [index for each in asked for index in each] == list(range(20))


def test_features_of_a_server_replace_ours_and_must_be_of_the_same_pictures():
    engine = make_engine()
    settings, samples = samples_of(engine)
    prepare_frozen(engine, samples, settings)
    rng = np.random.default_rng()
    rough = samples.features + 1e-3 * rng.normal(size=samples.features.shape)  # an encoder of half precision
    rough = (rough / np.linalg.norm(rough, axis=1, keepdims=True)).astype(np.float32)

    def answer_of(indices):
        return engine.classify(features=rough[list(indices)], mode="frozen").probabilities

    assert not Reference(engine, samples, settings).check(answer_of)["is_right"]
    reference = Reference(engine, samples, settings, lambda indices: rough[list(indices)])
    check = reference.check(answer_of)
    assert check["is_right"]
    assert check["tolerance"] < 1e-4  # of its own features, not of half precision
    turned = np.roll(rough, 1, axis=0)
    with pytest.raises(InputError, match=r"made-0000\.jpg: .* nearer to those of made-0018\.jpg"):
        Reference(engine, samples, settings, lambda indices: turned[list(indices)])
    with pytest.raises(InputError, match=r"shape \(19, 17\), got \(19, 16\)"):
        Reference(engine, samples, settings, lambda indices: rough[list(indices), :16])


def test_proxies_are_fitted_where_there_are_none_and_nothing_was_asked():
    engine = make_engine()
    settings, samples = samples_of(engine)
    assert engine.frozen_proxies() is None
    assert prepare_frozen(engine, samples, settings_of(mode="batch")) is None
    assert engine.frozen_proxies() is None
    note = prepare_frozen(engine, samples, settings)
    assert note == "the bundle has no fitted proxies: 'kpl' was fitted on the 19 samples"
    fitted = engine.frozen_proxies()
    assert prepare_frozen(engine, samples, settings) is None
    assert engine.frozen_proxies() is fitted
    with pytest.raises(InputError, match="fitted with 'kpl', got method 'inmap'"):
        prepare_frozen(engine, samples, settings_of(method="inmap"))


def test_what_cannot_be_fitted_or_checked_says_what_to_do():
    engine = make_engine()
    settings = settings_of(num_samples=11)
    samples = make_samples(settings, engine)
    with pytest.raises(InputError, match=r"11 images.*give more"):
        prepare_frozen(engine, samples, settings)
    with pytest.raises(InputError, match="needs proxies fitted"):
        prepare_frozen(engine, samples, settings_of(mode="frozen"))
    with pytest.raises(InputError, match="needs proxies fitted"):
        Reference(engine, samples, settings)
    for make in (prepare_frozen, Reference):
        with pytest.raises(ConfigError, match="'frozen' or 'batch', got 'stream'"):
            make(engine, samples, settings_of(mode="stream"))
