"""Scores of an embedding: ontology-aware silhouette width, k-nearest-neighbour label transfer."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxmetric.config import Divisor, Metric
from jaxmetric.mining import check_choice, pairwise_distances

CHUNK = 2**24  # distances held at a time where a matrix of distances is walked in chunks


def ontology_silhouette(
    z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
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
    """
    widths = silhouette_widths(z, labels, descendants=descendants, metric=metric, divisor=divisor)
    qualify = ~np.isnan(widths)
    return float(widths[qualify].mean()) if qualify.any() else float("nan")


def silhouette_widths(
    z: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
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
    return np.asarray(_silhouette_widths(z, labels, below, metric, divisor))


@functools.partial(jax.jit, static_argnames=("metric", "divisor"))
def _silhouette_widths(
    z: Float[Array, "n d"],
    labels: Int[Array, " n"],
    below: Bool[Array, "k k"],
    metric: Metric,
    divisor: Divisor,
) -> Float[Array, " n"]:
    itself = jnp.eye(len(below), dtype=bool)
    members = jax.nn.one_hot(labels, len(below))  # a row of zeros for a negative label
    size = members.sum(0)
    sums = _distance_sums(z, members, metric)

    own = (itself | below)[labels].astype(z.dtype)
    other = ~(itself | below | below.T)[labels] & (size > 1)[None, :]
    others_in_own = own @ size - 1
    count = others_in_own - (divisor == "count-1")
    a = (sums * own).sum(1) / jnp.maximum(count, 1)
    b = jnp.where(other, sums / jnp.maximum(size, 1)[None, :], jnp.inf).min(1)
    width = jnp.where(jnp.maximum(a, b) > 0, (b - a) / jnp.maximum(a, b), 0.0)
    return jnp.where((labels >= 0) & (others_in_own >= 2) & other.any(1), width, jnp.nan)


def _distance_sums(
    z: Float[Array, "n d"], members: Float[Array, "n k"], metric: Metric
) -> Float[Array, "n k"]:
    """Sum of the distances from each cell to the members of each label.

    sum_j |z - z_j|^2 = n_l |z|^2 + sum_j |z_j|^2 - 2 z . sum_j z_j, over the label's members j.
    """
    if metric == "euclidean":
        return _euclidean_sums(z, members)
    if metric == "cosine":
        z = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    z = z - z.mean(0, keepdims=True)
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    squared = (z**2).sum(1)
    sums = squared[:, None] * members.sum(0)[None, :] + dot(squared, members)[None, :]
    sums = jnp.maximum(sums - 2 * dot(z, dot(z.T, members)), 0.0)
    return sums / 2 if metric == "cosine" else sums  # of unit rows: 1 - x.y = |x - y|^2 / 2


def _euclidean_sums(z: Float[Array, "n d"], members: Float[Array, "n k"]) -> Float[Array, "n k"]:
    def sums(i):
        distances = pairwise_distances(z[i][None], z, "euclidean")[0]
        return distances.at[i].set(0.0) @ members  # to itself: exactly 0

    return jax.lax.map(sums, jnp.arange(len(z)), batch_size=max(1, CHUNK // len(z)))


class Neighbors(NamedTuple):
    """The nearest reference cells of each query cell, nearest first."""

    indices: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]


def nearest_neighbors(
    query: Float[ArrayLike, "q d"], reference: Float[ArrayLike, "r d"], k: int = 15
) -> Neighbors:
    """The k nearest reference cells of each query cell in Euclidean distance: exact, in chunks.

    Raises:
      ValueError: when there are fewer than k reference cells.
    """
    query, reference = np.asarray(query, np.float32), np.asarray(reference, np.float32)
    if not 1 <= k <= len(reference):
        raise ValueError(f"k must be from 1 to {len(reference)}, the reference cells, but is {k}.")
    rows = max(1, CHUNK // len(reference))
    found = [
        jax.device_get(_nearest(query[i : i + rows], reference, k))
        for i in range(0, len(query), rows)
    ]
    if not found:
        return Neighbors(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Neighbors(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


@functools.partial(jax.jit, static_argnames="k")
def _nearest(query, reference, k):
    distances, indices = jax.lax.top_k(-pairwise_distances(query, reference, "euclidean"), k)
    return indices, -distances


def transfer_labels(
    neighbors: Neighbors, labels: Int[ArrayLike, " r"], num_labels: int
) -> Int[np.ndarray, " q"]:
    """The label with most weight among the neighbours, each weighted by 1 / distance.

    Where a neighbour is at distance 0, only such neighbours count (as in scikit-learn's
    `KNeighborsClassifier(weights="distance")`); ties go to the smaller label.
    """
    exact = neighbors.distances == 0
    weight = np.where(
        exact.any(1, keepdims=True), exact, 1 / np.where(exact, 1, neighbors.distances)
    )
    votes = np.zeros((len(weight), num_labels))
    rows = np.arange(len(weight))[:, None]
    np.add.at(votes, (rows, np.asarray(labels)[neighbors.indices]), weight)
    return votes.argmax(1)


def accuracy(truth: Int[ArrayLike, " n"], predicted: Int[ArrayLike, " n"]) -> float:
    """Share of cells whose predicted label is the true one."""
    return float(np.mean(np.asarray(truth) == np.asarray(predicted)))


def macro_f1(truth: Int[ArrayLike, " n"], predicted: Int[ArrayLike, " n"]) -> float:
    """Mean over labels, true or predicted, of F1 = 2 TP / (2 TP + FP + FN)."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    k = int(max(truth.max(), predicted.max())) + 1
    hits = np.bincount(truth[truth == predicted], minlength=k)
    seen = np.bincount(truth, minlength=k) + np.bincount(predicted, minlength=k)
    return float((2 * hits[seen > 0] / seen[seen > 0]).mean())
