"""What a model has to beat, against numpy's and scikit-learn's own."""

import dataclasses
import logging

import numpy as np
import pytest
import scipy.sparse as sp
from made_up import make_adata
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import jaxmetric as jm
from jaxmetric.evaluation import baselines as module
from jaxmetric.evaluation.baselines import (
    baseline_scores,
    baselines,
    evenly,
    lda_embedding,
    logistic_regression,
    svd_embedding,
)
from jaxmetric.evaluation.embeddings import BASELINES, logged, seen_genes
from jaxmetric.scores.label_transfer import number_alike, predict


@pytest.fixture(scope="module")
def cells():
    cells = jm.read_cells(make_adata(200), label_key="cell_type", study_key="study")
    query = cells.in_studies(["study_1"])
    return cells.select(query), cells.select(~query)


@pytest.fixture(scope="module")
def lognorm(cells):
    """Log-normalised genes of query and reference cells."""
    return [
        np.log1p(1e4 * c.X.toarray() / np.asarray(c.X.sum(1))).astype(np.float32) for c in cells
    ]


def truth(cells):
    return np.array(cells.label_names)[cells.labels]


def test_cells_without_values_have_no_svd(cells):
    nothing = dataclasses.replace(cells[1], X=cells[1].X * 0)
    with pytest.raises(ValueError, match=r"an SVD needs .* with 0 values"):
        svd_embedding(cells[0], nothing)


def test_the_svd_is_numpys(cells, lognorm):
    z, z_reference = svd_embedding(*cells, dim=5)
    _, _, components = np.linalg.svd(lognorm[1], full_matrices=False)
    for found, values in ((z, lognorm[0]), (z_reference, lognorm[1])):
        expected = values @ components[:5].T
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=0.05)


def test_the_scores_are_those_of_scikit_learn(cells, lognorm):
    svd = svd_embedding(*cells)
    names, expected = truth(cells[1]), truth(cells[0])
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(svd[1], names)
    neighbors = KNeighborsClassifier(5, weights="distance")
    logistic = LogisticRegression(C=1, max_iter=200, class_weight="balanced")
    predicted = {
        "SVD-50": neighbors.fit(svd[1], names).predict(svd[0]),
        "LDA-50": neighbors.fit(lda.transform(svd[1]), names).predict(lda.transform(svd[0])),
        "logistic regression": logistic.fit(lognorm[1], names).predict(lognorm[0]),
    }
    found = baseline_scores(*cells, k=5)
    assert tuple(found) == BASELINES
    for name, one in predicted.items():
        assert found[name]["accuracy"] == pytest.approx((one == expected).mean())
        assert found[name]["macro_f1"] == pytest.approx(f1_score(expected, one, average="macro"))
        assert found[name]["num_scored"] == len(expected)


def test_reports_and_cross_validation_have_the_same_baselines(cells):
    compared = baselines(*cells, *map(logged, cells))
    labels = number_alike(*cells)
    found = baseline_scores(*cells, k=5)
    for name in ("SVD-50", "LDA-50"):
        one = compared[name]
        right = predict(one.query, one.reference, labels, 5) == labels.query
        assert right.mean() == found[name]["accuracy"]
    seen = [one.with_genes(seen_genes(one.genes)) for one in cells]
    svd = svd_embedding(*seen)
    np.testing.assert_array_equal(compared["SVD-50"].hidden, svd[0])
    lda = lda_embedding(*svd, labels.reference)
    np.testing.assert_array_equal(compared["LDA-50"].hidden, lda[0])
    right = compared["logistic regression"].labels == labels.query
    assert right.mean() == found["logistic regression"]["accuracy"]


def test_cells_without_label_teach_nothing_and_are_not_predicted(cells):
    query, reference = cells
    hidden = np.arange(len(reference)) % 3 == 0
    some = dataclasses.replace(reference, labels=np.where(hidden, -1, reference.labels))
    assert baseline_scores(query, some, k=5)["LDA-50"]["num_reference"] == (~hidden).sum()
    z = np.random.default_rng(0).normal(size=(len(reference), 6))
    labels = number_alike(query, some).reference
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(z[~hidden], labels[~hidden])
    np.testing.assert_allclose(lda_embedding(z, z, labels)[1], lda.transform(z))
    alone = dataclasses.replace(query, labels=np.where(query.labels == 0, -1, query.labels))
    prediction = baselines(alone, reference, logged(alone), logged(reference))[BASELINES[2]]
    assert ((prediction.labels == -1) == (alone.labels == -1)).all()


def test_one_label_leaves_nothing_to_tell_apart():
    z, x = np.random.default_rng(0).normal(size=(2, 9, 4))
    for labels in (np.zeros(9, int), np.arange(9)):
        assert lda_embedding(x, z, labels)[0] is x
    found = logistic_regression(sp.csr_matrix(z), np.full(9, 3), sp.csr_matrix(x[:5]))
    assert found.tolist() == [3] * 5


def test_of_many_cells_a_part_is_used_evenly(monkeypatch, caplog):
    labels = np.repeat([0, 1, 2], [1000, 30, 5])
    assert np.bincount(labels[evenly(labels, 50)]).tolist() in ([22, 23, 5], [23, 22, 5])
    np.testing.assert_array_equal(evenly(labels, 50), evenly(labels, 50))
    np.testing.assert_array_equal(evenly(labels, 2000), np.arange(1035))
    X = sp.random(1035, 20, 0.5, format="csr", random_state=0)
    monkeypatch.setattr(module, "MOST", 60)
    monkeypatch.setattr(module, "CHUNK", 100)
    with caplog.at_level(logging.INFO, "jaxmetric"):
        found = logistic_regression(X, labels, X)
    assert "fitted on 60 of 1035 reference cells, drawn evenly from 3 labels" in caplog.text
    chosen = evenly(labels, 60)
    model = LogisticRegression(C=1, max_iter=200, class_weight="balanced")
    np.testing.assert_array_equal(found, model.fit(X[chosen], labels[chosen]).predict(X))
    monkeypatch.setattr(module, "PRODUCTS", 900)  # 10 values of a row, 3 labels: 30 rows
    with caplog.at_level(logging.INFO, "jaxmetric"):
        logistic_regression(X, labels, X)
    assert "fitted on 30 of 1035" in caplog.text
