import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from conftest import recorded
from reference import distances, triplet_losses

import jaxmetric as jm
from jaxmetric.metric.losses import l1_penalty, masked_mean, mixed_loss, reconstruction_loss

KEY = jax.random.key(0)


@functools.cache
def miner(**options):
    return functools.partial(jax.jit(functools.partial(jm.mine_triplets, **options)), KEY)


@functools.cache
def loss(**options):
    return jax.jit(functools.partial(jm.triplet_loss, **options))


def mined(seed=0, n=40, **options):
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, 6)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = generator.integers(0, 4, n).astype(np.int32)
    return z, miner(margin=0.4, **options)(z, labels)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_losses_are_the_definition(metric):
    z, triplets = mined(metric=metric)
    indices = jm.triplet_indices(triplets)
    expected = triplet_losses(distances(z, metric), indices, 0.4)
    losses = np.asarray(jm.triplet_losses(z, triplets, margin=0.4, metric=metric))
    a, p, _ = indices.T
    np.testing.assert_allclose(losses[a, p], expected, atol=2e-6)
    mean = loss(margin=0.4, metric=metric)(z, triplets)
    np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-5)


def test_loss_agrees_with_optax():
    z, triplets = mined()
    a, p, n = (z[i] for i in jm.triplet_indices(triplets).T)
    expected = optax.losses.triplet_margin_loss(a, p, n, margin=0.4, eps=0.0).mean()
    np.testing.assert_allclose(jm.triplet_loss(z, triplets, margin=0.4), expected, rtol=1e-5)


@jax.jit
def losses_mean_and_gradient(z, triplets, margin):
    """Of the losses, and in the reference's numerics: row 5."""
    losses = jm.triplet_losses(z, triplets, margin=margin)
    gradient = jax.grad(lambda z: jm.triplet_loss(z, triplets, margin=margin))(z)
    return losses, masked_mean(losses, triplets.mask, empty=margin), gradient


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("which", ["any", "cross"])
@pytest.mark.parametrize("selection", ["hardest", "semihard", "random"])
def test_losses_and_gradient_are_those_of_the_reference(number, which, selection):
    """Of the triplets that the reference mined: losses within 1e-5, gradients within 1e-4 relative.

    1e-5: torch adds 1e-6 to each coordinate of a difference; the gradient is relative to its norm.
    """
    record = recorded(f"triplets_{number}_{which}.npz")
    z, margin = record["embeddings"], float(record["margin"])
    a, p, n = record[f"{selection}_triplets"].T
    negative = np.full((len(z), len(z)), -1, np.int32)
    negative[a, p] = np.where(a == p, -1, n)  # where it mined nothing, it pretends [0, 0, 0]
    counts = np.zeros(len(z), np.int32)
    triplets = jax.tree.map(jnp.asarray, jm.Triplets(negative, counts, counts))
    losses, mean, gradient = map(np.asarray, losses_mean_and_gradient(z, triplets, margin))
    np.testing.assert_allclose(mean, record[f"{selection}_mean"], atol=1e-5)
    if (a != p).all():
        np.testing.assert_allclose(losses[a, p], record[f"{selection}_losses"], atol=1e-5)
    expected = record[f"{selection}_grad"]
    assert np.linalg.norm(gradient - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("z", "labels"),
    [
        (np.ones((6, 3)), [0, 0, 0, 1, 1, 1]),  # duplicates
        (np.eye(6, 3), [0] * 6),  # one label
        (np.ones((1, 3)), [0]),  # one cell
        (np.zeros((6, 3)), [0, 0, 1, 1, 2, 2]),  # nothing embedded
    ],
)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_loss_and_gradient_are_finite_for_degenerate_batches(z, labels, metric):
    z, labels = z.astype(np.float32), np.int32(labels)
    triplets = miner(selection="random", metric=metric)(z, labels)
    value, gradient = jax.jit(jax.value_and_grad(loss(metric=metric)))(z, triplets)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert triplets.num_triplets or value == 0


def test_gradient_agrees_with_finite_differences():
    z, triplets = mined(n=12)
    value = functools.partial(loss(margin=0.4), triplets=triplets)
    jax.test_util.check_grads(value, (z,), order=1, modes=["rev"], eps=1e-3, atol=1e-2, rtol=1e-2)


def test_mix_reconstruction_and_l1():
    x, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 4.0]])
    assert reconstruction_loss(x, y) == pytest.approx((4 + 9) / 4)
    assert mixed_loss(jnp.float32(2), jnp.float32(10), 0.25) == pytest.approx(8.0)
    assert l1_penalty({"kernel": x, "bias": -y[0]}) == pytest.approx(11.0)
