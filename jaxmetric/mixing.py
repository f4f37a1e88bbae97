"""Study mixing: do a cell's neighbours come from all studies? By scib-metrics (extra `eval`)."""

import importlib.util

import numpy as np
from jaxtyping import Float, Shaped

from jaxmetric.metrics import nearest_neighbors

NEIGHBORS = 90  # and so the perplexity 30 of LISI's authors
MOST = 20_000  # cells whose neighbours are found


def study_mixing(
    z: Float[np.ndarray, "n d"], studies: Shaped[np.ndarray, " n"], seed: int = 0
) -> float | str:
    """Scaled iLISI: 0 where neighbours are of one study, 1 where all studies come equally often.

    Median over cells, of at most MOST drawn ones, of the inverse Simpson index of their NEIGHBORS nearest
    cells' studies, exact neighbours in Euclidean distance. It says nothing about types: an embedding of
    noise mixes best. Source: Korsunsky et al., Nature Methods 16:1289 (2019); scaled as in Luecken et
    al., Nature Methods 19:41 (2022); computed by `scib_metrics.ilisi_knn`.

    Returns:
      The score; in words, why there is none.
    """
    if len(np.unique(studies)) < 2:
        return "needs two studies"
    if len(z) < 4:
        return "needs four cells"
    if importlib.util.find_spec("scib_metrics") is None:
        return "needs the extra eval"
    from scib_metrics import ilisi_knn  # pyright: ignore[reportMissingImports]
    from scib_metrics.nearest_neighbors import NeighborsResults  # pyright: ignore[reportMissingImports]

    order = np.random.default_rng(seed).permutation(
        len(z)
    )  # those whose neighbours are found first
    z, studies = z[order], studies[order]
    found = nearest_neighbors(z[:MOST], z, min(NEIGHBORS, len(z) - 1), exclude_self=True)
    return float(ilisi_knn(NeighborsResults(*found), studies))
