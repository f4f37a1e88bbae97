"""AnnData, h5ad and zarr -> `Cells`: checked, aligned, packed cells with their labels and studies."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Int

from jaxmetric.ontology import CellOntology

Values = Literal["counts", "lognorm"]
LOG_LIMIT = float(np.log1p(1e6))  # log1p of a whole cell's share, at counts per million
UNLABELLED = ("", "unknown")  # beside missing values; "unknown" is what CELLxGENE writes


class DataFileError(FileNotFoundError, ValueError):
    """A data file that is not there."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of one gene order, packed in memory.

    Attributes:
      X: (cells, genes) CSR float32, raw counts or log1p of counts per 10,000.
      values: which of the two X holds.
      genes: gene names, in column order.
      labels: label of each cell as an index into `label_names`; -1: no label.
      label_names: sorted; with an ontology, the terms' names.
      studies: study of each cell as an index into `study_names`.
      study_names: sorted.
      ontology: the ontology that the labels are terms of; None for plain class labels.
      missing_genes: genes asked for that no cell has; their columns are zero.
    """

    X: sp.csr_matrix
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

    def with_only(self, labels: Sequence[str]) -> "Cells":
        """The cells whose label is among the given ones; with an ontology, whose term is."""
        wanted, names = set(labels), list(self.label_names)
        if self.ontology is not None:
            wanted, names = set(self.ontology.find(labels)) - {None}, self.ontology.find(names)
        named = [i for i, name in enumerate(names) if name in wanted]
        return self.select(np.isin(self.labels, named))

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
      source: an h5ad file, a zarr folder, an AnnData in memory or backed, or several of these.
        Matrices may be dense, CSR or CSC.
      label_key: column of `obs` with the cell types: names or ids of the ontology. Missing values, ""
        and "unknown" mean no label. None: no cell has a label.
      study_key: column of `obs` with the study. None: each source is a study of its own.
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

    Raises:
      ValueError: for anything missing, unreadable or inconsistent; the message names the source.
    """
    if isinstance(source, Cells):
        return source if genes is None else source.with_genes(genes, min_gene_overlap)
    if ontology == "default":
        ontology = CellOntology.default()
    sources = [source] if isinstance(source, str | Path | anndata.AnnData) else list(source)
    if not sources:
        raise ValueError("no data: expected a path or an AnnData, but got an empty list.")
    parts = [
        _read_one(one, _name(one, i), label_key, study_key, layer, values, gene_key)
        for i, one in enumerate(sources)
    ]
    kinds = {part.values for part in parts}
    if len(kinds) > 1:
        found = ", ".join(f"{part.name}: {part.values}" for part in parts)
        raise ValueError(
            f"the sources mix counts and log-normalised values ({found}); choose matrices of one "
            "kind with layer= / --layer, or say what they hold with values= / --values."
        )
    target = _shared_genes(parts) if genes is None else tuple(genes)
    aligned = [
        align_genes(part.X, part.genes, target, min_gene_overlap if genes else 0.0, part.name)
        for part in parts
    ]
    if genes is None:
        _check_shared(parts, target, min_gene_overlap)
    labels, label_names = _labels(np.concatenate([part.labels for part in parts]), ontology)
    study_names, studies = np.unique(
        np.concatenate([part.studies for part in parts]), return_inverse=True
    )
    return Cells(
        X=sp.vstack([X for X, _ in aligned], format="csr"),
        values=parts[0].values,
        genes=target,
        labels=labels,
        label_names=label_names,
        studies=studies.astype(np.int32),
        study_names=tuple(map(str, study_names)),
        ontology=ontology if label_key is not None else None,
        missing_genes=tuple(set.intersection(*(set(missing) for _, missing in aligned))),
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
    X: sp.csr_matrix,
    genes: Sequence[str],
    target: Sequence[str],
    min_gene_overlap: float,
    name: str = "the data",
) -> tuple[sp.csr_matrix, tuple[str, ...]]:
    """The columns of X in the order of `target`, by name, and the target's genes that X lacks.

    Raises:
      ValueError: when less than `min_gene_overlap` of the target is there.
    """
    if tuple(genes) == tuple(target):
        return X, ()
    column = pd.Index(genes).get_indexer(pd.Index(target))
    found = column >= 0
    if found.mean() < min_gene_overlap or not found.any():
        raise ValueError(
            f"{name} has only {found.sum()} of the {len(target)} genes expected (at least "
            f"{min_gene_overlap:.0%} wanted); found {_some(genes)}, expected {_some(target)}. Are "
            "both gene symbols, or both Ensembl ids, of one species? Choose the column of var with "
            "gene_key= / --gene-key, or lower min_gene_overlap= / --min-gene-overlap."
        )
    select = sp.csr_matrix(
        (np.ones(found.sum(), X.dtype), (column[found], np.flatnonzero(found))),
        shape=(len(genes), len(target)),
    )
    aligned = sp.csr_matrix(X @ select)
    aligned.sort_indices()
    return aligned, tuple(np.asarray(target, object)[~found])


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    X: sp.csr_matrix
    values: Values
    genes: tuple[str, ...]
    labels: np.ndarray
    studies: np.ndarray


