"""Embeddings of a file of any size into its `obsm`, or a copy's; cut short, it goes on where it was."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import zarr

from jaxmetric.cells.source import opened, stamp
from jaxmetric.cells.store import require_zarr_3
from jaxmetric.files import write_json
from jaxmetric.model.directory import digest
from jaxmetric.model.forward import over_file
from jaxmetric.model.metric_learning import MetricLearning

KEY = "X_jaxmetric"
ROWS = 2**14  # cells copied at a time


def embed_file(
    model: MetricLearning,
    file: str | Path,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    **how: Any,
) -> Path:
    """Embeds every cell of a file into obsm["X_jaxmetric"], in memory that does not grow with the file.

    Args:
      model: the model.
      file: an h5ad file, a zarr folder or a training store.
      out: where to write a copy that has the embeddings: of an h5ad file an .h5ad, of a zarr folder
        a .zarr; an .h5ad of a zarr folder gets its `obs` and the embeddings alone. None: into the file
        itself, which is replaced only once the new one is whole.
      progress: show a progress bar, on a terminal.
      how: `layer`, `values`, `gene_key`, `min_gene_overlap`, as in `MetricLearning.embed`.

    Returns:
      Where the embeddings are.

    Raises:
      ValueError: for a file that cannot be read, or an `out` that exists.
    """
    file, target = places(file, out)
    if not file.is_dir() and target.suffix == ".zarr":
        raise ValueError(f"{file} is an h5ad file, so {target} must be one too: name it .h5ad.")
    if file.is_dir() and target.suffix != ".h5ad":
        require_zarr_3("writing to a zarr folder")
    with embedded(model, file, target, progress, how) as (z, work):
        if file.is_dir() and target.suffix == ".h5ad":
            with opened(file, str(file), how.get("layer")) as cells:
                alone = anndata.AnnData(obs=cells.obs, obsm={KEY: z.view(np.ndarray)})
            alone.write_h5ad(work / "new")
            (work / "new").replace(target)
        elif file.is_dir():
            _into_zarr(z, file, target, work)
        else:
            with changed_copy(file, target, work) as group:
                _into(group, z)
    return target


def places(file: str | Path, out: str | Path | None) -> tuple[Path, Path]:
    """What to read and what to write: the file itself, links followed, or an `out` that is not there.

    Raises:
      ValueError: when `out` exists, or its folder does not.
    """
    file = Path(file).resolve() if out is None else Path(file)
    target = file if out is None else Path(out)
    if out is not None and target.exists():
        raise ValueError(f"{target} exists: choose another file.")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"no such folder: {target.parent}, to write {target.name} in.")
    return file, target


@contextlib.contextmanager
def embedded(
    model: MetricLearning, file: Path, target: Path, progress: bool, how: dict
) -> Iterator[tuple[np.ndarray, Path]]:
    """The embeddings, on disk, and the folder they are in, which stays where the work is cut short."""
    work = target.absolute().parent / f".{target.name}.embedding"
    yield _embedded(model, file, work, progress, how), work
    shutil.rmtree(work)


@contextlib.contextmanager
def changed_copy(file: Path, target: Path, work: Path) -> Iterator[h5py.File]:
    """A copy of the h5ad file, to be changed, which then takes the target's place.

    Raises:
      ValueError: when the file was written to since it was embedded.
    """
    shutil.copy(file, work / "new")
    with h5py.File(work / "new", "r+") as group:
        yield group
    with (work / "new").open("rb+") as written:
        os.fsync(written.fileno())
    if stamp(file) != json.loads((work / "state.json").read_text())["what"][1]:
        raise ValueError(f"{file} was changed while it was embedded: give the command again.")
    (work / "new").replace(target)


def _embedded(
    model: MetricLearning, file: Path, work: Path, progress: bool, how: dict
) -> np.ndarray:
    """The embeddings, on disk: what an earlier call did of the same counts."""
    with opened(file, str(file), how.get("layer")) as cells:
        shape = len(cells), model.config.latent_dim
    work.mkdir(exist_ok=True)
    what = json.loads(json.dumps([digest(model.variables), stamp(file), list(shape), how]))
    state = work / "state.json"
    before = json.loads(state.read_text()) if state.exists() else {}
    done = before.get("done", 0) if before.get("what") == what else 0
    z = np.lib.format.open_memmap(work / "z.npy", "r+" if done else "w+", np.float32, shape)
    saved = done
    if done == len(z):
        return z
    networks = model.network, model.variables, model.genes
    for piece in over_file(*networks, file, start=done, progress=progress, **how):
        z[done : done + len(piece)] = piece
        done += len(piece)
        if done - saved >= ROWS or done == len(z):
            z.flush()
            write_json(state, {"what": what, "done": done})
            saved = done
    return z


def _into_zarr(z: np.ndarray, file: Path, target: Path, work: Path) -> None:
    """Adds the embeddings to the folder, or to a copy of it."""
    folder = file
    if target != file:
        folder = work / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(file, folder)
    group = zarr.open_group(str(folder), mode="r+")
    new = zarr.open_group(str(work / "new"), mode="w", zarr_format=group.metadata.zarr_format)
    _into(new, z)
    consolidated = _unconsolidate(folder)
    if "obsm" not in group:
        (work / "new" / "obsm").rename(folder / "obsm")
    else:
        place = folder / "obsm" / KEY
        shutil.rmtree(work / "old", ignore_errors=True)
        _swap(work / "new" / "obsm" / KEY, place, work / "old")
    if consolidated:
        with warnings.catch_warnings():  # of a folder that has consolidated metadata already
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(folder))
    if target != file:
        folder.rename(target)


def _swap(new: Path, place: Path, old: Path) -> None:
    if place.exists():
        place.rename(old)
    new.rename(place)


def _unconsolidate(folder: Path) -> bool:
    """Removes the folder's table of all its arrays, if it has one, which must never name one too many."""
    had = (folder / ".zmetadata").exists()
    (folder / ".zmetadata").unlink(missing_ok=True)
    if (folder / "zarr.json").exists():
        meta = json.loads((folder / "zarr.json").read_text())
        if meta.pop("consolidated_metadata", None) is not None:
            had = True
            write_json(folder / "zarr.json", meta)
    return had


def _into(group: h5py.Group | zarr.Group, z: np.ndarray) -> None:
    """Writes the embeddings to the group's `obsm`, some rows at a time."""
    if "obsm" not in group:
        group.create_group("obsm").attrs.update(
            {"encoding-type": "dict", "encoding-version": "0.1.0"}
        )
    obsm: Any = group["obsm"]
    if KEY in obsm:
        del obsm[KEY]
    create = obsm.create_dataset if isinstance(obsm, h5py.Group) else obsm.create_array
    chunks = min(ROWS, len(z)), z.shape[1]
    array = create(KEY, shape=z.shape, dtype=z.dtype, chunks=chunks)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for first in range(0, len(z), ROWS):
        array[first : first + ROWS] = z[first : first + ROWS]
