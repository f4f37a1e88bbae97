import functools

import numpy as np
import pytest
import sklearn.metrics
from conftest import recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distances, silhouette_widths

import jaxmetric as jm
from jaxmetric.metric import silhouette

METRICS = ("sqeuclidean", "euclidean", "cosine")


@pytest.mark.parametrize("metric", METRICS)
def test_silhouette_without_ontology_is_scikit_learns(metric):
    generator = np.random.default_rng(0)
    z, labels = generator.normal(size=(83, 5)), np.arange(83) % 4
    ours = jm.ontology_silhouette(z.astype(np.float32), labels.astype(np.int32), metric=metric)
    assert ours == pytest.approx(
        sklearn.metrics.silhouette_score(z, labels, metric=metric), abs=1e-5
    )


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 5))
def test_silhouette_is_the_definition(metric, seed, k):
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(29, 3)).astype(np.float32)
    labels = generator.integers(0, k, 29).astype(np.int32)
    descendants = np.triu(generator.random((5, 5)) < 0.4, 1)
    expected = silhouette_widths(distances(z, metric), labels, descendants)
    found = silhouette.silhouette_widths(z, labels, descendants=descendants, metric=metric)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_silhouette_of_the_recorded_embeddings_is_the_definition(number):
    record = recorded(f"asw_{number}.npz")
    z, labels = record["embeddings"], record["labels"].astype(np.int32)
    descendants = recorded("ontology_matrix.npz")["descendants"]
    D = sklearn.metrics.pairwise_distances(z.astype(np.float64), metric="sqeuclidean")
    expected = np.nanmean(silhouette_widths(D, labels, descendants))
    for metric in ("sqeuclidean", "cosine"):  # the same for unit rows
        found = jm.ontology_silhouette(z, labels, descendants=descendants, metric=metric)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_silhouette_of_the_recorded_embeddings_is_the_references(number):
    """Row 8: the reference divides by one less than the number of distances it sums."""
    record = recorded(f"asw_{number}.npz")
    z, labels = record["embeddings"], record["labels"].astype(np.int32)
    descendants = recorded("ontology_matrix.npz")["descendants"]
    score = functools.partial(jm.ontology_silhouette, z, labels, descendants=descendants)
    assert score(divisor="count-1") == pytest.approx(float(record["asw"]), abs=1e-5)
    assert abs(score() - float(record["asw"])) > 1e-5


def test_silhouette_is_defined_where_the_reference_crashes():
    """Row 9: there all other clusters of some cell are single cells; the other cells have a width."""
    record = recorded("asw_2.npz")
    labels = record["labels"].astype(np.int32)
    descendants = recorded("ontology_matrix.npz")["descendants"]
    assert np.isnan(record["asw"])
    score = jm.ontology_silhouette(record["embeddings"], labels, descendants=descendants)
    D = sklearn.metrics.pairwise_distances(record["embeddings"].astype(float), metric="cosine")
    expected = silhouette_widths(D, labels, descendants)
    assert np.isnan(score) == np.isnan(expected).all()
    np.testing.assert_allclose(score, np.nanmean(expected), atol=1e-5)


def test_silhouette_of_nothing_is_nan_and_unlabelled_cells_are_ignored():
    z = np.eye(6, dtype=np.float32)
    assert np.isnan(jm.ontology_silhouette(z, np.zeros(6, np.int32)))
    assert np.isnan(jm.ontology_silhouette(z, np.arange(6, dtype=np.int32)))
    generator = np.random.default_rng(0)
    z, labels = generator.normal(size=(30, 4)).astype(np.float32), np.arange(30, dtype=np.int32) % 3
    some = np.where(np.arange(30) < 24, labels, -1).astype(np.int32)
    whole, part = jm.ontology_silhouette(z, some), jm.ontology_silhouette(z[:24], labels[:24])
    assert whole == pytest.approx(part, abs=1e-6)


def test_bad_input_is_refused():
    z, labels = np.ones((4, 2), np.float32), np.int32([0, 0, 1, 5])
    with pytest.raises(ValueError, match="labels must be less than 2"):
        jm.ontology_silhouette(z, labels, descendants=np.zeros((2, 2), bool))