def _read_one(source, name, label_key, study_key, layer, values, gene_key) -> _Part:
    adata = source if isinstance(source, anndata.AnnData) else _open(Path(source))
    try:
        matrix, var, where = _matrix(adata, layer, name)
        X = _checked_csr(matrix, where)
        genes = _genes(var, gene_key, where)
        labels = np.full(len(X.indptr) - 1, None, object)
        if label_key is not None:
            labels = _column(adata.obs, label_key, "label", name)
        studies = np.full(len(labels), name, object)
        if study_key is not None:
            studies = _column(adata.obs, study_key, "study", name)
            if pd.isna(studies).any():
                raise ValueError(
                    f"{name}: {pd.isna(studies).sum()} cells have no study in obs[{study_key!r}]."
                )
        return _Part(name, X, _values(X, values, where), genes, labels, studies.astype(str))
    finally:
        if adata is not source and adata.isbacked:
            adata.file.close()


def _open(path: Path) -> anndata.AnnData:
    if not path.exists():
        raise DataFileError(f"no such file: {path}.")
    try:
        if path.is_dir():
            return anndata.read_zarr(path)
        return anndata.read_h5ad(path, backed="r")
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable AnnData file (h5ad, or a zarr folder): {error}"
        ) from error


def _matrix(adata: anndata.AnnData, layer: str | None, name: str):
    """The matrix to read, the `var` of its columns, and its name for messages."""
    if layer is None:
        layer = "counts" if "counts" in adata.layers else "X"
    layers = _some(key for key in adata.layers.keys() if key is not None) or "none"  # noqa: SIM118
    if layer == "raw":
        if adata.raw is None:
            raise ValueError(f"{name} has no raw, which layer='raw' asks for.")
        return adata.raw.X, adata.raw.var, f"{name}: raw"
    if layer == "X":
        if adata.X is None:
            raise ValueError(f"{name} has no X; its layers are: {layers}.")
        return adata.X, adata.var, f"{name}: X"
    if layer not in adata.layers:
        raise ValueError(f"{name} has no layer {layer!r}; it has: {layers}.")
    return adata.layers[layer], adata.var, f"{name}: layer {layer!r}"


def _checked_csr(matrix, where: str) -> sp.csr_matrix:
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix[:]
    if not sp.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "buif":
        raise ValueError(f"{where} must hold numbers, but is of type {matrix.dtype}.")
    if 0 in matrix.shape:
        raise ValueError(f"{where} is empty: {matrix.shape[0]} cells x {matrix.shape[1]} genes.")
    X = sp.csr_matrix(matrix, dtype=np.float32)
    X.sum_duplicates()
    X.eliminate_zeros()
    bad = ~np.isfinite(X.data)
    if bad.any():
        raise ValueError(f"{where} has {bad.sum()} values that are NaN or infinite.")
    if (X.data < 0).any():
        raise ValueError(
            f"{where} has {(X.data < 0).sum()} negative values, down to {X.data.min():.3g}: scaled "
            "data? Counts or log-normalised values are needed: choose another matrix with "
            "layer= / --layer ('raw', 'X' or a layer's name)."
        )
    return X


