"""AnnData, h5ad, zarr and stores -> `Cells`: checked, aligned, labelled."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import scipy.sparse as sp

from jaxmetric.cells.cells import Cells, align_genes
from jaxmetric.cells.coded import Coded, all_of, coded, joined, renamed
from jaxmetric.cells.genes import warn_of_missing
from jaxmetric.cells.source import Source, opened, paths_in, some
from jaxmetric.cells.store import FORMAT, about, check, require_zarr_3
from jaxmetric.cells.stored_rows import StoredRows
from jaxmetric.cells.values import Range, value_kind, warn_of_scale
from jaxmetric.config import Values
from jaxmetric.labels.ontology import CellOntology

UNLABELLED = ("", "unknown")  # beside missing values; "unknown" is what CELLxGENE writes


def read_cells(
    source: str | Path | anndata.AnnData | Cells | Sequence,
    *,
    label_key: str | None = None,
    study_key: str | None = None,
    layer: str | None = None,
    values: Values | None = None,
    gene_key: str | None = None,
    genes: Sequence[str] | None = None,
    min_gene_overlap: float = 0.2,
    ontology: CellOntology | Literal["default"] | None = "default",
) -> Cells:
    """Reads and checks cells. No cell is dropped here.

    Args:
      source: a training store, whose values stay on disk; an h5ad file, a zarr folder, a folder of
        these, an AnnData in memory or backed, or several of these. Matrices may be dense, CSR or CSC.
      label_key: column of `obs` with the cell types: names or ids of the ontology. Missing values, ""
        and "unknown" mean no label. None: no cell has a label; of a store, its own column.
      study_key: column of `obs` with the study. None: each source is a study of its own; of a store,
        its own column.
      layer: the matrix to read: a layer's name, "X" or "raw". None: layer "counts" where there is
        one, else X.
      values: what the matrix holds: "counts", raw counts, or "lognorm", log1p of counts per 10,000.
        None: detected. Whole numbers are counts; other values up to log1p(1e6) are log-normalised.
      gene_key: column of `var` with the gene names. None: `var_names`.
      genes: the gene order to align to. None: the source's own; of several sources, the genes they
        share, in the order of the first.
      min_gene_overlap: least share of `genes` (of a source's genes, where `genes` is None) that must
        be there by name.
      ontology: what labels are terms of: "default" (the Cell Ontology in the package), another
        `CellOntology`, or None for plain class labels.

    Returns:
      The cells, in memory, or in their store.

    Raises:
      ValueError: for anything missing, unreadable or inconsistent; the message names the source.
    """
    if isinstance(source, Cells):
        return source if genes is None else _in_order(source, genes, min_gene_overlap, "the data")
    if ontology == "default":
        ontology = CellOntology.default()
    sources = [source] if isinstance(source, str | Path | anndata.AnnData) else list(source)
    if len(sources) == 1 and isinstance(sources[0], str | Path) and about(Path(sources[0])):
        if layer is not None or gene_key is not None:
            raise ValueError(f"{sources[0]} is a training store: it has no layers or gene keys.")
        stored = read_store(Path(sources[0]), label_key, study_key, ontology)
        if values not in (None, stored.values):
            raise ValueError(f"{sources[0]} holds {stored.values}, but values is {values!r}.")
        if genes is None:
            return stored
        return _in_order(stored, genes, min_gene_overlap, str(sources[0]))
    parts = [
        _read_one(one, _name(one, i), label_key, study_key, layer, values, gene_key)
        for i, one in enumerate(_each(sources))
    ]
    _check_one_kind(parts)
    cells = _joined(parts, genes, min_gene_overlap, ontology)
    return cells if label_key is not None else dataclasses.replace(cells, ontology=None)


def _each(sources: list) -> list:
    """The sources with each folder replaced by the files in it."""
    each = [
        one
        for source in sources
        for one in ([source] if isinstance(source, anndata.AnnData) else paths_in(Path(source)))
    ]
    if not each:
        raise ValueError("no data: expected a path or an AnnData, but got an empty list.")
    return each


def _in_order(cells: Cells, genes: Sequence[str], min_gene_overlap: float, name: str) -> Cells:
    aligned = cells.with_genes(genes, min_gene_overlap)
    known = set(cells.missing_genes)
    warn_of_missing([g for g in aligned.missing_genes if g not in known], len(genes), name)
    return aligned


def read_store(
    path: Path,
    label_key: str | None = None,
    study_key: str | None = None,
    ontology: CellOntology | None = None,
) -> Cells:
    """The cells of a training store, whose values stay on disk; keys are those of `prepare` by default.

    Raises:
      ValueError: for a store that is damaged, or lacks a column.
    """
    require_zarr_3("a training store")
    said = about(path) or {}
    if said.get("format") != FORMAT:
        raise ValueError(f"{path} must be of format {FORMAT!r}, but is of {said.get('format')!r}.")
    check(path)
    with opened(path, str(path), "X") as cells:
        starts = np.asarray(cells.matrix.group["indptr"][:], np.int64)
        labels = label_column(cells, label_key or said["label_key"])
        labels = by_term(labels, ontology)
        studies = study_column(cells, study_key or said["study_key"])
        num_cells, num_genes = cells.matrix.shape
        return Cells(
            X=StoredRows(
                store=path.absolute(),
                starts=starts,
                rows=np.arange(num_cells),
                shape=(num_cells, num_genes),
                largest=said["largest"],
                fingerprint=said["fingerprint"],
            ),
            values=said["values"],
            genes=cells.genes(None),
            labels=labels.codes,
            label_names=labels.names,
            studies=studies.codes,
            study_names=studies.names,
            ontology=ontology,
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    X: sp.csr_matrix
    values: Values
    genes: tuple[str, ...]
    labels: Coded
    studies: Coded


def _read_one(source, name, label_key, study_key, layer, values, gene_key) -> _Part:
    with opened(source, name, layer) as cells:
        X = cells.read()
        labels = Coded(np.full(len(cells), -1, np.int32), ())
        if label_key is not None:
            labels = label_column(cells, label_key)
        studies = all_of(name, len(cells))
        if study_key is not None:
            studies = study_column(cells, study_key)
        kind = value_kind(Range.of(X.data), values, cells.where)
        if kind == "lognorm":
            warn_of_scale(X, cells.where)
        return _Part(name, X, kind, cells.genes(gene_key), labels, studies)


def label_column(cells: Source, key: str) -> Coded:
    """The label of each cell, as spelled."""
    return coded(cells.column(key, "label"), UNLABELLED)


def study_column(cells: Source, key: str) -> Coded:
    """The study of each cell; raises a ValueError where one has none."""
    studies = coded(cells.column(key, "study"))
    if (studies.codes < 0).any():
        number = (studies.codes < 0).sum()
        raise ValueError(f"{cells.name}: {number} cells have no study in obs[{key!r}].")
    return studies


def by_term(labels: Coded, ontology: CellOntology | None) -> Coded:
    """With an ontology, names and ids of a term become the term's name; errors for those of none."""
    if ontology is None:
        return labels
    ids = ontology.resolve(labels.names)
    return renamed(labels, {n: ontology.name(i) for n, i in zip(labels.names, ids, strict=True)})


def _check_one_kind(parts: list[_Part]) -> None:
    """Raises a ValueError unless all parts hold counts, or all hold log-normalised values."""
    if len({part.values for part in parts}) > 1:
        kinds = ", ".join(f"{part.name}: {part.values}" for part in parts)
        raise ValueError(
            f"the sources mix counts and log-normalised values ({kinds}); choose matrices of one "
            "kind with layer= / --layer, or say what they hold with values= / --values."
        )


def _joined(
    parts: list[_Part],
    genes: Sequence[str] | None,
    min_gene_overlap: float,
    ontology: CellOntology | None,
) -> Cells:
    """The cells of all parts, aligned to the genes; to the genes that the parts share if None."""
    target = _shared_genes(parts) if genes is None else tuple(genes)
    aligned = [
        align_genes(part.X, part.genes, target, min_gene_overlap if genes else 0.0, part.name)
        for part in parts
    ]
    if genes is None:
        _check_shared(parts, target, min_gene_overlap)
    else:
        for part, (_, missing) in zip(parts, aligned, strict=True):
            warn_of_missing(missing, len(target), part.name)
    labels = by_term(joined([part.labels for part in parts]), ontology)
    studies = joined([part.studies for part in parts])
    return Cells(
        X=sp.vstack([X for X, _ in aligned], format="csr"),
        values=parts[0].values,
        genes=target,
        labels=labels.codes,
        label_names=labels.names,
        studies=studies.codes,
        study_names=studies.names,
        ontology=ontology,
        missing_genes=tuple(set.intersection(*(set(missing) for _, missing in aligned))),
    )


def _shared_genes(parts: list[_Part]) -> tuple[str, ...]:
    shared = set.intersection(*(set(part.genes) for part in parts))
    return tuple(gene for gene in parts[0].genes if gene in shared)


def _check_shared(parts: list[_Part], shared: tuple[str, ...], least: float) -> None:
    for part in parts:
        if len(shared) < max(1, least * len(part.genes)):
            others = ", ".join(other.name for other in parts if other is not part)
            raise ValueError(
                f"{part.name} shares only {len(shared)} of its {len(part.genes)} genes with {others} "
                f"(at least {least:.0%} wanted): its genes are {some(part.genes)}. Choose the column "
                "of var with gene_key= / --gene-key, or lower min_gene_overlap= / --min-gene-overlap."
            )


def _name(source, i: int) -> str:
    return f"AnnData {i + 1}" if isinstance(source, anndata.AnnData) else str(source)
