"""Embeddings that files already have, in their `obsm`."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import read_elem
from jaxtyping import Float

from jaxmetric.cells.source import paths_in, some


def read_obsm(files: Sequence[Path], key: str) -> Float[np.ndarray, "cells d"]:
    """obsm[key] of every cell, in the order in which `read_cells` reads the cells of the files.

    Raises:
      ValueError: for a file that lacks it, or has it with another number of dimensions than the first.
    """
    paths = [path for file in files for path in paths_in(file)]
    parts = [_of_file(path, key) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.ndim != 2 or part.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"{path}: obsm[{key!r}] is of shape {part.shape}, but that of {paths[0]} of "
                f"{parts[0].shape}: all files must have it with the same number of dimensions."
            )
    return np.concatenate(parts)


def _of_file(path: Path, key: str) -> np.ndarray:
    try:
        if path.is_dir():
            return _read(zarr.open_group(str(path), mode="r"), path, key)
        with h5py.File(path, "r") as group:
            return _read(group, path, key)
    except OSError as error:
        raise ValueError(f"{path} is not a readable AnnData file: {error}") from error


def _read(group, path: Path, key: str) -> np.ndarray:
    there = list(group["obsm"]) if "obsm" in group else []
    if key not in there:
        raise ValueError(f"{path} has no obsm[{key!r}]; it has: {some(there, 20) or 'none'}.")
    found = read_elem(group["obsm"][key])
    if isinstance(found, pd.DataFrame):
        found = found.to_numpy()
    return np.asarray(found.toarray() if sp.issparse(found) else found, np.float32)
