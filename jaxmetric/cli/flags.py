"""Flags of the commands that say which cells to read, and how."""

import dataclasses
from pathlib import Path

import jaxmetric as jm
from jaxmetric.config import Values


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Which matrix to read, and its genes."""

    layer: str | None = None
    """A layer's name, X or raw. Default: layer "counts" where there is one, else X."""
    values: Values | None = None
    """What the matrix holds: raw counts, or log1p of counts per 10,000. Default: detected."""
    gene_key: str | None = None
    """Column of var with the gene names. Default: the index of var."""
    min_gene_overlap: float = 0.2
    """Least share of the genes expected that a file must have."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Where labels and studies are."""

    label_key: str | None = None
    """Column of obs with the cell types: names or ids of the ontology. A store knows its own."""
    study_key: str | None = None
    """Column of obs with the study. Default: each file is a study; a store knows its own."""
    ontology: str = "default"
    """"default": the Cell Ontology in the package; "none": plain class labels; or an OBO file."""


@dataclasses.dataclass(frozen=True)
class ReferenceMatrix:
    """The same of the reference cells' files, where it differs; a training store knows its own."""

    reference_layer: str | None = None
    """The layer of the reference's files. Default: --layer."""
    reference_values: Values | None = None
    """What it holds. Default: --values."""
    reference_gene_key: str | None = None
    """Column of var with the gene names of the reference's files. Default: --gene-key."""

    def over(self, matrix: Matrix, files: tuple[Path, ...]) -> Matrix:
        """What to read of the reference's files."""
        if _is_store(files):
            matrix = Matrix(min_gene_overlap=matrix.min_gene_overlap)
        return dataclasses.replace(
            matrix,
            layer=self.reference_layer or matrix.layer,
            values=self.reference_values or matrix.values,
            gene_key=self.reference_gene_key or matrix.gene_key,
        )


@dataclasses.dataclass(frozen=True)
class ReferenceLabels:
    """Where the labels and studies of the reference cells are, where it differs."""

    reference_label_key: str | None = None
    """Column of obs with the reference cells' types. Default: --label-key; a store's own."""
    reference_study_key: str | None = None
    """Column of obs with the reference cells' studies. Default: --study-key; a store's own."""

    def over(self, labels: Labels, files: tuple[Path, ...]) -> Labels:
        """What to read of the reference's files."""
        labels = Labels(ontology=labels.ontology) if _is_store(files) else labels
        return dataclasses.replace(
            labels,
            label_key=self.reference_label_key or labels.label_key,
            study_key=self.reference_study_key or labels.study_key,
        )


def read(
    files: tuple[Path, ...],
    labels: Labels,
    matrix: Matrix,
    genes: tuple[str, ...] | None = None,
) -> "jm.Cells":
    """The cells of the files, as the flags say."""
    ontology = ontology_of(labels.ontology)
    keys = {"label_key": labels.label_key, "study_key": labels.study_key}
    how = keys | dataclasses.asdict(matrix)
    return jm.read_cells(list(files), **how, ontology=ontology, genes=genes)


def ontology_of(name: str) -> "jm.CellOntology | str | None":
    """What `read_cells` takes for --ontology."""
    if name in ("none", "default"):
        return None if name == "none" else name
    return jm.CellOntology.from_obo(name)


def _is_store(files: tuple[Path, ...]) -> bool:
    from jaxmetric.cells.store import about

    return len(files) == 1 and about(files[0]) is not None
