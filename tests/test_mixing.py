"""Study mixing, which scib-metrics computes (the extras 'eval' and 'bench' install it)."""

import sys

import numpy as np
import pytest
import sklearn.neighbors

from jaxmetric import mixing
from jaxmetric.mixing import study_mixing

STUDIES = np.repeat(["one", "two"], 200)


def cells(apart=0.0):
    z = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    return z + apart * (STUDIES == "two")[:, None].astype(np.float32)


def test_mixed_studies_score_near_one_and_studies_apart_zero():
    pytest.importorskip("scib_metrics", reason="the extra 'bench' installs it")
    assert study_mixing(cells(), STUDIES) > 0.8
    assert study_mixing(cells(apart=100), STUDIES) == pytest.approx(0, abs=1e-6)


def test_it_is_scib_metrics_on_scikit_learns_neighbours(monkeypatch):
    scib_metrics = pytest.importorskip("scib_metrics", reason="the extra 'bench' installs it")
    from scib_metrics.nearest_neighbors import NeighborsResults

    z = cells(apart=0.6)
    distances, indices = sklearn.neighbors.NearestNeighbors(n_neighbors=90).fit(z).kneighbors()
    lisi = scib_metrics.lisi_knn(NeighborsResults(indices, distances), STUDIES)
    assert study_mixing(z, STUDIES) == pytest.approx(np.median(lisi) - 1, abs=1e-3)
    monkeypatch.setattr(mixing, "MOST", 50)
    some = np.random.default_rng(0).permutation(400)[:50]
    assert study_mixing(z, STUDIES) == pytest.approx(np.median(lisi[some]) - 1, abs=1e-3)


def test_it_says_why_there_is_no_score(monkeypatch):
    assert study_mixing(cells(), np.repeat("one", 400)) == "needs two studies"
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    assert study_mixing(cells(), STUDIES) == "needs the extra eval"
