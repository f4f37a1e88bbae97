"""Bootstrap intervals: how far scores would move with other query cells of the same kind."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from jaxmetric.scores.ratio import ratio

WEIGHTS = 10_000_000  # that are held at a time: resamples x cells


def intervals(
    scores: Callable[[Float[np.ndarray, "b n"]], dict[str, Float[np.ndarray, " b"]]],
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
      scores: gives the scores of each of several resamples, from how often each counts each cell. Many
        at a time: products of a few large matrices do not wait for threads as those of many small ones.
      num_cells: number of cells.
      resamples: how often cells are drawn; the same seed gives the same draws.
      level: share of the resamples' scores that lie in the interval.
      seed: of the draws.

    Returns:
      Lower and upper end of each score; NaN for one that is NaN in every resample.
    """
    generator = np.random.default_rng(seed)
    at_a_time = max(1, WEIGHTS // num_cells)
    found = []
    for start in range(0, resamples, at_a_time):
        some = range(start, min(start + at_a_time, resamples))
        drawn = (generator.integers(num_cells, size=num_cells) for _ in some)
        weights = [np.bincount(rows, minlength=num_cells) for rows in drawn]
        found.append(scores(np.array(weights, np.float64)))
    return {
        name: percentiles(np.concatenate([one[name] for one in found]), level) for name in found[0]
    }


def percentiles(values: Float[np.ndarray, " n"], level: float) -> tuple[float, float]:
    """The middle share of the values that are not NaN: its lower and upper end."""
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weighted_means(
    per_cell: dict[str, Float[np.ndarray, " n"]], weights: Num[np.ndarray, "*b n"]
) -> dict[str, Float[np.ndarray, "*b"]]:
    """Mean of each score over the cells that have one (not NaN), each counted so many times."""
    values = np.stack(list(per_cell.values()), 1)
    there = ~np.isnan(values)
    means = ratio(weights @ np.where(there, values, 0), weights @ there.astype(np.float64))
    return {name: means[..., i] for i, name in enumerate(per_cell)}
