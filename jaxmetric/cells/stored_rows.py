"""Rows of a training store's matrix, which are read when they are asked for."""

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from jaxmetric.cells.packed import Packed, index_type, row_totals, take
from jaxmetric.cells.store import open_values

GAP = 2**14  # values between rows that are read rather than skipped
PIECE = 2**20  # values that are read at once
AHEAD = 64  # pieces that are being read at a time


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """Rows of a store's matrix, in place of a CSR matrix in memory.

    Attributes:
      store: the store's folder.
      starts: where the values of each of its cells start, and the last one's end.
      rows: which cells these are.
      shape: cells and genes.
      largest: the largest value in the store.
      fingerprint: tells the store's content from any other's.
      columns: the new column of each of the store's genes, -1: left out; None: all as they are.
    """

    store: Path
    starts: Int[np.ndarray, " cells+1"]
    rows: Int[np.ndarray, " n"]
    shape: tuple[int, int]
    largest: float
    fingerprint: str
    columns: Int[np.ndarray, " genes"] | None = None

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Values of each row, those of left-out columns included."""
        return self.starts[self.rows + 1] - self.starts[self.rows]

    def __getitem__(self, which) -> "StoredRows":
        rows = self.rows[which]
        return dataclasses.replace(self, rows=rows, shape=(len(rows), self.shape[1]))

    def with_columns(self, columns: Int[np.ndarray, " genes"], number: int) -> "StoredRows":
        """The same rows with columns moved to `columns`, -1: left out."""
        if self.columns is not None:
            columns = np.where(self.columns >= 0, np.append(columns, -1)[self.columns], -1)
        return dataclasses.replace(self, columns=columns, shape=(self.shape[0], number))

    def read(self, which: Any = slice(None)) -> sp.csr_matrix:
        """The named rows as a matrix in memory.

        Raises:
          ValueError: for a store that is damaged.
        """
        packed = self.packed(np.float32, which)
        number, size = len(packed.lengths), int(packed.lengths.sum())
        columns, values = np.empty(size, packed.columns.dtype), np.empty(size, np.float32)
        if number:
            take(packed, np.arange(number), columns, values)
        indptr = np.append(0, np.cumsum(packed.lengths))
        X = sp.csr_matrix((values, columns.astype(np.int32), indptr), (number, self.shape[1]))
        X.sort_indices()
        return X

    def packed(self, kind: type, which: Any = slice(None)) -> Packed:
        """The named rows, their values as the given type; rows that lie together are read together.

        Raises:
          ValueError: for a store that is damaged.
        """
        rows = self.rows[which]
        order = np.argsort(rows, kind="stable")
        start, stop = self.starts[rows[order]], self.starts[rows[order] + 1]
        upto = np.maximum.accumulate(stop)
        gap = start[1:] > upto[:-1] + GAP
        first = np.flatnonzero(np.append(True, gap)) if len(rows) else np.arange(0)
        low, high = start[first], upto[np.append(first[1:], len(rows))[: len(first)] - 1]
        columns, values = self._runs(low, high, kind)
        shift = low - np.cumsum(high - low) + (high - low)  # of a value's place, store to memory
        start = start - np.repeat(shift, np.diff(np.append(first, len(rows))))
        starts, lengths = np.empty_like(start), self.starts[rows + 1] - self.starts[rows]
        starts[order] = start
        if self.columns is not None:
            kept = columns >= 0
            before = np.append(0, np.cumsum(kept))
            columns, values = columns[kept].astype(index_type(self.shape[1])), values[kept]
            starts, lengths = before[starts], before[starts + lengths] - before[starts]
        return Packed(columns, values, starts, lengths, row_totals(values, starts, lengths))

    def _runs(self, low, high, kind: type) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values from each `low` to its `high`, end to end."""
        moved = np.int32 if self.columns is not None else index_type(self.shape[1])
        columns, values = (np.empty((high - low).sum(), each) for each in (moved, kind))
        pending, at = collections.deque(), 0

        def place() -> int:
            size, *parts = pending.popleft()
            column, value = (part.result() for part in parts)
            columns[at : at + size] = column if self.columns is None else self.columns[column]
            values[at : at + size] = value
            return at + size

        try:
            indices, data = open_values(self.store, self.fingerprint)
            for a, b in _pieces(low, high):
                pending.append((b - a, indices[a:b].read(), data[a:b].read()))
                if len(pending) > AHEAD:
                    at = place()
            while pending:
                at = place()
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.store} is damaged or not there any more: prepare it again ({error})."
            ) from error
        return columns, values


def _pieces(low, high) -> Iterator[tuple[int, int]]:
    """The runs, cut so that no piece has more than PIECE values."""
    for a, b in zip(low.tolist(), high.tolist(), strict=True):
        for start in range(a, b, PIECE):
            yield start, min(start + PIECE, b)
