"""Retrieval scores against loops, scikit-learn and, where it is installed, pytorch-metric-learning."""

import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors
from conftest import unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distances, retrieval

import jaxmetric as jm
from jaxmetric.metric import neighbors
from jaxmetric.metric import retrieval as module

NAMES = ("precision_at_1", "r_precision", "map_at_r", "mrr")


def cells(seed, n, k=4, d=3):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)).astype(np.float32), generator.integers(0, k, n)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 5))
def test_scores_are_the_definitions(metric, seed, k):
    z, labels = cells(seed, 33, k)
    below = np.triu(np.random.default_rng(seed).random((5, 5)) < 0.4, 1)
    D = distances(z, metric)
    for itself, rows, columns in ((True, 33, slice(33)), (False, 10, slice(10, 33))):
        expected = {
            prefix: retrieval(D[:rows, columns], labels[:rows], labels[columns], relevant, itself)
            for prefix, relevant in (
                ("", np.eye(5, dtype=bool)),
                ("ontology_", np.eye(5) + below > 0),
            )
        }
        if not expected[""]:
            continue
        reference = () if itself else (z[columns], labels[columns])
        found = jm.retrieval_scores(
            z[:rows], labels[:rows], *reference, descendants=below, metric=metric, k=3
        )
        for prefix, scores in expected.items():
            for name, score in scores.items():
                assert found[prefix + name] == pytest.approx(score, abs=1e-6)


def test_knn_accuracy_is_scikit_learns_and_map_at_r_its_average_precision(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 500)  # several chunks, the last one shorter
    (z, labels), (query, truth) = cells(0, 90), cells(1, 37)
    found = jm.retrieval_scores(query, truth, z, labels)
    model = sklearn.neighbors.KNeighborsClassifier(15, weights="distance").fit(z, labels)
    assert found["knn_accuracy"] == pytest.approx(model.score(query, truth))
    D = sklearn.metrics.pairwise_distances(query, z)
    expected = []
    for row, label in zip(D, truth, strict=True):
        relevant = (labels == label)[np.argsort(row)]
        top = relevant[: relevant.sum()]  # average precision of those R alone, times their share
        score = sklearn.metrics.average_precision_score(top, -np.arange(len(top)))
        expected.append(score * top.mean() if top.any() else 0.0)
    assert found["map_at_r"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_a_cell_is_no_neighbour_of_itself(monkeypatch):
    monkeypatch.setattr(neighbors, "CHUNK", 500)
    z, labels = cells(2, 60)
    found = neighbors.nearest_neighbors(z, z, 4, exclude_self=True)
    expected = sklearn.neighbors.NearestNeighbors(n_neighbors=4).fit(z).kneighbors()
    np.testing.assert_array_equal(found.indices, expected[1])
    np.testing.assert_allclose(found.distances, expected[0], atol=1e-3)
    votes = neighbors.transfer_labels(neighbors.Neighbors(expected[1], expected[0]), labels, 4)
    scores = jm.retrieval_scores(z, labels, k=4)
    assert scores["knn_accuracy"] == pytest.approx((votes == labels).mean())


def test_unlabelled_and_lone_cells_are_left_out():
    z, labels = cells(0, 40)
    labels[:5], labels[5] = -1, 4
    found = jm.retrieval_scores(z, labels)
    assert found["num_scored"] == 34
    expected = retrieval(distances(z[5:], "euclidean"), labels[5:], labels[5:], np.eye(5), True)
    assert found["map_at_r"] == pytest.approx(expected["map_at_r"], abs=1e-6)


def test_scores_are_those_of_pytorch_metric_learning():
    accuracy = pytest.importorskip(
        "pytorch_metric_learning.utils.accuracy_calculator", reason="the extra 'bench' installs it"
    )
    import torch
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.inference import CustomKNN

    (z, labels), (query, truth) = cells(0, 300, 6, 8), cells(1, 80, 6, 8)
    names = {"precision_at_1": "precision_at_1", "r_precision": "r_precision"}
    names |= {"mean_average_precision_at_r": "map_at_r", "mean_reciprocal_rank": "mrr"}
    for itself in (False, True):
        calculator = accuracy.AccuracyCalculator(
            include=tuple(names),
            k=299 if itself else 300,
            device=torch.device("cpu"),
            knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
        )
        pair = (z, labels) if itself else (query, truth)
        theirs = calculator.get_accuracy(*map(torch.tensor, (*pair, z, labels)), itself)
        ours = jm.retrieval_scores(z, labels) if itself else jm.retrieval_scores(*pair, z, labels)
        for name, ours_name in names.items():
            assert ours[ours_name] == pytest.approx(theirs[name], abs=1e-6)


def test_bad_input_is_refused():
    z, labels = cells(0, 20)
    scores = unchecked(jm.retrieval_scores)
    with pytest.raises(ValueError, match="reference must be"):
        scores(z, labels, z, labels[:-1])
    with pytest.raises(ValueError, match="no query cell has a reference cell"):
        scores(z, labels, z, labels + 10)
    with pytest.raises(ValueError, match="labels must be less than 2"):
        scores(z, labels, descendants=np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="k must be from 1 to 19"):
        scores(z, labels, k=20)
