"""Study mixing, which scib-metrics computes (the extras 'eval' and 'bench' install it)."""

import sys

import numpy as np
import pytest
import sklearn.neighbors

from jaxmetric.scores import mixing
from jaxmetric.scores.mixing import lisi, scaled_median

STUDIES = np.repeat(["one", "two"], 200)


def cells(apart=0.0):
    z = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    return z + apart * (STUDIES == "two")[:, None].astype(np.float32)


def study_mixing(z, studies):
    return scaled_median(lisi(z, studies), np.ones(len(z)), len(np.unique(studies)))


def test_mixed_studies_score_near_one_and_studies_apart_zero():
    pytest.importorskip("scib_metrics", reason="the extra 'bench' installs it")
    assert study_mixing(cells(), STUDIES) > 0.8
    assert study_mixing(cells(apart=100), STUDIES) == pytest.approx(0, abs=1e-6)


def test_it_is_scib_metrics_on_scikit_learns_neighbours(monkeypatch):
    scib_metrics = pytest.importorskip("scib_metrics", reason="the extra 'bench' installs it")
    from scib_metrics.nearest_neighbors import NeighborsResults

    z = cells(apart=0.6)
    distances, indices = sklearn.neighbors.NearestNeighbors(n_neighbors=90).fit(z).kneighbors()
    expected = scib_metrics.lisi_knn(NeighborsResults(indices, distances), STUDIES)
    np.testing.assert_allclose(lisi(z, STUDIES), expected, atol=1e-3)
    assert study_mixing(z, STUDIES) == pytest.approx(np.median(expected) - 1, abs=1e-3)
    monkeypatch.setattr(mixing, "MOST", 50)
    some = np.random.default_rng(0).permutation(400)[:50]
    assert study_mixing(z, STUDIES) == pytest.approx(np.median(expected[some]) - 1, abs=1e-3)
    assert np.isnan(lisi(z, STUDIES)).sum() == 350


@pytest.mark.parametrize("number", [1, 6, 7])
def test_the_median_is_that_of_cells_counted_so_often(number):
    generator = np.random.default_rng(number)
    values, weights = (
        generator.uniform(1, 3, number),
        generator.integers(0, 3, number) + (number == 1),
    )
    expected = (np.median(np.repeat(values, weights)) - 1) / 2
    missing = np.append(values, np.nan), np.append(weights, 5)
    assert scaled_median(*missing, 3) == pytest.approx(expected)
    assert np.isnan(scaled_median(values, 0 * weights, 3))


def test_it_says_why_there_is_no_score(monkeypatch):
    assert lisi(cells(), np.repeat("one", 400)) == "needs two studies"
    assert lisi(cells()[196:205], STUDIES[196:205]) == "needs 10 cells"
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    assert lisi(cells(), STUDIES) == "needs the extra eval"
