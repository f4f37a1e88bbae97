import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise_distances as sklearn_distances

import jaxmetric as jm

METRICS = ("sqeuclidean", "euclidean", "cosine")


@pytest.mark.parametrize("metric", METRICS)
def test_distances_agree_with_scikit_learn(metric):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 5)), generator.normal(size=(7, 5))
    ours = jm.pairwise_distances(x.astype(np.float32), y.astype(np.float32), metric)
    np.testing.assert_allclose(ours, sklearn_distances(x, y, metric), atol=2e-5)


def test_close_rows_far_from_the_origin_keep_their_digits():
    x = np.float32([[1000.0, 0.0], [1000.25, 0.0], [1000.0, 0.5]])
    expected = [[0, 0.25, 0.5], [0.25, 0, 0.3125**0.5], [0.5, 0.3125**0.5, 0]]
    np.testing.assert_allclose(jm.pairwise_distances(x, metric="euclidean"), expected, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_of_distances_between_identical_and_zero_rows_is_finite(metric):
    z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    gradient = jax.grad(lambda z: jm.pairwise_distances(z, metric=metric).sum())(z)
    assert np.isfinite(gradient).all()
