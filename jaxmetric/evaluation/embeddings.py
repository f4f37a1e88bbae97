"""The embeddings that a report compares: the model's, and others of the same cells."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmetric.cells.cells import Cells
from jaxmetric.scores.agreement import hidden_genes

MODEL, SVD = "jaxmetric", "SVD-50"


class Embedding(NamedTuple):
    """An embedding of the cells that a report is about.

    Attributes:
      query: of the query cells.
      reference: of the reference cells.
      hidden: of the query cells, made without the hidden genes; None: they cannot be hidden from it.
      error: squared error of each query cell's reconstruction, mean over genes; None: there is none.
      power: squared expression of each query cell, mean over genes.
    """

    query: Float[np.ndarray, "q d"]
    reference: Float[np.ndarray, "r d"]
    hidden: Float[np.ndarray, "q d"] | None = None
    error: Float[np.ndarray, " q"] | None = None
    power: Float[np.ndarray, " q"] | None = None


def given_embeddings(
    embeddings: Mapping[str, tuple], num_query: int, num_reference: int
) -> dict[str, Embedding]:
    """Embeddings that the user has, checked.

    Raises:
      ValueError: for a name that is taken, or values that are no embedding of these cells.
    """
    found = {}
    for name, pair in embeddings.items():
        if name in (MODEL, SVD):
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
        found[name] = Embedding(z, z_reference)
    return found


def seen_genes(genes: tuple[str, ...]) -> tuple[str, ...]:
    """The genes that are not hidden."""
    hidden = set(hidden_genes(len(genes)).tolist())
    return tuple(gene for i, gene in enumerate(genes) if i not in hidden)


def in_memory(cells: Cells) -> Cells:
    """The same cells, read where they lie in a store."""
    return dataclasses.replace(cells, X=cells.matrix())
