"""Which cells of a source are kept, and why the others are not."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from jaxmetric.cells.coded import Coded
from jaxmetric.cells.genes import SYMBOLS, Names
from jaxmetric.cells.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """Which cells are kept; as they are, all.

    Attributes:
      min_counts: least counts of a cell.
      min_genes: least genes of a cell with a value.
      max_mito: largest share of a cell's counts in mitochondrial genes ("MT-...", "mt-...").
      exclude_studies: studies to leave out.
      exclude_samples: samples, named in the column `sample_key`, to leave out.
      sample_key: column of obs with the sample.
    """

    min_counts: int = 0
    min_genes: int = 0
    max_mito: float = 1.0
    exclude_studies: tuple[str, ...] = ()
    exclude_samples: tuple[str, ...] = ()
    sample_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("exclude_studies", "exclude_samples"):
            names = getattr(self, name)
            object.__setattr__(self, name, (names,) if isinstance(names, str) else tuple(names))
        if self.exclude_samples and self.sample_key is None:
            raise ValueError(
                "exclude_samples needs sample_key= / --sample-key, the column of obs with the sample."
            )
        if not 0 <= self.max_mito <= 1:
            raise ValueError(f"max_mito must be a share from 0 to 1, but is {self.max_mito}.")
        if self.min_counts < 0 or self.min_genes < 0:
            raise ValueError(
                f"min_counts and min_genes must be at least 0, but are {self.min_counts} and "
                f"{self.min_genes}."
            )


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
