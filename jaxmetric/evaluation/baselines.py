"""Truncated SVD of log-normalised expression: the baseline to beat, and what an encoder can read."""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from jaxtyping import Float

from jaxmetric.cells.cells import Cells


def svd_embedding(
    query: Cells, reference: Cells, dim: int = 50
) -> tuple[Float[np.ndarray, "q dim"], Float[np.ndarray, "r dim"]]:
    """Truncated SVD of the reference cells' log-normalised expression.

    The query cells are projected on the right singular vectors of the reference. There are fewer
    dimensions where cells or genes are few.
    """
    x, y = log_normalized(query), log_normalized(reference)
    vectors = right_singular_vectors(y, dim)
    return np.asarray(x @ vectors), np.asarray(y @ vectors)


def right_singular_vectors(X: sp.csr_matrix, dim: int) -> Float[np.ndarray, "genes dim"]:
    """The leading right singular vectors, in no particular order; fewer where X has fewer."""
    dim = min(dim, min(X.shape) - 1)
    if dim < 1 or not X.count_nonzero():
        raise ValueError(
            f"an SVD needs at least 2 cells and 2 genes, and values that are not zero, but has {X.shape} "
            f"(cells, genes) with {X.count_nonzero()} values."
        )
    start = np.full(min(X.shape), min(X.shape) ** -0.5, np.float32)
    return scipy.sparse.linalg.svds(X, k=dim, v0=start)[2].T


def log_normalized(cells: Cells) -> sp.csr_matrix:
    """The cells' log1p of counts per 10,000, as `expression.log_normalize` gives it on the device."""
    X = cells.matrix()
    if cells.values == "lognorm":
        return X
    total = np.asarray(X.sum(1)).ravel()
    X = X.copy()
    X.data = np.log1p(X.data * np.repeat(1e4 / np.where(total > 0, total, 1), np.diff(X.indptr)))
    return X.astype(np.float32)
