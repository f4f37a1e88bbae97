"""What the encoder reads in place of genes: a linear layer found from the training cells.

Directions of expression in which the cells of several studies hardly vary are mostly those in which an
unseen study differs from them. An encoder that cannot see them cannot learn to rely on them.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from jaxtyping import Float

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.config import Config
from jaxmetric.networks.discriminants import cell_weights, discriminants

MOST = 20_000  # cells that the components are found from
POWERS = (
    2  # iterations of the randomised SVD: hundreds of components, of which the last need no digits
)
LEAST = 1e-3  # of the largest standard deviation, for a component to count


def input_layer(cells: Cells, config: Config) -> dict[str, Float[np.ndarray, "..."]]:
    """The layer, `kernel` (genes, config.input_width) and `bias`; outputs that do not exist are 0.

    Where there are more than MOST cells, so many drawn at random are used.
    """
    if len(cells) > MOST:
        chosen = np.random.default_rng(config.seed).choice(len(cells), MOST, replace=False)
        cells = cells.select(np.sort(chosen))
    find = discriminant_scores if config.discriminants else component_scores
    vectors, origin = find(cells, config)
    kernel = np.zeros((len(cells.genes), config.input_width), np.float32)
    bias = np.zeros(config.input_width, np.float32)
    real = slice(vectors.shape[1])
    kernel[:, real], bias[real] = vectors, -origin
    return {"kernel": kernel, "bias": bias}


def component_scores(
    cells: Cells, config: Config
) -> tuple[Float[np.ndarray, "genes m"], Float[np.ndarray, " m"]]:
    """Scores on the right singular vectors of the cells' log-normalised expression, standardised.

    Directions in which the cells do not vary are left out: dividing by their deviation would blow up
    rounding errors and genes that no cell has.
    """
    X = log_normalized(cells)
    vectors = right_singular_vectors(X, config.input_components)
    scores = X @ vectors
    deviation = scores.std(0)
    real = deviation > LEAST * deviation.max()
    return vectors[:, real] / deviation[real], scores.mean(0)[real] / deviation[real]


def discriminant_scores(
    cells: Cells, config: Config
) -> tuple[Float[np.ndarray, "genes m"], Float[np.ndarray, " m"]]:
    """Scores on the discriminants of the labels, found among the components; of mean square norm 1.

    The components are those of cells weighted as `cell_weights` says, so that rare labels have some.
    """
    X, labels, studies = log_normalized(cells), cells.labels, cells.studies
    weights = np.sqrt(cell_weights(labels, studies)).astype(np.float32)
    weighted = sp.csr_matrix(sp.diags_array(weights) @ X)
    vectors = randomized_singular_vectors(weighted, config.input_components)
    z = np.asarray(X @ vectors, np.float64)
    U, center = discriminants(z, labels, studies, config.input_width)
    U /= np.sqrt((((z - center) @ U) ** 2).sum(1).mean()) or 1.0  # of cells that are all alike
    return vectors @ U, center @ U


def randomized_singular_vectors(X: sp.csr_matrix, dim: int) -> Float[np.ndarray, "genes dim"]:
    """The leading right singular vectors, approximately (Halko et al., SIAM Review 53:217, 2011)."""
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(X, _possible(X, dim), n_iter=POWERS, random_state=0)[2].T


def right_singular_vectors(X: sp.csr_matrix, dim: int) -> Float[np.ndarray, "genes dim"]:
    """The leading right singular vectors, in no particular order; fewer where X has fewer."""
    start = np.full(min(X.shape), min(X.shape) ** -0.5, np.float32)
    return scipy.sparse.linalg.svds(X, k=_possible(X, dim), v0=start)[2].T


def _possible(X: sp.csr_matrix, dim: int) -> int:
    """As many dimensions as asked for, or as X has; a ValueError where it has none."""
    dim = min(dim, min(X.shape) - 1)
    if dim < 1 or not X.count_nonzero():
        raise ValueError(
            f"an SVD needs at least 2 cells and 2 genes, and values that are not zero, but has {X.shape} "
            f"(cells, genes) with {X.count_nonzero()} values."
        )
    return dim
