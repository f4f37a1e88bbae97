"""Retrieval scores: does a cell's list of nearest reference cells begin with cells of its type?"""

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jaxmetric.config import Metric
from jaxmetric.metric.distances import check_choice, pairwise_distances
from jaxmetric.metric.neighbors import nearest_neighbors, transfer_labels
from jaxmetric.shapes import filled, padded_size

NAMES = ("precision_at_1", "r_precision", "map_at_r", "mrr")
CHUNK = 2**22  # distances sorted at a time by each thread


def retrieval_scores(
    query: Float[ArrayLike, "q d"],
    query_labels: Integer[ArrayLike, " q"],
    reference: Float[ArrayLike, "r d"] | None = None,
    reference_labels: Integer[ArrayLike, " r"] | None = None,
    *,
    descendants: Bool[ArrayLike, "k k"] | None = None,
    metric: Metric = "euclidean",
    k: int = 15,
) -> dict[str, float | int]:
    """Scores of each query cell's reference cells in the order of their distance, means over cells.

    With R the number of reference cells that are relevant for a query cell, those of its label, and
    P(i) the share of relevant ones among the i nearest:

      precision_at_1  P(1)
      r_precision     P(R)
      map_at_r        1/R times the sum of P(i) over the relevant i <= R
      mrr             1 / place of the nearest relevant one
      knn_accuracy    the label voted by the k nearest, weighted by 1 / distance, is the cell's

    and, with `descendants`, the same as `ontology_...`, where cells of a descendant of the label are
    relevant too. Source: Musgrave et al., A Metric Learning Reality Check, arXiv:2003.08505, section
    3.2. Where distances tie, relevant cells come last.

    Args:
      query: embeddings.
      query_labels: label of each cell in [0, k); cells with a negative label are left out.
      reference: embeddings to search. None: the query cells, each without itself.
      reference_labels: their labels.
      descendants: descendants[i, j]: label j is a proper descendant of label i.
      metric: distance; `knn_accuracy` is Euclidean.
      k: neighbours that vote.

    Returns:
      The scores, and `num_scored`, the query cells with a relevant reference cell: they are means over
      these. Exact, in chunks of CHUNK distances: O(q r log r) time.

    Raises:
      ValueError: when no query cell can be scored, or shapes do not fit.
    """
    itself, labelled = reference is None, np.asarray(query_labels) >= 0
    z, truth = _labelled("query", query, query_labels)
    others, known = (z, truth) if itself else _labelled("reference", reference, reference_labels)
    kinds, num_labels = _relevance(truth, known, descendants)
    predicted = transfer_labels(
        nearest_neighbors(z, others, k, exclude_self=itself), known, num_labels
    )
    per_cell = retrieval_per_cell(
        query, query_labels, reference, reference_labels, descendants=descendants, metric=metric
    )
    scores = {}
    for prefix, relevant in kinds.items():
        found = {prefix + name: per_cell[prefix + name][labelled] for name in NAMES}
        scored = ~np.isnan(found[f"{prefix}mrr"])
        if not scored.any():
            raise ValueError("no query cell has a reference cell of its label.")
        if not prefix:
            scores["num_scored"] = int(scored.sum())
        scores |= {name: float(values[scored].mean()) for name, values in found.items()}
        scores[f"{prefix}knn_accuracy"] = float(relevant[truth, predicted][scored].mean())
    return scores


def retrieval_per_cell(
    query: Float[ArrayLike, "q d"],
    query_labels: Integer[ArrayLike, " q"],
    reference: Float[ArrayLike, "r d"] | None = None,
    reference_labels: Integer[ArrayLike, " r"] | None = None,
    *,
    descendants: Bool[ArrayLike, "k k"] | None = None,
    metric: Metric = "euclidean",
) -> dict[str, Float[np.ndarray, " q"]]:
    """The NAMES of `retrieval_scores` for each query cell; NaN: no reference cell is relevant."""
    check_choice("metric", metric, Metric)
    itself, labelled = reference is None, np.asarray(query_labels) >= 0
    z, truth = _labelled("query", query, query_labels)
    others, known = (z, truth) if itself else _labelled("reference", reference, reference_labels)
    kinds, _ = _relevance(truth, known, descendants)
    places = _score_all(z, truth, others, known, list(kinds.values()), metric, itself)
    per_cell = {}
    for number, prefix in enumerate(kinds):
        found = np.full((len(labelled), len(NAMES)), np.nan)
        found[labelled] = np.where(places[:, number, :1] > 0, places[:, number, 1:], np.nan)
        per_cell |= {prefix + name: found[:, i] for i, name in enumerate(NAMES)}
    return per_cell


