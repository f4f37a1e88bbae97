"""Ontology-aware silhouette width, exact: from sums over labels where the distance allows it."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jaxmetric.config import Divisor, Metric
from jaxmetric.metric.distances import check_choice, pairwise_distances
from jaxmetric.shapes import filled, padded_size
from jaxmetric.sharding import by_backend

# distances held at a time where a matrix of distances is walked in chunks, on a CPU and on others
CHUNK, ON_ACCELERATOR = 2**24, 2**29
ROWS = 2**16  # cells scored at a time where sums over labels are enough


def ontology_silhouette(
    z: Float[ArrayLike, "n d"],
    labels: Integer[ArrayLike, " n"],
    *,
    descendants: Bool[ArrayLike, "k k"] | None = None,
    metric: Metric = "cosine",
    divisor: Divisor = "count",
) -> float:
    """Mean silhouette width of cells whose labels have descendants.

    For a cell of label t, its own cluster is every *other* cell whose label is t or a descendant of t;
    cells of t's ancestors are ignored; each other label is a cluster by itself. With a the mean
    distance to its own cluster and b the smallest mean distance to another cluster,
    s = (b - a) / max(a, b). Cells with fewer than two others in their own cluster are left out, as
    are clusters of one cell. Without `descendants` this is the silhouette of Rousseeuw
    (J. Comput. Appl. Math. 20:53, 1987), but for what is left out.

    Args:
      z: embeddings.
      labels: label of each cell in [0, k); cells with a negative label are ignored.
      descendants: descendants[i, j]: label j is a proper descendant of label i.
      metric: distance. For "sqeuclidean" and "cosine" the sum of distances to a label's members
        follows from sums over the label, O(n k d); "euclidean" walks all pairs, in chunks.
      divisor: what the sum of distances to a cell's own cluster, of `count` other cells, is divided
        by: "count", their mean, or SCimilarity's "count-1".

    Returns:
      The mean over the cells that qualify, in [-1, 1]; NaN where none does: no label has three cells
      beside another label with two.

    Raises:
      ValueError: for an unknown metric or divisor, or shapes that do not fit.
    """
    widths = silhouette_widths(z, labels, descendants=descendants, metric=metric, divisor=divisor)
    qualify = ~np.isnan(widths)
    return float(widths[qualify].mean()) if qualify.any() else float("nan")


def silhouette_widths(
    z: Float[ArrayLike, "n d"],
    labels: Integer[ArrayLike, " n"],
    *,
    descendants: Bool[ArrayLike, "k k"] | None = None,
    metric: Metric = "cosine",
    divisor: Divisor = "count",
) -> Float[np.ndarray, " n"]:
    """Silhouette width of each cell, NaN for those left out; see `ontology_silhouette`."""
    check_choice("metric", metric, Metric)
    check_choice("divisor", divisor, Divisor)
    z, labels = np.asarray(z, np.float32), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"z must be (n, d) and labels (n,), but are {z.shape} and {labels.shape}.")
    k = int(labels.max(initial=0)) + 1 if descendants is None else len(np.asarray(descendants))
    if labels.max(initial=-1) >= k:
        raise ValueError(f"labels must be less than {k}, the size of descendants.")
    below = np.zeros((k, k), bool) if descendants is None else np.asarray(descendants, bool)
    size = np.bincount(labels[labels >= 0], minlength=k).astype(np.float32)
    n, m = len(z), padded_size(len(z))
    z, labels = filled(z, m), filled(labels, m, -1)
    sums = _euclidean_sums if metric == "euclidean" else functools.partial(_decomposed_sums, n)
    widths = [
        _widths(to_labels, labels[rows], size, below, divisor)
        for rows, to_labels in sums(z, labels, size, metric)
    ]
    return np.concatenate([np.zeros(0, np.float32), *jax.device_get(widths)])[:n]


@functools.partial(jax.jit, static_argnames="divisor")
def _widths(
    sums: Float[Array, "c k"],
    labels: Integer[Array, " c"],
    size: Float[Array, " k"],
    below: Bool[Array, "k k"],
    divisor: Divisor,
) -> Float[Array, " c"]:
    """Silhouette widths from the sums of distances to each label's members."""
    itself = jnp.eye(len(below), dtype=bool)
    own = (itself | below)[labels].astype(sums.dtype)
    other = ~(itself | below | below.T)[labels] & (size > 1)[None, :]
    others_in_own = own @ size - 1
    count = others_in_own - (divisor == "count-1")
    a = (sums * own).sum(1) / jnp.maximum(count, 1)
    b = jnp.where(other, sums / jnp.maximum(size, 1)[None, :], jnp.inf).min(1)
    width = jnp.where(jnp.maximum(a, b) > 0, (b - a) / jnp.maximum(a, b), 0.0)
    return jnp.where((labels >= 0) & (others_in_own >= 2) & other.any(1), width, jnp.nan)


