"""Study mixing: do a cell's neighbours come from all studies? By scib-metrics (extra `eval`)."""

import importlib.util
import warnings

import numpy as np
from jaxtyping import Float, Num, Shaped

from jaxmetric.metric.neighbors import nearest_neighbors

NEIGHBORS = 90  # and so the perplexity 30 of LISI's authors
LEAST = 10  # cells; of fewer the index is none
MOST = 20_000  # cells whose neighbours are found


def lisi(
    z: Float[np.ndarray, "n d"], studies: Shaped[np.ndarray, " n"], seed: int = 0
) -> Float[np.ndarray, " n"] | str:
    """The inverse Simpson index of the studies of each cell's NEIGHBORS nearest cells: 1 to their number.

    Exact neighbours in Euclidean distance, of at most MOST drawn cells; the others' index is NaN.
    Source: Korsunsky et al., Nature Methods 16:1289 (2019); computed by `scib_metrics.lisi_knn`.

    Returns:
      The index of each cell; in words, why there is none.
    """
    if len(np.unique(studies)) < 2:
        return "needs two studies"
    if len(z) < LEAST:
        return f"needs {LEAST} cells"
    if importlib.util.find_spec("scib_metrics") is None:
        return "needs the extra eval"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from scib_metrics import lisi_knn  # pyright: ignore[reportMissingImports]
        from scib_metrics.nearest_neighbors import (  # pyright: ignore[reportMissingImports]
            NeighborsResults,
        )

    order = np.random.default_rng(seed).permutation(len(z))
    drawn = order[:MOST]  # the neighbours found are of the first cells, so these come first
    neighbors = nearest_neighbors(z[drawn], z[order], min(NEIGHBORS, len(z) - 1), exclude_self=True)
    found = np.full(len(z), np.nan)
    found[drawn] = lisi_knn(NeighborsResults(*neighbors), studies[order])
    return found


def scaled_median(
    lisi: Float[np.ndarray, " n"], weights: Num[np.ndarray, " n"], num_studies: int
) -> float:
    """Scaled iLISI: 0 where neighbours are of one study, 1 where all studies come equally often.

    Median over the cells that have an index, each counted so many times. It says nothing about types: an
    embedding of noise mixes best. Source of the scale: Luecken et al., Nature Methods 19:41 (2022).
    """
    there = ~np.isnan(lisi)
    values, weights = lisi[there], weights[there]
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    if not weights.any():
        return float("nan")
    middle = [np.searchsorted(passed, passed[-1] / 2, side) for side in ("left", "right")]
    median = values[order][middle].mean()
    return float(np.clip((median - 1) / (num_studies - 1), 0, 1))
