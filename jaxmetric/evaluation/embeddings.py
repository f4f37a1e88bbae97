"""What a report compares: the model's embedding, and others, or labels alone, of the same cells."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.scores.agreement import hidden_genes

MODEL, SVD, LDA, LOGISTIC = "jaxmetric", "SVD-50", "LDA-50", "logistic regression"
BASELINES = (SVD, LDA, LOGISTIC)


class Embedding(NamedTuple):
    """An embedding of the cells that a report is about.

    Attributes:
      query: embeddings of the query cells.
      reference: embeddings of the reference cells.
      hidden: embeddings of the query cells without the hidden genes; None where the embedding was
        given, so that no genes can be hidden from it.
      error: squared error of each query cell's reconstruction, mean over genes; None: no decoder.
      power: squared expression of each query cell, mean over genes.
    """

    query: Float[np.ndarray, "q d"]
    reference: Float[np.ndarray, "r d"]
    hidden: Float[np.ndarray, "q d"] | None = None
    error: Float[np.ndarray, " q"] | None = None
    power: Float[np.ndarray, " q"] | None = None


class Prediction(NamedTuple):
    """Labels of the query cells, from what predicts them without an embedding.

    Attributes:
      labels: the predicted label of each query cell, in the numbers of `number_alike`; -1: not scored.
    """

    labels: Int[np.ndarray, " q"]


def model_embedding(
    embed: Callable[[Cells], Float[np.ndarray, "n d"]],
    embed_and_reconstruct: Callable[[Cells], tuple[np.ndarray, np.ndarray, np.ndarray]] | None,
    query: Cells,
    reference: Cells | None,
) -> Embedding:
    """A model's embedding of cells that have the genes it reads.

    Args:
      embed: cells -> embeddings.
      embed_and_reconstruct: cells -> embeddings, squared error of the reconstruction and squared
        expression, both summed over genes; None: the model has no decoder.
      query: the query cells.
      reference: the reference cells; without them, neither they nor hidden genes are embedded.
    """
    error = power = None
    if embed_and_reconstruct is None:
        z = embed(query)
    else:
        z, *sums = embed_and_reconstruct(query)
        error, power = (one.astype(np.float64) / len(query.genes) for one in sums)
    if reference is None:
        return Embedding(z, z[:0], None, error, power)
    seen = query.with_genes(seen_genes(query.genes)).with_genes(query.genes)
    hidden, z_reference = embed(seen), embed(reference)
    return Embedding(z, z_reference, hidden, error, power)


def given_embeddings(
    embeddings: Mapping[str, tuple], num_query: int, num_reference: int
) -> dict[str, Embedding]:
    """The user's embeddings of the same cells, checked.

    Raises:
      ValueError: for a name that is taken, or values that are no embedding of these cells.
    """
    checked = {}
    for name, pair in embeddings.items():
        if name in (MODEL, *BASELINES):
            raise ValueError(f"an embedding cannot be named {name!r}: choose another name.")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"embedding {name!r} must be two arrays, of the query and of the reference cells, but is "
                f"{type(pair).__name__}."
            )
        z, z_reference = (np.asarray(one, np.float32) for one in pair)
        shapes, dim = (z.shape, z_reference.shape), z.shape[-1] if z.ndim else 0
        if shapes != ((num_query, dim), (num_reference, dim)) or not dim:
            raise ValueError(
                f"embedding {name!r} must be one array of ({num_query}, d) for the query cells and one "
                f"of ({num_reference}, d) for the reference cells, but they are of {shapes}."
            )
        if not (np.isfinite(z).all() and np.isfinite(z_reference).all()):
            raise ValueError(f"embedding {name!r} has values that are NaN or infinite.")
        checked[name] = Embedding(z, z_reference)
    return checked


def seen_genes(genes: tuple[str, ...]) -> tuple[str, ...]:
    """The genes that are not hidden."""
    hidden = set(hidden_genes(len(genes)).tolist())
    return tuple(gene for i, gene in enumerate(genes) if i not in hidden)


def in_memory(cells: Cells) -> Cells:
    """The same cells with their values in memory, read from the store where they lie in one."""
    return dataclasses.replace(cells, X=cells.matrix())


def logged(cells: Cells) -> Cells:
    """The same cells with log-normalised values, in memory."""
    return dataclasses.replace(cells, X=log_normalized(cells), values="lognorm")
