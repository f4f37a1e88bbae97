"""Blocks of cells of any number -> batches of one size, without ever holding all cells."""

import contextlib
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import scipy.sparse as sp

from jaxmetric.batches.batches import Batch, pack
from jaxmetric.cells.packed import pack_rows
from jaxmetric.cells.source import Source
from jaxmetric.cells.values import Range, value_kind, warn_of_scale
from jaxmetric.config import Values
from jaxmetric.shapes import padded_size

Blocks = Generator[sp.csr_matrix]


def of_one_kind(source: Source, values: Values | None, start: int = 0) -> tuple[Values, Blocks]:
    """What a source holds, as said or as its first values show, and its blocks from `start` on."""
    kind = value_kind(Range.of(source.first_values()), values, source.where)

    def held() -> Blocks:
        first = start == 0
        with contextlib.closing(source.blocks(start)) as blocks:
            for X in blocks:
                found = Range.of(X.data)
                if kind == "counts" and found.fractions:
                    raise ValueError(
                        f"{source.where} begins with whole numbers, as counts are, but has fractions "
                        "later on: say what it holds with values= / --values."
                    )
                value_kind(found, kind, source.where)
                if kind == "lognorm" and first:
                    warn_of_scale(X, source.where)
                first = False
                yield X

    return kind, held()


def batches_of(
    blocks: Iterable[sp.csr_matrix], size: int, shares: int
) -> Iterator[tuple[Batch, int]]:
    """Batches of `size` cells in equal shares, the last filled up, and how many cells are real.

    What a share can hold grows by an eighth at least, so that there are few shapes to compile for.
    """
    capacity = 0
    for X in _of_whole_batches(blocks, size):
        packed = pack_rows(X, np.float32)
        num_cells = len(packed.totals)
        for first in range(0, num_cells, size):
            rows = first + np.arange(size)
            rows[rows >= num_cells] = -1
            lengths = np.where(rows >= 0, packed.lengths[rows], 0)
            needed = int(lengths.reshape(shares, -1).sum(1).max())
            if needed > capacity:
                capacity = padded_size(needed * 9 // 8, 2**14, largest_step=2**30)
            yield pack(packed, rows, shares, capacity), int((rows >= 0).sum())


def _of_whole_batches(blocks: Iterable[sp.csr_matrix], size: int) -> Blocks:
    """The blocks cut anew, so that all but the last hold a multiple of `size` cells."""
    waiting = []
    for X in blocks:
        waiting.append(X)
        num_cells = sum(len(part.indptr) - 1 for part in waiting)
        if num_cells >= size:
            joined, whole = sp.csr_matrix(sp.vstack(waiting)), num_cells // size * size
            yield joined[:whole]
            waiting = [joined[whole:]] if whole < num_cells else []
    if waiting:
        yield sp.csr_matrix(sp.vstack(waiting))
