"""h5ad files, zarr folders and AnnData, opened alike: checked blocks of rows, columns, genes."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem, sparse_dataset

BLOCK = 2**22  # values of a block of rows


class DataFileError(FileNotFoundError, ValueError):
    """A data file that is not there."""


class ValuesError(ValueError):
    """Values that can be read but not used."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Cells to be read.

    Attributes:
      name: what messages call it.
      obs: columns of the cells.
      var: columns of the genes.
      matrix: (cells, genes), in memory or on disk; dense, CSR or CSC.
      where: what messages call the matrix.
    """

    name: str
    obs: pd.DataFrame
    var: pd.DataFrame
    matrix: Any
    where: str

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def read(self) -> sp.csr_matrix:
        """All cells, checked."""
        with self._readable():
            whole = self.matrix.to_memory() if _is_backed(self.matrix) else self.matrix[:]
            return checked(whole, self.where)

    def first_values(self) -> np.ndarray:
        """Some millions of the matrix's values, as they lie in the file; `blocks` checks them."""
        with self._readable():
            matrix = self.matrix
            if _is_backed(matrix):
                values = np.asarray(matrix.group["data"][:BLOCK])
            elif sp.issparse(matrix):
                values = matrix.data[:BLOCK]
            else:
                values = np.asarray(matrix[: max(1, BLOCK // matrix.shape[1])]).ravel()
            return values[np.isfinite(values)] if values.dtype.kind in "iuf" else np.zeros(0)

    def blocks(self, start: int = 0) -> Generator[sp.csr_matrix]:
        """The cells from `start` on, checked, some millions of values at a time: never a whole file."""
        matrix = self.matrix
        with tempfile.TemporaryDirectory() as folder, self._readable():
            if getattr(matrix, "format", None) == "csc" and _is_backed(matrix):
                for X in blocks_of_csc(matrix, Path(folder)):
                    num_cells = len(X.indptr) - 1
                    if start < num_cells:
                        yield checked(X[start:], self.where)
                    start = max(start - num_cells, 0)
                return
            matrix = matrix.tocsr() if sp.issparse(matrix) else matrix
            step = max(1, BLOCK * len(self) // max(_num_values(matrix), 1))
            for first in range(start, len(self), step):
                yield checked(matrix[first : first + step], self.where)

    def column(self, key: str, what: str) -> pd.Series:
        """A column of obs."""
        return column(self.obs, key, what, self.name)

    def genes(self, gene_key: str | None) -> tuple[str, ...]:
        """The names of the genes: the index of `var`, or one of its columns."""
        names = self.var.index
        if gene_key is not None:
            names = column(self.var, gene_key, "gene", self.where, "var")
        index = pd.Index(np.asarray(names, object).astype(str))
        if index.has_duplicates:
            twice = index[index.duplicated()].unique()
            raise ValueError(
                f"{self.where} has {len(twice)} gene names more than once ({some(twice)}): make them "
                "unique (adata.var_names_make_unique()), or choose another column with gene_key= / "
                "--gene-key."
            )
        return tuple(index)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except ValuesError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.where} cannot be read: is the file truncated or damaged? ({error})"
            ) from error


@contextlib.contextmanager
def opened(
    source: str | Path | anndata.AnnData, name: str, layer: str | None = None
) -> Iterator[Source]:
    """The source, as long as the context lasts.

    Args:
      source: an h5ad file, a zarr folder, or an AnnData in memory or backed.
      name: what messages call it.
      layer: a layer's name, "X" or "raw"; None: layer "counts" where there is one, else X.

    Raises:
      ValueError: for a file that is missing, damaged or no AnnData, or lacks the layer.
    """
    if isinstance(source, anndata.AnnData):
        yield _of_adata(source, name, layer)
        return
    path = Path(source)
    if not path.exists():
        raise DataFileError(f"no such file: {path}.")
    with contextlib.ExitStack() as stack:
        try:
            found = _of_file(path, name, layer, stack)
        except ValuesError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a readable AnnData file (h5ad, or a zarr folder): {error}"
            ) from error
        yield found


def paths_in(path: Path) -> list[Path]:
    """The path itself, or the h5ad files and zarr folders in a folder that is none of these, by name.

    Raises:
      ValueError: when there is nothing, or nothing to read in the folder.
    """
    if not path.exists():
        raise DataFileError(f"no such file: {path}.")
    groups = any((path / name).exists() for name in ("zarr.json", ".zgroup"))
    if not path.is_dir() or groups or path.suffix == ".zarr":
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix in (".h5ad", ".zarr"))
    if not found:
        raise DataFileError(f"{path} has no .h5ad files or .zarr folders in it.")
    return found


