"""Batches: cells as packed rows, each device's end to end."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from jaxmetric.batches.prefetch import prefetch
from jaxmetric.cells.cells import Cells
from jaxmetric.cells.packed import Packed, pack_rows, take
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.shapes import padded_size

Read = Callable[[Int[np.ndarray, "steps n"]], tuple[Packed, Int[np.ndarray, "steps n"]]]

LEAST = 1024  # values that a share of a batch has room for
AT_A_TIME = 8  # batches whose cells are read from a store together, when all are read in order


class Batch(NamedTuple):
    """n cells in d equal shares, one for each device; the values of a share's cells end to end.

    A cell of any width fits, as long as those of its share together do: all batches of a run have the
    same shapes.

    Attributes:
      columns: gene of each value.
      values: counts or log-normalised values.
      lengths: number of values of each cell.
      totals: sum of each cell's values.
      labels: label of each cell, -1 for none.
      studies: study of each cell.
      real: False for the cells, without values, that fill up the last batch.
    """

    columns: Integer[Any, "d c"]
    values: Shaped[Any, "d c"]
    lengths: Int[Any, " n"]
    totals: Float[Any, " n"]
    labels: Int[Any, " n"]
    studies: Int[Any, " n"]
    real: Bool[Any, " n"]


def capacity(lengths: Int[np.ndarray, " n"], rows: Int[np.ndarray, "steps b"], shares: int) -> int:
    """The values that the fullest share of these batches needs, and a little more."""
    needed = np.where(rows >= 0, lengths[rows], 0).reshape(len(rows), shares, -1).sum(-1).max()
    return padded_size(int(needed), LEAST, largest_step=2**30)


def reader(cells: Cells) -> Read:
    """A function of rows (-1: none) that gives packed cells, and which of these the rows are.

    Cells in memory are packed once, those of a store when they are read.
    """
    kind = cells.value_type
    if not isinstance(cells.X, StoredRows):
        packed = pack_rows(cells.X, kind)
        return lambda rows: (packed, rows)

    def read(rows):
        wanted, where = np.unique(rows.clip(0), return_inverse=True)
        where = np.where(rows >= 0, where.reshape(rows.shape), -1)
        return cells.X.packed(kind, wanted), where

    return read


def pack(
    packed: Packed,
    rows: Int[np.ndarray, " n"],
    shares: int,
    capacity: int,
    labels: Int[np.ndarray, " n"] | None = None,
    studies: Int[np.ndarray, " n"] | None = None,
) -> Batch:
    """The given rows of what is packed as a batch, with their labels and studies; -1: no cell."""
    real = rows >= 0
    nothing = np.full(len(rows), -1, np.int32)
    columns, values = (np.empty((shares, capacity), x.dtype) for x in packed[:2])
    for i, share in enumerate(rows.reshape(shares, -1)):
        take(packed, share, columns[i], values[i])
    return Batch(
        columns,
        values,
        np.where(real, packed.lengths[rows], 0).astype(np.int32),
        np.where(real, packed.totals[rows], 0).astype(np.float32),
        nothing if labels is None else np.where(real, labels, -1).astype(np.int32),
        nothing if studies is None else np.where(real, studies, -1).astype(np.int32),
        real,
    )


def batches(
    cells: Cells,
    drawn: Int[np.ndarray, "steps n"],
    read: Read,
    shares: int,
    capacity: int,
    at_a_time: int = AT_A_TIME,
) -> Iterator[Batch]:
    """The batches of the drawn rows, read `at_a_time` together."""
    pieces = [drawn[first : first + at_a_time] for first in range(0, len(drawn), at_a_time)]
    ahead = prefetch(map(read, pieces), 1)
    for piece, (packed, where) in zip(pieces, ahead, strict=True):
        for rows, places in zip(piece, where, strict=True):
            labels, studies = cells.labels[rows], cells.studies[rows]
            yield pack(packed, places, shares, capacity, labels, studies)


def rows_in_order(order: Int[np.ndarray, " n"], batch_size: int) -> Int[np.ndarray, "steps batch"]:
    """Every row once, in the given order, the last batch filled up with -1."""
    filled = np.full(-(-len(order) // batch_size) * batch_size, -1)
    filled[: len(order)] = order
    return filled.reshape(-1, batch_size)