def _relevance(truth, known, descendants) -> tuple[dict[str, Bool[np.ndarray, "k k"]], int]:
    """Which labels are relevant for which, strictly and by ontology, by prefix; and how many labels."""
    num_labels = int(max(truth.max(initial=-1), known.max(initial=-1))) + 1
    same = np.eye(num_labels, dtype=bool)
    if descendants is None:
        return {"": same}, num_labels
    if len(np.asarray(descendants)) < num_labels:
        raise ValueError(f"labels must be less than {len(descendants)}, the size of descendants.")
    below = np.asarray(descendants)[:num_labels, :num_labels]
    return {"": same, "ontology_": same | below}, num_labels


def _labelled(name: str, z, labels) -> tuple[np.ndarray, np.ndarray]:
    z, labels = np.asarray(z, np.float32), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(
            f"{name} must be (n, d) with n labels, but they are of shapes {z.shape}, {labels.shape}."
        )
    return z[labels >= 0], labels[labels >= 0]


def _score_all(query, truth, reference, known, kinds, metric: Metric, itself: bool) -> np.ndarray:
    """R, P(1), P(R), MAP@R and 1 / place of each query cell and kind of relevance: (q, kinds, 5)."""
    size = padded_size(len(reference))
    others, rows = jnp.asarray(filled(reference, size)), min(CHUNK // size, padded_size(len(query)))
    rows = max(1, rows)

    def score(start: int) -> np.ndarray:
        chunk = slice(start, start + rows)
        z = query[chunk]
        found = np.asarray(_distances(filled(z, rows), others, metric))[: len(z), : len(reference)]
        flags = [relevant[truth[chunk]][:, known] for relevant in kinds]
        if itself:
            own = np.arange(len(found)), np.arange(start, start + len(found))
            found = found.copy()
            found[own] = np.inf
            for flag in flags:
                flag[own] = False
        return np.stack([*_scores_of_flags(_by_distance(found, flags), flags)], axis=1)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate([*threads.map(score, range(0, len(query), rows))])


@functools.partial(jax.jit, static_argnames="metric")
def _distances(
    query: Float[Array, "q d"], reference: Float[Array, "r d"], metric: Metric
) -> Float[Array, "q r"]:
    return pairwise_distances(query, reference, metric)


def _by_distance(
    distances: Float[np.ndarray, "c r"], flags: list[Bool[np.ndarray, "c r"]]
) -> Iterator[Bool[np.ndarray, "c r"]]:
    """Each flag in the order of the distances: both are sorted as one integer, distance first.

    Floats of one sign sort as the integers of their bits; sorting values is several times faster than
    sorting an index.
    """
    keys = distances.view(np.uint32).astype(np.uint64) << len(flags)
    for place, flag in enumerate(flags):
        keys |= flag.astype(np.uint64) << place
    keys.sort(axis=1)
    for place in range(len(flags)):
        yield (keys >> place & 1).astype(bool)


def _scores_of_flags(
    ordered: Iterator[Bool[np.ndarray, "c r"]], flags: list[Bool[np.ndarray, "c r"]]
) -> Iterator[Float[np.ndarray, "c 5"]]:
    for relevant, flag in zip(ordered, flags, strict=True):
        R = flag.sum(1)
        top = max(int(R.max(initial=0)), 1)
        hits = relevant[:, :top] & (np.arange(top) < R[:, None])
        precision = np.cumsum(hits, axis=1) / np.arange(1, top + 1)
        at_least_one = np.maximum(R, 1)
        yield np.stack(
            [
                R,
                relevant[:, 0],
                hits.sum(1) / at_least_one,
                (precision * hits).sum(1) / at_least_one,
                np.where(R > 0, 1 / (1 + relevant.argmax(1)), 0.0),
            ],
            axis=1,
        )