def stamp(path: Path) -> list:
    """What changes when a file, or one in a folder, is written: place, size, and newest time."""
    files = [one for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file()]
    stats = [one.stat() for one in files]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return [str(path.absolute()), sum(stat.st_size for stat in stats), newest]


def checked(matrix: Any, where: str) -> sp.csr_matrix:
    """The matrix as CSR float32; raises a ValuesError for what is neither counts nor log-normalised."""
    matrix = matrix if sp.issparse(matrix) else np.asarray(matrix)
    if matrix.dtype.kind not in "buif":
        raise ValuesError(f"{where} must hold numbers, but is of type {matrix.dtype}.")
    if matrix.dtype != np.float32 and matrix.dtype.kind in "iuf" and matrix.dtype.itemsize > 2:
        _check_exact(matrix.data if sp.issparse(matrix) else matrix, where)
    if sp.issparse(matrix) and matrix.format == "csr":  # index types that differ become one
        matrix = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape)
    X = sp.csr_matrix(matrix, dtype=np.float32)
    X.sum_duplicates()
    X.eliminate_zeros()
    bad = ~np.isfinite(X.data)
    if bad.any():
        raise ValuesError(f"{where} has {bad.sum()} values that are NaN or infinite.")
    if (X.data < 0).any():
        raise ValuesError(
            f"{where} has {(X.data < 0).sum()} negative values, down to {X.data.min():.3g}: scaled "
            "data? Counts or log-normalised values are needed: choose another matrix with "
            "layer= / --layer ('raw', 'X' or a layer's name)."
        )
    return X


def _check_exact(values: np.ndarray, where: str) -> None:
    if values.size and values.max() > 2**24:
        raise ValuesError(
            f"{where} has values up to {values.max():.10g}; above {2**24} counts are not exact in single "
            "precision."
        )


def blocks_of_csc(matrix: Any, folder: Path) -> Generator[sp.csr_matrix]:
    """The rows of a CSC matrix on disk in blocks: its values are first dealt out over a file for each."""
    group, (num_rows, num_columns) = matrix.group, matrix.shape
    upto = np.asarray(group["indptr"][:], np.int64)
    firsts = range(0, int(upto[-1]), BLOCK)
    lengths = np.zeros(num_rows, np.int64)
    for first in firsts:
        lengths += np.bincount(group["indices"][first : first + BLOCK], minlength=num_rows)
    block = (np.cumsum(lengths) - lengths) // BLOCK  # of each row
    starts = np.searchsorted(block, np.arange(block[-1] + 2))
    kind = np.dtype([("row", np.int64), ("column", np.int32), ("value", matrix.dtype)])
    for first in firsts:
        rows = np.asarray(group["indices"][first : first + BLOCK], np.int64)
        order = np.argsort(block[rows], kind="stable")
        found = np.empty(len(rows), kind)
        found["row"] = rows[order]
        found["column"] = np.searchsorted(upto, first + order, side="right") - 1
        found["value"] = np.asarray(group["data"][first : first + BLOCK])[order]
        edges = np.searchsorted(block[found["row"]], np.arange(block[-1] + 2))
        for i, (a, b) in enumerate(itertools.pairwise(edges.tolist())):
            with (folder / str(i)).open("ab") as file:
                file.write(found[a:b].tobytes())
    for i, (a, b) in enumerate(itertools.pairwise(starts.tolist())):
        path = folder / str(i)
        found = np.fromfile(path, kind) if path.exists() else np.empty(0, kind)
        place = found["row"] - a, found["column"]
        if b > a:
            yield sp.csr_matrix((found["value"], place), (b - a, num_columns))


