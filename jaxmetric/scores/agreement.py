"""Does an embedding agree with expression, whatever the labels say? Two scores that need no labels."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int, Num

from jaxmetric.scores.ratio import ratio

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


def mean_of_neighbors(
    reference: Float[np.ndarray, "r g"], neighbors: Int[np.ndarray, "q k"]
) -> Float[np.ndarray, "q g"]:
    """The mean expression of each query cell's nearest reference cells."""
    q, k = neighbors.shape
    share, ends = np.full(q * k, 1 / k, np.float32), np.arange(0, q * k + 1, k)
    return sp.csr_matrix((share, neighbors.ravel(), ends), (q, len(reference))) @ reference


def neighborhood_agreement(
    expression: Float[np.ndarray, "q g"],
    around: Float[np.ndarray, "q g"],
    weights: Num[np.ndarray, "*b q"] | None = None,
) -> Float[np.ndarray, "*b"]:
    """How well the mean of a query cell's nearest reference cells tells its own expression.

    For each gene the Pearson correlation, over query cells, of a cell's expression with the mean
    expression of its neighbours; then the mean over the genes.

    Args:
      expression: of the query cells, log-normalised, in the genes that count.
      around: mean expression of each cell's nearest reference cells, from `mean_of_neighbors`.
      weights: how often each cell counts, in one or several resamples; None: once.

    Returns:
      The score, in [-1, 1]. Genes of which one side is constant are left out; NaN where all are.
    """
    return _correlation(
        expression, around, np.ones(len(expression)) if weights is None else weights
    )


def hidden_genes(num_genes: int, seed: int = 0) -> Int[np.ndarray, " h"]:
    """A random fifth of the genes, at least one: what `hidden_gene_agreement` hides."""
    order = np.random.default_rng(seed).permutation(num_genes)
    return np.sort(order[: -(-num_genes // HIDDEN)])


class RankedPairs(NamedTuple):
    """Pairs of cells, with the ranks of their distances.

    Attributes:
      cells: both cells of each pair.
      embedded: rank of each pair's distance in the embedding.
      measured: rank of its distance in the hidden genes.
    """

    cells: tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]
    embedded: Float[np.ndarray, "p 1"]
    measured: Float[np.ndarray, "p 1"]


def ranked_pairs(
    z: Float[np.ndarray, "q d"], hidden: sp.csr_matrix, pairs: int = PAIRS, seed: int = 0
) -> RankedPairs:
    """Random pairs of different cells, by cosine distance, so that a cell's depth does not count.

    Args:
      z: the cells, embedded without the hidden genes.
      hidden: (cells, genes) their log-normalised expression in the hidden genes.
      pairs: number of pairs, drawn with replacement; there are none of fewer than three cells.
      seed: of the pairs; the same seed gives the same pairs.
    """
    generator, pairs = np.random.default_rng(seed), pairs if len(z) > 2 else 0
    a = generator.integers(len(z), size=pairs)
    b = (a + generator.integers(1, max(len(z), 2), size=pairs)) % len(z)
    ranks = (
        pd.Series(_cosine_distances(x, a, b)).rank().to_numpy()[:, None]
        for x in (sp.csr_matrix(z), hidden)
    )
    return RankedPairs((a, b), *ranks)


def hidden_gene_agreement(
    pairs: RankedPairs, weights: Num[np.ndarray, "*b q"] | None = None
) -> Float[np.ndarray, "*b"]:
    """Are cells that lie close together alike in genes that the embedding has not seen?

    Spearman correlation, over pairs of cells, of their distance in the embedding with that in the hidden
    genes.

    Args:
      pairs: from `ranked_pairs`.
      weights: how often each cell counts, and so how often its pairs, in one or several resamples; the
        ranks stay those of all pairs. None: once.

    Returns:
      The score, in [-1, 1]; NaN where all distances are one.
    """
    a, b = pairs.cells
    each = np.ones(len(a)) if weights is None else weights[..., a] * weights[..., b]
    return _correlation(pairs.embedded, pairs.measured, each)


def _correlation(
    x: Float[np.ndarray, "n g"], y: Float[np.ndarray, "n g"], weights: Num[np.ndarray, "*b n"]
) -> Float[np.ndarray, "*b"]:
    """Mean over the columns of their Pearson correlation; NaN where all of them have none.

    Moments of a = x - mean(x) and b = y - mean(y): variance is E[a^2] - E[a]^2, covariance
    E[ab] - E[a]E[b]. As E[a] and E[b] are near 0 in every resample, the differences lose nothing.
    """
    total = weights.sum(-1, keepdims=True)
    share = weights / np.where(total > 0, total, 1)
    centres = [v.sum(0, np.float64) / max(len(v), 1) for v in (x, y)]
    a, b = x - centres[0], y - centres[1]
    (mean_a, var_a), (mean_b, var_b) = (
        _mean_and_variance(v, centre, share) for v, centre in zip((a, b), centres, strict=True)
    )
    each = ratio(share @ (a * b) - mean_a * mean_b, np.sqrt(var_a * var_b))
    return ratio(np.nansum(each, -1), (~np.isnan(each)).sum(-1))


def _mean_and_variance(
    a: Float[np.ndarray, "n g"], centre: Float[np.ndarray, " g"], share: Float[np.ndarray, "*b n"]
) -> tuple[Float[np.ndarray, "*b g"], Float[np.ndarray, "*b g"]]:
    """Of columns less their centre; the variance is 0 where a + centre is constant but for rounding."""
    mean, square = share @ a, share @ a**2
    variance = square - mean**2
    return mean, np.where(variance > 1e-12 * (square + (mean + centre) ** 2), variance, 0)


def _cosine_distances(
    x: sp.csr_matrix, a: Int[np.ndarray, " p"], b: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " p"]:
    """Of each pair of rows; 1 where one is zero."""
    norms = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    products = np.asarray(x[a].multiply(x[b]).sum(1)).ravel()
    return 1 - products / np.maximum(norms[a] * norms[b], 1e-12)
