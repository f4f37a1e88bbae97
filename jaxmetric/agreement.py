"""Does an embedding agree with expression, whatever the labels say? Two scores that need no labels."""

import numpy as np
import scipy.sparse as sp
import scipy.stats
from jaxtyping import Float, Int

MARKERS = 200  # genes whose expression neighbours should share
HIDDEN = 5  # one in so many genes is hidden
PAIRS = 20_000  # pairs of cells whose distances are compared


def most_variable(x: sp.csr_matrix, number: int = MARKERS) -> Int[np.ndarray, " g"]:
    """The columns of greatest variance over the rows, greatest first.

    Of log-normalised expression these are mostly genes that mark types. Variance over mean would
    choose genes found in a cell or two.
    """
    mean, square = (np.asarray(m.mean(0, dtype=np.float64)).ravel() for m in (x, x.multiply(x)))
    return np.argsort(mean**2 - square, kind="stable")[:number]


def neighborhood_agreement(
    expression: Float[np.ndarray, "q g"],
    reference: Float[np.ndarray, "r g"],
    neighbors: Int[np.ndarray, "q k"],
) -> float:
    """How well the mean of a query cell's nearest reference cells tells its own expression.

    For each gene the Pearson correlation, over query cells, of a cell's expression with the mean
    expression of its neighbours; then the mean over the genes.

    Args:
      expression: of the query cells, log-normalised, in the genes that count.
      reference: of the reference cells, in the same genes.
      neighbors: the nearest reference cells of each query cell.

    Returns:
      The score, in [-1, 1]. Genes of which one side is constant are left out; NaN where all are.
    """
    q, k = neighbors.shape
    share = np.full(q * k, 1 / k, np.float32)
    average = sp.csr_matrix(
        (share, neighbors.ravel(), np.arange(0, q * k + 1, k)), (q, len(reference))
    )
    own, around = (x - x.mean(0, dtype=np.float64) for x in (expression, average @ reference))
    covariance, scale = (own * around).sum(0), np.sqrt((own**2).sum(0) * (around**2).sum(0))
    varies = scale > 1e-9 * q
    return float((covariance[varies] / scale[varies]).mean()) if varies.any() else float("nan")


def hidden_genes(num_genes: int, seed: int = 0) -> Int[np.ndarray, " h"]:
    """A random fifth of the genes, at least one: what `hidden_gene_agreement` hides."""
    order = np.random.default_rng(seed).permutation(num_genes)
    return np.sort(order[: -(-num_genes // HIDDEN)])


def hidden_gene_agreement(
    z: Float[np.ndarray, "q d"], hidden: sp.csr_matrix, pairs: int = PAIRS, seed: int = 0
) -> float:
    """Are cells that lie close together alike in genes that the embedding has not seen?

    Spearman correlation, over random pairs of different cells, of their cosine distance in the embedding
    with that in the hidden genes. Cosine, so that a cell's depth does not count.

    Args:
      z: the cells, embedded without the hidden genes.
      hidden: (cells, genes) their log-normalised expression in the hidden genes.
      pairs: number of pairs, drawn with replacement.
      seed: of the pairs; the same seed gives the same pairs.

    Returns:
      The score, in [-1, 1]; NaN where all distances are one.
    """
    if len(z) < 3:
        return float("nan")
    generator = np.random.default_rng(seed)
    a = generator.integers(len(z), size=pairs)
    b = (a + generator.integers(1, len(z), size=pairs)) % len(z)
    embedded, measured = (_cosine_distances(x, a, b) for x in (sp.csr_matrix(z), hidden))
    if np.ptp(embedded) == 0 or np.ptp(measured) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(embedded, measured).statistic)


def _cosine_distances(
    x: sp.csr_matrix, a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " p"]:
    """Of each pair of rows; 1 where one is zero."""
    norms = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    products = np.asarray(x[a].multiply(x[b]).sum(1)).ravel()
    return 1 - products / np.maximum(norms[a] * norms[b], 1e-12)
