"""The baseline to beat: truncated SVD of log-normalised expression."""

import numpy as np
from jaxtyping import Float

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.evaluation.embeddings import Embedding, seen_genes
from jaxmetric.networks.components import right_singular_vectors


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


def svd_baseline(
    query: Cells, reference: Cells, logged_query: Cells, logged_reference: Cells
) -> Embedding:
    """Truncated SVD, fitted on the reference cells, and again without the hidden genes.

    The latter from the cells as they are: hidden counts are no part of a cell's total either.
    """
    seen = seen_genes(query.genes)
    hidden, _ = svd_embedding(query.with_genes(seen), reference.with_genes(seen))
    return Embedding(*svd_embedding(logged_query, logged_reference), hidden)
