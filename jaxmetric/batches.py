"""Which cells a batch holds, and how they travel: packed rows, drawn by (seed, epoch) alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmetric.config import Config
from jaxmetric.data import Cells


class Batch(NamedTuple):
    """Cells as packed rows: gene `columns` with their `values`, padded with the column past the end.

    Attributes:
      columns: gene of each value; `num_genes` in the padding.
      values: counts or log-normalised values.
      labels: label of each cell, -1 for none.
      studies: study of each cell.
      real: False for the rows that fill up the last batch.
    """

    columns: Int[Any, "n w"]
    values: Float[Any, "n w"]
    labels: Int[Any, " n"]
    studies: Int[Any, " n"]
    real: Bool[Any, " n"]


def sampling_weights(
    labels: Int[np.ndarray, " n"], studies: Int[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " n"]:
    """SCimilarity's weight of each cell: rare classes, and classes of rare studies, come more often.

    With studies, 1/log1p(n_class / 1e4) * 1/log1p(n_study / 1e6), clipped at twice the 99.9th
    percentile; without, 1 / n_class.
    """
    num_class = np.bincount(labels)[labels]
    if studies is None:
        return 1.0 / num_class
    num_study = np.bincount(studies)[studies]
    weights = 1.0 / np.log1p(num_class / 1e4) / np.log1p(num_study / 1e6)
    return np.minimum(weights, 2.0 * np.quantile(weights, 0.999))


def draw_epoch(
    weights: Float[np.ndarray, " n"], config: Config, epoch: int
) -> Int[np.ndarray, "steps batch"]:
    """Row numbers of every batch of an epoch, drawn with replacement by (seed, epoch) alone."""
    generator = np.random.default_rng((config.seed, epoch))
    shape = (config.steps_per_epoch, config.batch_size)
    return generator.choice(len(weights), shape, p=weights / weights.sum())


def packed_width(cells: Cells) -> int:
    """Values in the widest cell, rounded up to a multiple of 64: the width of every batch."""
    widest = int(np.diff(cells.X.indptr).max(initial=1))
    return min(-(-widest // 64) * 64, len(cells.genes))


def pack(cells: Cells, rows: Int[np.ndarray, " n"], width: int) -> Batch:
    """The named rows as a batch; a row number of -1 gives an empty row that is not real."""
    real = rows >= 0
    X = cells.X[rows.clip(0)]
    filled = np.arange(width) < np.where(real, np.diff(X.indptr), 0)[:, None]
    kept = np.repeat(real, np.diff(X.indptr))
    columns = np.full((len(rows), width), len(cells.genes), np.int32)
    values = np.zeros((len(rows), width), np.float32)
    columns[filled], values[filled] = X.indices[kept], X.data[kept]
    return Batch(
        columns,
        values,
        np.where(real, cells.labels[rows], -1).astype(np.int32),
        np.where(real, cells.studies[rows], -1).astype(np.int32),
        real,
    )


def in_order(
    cells: Cells, batch_size: int, order: Int[np.ndarray, " n"] | None = None
) -> Iterator[Batch]:
    """Every cell once, in the given order; the last batch is filled up with rows that are not real."""
    order = np.arange(len(cells)) if order is None else order
    width = packed_width(cells)
    filled = np.full(-(-len(order) // batch_size) * batch_size, -1)
    filled[: len(order)] = order
    for rows in filled.reshape(-1, batch_size):
        yield pack(cells, rows, width)