def _decomposed_sums(
    n: int, z, labels, size, metric: Metric
) -> Iterator[tuple[slice, Float[Array, "c k"]]]:
    """Sums of squared distances to each label's members, for chunks of cells, from sums over labels.

    sum_j |x - z_j|^2 = n_l |x|^2 + sum_j |z_j|^2 - 2 x . sum_j z_j, over the label's members j, seen
    from the mean of all n cells; what fills up z is zeros. Cosine distance of unit rows is half of that.
    """
    chunks = [slice(i, i + ROWS) for i in range(0, len(z), ROWS)]
    mean = sum(_prepared(z[rows], 0.0, metric).sum(0) for rows in chunks) / max(n, 1)
    parts = [
        _label_sums(_prepared(z[rows], mean, metric), labels[rows], len(size)) for rows in chunks
    ]
    total, squared = jax.tree.map(lambda *parts: sum(parts), *parts) if parts else (0.0, 0.0)
    for rows in chunks:
        yield rows, _sums_to_labels(_prepared(z[rows], mean, metric), size, total, squared, metric)


@functools.partial(jax.jit, static_argnames="metric")
def _prepared(z: Float[Array, "c d"], mean, metric: Metric) -> Float[Array, "c d"]:
    if metric == "cosine":
        z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return z - jnp.broadcast_to(mean, z.shape)


@functools.partial(jax.jit, static_argnames="k")
def _label_sums(
    z: Float[Array, "c d"], labels: Integer[Array, " c"], k: int
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    members = jax.nn.one_hot(labels, k)  # a row of zeros for a negative label
    return _dot(members.T, z), _dot(members.T, (z**2).sum(1))


@functools.partial(jax.jit, static_argnames="metric")
def _sums_to_labels(
    z: Float[Array, "c d"],
    size: Float[Array, " k"],
    total: Float[Array, "k d"],
    squared: Float[Array, " k"],
    metric: Metric,
) -> Float[Array, "c k"]:
    norms = (z**2).sum(1)[:, None]
    sums = jnp.maximum(norms * size[None, :] + squared[None, :] - 2 * _dot(z, total.T), 0.0)
    return sums / 2 if metric == "cosine" else sums


def _euclidean_sums(z, labels, size, metric: Metric) -> Iterator[tuple[slice, Float[Array, "c k"]]]:
    """Sums of distances to each label's members, for chunks of cells: every pair is walked."""
    rows, z, labels = (
        max(1, by_backend(CHUNK, ON_ACCELERATOR) // max(len(z), 1)),
        jnp.asarray(z),
        jnp.asarray(labels),
    )
    for i in range(0, len(z), rows):
        chunk = slice(i, min(i + rows, len(z)))
        yield chunk, _pair_sums(z[chunk], z, labels, i, len(size))


@functools.partial(jax.jit, static_argnames="k")
def _pair_sums(x, z, labels, start, k: int) -> Float[Array, "c k"]:
    distances = pairwise_distances(x, z, "euclidean")
    itself = start + jnp.arange(len(x))[:, None] == jnp.arange(len(z))[None, :]
    return _dot(jnp.where(itself, 0.0, distances), jax.nn.one_hot(labels, k))


def _dot(x, y):
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
