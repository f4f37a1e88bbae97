"""Bootstrap intervals: how far scores would move with other query cells of the same kind."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num


def intervals(
    scores: Callable[[Num[np.ndarray, " n"]], dict[str, float]],
    num_cells: int,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of scores over cells that are drawn anew, with replacement.

    Cells are drawn from all cells alike, not type by type, so that rare types come in varying numbers,
    or not at all (see `confusion_scores`). The intervals cover which query cells were seen. They do not
    cover what else could have been different: the training seed, the reference cells, the study. Cells
    of one donor are more alike than independent ones, so for cells of a new study the intervals are too
    narrow. Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Args:
      scores: gives the scores of cells that count so many times each.
      num_cells: number of cells.
      resamples: how often cells are drawn; the same seed gives the same draws.
      level: share of the resamples' scores that lie in the interval.
      seed: of the draws.

    Returns:
      Lower and upper end of each score; NaN for one that is NaN in every resample.
    """
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(num_cells, size=num_cells) for _ in range(resamples))
    found = [scores(np.bincount(rows, minlength=num_cells)) for rows in drawn]
    return {name: percentiles(np.array([one[name] for one in found]), level) for name in found[0]}


def percentiles(values: Float[np.ndarray, " n"], level: float) -> tuple[float, float]:
    """The middle share of the values that are not NaN: its lower and upper end."""
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weighted_means(
    per_cell: dict[str, Float[np.ndarray, " n"]], weights: Num[np.ndarray, " n"]
) -> dict[str, float]:
    """Mean of each score over the cells that have one (not NaN), each counted so many times."""
    found = {}
    for name, values in per_cell.items():
        total = weights[there := ~np.isnan(values)].sum()
        found[name] = float(weights[there] @ values[there] / total) if total else float("nan")
    return found