def column(frame: pd.DataFrame, key: str, what: str, name: str, frame_name="obs") -> pd.Series:
    """A column of obs or var."""
    if key not in frame.columns:
        raise ValueError(
            f"{name} has no {what} column {frame_name}[{key!r}]; it has: "
            f"{some(frame.columns, 20) or 'none'}."
        )
    return pd.Series(frame[key])


def some(names, most: int = 3) -> str:
    """The first few of many names, for a message."""
    names = list(map(str, names))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _of_adata(adata: anndata.AnnData, name: str, layer: str | None) -> Source:
    layers = [key for key in adata.layers.keys() if key is not None]  # noqa: SIM118
    where = _where(name, _layer(layer, layers), layers, adata.X is not None, adata.raw is not None)
    layer = _layer(layer, layers)
    if layer == "raw":
        return _nonempty(Source(name, adata.obs, adata.raw.var, adata.raw.X, where))
    matrix = adata.X if layer == "X" else adata.layers[layer]
    return _nonempty(Source(name, adata.obs, adata.var, matrix, where))


def _of_file(path: Path, name: str, layer: str | None, stack: contextlib.ExitStack) -> Source:
    if path.is_dir():
        group = zarr.open_group(str(path), mode="r")
    else:
        group = stack.enter_context(h5py.File(path, "r"))
    if not isinstance(group["obs"], h5py.Group | zarr.Group):  # written by an anndata of long ago
        adata = anndata.read_h5ad(path)
        return _of_adata(adata, name, layer)
    layers = list(group["layers"]) if "layers" in group else []
    where = _where(name, _layer(layer, layers), layers, "X" in group, "raw" in group)
    layer = _layer(layer, layers)
    place = {"X": "X", "raw": "raw/X"}.get(layer, f"layers/{layer}")
    var = read_elem(group["raw/var" if layer == "raw" else "var"])
    found = group[place]
    matrix = sparse_dataset(found) if isinstance(found, h5py.Group | zarr.Group) else found
    return _nonempty(Source(name, read_elem(group["obs"]), var, matrix, where))


def _layer(layer: str | None, layers: list[str]) -> str:
    return layer or ("counts" if "counts" in layers else "X")


def _where(name: str, layer: str, layers: list[str], has_x: bool, has_raw: bool) -> str:
    """What messages call the matrix; raises a ValuesError where there is none."""
    there = some(layers) or "none"
    if layer == "raw":
        if not has_raw:
            raise ValuesError(f"{name} has no raw, which layer='raw' asks for.")
        return f"{name}: raw"
    if layer == "X":
        if not has_x:
            raise ValuesError(f"{name} has no X; its layers are: {there}.")
        return f"{name}: X"
    if layer not in layers:
        raise ValuesError(f"{name} has no layer {layer!r}; it has: {there}.")
    return f"{name}: layer {layer!r}"


def _nonempty(source: Source) -> Source:
    num_cells, num_genes = source.matrix.shape
    if not num_cells or not num_genes:
        raise ValuesError(f"{source.where} is empty: {num_cells} cells x {num_genes} genes.")
    return source


def _is_backed(matrix: Any) -> bool:
    """Whether it is a sparse matrix on disk."""
    return hasattr(matrix, "to_memory")


def _num_values(matrix: Any) -> int:
    if _is_backed(matrix):
        return matrix.group["indices"].shape[0]
    return matrix.nnz if sp.issparse(matrix) else matrix.shape[0] * matrix.shape[1]
