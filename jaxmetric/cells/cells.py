"""`Cells`: cells of one gene order with their labels and studies, in memory or in a store."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Int

from jaxmetric.cells.genes import gene_columns
from jaxmetric.cells.packed import move_columns, value_type
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.config import Values
from jaxmetric.labels.ontology import CellOntology

READ = 2**13  # cells of a store that are looked through at a time


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of one gene order, in memory or in a store.

    Attributes:
      X: (cells, genes) raw counts or log1p of counts per 10,000: CSR float32, or the rows of a store.
      values: which of the two X holds.
      genes: gene names, in column order.
      labels: label of each cell as an index into `label_names`; -1: no label.
      label_names: sorted; with an ontology, the terms' names.
      studies: study of each cell as an index into `study_names`.
      study_names: sorted.
      ontology: the ontology that the labels are terms of; None for plain class labels.
      missing_genes: genes asked for that no cell has; their columns are zero.
    """

    X: sp.csr_matrix | StoredRows
    values: Values
    genes: tuple[str, ...]
    labels: Int[np.ndarray, " cells"]
    label_names: tuple[str, ...]
    studies: Int[np.ndarray, " cells"]
    study_names: tuple[str, ...]
    ontology: CellOntology | None = None
    missing_genes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Cells({self.describe()})"

    @property
    def lengths(self) -> Int[np.ndarray, " cells"]:
        """Values of each cell that are not zero; of a store, those of left-out genes included."""
        return self.X.lengths if isinstance(self.X, StoredRows) else np.diff(self.X.indptr)

    def filled(self) -> Bool[np.ndarray, " cells"]:
        """Which cells have any value in the genes; of a store with some genes left out, all are read."""
        if not isinstance(self.X, StoredRows) or self.X.columns is None:
            return self.lengths > 0
        pieces = (self.X.packed(np.float32, slice(i, i + READ)) for i in range(0, len(self), READ))
        return np.concatenate([piece.lengths > 0 for piece in pieces])

    @property
    def value_type(self) -> type:
        """The narrowest type that holds every value exactly."""
        largest = self.X.largest if isinstance(self.X, StoredRows) else self.X.data.max(initial=0)
        return value_type(float(largest), self.values == "counts")

    def matrix(self) -> sp.csr_matrix:
        """X in memory: read where it lies in a store."""
        return self.X.read() if isinstance(self.X, StoredRows) else self.X

    def select(self, which: Bool[np.ndarray, " cells"] | Int[np.ndarray, " some"]) -> "Cells":
        """The cells of a mask or of row numbers; label and study names stay as they are."""
        return dataclasses.replace(
            self, X=self.X[which], labels=self.labels[which], studies=self.studies[which]
        )

    def in_studies(self, names: Sequence[str]) -> Bool[np.ndarray, " cells"]:
        """Which cells are of the named studies.

        Raises:
          ValueError: for a study that no cell is of.
        """
        names = [names] if isinstance(names, str) else list(names)
        absent = sorted(set(names) - set(self.study_names))
        if absent:
            raise ValueError(
                f"no cell is of study {', '.join(map(repr, absent))}; the studies are: "
                f"{', '.join(self.study_names)}."
            )
        return np.isin(self.studies, [self.study_names.index(name) for name in names])

    def with_genes(self, genes: Sequence[str], min_gene_overlap: float = 0.2) -> "Cells":
        """The same cells in another gene order: columns by name, zero where a gene is missing."""
        X, new = align_genes(self.X, self.genes, genes, min_gene_overlap)
        absent = {*new, *self.missing_genes}
        missing = tuple(gene for gene in genes if gene in absent)
        return dataclasses.replace(self, X=X, genes=tuple(genes), missing_genes=missing)

    def of_labels(
        self, labels: Sequence[str], *, or_below: bool = False
    ) -> Bool[np.ndarray, " cells"]:
        """Which cells have a label among the given ones; with an ontology, whose term is among theirs.

        `or_below`: or whose term is a descendant of one of theirs.
        """
        wanted, names = set(labels), list(self.label_names)
        if self.ontology is not None:
            wanted, names = set(self.ontology.find(labels)) - {None}, self.ontology.find(names)
            if or_below:
                terms = sorted({*wanted, *names} - {None})
                below = self.ontology.descendants(terms)[[term in wanted for term in terms]]
                wanted |= {term for term, under in zip(terms, below.any(0), strict=True) if under}
        return np.isin(self.labels, [i for i, name in enumerate(names) if name in wanted])

    def with_only(self, labels: Sequence[str], *, or_below: bool = False) -> "Cells":
        """The cells of the given labels, as in `of_labels`."""
        return self.select(self.of_labels(labels, or_below=or_below))

    def with_labels(self, names: Sequence[str]) -> "Cells":
        """The same cells with labels numbered by `names`, which must hold every label in use."""
        number = pd.Index(names).get_indexer(pd.Index(self.label_names))
        labels = np.where(self.labels >= 0, np.append(number, -1)[self.labels], -1)
        return dataclasses.replace(self, labels=labels.astype(np.int32), label_names=tuple(names))

    def describe(self) -> str:
        """One line that says what these cells are."""
        what = "raw counts" if self.values == "counts" else "log-normalised values"
        missing = f", {len(self.missing_genes)} of them missing" if self.missing_genes else ""
        labels = len(np.unique(self.labels[self.labels >= 0]))
        return (
            f"{len(self)} cells x {len(self.genes)} genes{missing} ({what}), "
            f"{labels} labels, {len(np.unique(self.studies))} studies"
        )


def require_cells(cells: object, what: str) -> Cells:
    """The cells; a ValueError that names `read_cells` for anything else."""
    if not isinstance(cells, Cells):
        raise ValueError(
            f"{what} must come from jaxmetric.read_cells(source, label_key=..., study_key=...), but "
            f"is of type {type(cells).__name__}."
        )
    return cells


def align_genes(
    X: sp.csr_matrix | StoredRows,
    genes: Sequence[str],
    target: Sequence[str],
    min_gene_overlap: float,
    name: str = "the data",
) -> tuple[sp.csr_matrix | StoredRows, tuple[str, ...]]:
    """The columns of X in the order of `target`, by name, and the target's genes that X lacks.

    Raises:
      ValueError: when less than `min_gene_overlap` of the target is there.
    """
    if tuple(genes) == tuple(target):
        return X, ()
    columns, missing = gene_columns(genes, target, min_gene_overlap, name)
    moved = X.with_columns if isinstance(X, StoredRows) else functools.partial(move_columns, X)
    return moved(columns, len(target)), missing


def log_normalized(cells: Cells) -> sp.csr_matrix:
    """The cells' log1p of counts per 10,000, as `batches.expression` gives it on the device."""
    X = cells.matrix()
    if cells.values == "lognorm":
        return X
    total = np.asarray(X.sum(1)).ravel()
    X = X.copy()
    X.data = np.log1p(X.data * np.repeat(1e4 / np.where(total > 0, total, 1), np.diff(X.indptr)))
    return X.astype(np.float32)
