"""Distances between the rows of embeddings, in float32, with finite gradients."""

import typing

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxmetric.config import Metric


def pairwise_distances(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, "m d"] | None = None,
    metric: Metric = "sqeuclidean",
) -> Float[Array, "n m"]:
    """Distance of every row of x to every row of y.

    Args:
      x: n points.
      y: m points; None: x itself.
      metric: "sqeuclidean", "euclidean" or "cosine".

    Returns:
      Distances, none negative: [i, j] is that of x[i] to y[j].

    Raises:
      ValueError: for an unknown metric.

    Method: |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, one matrix product, in float32 and full precision on every
    backend, seen from the first row of y: rows that lie close together keep their digits. Its root
    has a finite gradient, 0, for identical rows. Cosine distance is 1 - x.y / (|x| |y|); a row of zeros
    has cosine distance 1 to everything.
    """
    check_choice("metric", metric, Metric)
    x = jnp.asarray(x, jnp.float32)
    y = x if y is None else jnp.asarray(y, jnp.float32)
    if metric == "cosine":
        return jnp.maximum(1.0 - dot(_unit(x), _unit(y)), 0.0)
    x, y = x - y[:1], y - y[:1]
    squared = (x**2).sum(-1)[:, None] + (y**2).sum(-1)[None, :] - 2.0 * dot(x, y)
    squared = jnp.maximum(squared, 0.0)
    return squared if metric == "sqeuclidean" else _safe_sqrt(squared)


def dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """x.y of every row of x with every row of y, in full precision on every backend."""
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    squared = (x**2).sum(-1, keepdims=True)
    return jnp.where(squared > 0, x * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def check_choice(name: str, value: object, literal) -> None:
    """Raises a ValueError unless the value is one of the Literal's."""
    choices = typing.get_args(literal)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {value!r}.")
