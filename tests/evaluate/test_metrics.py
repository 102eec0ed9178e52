"""Metrics against scikit-learn on random inputs, and their edges."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from kpl_engine.errors import ShapeError
from kpl_engine.metrics import expected_calibration_error, measure, roc_auc


def random_case(seed, n=200, c=4):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, c, n)
    scores = rng.normal(size=(n, c)) + 1.5 * np.eye(c)[truth]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return truth, probabilities.argmax(axis=1), probabilities


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    truth, predicted, probabilities = random_case(seed)
    found = measure(truth, predicted, probabilities)
    assert found.accuracy == pytest.approx(oracle.accuracy_score(truth, predicted), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(truth, predicted), abs=1e-12)
    assert found.macro_f1 == pytest.approx(oracle.f1_score(truth, predicted, average="macro"), abs=1e-12)
    assert found.auroc == pytest.approx(oracle.roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-12)
    np.testing.assert_array_equal(found.confusion, oracle.confusion_matrix(truth, predicted))
    precision, recall, f1, support = oracle.precision_recall_fscore_support(truth, predicted)
    np.testing.assert_allclose([m.precision for m in found.per_class], precision, atol=1e-12)
    np.testing.assert_allclose([m.recall for m in found.per_class], recall, atol=1e-12)
    np.testing.assert_allclose([m.f1 for m in found.per_class], f1, atol=1e-12)
    assert [m.support for m in found.per_class] == support.tolist()


def test_auroc_with_ties_is_scikit_learns():
    rng = np.random.default_rng(7)
    positive, scores = rng.integers(0, 2, 300), rng.integers(0, 5, 300)
    assert roc_auc(positive, scores) == pytest.approx(oracle.roc_auc_score(positive, scores), abs=1e-12)


def test_auroc_of_one_class_is_undefined():
    assert np.isnan(roc_auc([1, 1], [0.1, 0.2]))


def test_calibration_error_by_hand():
    # bins (0.6, 0.667] and (0.933, 1]: |1 - 0.65| / 3 and |(1 + 0) - (1 + 1)| / 3
    assert expected_calibration_error([1, 1, 0], [0.65, 1.0, 1.0]) == pytest.approx((0.35 + 1.0) / 3)
    assert expected_calibration_error([1, 1], [1.0, 1.0]) == 0.0
    # 0.2 closes the bin (2/15, 3/15]; 0.25 lies in the next one
    assert expected_calibration_error([1, 0], [0.2, 0.25]) == pytest.approx((0.8 + 0.25) / 2)


def test_a_class_without_images_is_left_out_of_the_means():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    found = measure(truth, predicted, np.eye(3)[predicted])
    assert found.balanced_accuracy == pytest.approx(0.75)
    assert np.isnan(found.per_class[2].recall)
    assert not np.isnan([found.macro_f1, found.auroc, found.ece]).any()


@pytest.mark.parametrize(
    ("truth", "predicted", "shape"), [([], [], (0, 2)), ([0], [2], (1, 2)), ([-1], [0], (1, 2)), ([0, 1], [0], (2, 2))]
)
def test_bad_input_is_refused(truth, predicted, shape):
    with pytest.raises(ShapeError):
        measure(np.array(truth, dtype=int), np.array(predicted, dtype=int), np.full(shape, 0.5))
