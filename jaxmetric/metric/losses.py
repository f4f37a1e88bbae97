"""The losses: triplet, reconstruction, L1, and the mix that is trained on."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from jaxmetric.config import Metric
from jaxmetric.metric.distances import pairwise_distances
from jaxmetric.metric.mining import Triplets


def triplet_losses(
    z: Float[ArrayLike, "n d"],
    triplets: Triplets,
    *,
    reference: Float[ArrayLike, "m d"] | None = None,
    margin: Real[ArrayLike, ""] = 0.05,
    metric: Metric = "euclidean",
) -> Float[Array, "n m"]:
    """max(0, |a - p| - |a - n| + margin) of each pair's triplet, 0 where a pair has none.

    Schroff et al., FaceNet, equation 3 (there with squared distances: `metric="sqeuclidean"`). Gradients
    are finite, also for identical embeddings.

    Args:
      z: embeddings, the anchors.
      triplets: from `mine_triplets`.
      reference: the candidates, if the triplets were mined from such.
      margin: in units of the metric.
      metric: distance of the loss.

    Returns:
      The losses. Row: the anchor; column: the positive, a row of `reference` if there is one.

    Raises:
      ValueError: for an unknown metric.
    """
    distances = pairwise_distances(z, reference, metric)
    to_negative = jnp.take_along_axis(distances, jnp.maximum(triplets.negative, 0), axis=1)
    return jnp.where(triplets.mask, jax.nn.relu(distances - to_negative + margin), 0.0)


def triplet_loss(
    z: Float[ArrayLike, "n d"],
    triplets: Triplets,
    *,
    reference: Float[ArrayLike, "m d"] | None = None,
    margin: Real[ArrayLike, ""] = 0.05,
    metric: Metric = "euclidean",
) -> Float[Array, ""]:
    """Mean of `triplet_losses` over the mined triplets.

    Args:
      z: embeddings, the anchors.
      triplets: from `mine_triplets`.
      reference: the candidates, if the triplets were mined from such.
      margin: in units of the metric.
      metric: distance of the loss.

    Returns:
      The mean; 0 when there are no triplets.

    Raises:
      ValueError: for an unknown metric.
    """
    losses = triplet_losses(z, triplets, reference=reference, margin=margin, metric=metric)
    return masked_mean(losses, triplets.mask)


def reconstruction_loss(x: Float[Array, "n g"], y: Float[Array, "n g"]) -> Float[Array, ""]:
    """Mean squared error of the reconstruction y of x, over cells and genes."""
    return jnp.mean((x - y) ** 2)


def l1_penalty(parameters) -> Float[Array, ""]:
    """Sum of the absolute values of a tree of parameters."""
    return sum((jnp.abs(leaf).sum() for leaf in jax.tree.leaves(parameters)), jnp.float32(0))


def mixed_loss(
    triplet: Float[Array, ""], mse: Float[Array, ""], weight: Real[ArrayLike, ""]
) -> Float[Array, ""]:
    """w * triplet + (1 - w) * mse, with w the weight of the triplet loss."""
    w = jnp.asarray(weight, jnp.float32)
    return w * triplet + (1.0 - w) * mse


def masked_mean(
    values: Float[Array, "*s"], mask: Bool[Array, "*s"], empty: Real[ArrayLike, ""] = 0.0
) -> Float[Array, ""]:
    """Mean over the mask; `empty` where the mask is."""
    mean = jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
    return jnp.where(mask.any(), mean, empty)
