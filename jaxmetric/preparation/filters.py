"""Which cells of a source are kept, and why the others are not."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from jaxmetric.cells.coded import Coded
from jaxmetric.cells.genes import SYMBOLS, Names
from jaxmetric.cells.source import Source
from jaxmetric.config import Filters


class Kept(NamedTuple):
    """A block of cells, and which of them are kept; `reasons` counts those that are not."""

    X: sp.csr_matrix
    kept: np.ndarray
    reasons: Counter


def kept_blocks(
    source: Source, studies: Coded, samples: Coded, names: Names, filters: Filters
) -> Iterator[Kept]:
    """The cells, with their studies and samples, in blocks; of several reasons the first counts."""
    mito = _mitochondrial(source, names) if filters.max_mito < 1 else None
    study_out = _out(studies, filters.exclude_studies)
    sample_out = _out(samples, filters.exclude_samples)
    first = 0
    for X in source.blocks():
        rows = slice(first, first + len(X.indptr) - 1)
        first = rows.stop
        counts = np.asarray(X.sum(1)).ravel()
        tests = {
            "study excluded": study_out[rows],
            "sample excluded": sample_out[rows],
            f"fewer than {filters.min_counts} counts": counts < filters.min_counts,
            f"fewer than {filters.min_genes} genes": np.diff(X.indptr) < filters.min_genes,
        }
        if mito is not None:
            share = np.asarray(X[:, mito].sum(1)).ravel() / np.maximum(counts, 1e-12)
            tests[f"mitochondrial share above {filters.max_mito:g}"] = share > filters.max_mito
        kept, reasons = np.ones(len(counts), bool), Counter()
        for reason, out in tests.items():
            reasons[reason] += int((kept & out).sum())
            kept &= ~out
        yield Kept(X, kept, +reasons)


def _out(column: Coded, excluded: tuple[str, ...]) -> np.ndarray:
    """Which cells have a name that is excluded."""
    return np.append([name in excluded for name in column.names], False).astype(bool)[column.codes]


def _mitochondrial(source: Source, names: Names) -> np.ndarray:
    symbols = names.get(SYMBOLS, ())
    found = np.flatnonzero([name.upper().startswith("MT-") for name in symbols])
    if not len(found):
        raise ValueError(
            f"{source.where} has no gene named MT-..., which max_mito needs: its genes must be "
            "symbols, or have them in a column of var such as feature_name or gene_symbol."
        )
    return found
