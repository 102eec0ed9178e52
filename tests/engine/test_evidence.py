"""The descriptions that speak for a label, against a stable sort of all cosines."""

import numpy as np
import pytest

from kpl_engine.classification import find_evidence
from kpl_engine.knowledge import KnowledgeBase
from kpl_engine.solver.answering import multiply_rows
from kpl_engine.solver.select import solve

# A row's cosines do not depend on its neighbours there, to the bit; BLAS promises no such thing.
pytest.importorskip("kpl_engine._core", reason="needs the compiled core")


@pytest.mark.parametrize("top", [1, 2, 8, 9, 50])
@pytest.mark.parametrize("num_images", [3, 1024, 1100])
def test_evidence_is_that_of_a_stable_sort(top, num_images):
    rng = np.random.default_rng()
    X = rng.normal(size=(num_images, 16)).astype(np.float32) + 1
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    texts = {name: rng.normal(size=(30, 16)) for name in ("a", "b", "c")}
    for rows in texts.values():
        rows[5:8] = rows[11:14]  # equal descriptions: the first of them is told
    base = KnowledgeBase.from_arrays(texts)
    answer = solve(X, base, "zeroshot")
    found = find_evidence(X, base, answer, top)
    assert len(found) == num_images
    for i, j in enumerate(answer.labels.tolist()):
        cosines = multiply_rows(X[i : i + 1], base.class_embeddings(j).T)[0]
        order = np.argsort(-cosines, kind="stable")[:top]
        assert [each.description for each in found[i]] == [base.descriptions[j][k] for k in order]
        np.testing.assert_allclose([each.similarity for each in found[i]], cosines[order].astype(np.float32), atol=2e-7)
        kept = set(answer.text_proxies.kept[j].tolist())
        assert [each.is_kept for each in found[i]] == [int(k) in kept for k in order]
