"""Writing a training store: its matrix piece by piece, then all that makes it an AnnData."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import zarr

from jaxmetric.cells.store import SHARD, create_values, digests

ROWS = 2**16  # cells of a chunk of what each cell has one of


class ValueWriter:
    """Appends rows to a store's matrix from a place on, whole files at a time where it can."""

    def __init__(self, store: Path, kind: np.dtype, start: int, length: int) -> None:
        self._arrays = (
            create_values(store, "indices", np.int32, length),
            create_values(store, "data", kind, length),
        )
        self._at, self._pieces, self._waiting = start, ([], []), 0
        self._digests = hashlib.sha256(), hashlib.sha256()

    def append(self, X: sp.csr_matrix) -> None:
        """Adds rows."""
        parts = X.indices.astype(np.int32), X.data.astype(self._arrays[1].dtype.numpy_dtype)
        for pieces, digest, x in zip(self._pieces, self._digests, parts, strict=True):
            digest.update(x)
            pieces.append(x)
        self._waiting += len(X.data)
        if self._waiting >= SHARD:
            self._write((self._at + self._waiting) // SHARD * SHARD - self._at)

    def finish(self) -> str:
        """Writes what is left; the digest of all that was added."""
        self._write(self._waiting)
        return " ".join(digest.hexdigest() for digest in self._digests)

    def _write(self, size: int) -> None:
        start, stop = self._at, self._at + size
        edges = [start, *range((start // SHARD + 1) * SHARD, stop, SHARD), stop]
        rest, writes = ([], []), []
        for array, pieces, left in zip(self._arrays, self._pieces, rest, strict=True):
            x = np.concatenate([*pieces, np.zeros(0, array.dtype.numpy_dtype)])
            for a, b in itertools.pairwise(edges if size else ()):
                writes.append(array[a:b].write(x[a - start : b - start]))
            left.append(x[size:])
        for write in writes:
            write.result()
        self._at, self._pieces, self._waiting = stop, rest, self._waiting - size


def write_frame(
    group: zarr.Group,
    name: str,
    index: Iterator[Sequence[str]],
    columns: dict[str, tuple[Iterator[np.ndarray], Sequence[str]]],
    length: int,
) -> None:
    """A data frame of categorical columns: codes and index come in pieces, end to end."""
    frame = group.create_group(name, overwrite=True)
    frame.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": "_index",
            "column-order": list(columns),
        }
    )
    _fill(_strings(frame, "_index", length), index)
    for key, (codes, categories) in columns.items():
        column = frame.create_group(key)
        column.attrs.update(
            {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        )
        _fill(_strings(column, "categories", len(categories)), iter([categories]))
        _fill(write_numbers(column, "codes", np.int32, length), codes)


def write_numbers(group: zarr.Group, name: str, kind: type, length: int) -> zarr.Array:
    """A new array of numbers, to be filled."""
    array = _array(group, name, kind, length)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def write_anndata(group: zarr.Group, num_cells: int, genes: Sequence[str], about: dict) -> None:
    """What makes the store an AnnData, beside X's arrays and obs."""
    group.attrs.update(
        {"encoding-type": "anndata", "encoding-version": "0.1.0", "jaxmetric": about}
    )
    group["X"].attrs.update(
        {
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": [num_cells, len(genes)],
        }
    )
    write_frame(group, "var", iter([genes]), {}, len(genes))
    for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        empty = group.create_group(name, overwrite=True)
        empty.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})


def write_checksums(group: zarr.Group, store: Path) -> None:
    """The SHA-256 of each file but those of X's values, whose chunks carry checksums themselves."""
    group.attrs["jaxmetric"] = group.attrs["jaxmetric"] | {"checksums": digests(store)}


def _array(group: zarr.Group, name: str, kind: type, length: int) -> zarr.Array:
    chunks = (min(ROWS, max(length, 1)),)
    return group.create_array(name, shape=(length,), chunks=chunks, dtype=kind, overwrite=True)


def _strings(group: zarr.Group, name: str, length: int) -> zarr.Array:
    array = _array(group, name, str, length)
    array.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    return array


def _fill(array: zarr.Array, pieces: Iterator[Sequence | np.ndarray]) -> None:
    at = 0
    for piece in pieces:
        kind = object if array.dtype.kind in "OTU" else array.dtype
        array[at : at + len(piece)] = np.asarray(piece, kind)
        at += len(piece)
