"""Annotations of the cells of a file of any size into its `obs`, or a copy's."""

from pathlib import Path
from typing import Any

import anndata
import h5py
import pandas as pd
from anndata.io import write_elem

from jaxmetric.cells.cells import Cells
from jaxmetric.cells.source import opened
from jaxmetric.model.annotate import annotate
from jaxmetric.model.embed_file import changed_copy, embedded, places
from jaxmetric.model.metric_learning import MetricLearning


def annotate_file(
    model: MetricLearning,
    file: str | Path,
    reference: Cells,
    out: str | Path | None = None,
    *,
    k: int = 15,
    all_labels: bool = False,
    quantile: float = 0.95,
    progress: bool = True,
    **how: Any,
) -> Path:
    """Annotates every cell of a file as `MetricLearning.annotate` does, X read some cells at a time.

    Args:
      model: the model.
      file: an h5ad file; with an `out`, also a zarr folder or a training store.
      reference: labelled cells, best of several studies, from `read_cells`.
      out: the .h5ad to write: a copy that has the annotations; of a zarr folder its `obs` alone. None:
        into the file itself, which is replaced only once the new one is whole.
      k: neighbours that vote.
      all_labels: use reference cells of every label, not only of those that the model was trained on.
      quantile: quantile of the distances between studies that is the threshold, as in
        `MetricLearning.annotate`.
      progress: show progress bars, on a terminal.
      how: `layer`, `values`, `gene_key`, `min_gene_overlap`, as in `MetricLearning.embed`.

    Returns:
      Where the annotations are.

    Raises:
      ValueError: for a file that cannot be read, an `out` that exists, or a zarr folder to be changed.
    """
    file, target = places(file, out)
    if target.suffix == ".zarr" or target.is_dir():
        raise ValueError(
            f"annotations are written to h5ad files only, not to {target}: name an .h5ad with out= / "
            "--out; of a zarr folder it gets obs alone."
        )
    embedded_reference = model.embedded_reference(
        reference, all_labels, k=k, quantile=quantile, progress=progress
    )
    with embedded(model, file, target, progress, how) as (z, work):
        columns = annotate(z, embedded_reference, k=k)
        if file.is_dir():
            with opened(file, str(file), how.get("layer")) as cells:
                obs = cells.obs.assign(**columns.set_axis(cells.obs.index))
            anndata.AnnData(obs=obs).write_h5ad(work / "new")
            (work / "new").replace(target)
        else:
            with changed_copy(file, target, work) as group:
                _into_obs(group, columns)
    return target


def _into_obs(file: h5py.File, columns: pd.DataFrame) -> None:
    """Adds the columns to `obs`, or replaces those of the same names."""
    obs = file["obs"]
    if not isinstance(obs, h5py.Group):
        raise ValueError(
            "obs was written by an anndata of long ago: read the file with anndata.read_h5ad and write "
            "it again first."
        )
    for name, column in columns.items():
        write_elem(obs, name, column.array if column.dtype == "category" else column.to_numpy())
    order: Any = obs.attrs["column-order"]
    obs.attrs["column-order"] = [*(name for name in order if name not in columns), *columns]
