"""The nearest reference cells of query cells, and the labels that they vote for."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer

from jaxmetric.metric.distances import dot
from jaxmetric.shapes import filled, padded_size
from jaxmetric.sharding import by_backend

CHUNK, ON_ACCELERATOR = 2**24, 2**29  # distances held at a time, on a CPU and on others
BLOCK = 128  # distances of which an accelerator finds the least first
NO_CELL = -2  # the group of rows that fill up an array, which are nobody's neighbours


class Neighbors(NamedTuple):
    """The nearest reference cells of each query cell, nearest first."""

    indices: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]


def nearest_neighbors(
    query: Float[ArrayLike, "q d"],
    reference: Float[ArrayLike, "r d"],
    k: int = 15,
    *,
    exclude_self: bool = False,
    groups: tuple[Integer[ArrayLike, " q"], Integer[ArrayLike, " r"]] | None = None,
) -> Neighbors:
    """The k nearest reference cells of each query cell in Euclidean distance, in chunks.

    Exact, but for cells farther from the mean of the reference than 100 times the distances that
    count: a matrix product finds some more than k candidates, whose coordinates are then compared.

    Args:
      query: embeddings of the query cells.
      reference: embeddings of the cells to search.
      k: neighbours of each query cell.
      exclude_self: query and reference are the same cells, and none is a neighbour of itself.
      groups: a number >= 0 for each query cell and for each reference cell, such as that of its
        study; no cell is a neighbour of one of its own group.

    Raises:
      ValueError: when some query cell has fewer than k reference cells.
    """
    x, y = np.asarray(query, np.float32), np.asarray(reference, np.float32)
    if exclude_self:
        groups = np.arange(len(x)), np.arange(len(y))
    own, theirs = groups or (np.full(len(x), -1), np.zeros(len(y), np.int32))
    own, theirs = np.asarray(own, np.int32), np.asarray(theirs, np.int32)
    excluded = np.bincount(theirs, minlength=own.max(initial=0) + 1)[own] * (own >= 0)
    most = len(y) - excluded.max(initial=0)
    if not 1 <= k <= most:
        raise ValueError(f"k must be from 1 to {most}, the reference cells, but is {k}.")
    origin = y.mean(0, dtype=np.float64).astype(np.float32)
    size = padded_size(len(y))
    theirs = filled(theirs, size, NO_CELL)
    x, y = x - origin, jnp.asarray(filled(y - origin, size))
    many = min(2 * k + 16, size)
    rows = max(1, by_backend(CHUNK, ON_ACCELERATOR) // max(len(y), many * y.shape[1]))
    found = [
        _nearest_of_chunk(x[i : i + rows], y, own[i : i + rows], theirs, k, many)
        for i in range(0, len(x), rows)
    ]
    if not found:
        return Neighbors(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    return Neighbors(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _nearest_of_chunk(x, y, own, theirs, k, many):
    """`_nearest` of query cells, filled up to one of few sizes."""
    size = padded_size(len(x))
    found = jax.device_get(_nearest(filled(x, size), y, filled(own, size), theirs, k, many))
    return [one[: len(x)] for one in found]


@functools.partial(jax.jit, static_argnames=("k", "many"))
def _nearest(query, reference, own, theirs, k, many):
    """Neighbours of another group than a cell's own: the nearest of many candidates."""
    squared = (reference**2).sum(1)[None, :] - 2 * dot(query, reference)  # less the query's own
    own = own[:, None]

    def excluded(groups):
        return (own == groups) | (groups == NO_CELL)

    squared = jnp.where(excluded(theirs[None, :]), jnp.inf, squared)
    candidates = _least(squared, many, by_backend(len(reference), BLOCK))
    distances = jnp.sqrt(((query[:, None, :] - reference[candidates]) ** 2).sum(-1))
    distances = jnp.where(excluded(theirs[candidates]), jnp.inf, distances)
    negated, places = jax.lax.top_k(-distances, k)
    return jnp.take_along_axis(candidates, places, 1), -negated


def _least(x: Float[Array, "c r"], k: int, block: int) -> Int[Array, "c k"]:
    """The columns of each row's k least values, in order; of ties the first.

    The k blocks of columns with the least minima hold them. An accelerator sorts what it takes the top
    of, so it sorts minima and the values of k blocks in place of whole rows; a CPU does not.
    """
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=jnp.inf)
    blocks = padded.reshape(len(x), -1, block)
    if blocks.shape[1] <= k:
        return jnp.sort(jax.lax.top_k(-x, k)[1])
    least = jnp.sort(jax.lax.top_k(-blocks.min(2), k)[1])
    values = jnp.take_along_axis(blocks, least[:, :, None], 1).reshape(len(x), -1)
    place = jax.lax.top_k(-values, k)[1]
    return jnp.sort(jnp.take_along_axis(least, place // block, 1) * block + place % block)


def label_votes(
    neighbors: Neighbors, labels: Integer[ArrayLike, " r"], num_labels: int
) -> Float[np.ndarray, "q num_labels"]:
    """The sum over the neighbours of each label of 1 / distance.

    Where a neighbour is at distance 0, only such neighbours count, one vote each (as in
    scikit-learn's `KNeighborsClassifier(weights="distance")`).
    """
    exact = neighbors.distances == 0
    weight = np.where(
        exact.any(1, keepdims=True), exact, 1 / np.where(exact, 1, neighbors.distances)
    )
    votes = np.zeros((len(weight), num_labels))
    rows = np.arange(len(weight))[:, None]
    np.add.at(votes, (rows, np.asarray(labels)[neighbors.indices]), weight)
    return votes


def transfer_labels(
    neighbors: Neighbors, labels: Integer[ArrayLike, " r"], num_labels: int
) -> Int[np.ndarray, " q"]:
    """The label with most votes among the neighbours, see `label_votes`; ties go to the smaller."""
    return label_votes(neighbors, labels, num_labels).argmax(1)
