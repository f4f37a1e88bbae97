"""Rows of a sparse matrix, one after the other, at the narrowest types that hold them exactly."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Integer, Shaped


class Packed(NamedTuple):
    """Rows of a matrix of genes, in host memory.

    Attributes:
      columns: gene of each value.
      values: counts or log-normalised values.
      starts: where the values of each row start.
      lengths: how many they are.
      totals: sum of each row.
    """

    columns: Integer[np.ndarray, " v"]
    values: Shaped[np.ndarray, " v"]
    starts: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " n"]
    totals: Float[np.ndarray, " n"]


def index_type(num_genes: int) -> type:
    """The narrowest type of a gene's number."""
    return np.uint16 if num_genes <= 2**16 else np.int32


def value_type(largest: float, counts: bool) -> type:
    """The narrowest type that holds counts up to the largest one exactly; float32 for other values."""
    if not counts:
        return np.float32
    return np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32


def pack_rows(X: sp.csr_matrix, kind: type) -> Packed:
    """The rows of a matrix, their values as the given type."""
    indptr, num_genes = X.indptr.astype(np.int64), X.shape[1]  # type: ignore
    starts, lengths = indptr[:-1], np.diff(indptr)
    totals = row_totals(X.data, starts, lengths)
    return Packed(
        X.indices.astype(index_type(num_genes)), X.data.astype(kind), starts, lengths, totals
    )


def row_totals(
    values: Shaped[np.ndarray, " v"], starts: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The sum of each row's values."""
    totals, filled = np.zeros(len(starts), np.float32), lengths > 0
    if filled.any():
        start, first, row = np.unique(starts[filled], return_index=True, return_inverse=True)
        edges = np.stack([start, start + lengths[filled][first]], 1).ravel()
        if edges[-1] == len(values):  # the end of all, which is no place of a value
            edges = edges[:-1]
        totals[filled] = np.add.reduceat(values, edges, dtype=np.float64)[::2][row]
    return totals


def take(
    packed: Packed,
    rows: Int[np.ndarray, " n"],
    columns: Integer[np.ndarray, " c"],
    values: Shaped[np.ndarray, " c"],
) -> None:
    """Puts the given rows into `columns` and `values`, end to end, then zeros; -1: an empty row."""
    starts = packed.starts[rows].tolist()
    lengths = np.where(rows >= 0, packed.lengths[rows], 0).tolist()
    pieces = [slice(a, a + n) for a, n in zip(starts, lengths, strict=True)]
    used = sum(lengths)
    for source, taken in ((packed.columns, columns), (packed.values, values)):
        np.concatenate([source[piece] for piece in pieces], out=taken[:used])
        taken[used:] = 0


def move_columns(
    X: sp.csr_matrix, columns: Int[np.ndarray, " genes"], number: int
) -> sp.csr_matrix:
    """The matrix with its columns moved to `columns` of `number`, -1: left out."""
    if len(columns) == number and (columns == np.arange(number)).all():
        return X
    column = columns[X.indices]
    kept = column >= 0
    indptr = np.append(0, np.cumsum(kept))[X.indptr]
    moved = sp.csr_matrix((X.data[kept], column[kept], indptr), (len(indptr) - 1, number))
    moved.sort_indices()
    return moved
