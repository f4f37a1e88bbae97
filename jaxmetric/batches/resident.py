"""Cells that live in the memory of each device, and batches taken from them there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Shaped

from jaxmetric.batches.batches import Batch
from jaxmetric.batches.expression import row_of_value
from jaxmetric.cells.packed import Packed

SEGMENT = 64  # values; each cell starts a new segment, so that a start fits 32 bits


class Resident(NamedTuple):
    """All cells of a run as segments of packed values.

    Attributes:
      columns: gene of each value.
      values: counts or log-normalised values.
      first: number of each cell's first segment.
      lengths: number of values of each cell.
      totals: sum of each cell's values.
      labels: label of each cell.
      studies: study of each cell.
    """

    columns: Integer[Any, "s segment"]
    values: Shaped[Any, "s segment"]
    first: Int[Any, " n"]
    lengths: Int[Any, " n"]
    totals: Float[Any, " n"]
    labels: Int[Any, " n"]
    studies: Int[Any, " n"]


def resident(packed: Packed, labels: np.ndarray, studies: np.ndarray) -> Resident:
    """The cells as host arrays, to be put on devices."""
    segments = -(-packed.lengths // SEGMENT)
    first = np.cumsum(segments) - segments
    shape = max(int(segments.sum()), 1), SEGMENT
    columns, values = (np.zeros(shape, x.dtype) for x in packed[:2])
    for source, out in ((packed.columns, columns.ravel()), (packed.values, values.ravel())):
        places = zip(first.tolist(), packed.starts.tolist(), packed.lengths.tolist(), strict=True)
        for segment, start, length in places:
            at = segment * SEGMENT
            out[at : at + length] = source[start : start + length]
    return Resident(
        columns,
        values,
        first.astype(np.int32),
        packed.lengths.astype(np.int32),
        packed.totals,
        labels,
        studies,
    )


def num_bytes(lengths: Int[np.ndarray, " n"], bytes_per_value: int) -> int:
    """The device memory of cells with so many values."""
    segments = int((-(-lengths // SEGMENT)).sum())
    return segments * SEGMENT * bytes_per_value + 20 * len(lengths)


def gather(cells: Resident, rows: Int[Array, " n"], shares: int, capacity: int) -> Batch:
    """The batch that `batches.pack` would make of these rows, taken on the device."""

    def one_share(rows: Int[Array, " m"]):
        lengths = cells.lengths[rows]
        row = row_of_value(lengths, capacity)
        start = jnp.append(jnp.cumsum(lengths) - lengths, 0)
        within = jnp.arange(capacity) - start[row]
        segment = cells.first[jnp.append(rows, 0)[row]] + within // SEGMENT
        at = segment, within % SEGMENT
        inside = row < len(rows)
        return [jnp.where(inside, x.at[at].get(mode="clip"), 0) for x in cells[:2]]

    columns, values = jax.vmap(one_share)(rows.reshape(shares, -1))
    of_cell = cells.lengths, cells.totals, cells.labels, cells.studies
    lengths, totals, labels, studies = (x[rows] for x in of_cell)
    return Batch(columns, values, lengths, totals, labels, studies, jnp.ones(len(rows), bool))