def _values(X: sp.csr_matrix, values: Values | None, where: str) -> Values:
    whole = bool((X.data == np.rint(X.data)).all())
    if values == "counts" and not whole:
        part = (X.data != np.rint(X.data)).mean()
        raise ValueError(
            f"{where} must hold counts, but {part:.0%} of its values are not whole numbers. If it "
            "is log-normalised, say values='lognorm' / --values lognorm."
        )
    if values not in (None, "counts", "lognorm"):
        raise ValueError(f"values must be 'counts' or 'lognorm', but is {values!r}.")
    if values is not None:
        return values
    if whole:
        return "counts"
    if "counts" in where.rpartition(": ")[2]:
        raise ValueError(
            f"{where} must hold counts, but has values that are not whole numbers. Choose another "
            "matrix with layer= / --layer, or say values='lognorm' / --values lognorm."
        )
    if X.data.max() <= LOG_LIMIT:
        return "lognorm"
    raise ValueError(
        f"{where} is neither counts (whole numbers) nor log-normalised (up to {LOG_LIMIT:.1f}): it "
        f"has fractions and reaches {X.data.max():.4g}. Normalised without log1p? Choose another "
        "matrix with layer= / --layer, or decide with values='lognorm' / --values lognorm."
    )


def _genes(var: pd.DataFrame, gene_key: str | None, where: str) -> tuple[str, ...]:
    names = var.index if gene_key is None else _column(var, gene_key, "gene", where, "var")
    index = pd.Index(np.asarray(names, object).astype(str))
    if index.has_duplicates:
        twice = index[index.duplicated()].unique()
        raise ValueError(
            f"{where} has {len(twice)} gene names more than once ({_some(twice)}): make them unique "
            "(adata.var_names_make_unique()), or choose another column with gene_key= / --gene-key."
        )
    return tuple(index)


def _column(frame: pd.DataFrame, key: str, what: str, name: str, frame_name="obs") -> np.ndarray:
    if key not in frame.columns:
        raise ValueError(
            f"{name} has no {what} column {frame_name}[{key!r}]; it has: "
            f"{_some(frame.columns, 20) or 'none'}."
        )
    return frame[key].to_numpy(dtype=object)


def _labels(
    raw: np.ndarray, ontology: CellOntology | None
) -> tuple[Int[np.ndarray, " cells"], tuple[str, ...]]:
    """Codes and sorted names; with an ontology, names and ids of a term become the term's name."""
    blank = pd.isna(raw) | np.isin(raw.astype(str), UNLABELLED)
    spelled, code = np.unique(raw[~blank].astype(str), return_inverse=True)
    if ontology is not None:
        spelled = np.array([ontology.name(term) for term in ontology.resolve(spelled.tolist())])
    names, term = np.unique(spelled, return_inverse=True)
    labels = np.full(len(raw), -1, np.int32)
    labels[~blank] = term[code] if len(names) else -1
    return labels, tuple(map(str, names))


def _shared_genes(parts: list[_Part]) -> tuple[str, ...]:
    shared = set.intersection(*(set(part.genes) for part in parts))
    return tuple(gene for gene in parts[0].genes if gene in shared)


def _check_shared(parts: list[_Part], shared: tuple[str, ...], least: float) -> None:
    for part in parts:
        if len(shared) < max(1, least * len(part.genes)):
            others = ", ".join(other.name for other in parts if other is not part)
            raise ValueError(
                f"{part.name} shares only {len(shared)} of its {len(part.genes)} genes with {others} "
                f"(at least {least:.0%} wanted): its genes are {_some(part.genes)}. Choose the column "
                "of var with gene_key= / --gene-key, or lower min_gene_overlap= / --min-gene-overlap."
            )


def _name(source, i: int) -> str:
    return f"AnnData {i + 1}" if isinstance(source, anndata.AnnData) else str(source)


def _some(names, most: int = 3) -> str:
    names = list(map(str, names))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
