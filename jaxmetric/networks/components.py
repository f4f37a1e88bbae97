"""The components of the training cells, by truncated SVD, that the encoder can read in place of genes.

Directions of expression in which the cells of several studies hardly vary are mostly those in which an
unseen study differs from them. An encoder that cannot see them cannot learn to rely on them.
"""

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from jaxtyping import Float

from jaxmetric.cells.cells import Cells, log_normalized
from jaxmetric.config import Config

MOST = 20_000  # cells that the components are found from
LEAST = 1e-3  # of the largest standard deviation, for a component to count


def leading_components(cells: Cells, config: Config) -> dict[str, Float[np.ndarray, "..."]]:
    """A linear layer, `kernel` (genes, components) and `bias`, that gives the components of a cell.

    They are the scores on the leading right singular vectors of the cells' log-normalised expression,
    each less its mean over the cells and divided by its standard deviation. Where there are more than
    MOST cells, so many drawn at random are used. Components that do not exist are 0: those in which the
    cells do not vary, where dividing would blow up rounding errors and genes that no cell has.
    """
    if len(cells) > MOST:
        chosen = np.random.default_rng(config.seed).choice(len(cells), MOST, replace=False)
        cells = cells.select(np.sort(chosen))
    X = log_normalized(cells)
    vectors = right_singular_vectors(X, config.input_components)
    scores = X @ vectors
    deviation = scores.std(0)
    vectors, scores = (x[:, deviation > LEAST * deviation.max()] for x in (vectors, scores))
    kernel = np.zeros((len(cells.genes), config.input_components), np.float32)
    bias = np.zeros(config.input_components, np.float32)
    real = slice(vectors.shape[1])
    kernel[:, real] = vectors / scores.std(0)
    bias[real] = -scores.mean(0) / scores.std(0)
    return {"kernel": kernel, "bias": bias}


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


def with_components_merged(variables: dict) -> dict:
    """The same networks without the layer of components: it is multiplied into the next one."""
    params = variables["params"]
    if "components" not in params["encoder"]:
        return variables
    encoder = dict(params["encoder"])
    first, hidden = encoder.pop("components"), encoder["hidden_0"]
    then = hidden["linear"]
    linear = {
        "kernel": first["kernel"] @ then["kernel"],
        "bias": first["bias"] @ then["kernel"] + then["bias"],
    }
    encoder["hidden_0"] = hidden | {"linear": linear}
    return variables | {"params": params | {"encoder": encoder}}
